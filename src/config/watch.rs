//! Notices that the configuration's files have changed.
//!
//! What decides is a fingerprint of the watched files; inotify only wakes the watcher up. So a busy log file in the same
//! folder causes no reload, the swap of a Kubernetes volume's symlink causes one, and where the kernel reports nothing
//! (network file systems, no watches left) looking at the files now and then still finds the change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::document;

/// An editor's or a deployment's writes are one change when no more than this lies between them.
const QUIET: Duration = Duration::from_millis(100);
/// Under constant change in a folder, the files are looked at no later than this.
const MOST_WAIT: Duration = Duration::from_secs(1);
/// How often the files are looked at when the kernel reports changes, and when it does not.
const POLL_BESIDE_EVENTS: Duration = Duration::from_secs(30);
const POLL_ALONE: Duration = Duration::from_secs(2);

/// A running watch; it ends when dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// The kernel reported something.
    woken: bool,
    stopped: bool,
    /// Files to watch instead of the referenced ones so far.
    files: Option<Vec<PathBuf>>,
}

impl Watch {
    /// Watches a configuration file or directory, and calls `on_change` on a thread of the watch whenever it, or a file
    /// given to [`Watch::follow`], is different. What changes before this returns is not reported: start watching, then
    /// load. Fails only if the thread cannot be started.
    pub fn start(config: &Path, on_change: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        Self::start_with(config, true, on_change)
    }

    /// `events: false` does without the kernel's reports, as on a machine that has none.
    fn start_with(config: &Path, events: bool, on_change: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut watcher = Loop::new(config.to_owned(), events, shared.clone());
        let thread = std::thread::Builder::new().name("config-watch".into()).spawn(move || watcher.run(on_change))?;
        Ok(Watch { shared, thread: Some(thread) })
    }

    /// Says which files the configuration refers to (certificates, keys, secrets); they replace those said before. To be
    /// called after each successful load.
    pub fn follow(&self, files: Vec<PathBuf>) {
        self.shared.lock().files = Some(files);
        self.shared.wake.notify_one();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.wake.notify_one();
        // `on_change` may itself drop the watch; a thread cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, event: &notify::Result<Event>) {
        if event.as_ref().is_ok_and(|event| is_reading(event.kind)) {
            return;
        }
        self.lock().woken = true;
        self.wake.notify_one();
    }
}

/// Our own looking at the files is reported too, and must not wake us again.
fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// The state of the watching thread.
struct Loop {
    config: PathBuf,
    files: Vec<PathBuf>,
    seen: Fingerprint,
    shared: Arc<Shared>,
    /// `None` where the kernel reports nothing.
    events: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    complete: bool,
}

impl Loop {
    fn new(config: PathBuf, events: bool, shared: Arc<Shared>) -> Self {
        let reporter = shared.clone();
        let events = if events {
            notify::recommended_watcher(move |event| reporter.report(&event))
                .inspect_err(|error| log::warn!("config: no change events ({error}); looking every {POLL_ALONE:?}"))
                .ok()
        } else {
            None
        };
        let mut watch = Loop {
            config,
            files: Vec::new(),
            seen: Fingerprint::new(),
            shared,
            events,
            folders: BTreeSet::new(),
            complete: false,
        };
        watch.watch_folders();
        watch.seen = watch.fingerprint();
        watch
    }

    fn run(&mut self, mut on_change: impl FnMut()) {
        while let Some(files) = self.wait() {
            if let Some(files) = files {
                self.files = files;
                self.watch_folders();
                // Files that are referred to for the first time count as seen; all others keep their fingerprint, so that
                // no change is lost: neither a file that has appeared in the configuration's folder meanwhile, nor one
                // that has gone from where we still look.
                let mut now = self.fingerprint();
                now.retain(|path, _| self.seen.contains_key(path) || !path.starts_with(&self.config));
                for (path, mark) in std::mem::take(&mut self.seen) {
                    if self.watched().any(|watched| path.starts_with(watched)) {
                        now.insert(path, mark);
                    }
                }
                self.seen = now;
            }
            let now = self.fingerprint();
            if now != self.seen {
                self.seen = now;
                // Symlinks may lead elsewhere now.
                self.watch_folders();
                on_change();
            }
        }
    }

    /// Waits until the files should be looked at; `None` at the end, `Some(Some(_))` with other files to follow.
    fn wait(&self) -> Option<Option<Vec<PathBuf>>> {
        let poll = if self.events.is_some() && self.complete { POLL_BESIDE_EVENTS } else { POLL_ALONE };
        let idle = |state: &mut State| !state.woken && !state.stopped && state.files.is_none();
        let guard = self.shared.wake.wait_timeout_while(self.shared.lock(), poll, idle);
        let (mut state, _) = guard.unwrap_or_else(PoisonError::into_inner);

        let latest = Instant::now() + MOST_WAIT;
        while state.woken && !state.stopped {
            state.woken = false;
            let pause = QUIET.min(latest.saturating_duration_since(Instant::now()));
            let guard = self.shared.wake.wait_timeout_while(state, pause, |state| !state.woken && !state.stopped);
            (state, _) = guard.unwrap_or_else(PoisonError::into_inner);
            if Instant::now() >= latest {
                state.woken = false;
            }
        }
        if state.stopped { None } else { Some(state.files.take()) }
    }

    fn watched(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.config).chain(&self.files)
    }

    /// Watches the folders of the files, not the files: an atomic replacement puts a new file in the place of the old.
    fn watch_folders(&mut self) {
        let wanted: BTreeSet<PathBuf> = self.watched().flat_map(|path| folders_of(path)).collect();
        let Some(events) = &mut self.events else { return };
        for folder in self.folders.difference(&wanted) {
            // It fails if the folder is gone, and then there is nothing left to do.
            let _ = events.unwatch(folder);
        }
        self.complete = true;
        let mut folders = BTreeSet::new();
        for folder in wanted {
            // Watched again even if it was: a folder of that name may be another one by now.
            match events.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(folders.insert(folder)),
                Err(error) => {
                    self.complete = false;
                    log::debug!("config: no change events for {}: {error}", folder.display());
                }
            }
        }
        self.folders = folders;
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = Fingerprint::new();
        for path in self.watched() {
            // A directory of configuration is its YAML files; one that cannot be listed counts as absent.
            let files = document::files_of(path).unwrap_or_else(|_| vec![path.clone()]);
            fingerprint.extend(files.into_iter().map(|file| {
                let mark = mark(&file);
                (file, mark)
            }));
        }
        fingerprint
    }
}

/// What tells one state of each watched file from another; `None` for one that is not there.
type Fingerprint = BTreeMap<PathBuf, Option<Mark>>;

/// Device, inode, size, and the times of the last change of content and of the inode, in nanoseconds.
type Mark = (u64, u64, u64, i64, i64, i64, i64);

fn mark(file: &Path) -> Option<Mark> {
    let data = fs::metadata(file).ok()?;
    Some((data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()))
}

/// The folders in which a change may give `path` another content: its own, those of the symlinks on the way, and the one
/// it really lies in.
fn folders_of(path: &Path) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    };
    let mut folders = BTreeSet::from([parent(path)]);
    folders.extend(path.ancestors().filter(|ancestor| ancestor.is_symlink()).map(parent));
    if let Ok(real) = path.canonicalize() {
        folders.insert(parent(&real));
    }
    if path.is_dir() {
        folders.insert(path.to_owned());
    }
    folders
}

#[cfg(test)]
mod tests;
