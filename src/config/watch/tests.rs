use std::os::unix::fs::symlink;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::config::document::tests::Folder;

/// Longer than the slowest way of noticing, with room for a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Long enough to see that nothing comes.
const WHILE: Duration = Duration::from_millis(1500);

fn watch(path: &Path, events: bool) -> (Watch, Receiver<()>) {
    let (sender, changes) = channel();
    let on_change = move || {
        let _ = sender.send(());
    };
    let watch = Watch::start_with(path, events, on_change).unwrap();
    (watch, changes)
}

#[test]
fn a_rewritten_file_is_noticed_once() {
    let folder = Folder::new("watch-rewrite");
    let file = folder.write("a.yaml", "a: 1");
    let (_watch, changes) = watch(&file, true);
    for i in 0..5 {
        folder.write("a.yaml", format!("a: {i}{i}"));
    }
    changes.recv_timeout(SOON).expect("the change is noticed");
    assert!(changes.recv_timeout(WHILE).is_err(), "writes close together are one change");
}

#[test]
fn an_atomic_replacement_is_noticed_again_and_again() {
    let folder = Folder::new("watch-rename");
    let file = folder.write("a.yaml", "a: 0");
    let (_watch, changes) = watch(&file, true);
    for i in 1..4 {
        let new = folder.write(".a.yaml.new", format!("a: {i}"));
        fs::rename(new, &file).unwrap();
        changes.recv_timeout(SOON).unwrap_or_else(|_| panic!("replacement {i} is noticed"));
    }
}

#[test]
fn the_swap_of_a_kubernetes_volume_is_noticed() {
    let folder = Folder::new("watch-k8s");
    for (version, text) in [("..v1", "a: 1"), ("..v2", "a: 2"), ("..v3", "a: 3")] {
        fs::create_dir(folder.0.join(version)).unwrap();
        folder.write(&format!("{version}/a.yaml"), text);
    }
    let file = folder.0.join("a.yaml");
    symlink("..v1", folder.0.join("..data")).unwrap();
    symlink("..data/a.yaml", &file).unwrap();
    let (_watch, changes) = watch(&file, true);
    for version in ["..v2", "..v3"] {
        symlink(version, folder.0.join("..tmp")).unwrap();
        fs::rename(folder.0.join("..tmp"), folder.0.join("..data")).unwrap();
        changes.recv_timeout(SOON).unwrap_or_else(|_| panic!("the swap to {version} is noticed"));
    }
}

#[test]
fn files_of_a_directory_come_change_and_go() {
    let folder = Folder::new("watch-folder");
    folder.write("a.yaml", "a: 1");
    let (_watch, changes) = watch(&folder.0, true);
    let file = folder.write("b.yaml", "b: 1");
    changes.recv_timeout(SOON).expect("a new file is noticed");
    fs::remove_file(file).unwrap();
    changes.recv_timeout(SOON).expect("a removed file is noticed");
    folder.write("access.log", "not a configuration");
    assert!(changes.recv_timeout(WHILE).is_err(), "other files in the folder are no change");
}

#[test]
fn referenced_files_are_followed_wherever_they_are() {
    let folder = Folder::new("watch-main");
    let elsewhere = Folder::new("watch-certificates");
    let file = folder.write("a.yaml", "a: 1");
    let certificate = elsewhere.write("cert.pem", "one");
    let (watch, changes) = watch(&file, true);
    watch.follow(vec![certificate.clone()]);
    assert!(changes.recv_timeout(WHILE).is_err(), "following a file is no change");
    fs::write(&certificate, "two").unwrap();
    changes.recv_timeout(SOON).expect("a new certificate is noticed");
}

#[test]
fn without_events_from_the_kernel_changes_are_noticed_by_looking() {
    let folder = Folder::new("watch-poll");
    let file = folder.write("a.yaml", "a: 1");
    let (watch, changes) = watch(&file, false);
    folder.write("a.yaml", "a: 22");
    changes.recv_timeout(SOON).expect("the change is noticed");
    drop(watch);
    folder.write("a.yaml", "a: 333");
    assert!(changes.recv_timeout(SOON).is_err(), "a dropped watch is silent");
}
