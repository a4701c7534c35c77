//! Replacing the running process by another binary without losing a request.
//!
//! The successor starts with `run -u`, and only once its configuration has compiled does it wait on the upgrade socket
//! and signal its predecessor. The predecessor hands its listening sockets over and drains. A successor that fails
//! before that leaves the predecessor untouched.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::Config;

/// How long a successor may take from its start until it serves.
const TAKEOVER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Where processes that follow each other meet.
#[derive(Debug, Clone)]
pub struct Meeting {
    pub pid_file: PathBuf,
    pub socket: PathBuf,
    /// The folder of both, if it goes with the process.
    own_folder: Option<PathBuf>,
}

impl Meeting {
    /// Takes the paths from `server.upgrade`, and makes sure that nobody else can take the sockets: Pingora creates its
    /// upgrade socket open to everybody, so the folder around it must be ours alone.
    pub fn prepare(config: &Config, own_folder: Option<PathBuf>) -> Result<Meeting, String> {
        let upgrade = &config.server.upgrade;
        let meeting = Meeting { pid_file: upgrade.pid_file(), socket: upgrade.socket(), own_folder };
        for file in [&meeting.pid_file, &meeting.socket] {
            let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            private_folder(folder)?;
        }
        Ok(meeting)
    }

    /// The process that serves now, if it lives.
    pub fn running(&self) -> Option<i32> {
        let pid = fs::read_to_string(&self.pid_file).ok()?.trim().parse::<i32>().ok()?;
        // SAFETY: signal 0 only asks whether the process exists.
        (pid > 1 && unsafe { libc::kill(pid, 0) } == 0).then_some(pid)
    }

    /// Names this process as the one that serves.
    pub fn announce(&self) -> io::Result<()> {
        let draft = self.pid_file.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&draft, format!("{}\n", std::process::id()))?;
        fs::rename(&draft, &self.pid_file)
    }

    /// Takes the announcement back, unless a successor has replaced it.
    pub fn withdraw(&self) {
        let ours = fs::read_to_string(&self.pid_file).is_ok_and(|pid| pid.trim() == std::process::id().to_string());
        if ours && let Err(error) = fs::remove_file(&self.pid_file) {
            log::warn!("cannot remove {}: {error}", self.pid_file.display());
        }
        if let Some(folder) = &self.own_folder {
            // Nothing else is in it, or it is no business of ours.
            let _ = fs::remove_dir(folder);
        }
    }

    /// Whether a successor of our own user waits for the sockets. A SIGQUIT without one must not stop the service.
    pub fn successor_waits(&self) -> bool {
        let Ok(meta) = fs::symlink_metadata(&self.socket) else { return false };
        // SAFETY: geteuid has no preconditions and cannot fail.
        let ours = meta.uid() == unsafe { libc::geteuid() };
        meta.file_type().is_socket() && ours && listens(&self.socket)
    }

    /// Asks the running process for its sockets once this one waits for them. Runs beside Pingora's bootstrap, which
    /// does the waiting.
    pub fn ask_predecessor(&self) -> Result<(), String> {
        let pid = self.running().ok_or_else(|| {
            format!("no running process to take over from: {} names none; start without -u", self.pid_file.display())
        })?;
        let meeting = self.clone();
        std::thread::spawn(move || {
            let deadline = Instant::now() + TAKEOVER;
            while !meeting.successor_waits() {
                if Instant::now() > deadline {
                    return;
                }
                std::thread::sleep(POLL);
            }
            // SAFETY: sends a signal; the process was alive a moment ago, and if it is gone the call fails harmlessly.
            unsafe { libc::kill(pid, libc::SIGQUIT) };
        });
        Ok(())
    }
}

/// Whether some process listens on this Unix socket. Connecting would be taken for the handover itself.
fn listens(socket: &Path) -> bool {
    const ACCEPTS_CONNECTIONS: &str = "00010000";
    let Ok(table) = fs::read_to_string("/proc/net/unix") else { return false };
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let flags = fields.nth(3);
        let path = fields.nth(3);
        flags == Some(ACCEPTS_CONNECTIONS) && path.is_some_and(|path| Path::new(path) == socket)
    })
}

fn private_folder(folder: &Path) -> Result<(), String> {
    if !folder.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            format!(
                "cannot create {} for the upgrade socket: {error}; choose another in server.upgrade",
                folder.display()
            )
        })?;
    }
    let meta = fs::metadata(folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    // SAFETY: geteuid has no preconditions and cannot fail.
    let ours = meta.uid() == unsafe { libc::geteuid() };
    if !ours || meta.mode() & 0o077 != 0 {
        return Err(format!(
            "{} must belong to the user headgate runs as, with mode 0700: whoever can open the upgrade socket in it \
             could take the listening sockets",
            folder.display()
        ));
    }
    Ok(())
}

/// `headgate upgrade`: starts this binary as the successor of the running process and waits until it serves.
pub fn replace_running(path: &Path) -> Result<(), String> {
    let meeting = Meeting::prepare(&super::load(path)?.config, None)?;
    let old = meeting.running().ok_or_else(|| {
        format!("nothing to upgrade: {} names no running process; use `headgate run`", meeting.pid_file.display())
    })?;
    let binary = std::env::current_exe().map_err(|error| format!("cannot find this binary: {error}"))?;
    let mut command = Command::new(&binary);
    command.arg("run").arg("-u").arg("-c").arg(path).stdin(Stdio::null());
    // A session of its own: the successor outlives this command and the terminal it was typed in.
    // SAFETY: setsid is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let mut successor = command.spawn().map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
    let pid = successor.id() as i32;
    let deadline = Instant::now() + TAKEOVER;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = successor.try_wait() {
            return Err(format!("the new process ended ({status}); process {old} keeps serving"));
        }
        if meeting.running() == Some(pid) {
            println!("process {pid} serves now; process {old} finishes what it has begun and exits");
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    let _ = successor.kill();
    Err(format!(
        "the new process did not serve within {}s and was stopped; process {old} keeps serving",
        TAKEOVER.as_secs()
    ))
}
