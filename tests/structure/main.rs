//! Dependencies between the folders of `src` point one way. This reads the sources and holds them to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the library, and what it may use beside itself. What it does not name here, it may not use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("config", &["error"]),
    ("routing", &["error", "config"]),
    ("identity", &["error", "config"]),
    ("limits", &["error", "config"]),
    ("ai", &["error", "config", "limits", "identity", "telemetry"]),
    ("authority", &["error", "config"]),
    ("upstream", &["error", "config"]),
    ("listener", &["error", "config", "identity"]),
    // A template is compiled from text and rendered from an exchange; a log line is rendered from templates.
    ("variables", &["error", "config", "telemetry"]),
    ("telemetry", &["error", "config", "routing", "identity", "variables"]),
    (
        "filters",
        &["error", "config", "routing", "identity", "authority", "limits", "upstream", "telemetry", "variables"],
    ),
    (
        "snapshot",
        &["error", "config", "routing", "identity", "limits", "ai", "upstream", "telemetry", "variables", "filters"],
    ),
    (
        "proxy",
        &["error", "config", "ai", "routing", "upstream", "listener", "telemetry", "variables", "filters", "snapshot"],
    ),
    ("control", &["error", "config", "snapshot", "telemetry"]),
    ("demo_origin", &[]),
];

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// The modules of this crate that a source names, in code and in tests alike.
fn used(source: &str) -> BTreeSet<String> {
    let words = source.split("crate::").skip(1);
    words
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn dependencies_between_folders_point_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: BTreeSet<_> = MAY_USE.iter().map(|(module, _)| *module).collect();
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_USE {
        let mut files = Vec::new();
        for path in [src.join(module), src.join(format!("{module}.rs"))] {
            if path.exists() {
                sources(&path, &mut files);
            }
        }
        assert!(!files.is_empty(), "the module `{module}` is gone: take it off the list");
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            for name in used(&source) {
                if known.contains(name.as_str()) && name != *module && !allowed.contains(&name.as_str()) {
                    wrong.push(format!("{} uses `{name}`", file.strip_prefix(&src).unwrap().display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction of dependencies:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_is_on_the_list_of_directions() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let above_all = ["app", "cli"];
    for line in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        let module = line.trim_end_matches(';');
        let listed = MAY_USE.iter().any(|(name, _)| *name == module) || above_all.contains(&module);
        assert!(listed, "say in tests/structure what the module `{module}` may use");
    }
}
