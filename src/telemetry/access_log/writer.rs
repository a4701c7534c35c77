//! Brings lines to their destination on a thread of its own, in bounded memory.
//!
//! Each worker thread appends to a buffer of its own, whose lock only the writer's thread ever takes beside it, for as
//! long as it takes to exchange two pointers. When a buffer is full the line is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use crate::config::telemetry::Destination;
use crate::telemetry::shard;

/// How long a line waits at most when there are few.
const INTERVAL: Duration = Duration::from_millis(100);
/// The writer is woken early when a buffer has grown by this much.
const WAKE_AT: usize = 256 << 10;
/// How long a closing writer may take for what is left; a destination that takes nothing must not hold up an exit.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How often a destination that fails is written about in the process log.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// A destination and the thread that writes to it. Dropped, it still writes what is left, but nobody waits for it: the
/// last owner may be a request.
pub struct Writer {
    to: Destination,
    buffer: u64,
    shared: Arc<Shared>,
    thread: Thread,
    finished: Mutex<mpsc::Receiver<()>>,
}

struct Shared {
    /// One per shard of threads; each is only appended to by its own.
    buffers: Box<[Buffer]>,
    /// Bytes that one buffer may hold.
    limit: usize,
    wake_at: usize,
    dropped: IntCounter,
    reopen: AtomicBool,
    closing: AtomicBool,
}

#[derive(Default)]
#[repr(align(128))]
struct Buffer(Mutex<String>);

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, String> {
        // A panic while rendering leaves a torn line at worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Opens the destination and starts its thread; `None` for `off`. `buffer` bounds the bytes not yet written, `dropped`
    /// counts the lines that were given up.
    pub fn start(to: &Destination, buffer: u64, dropped: IntCounter) -> io::Result<Option<Writer>> {
        let output = match to {
            Destination::Off => return Ok(None),
            Destination::Stdout => Output::stream(io::stdout().as_fd())?,
            Destination::Stderr => Output::stream(io::stderr().as_fd())?,
            Destination::File(path) => Output::file(path)?,
        };
        Self::start_with(output, to.clone(), buffer, shard::default_count(), dropped).map(Some)
    }

    fn start_with(
        output: Output,
        to: Destination,
        buffer: u64,
        shards: usize,
        dropped: IntCounter,
    ) -> io::Result<Writer> {
        // Beside the buffers there is the one being written; and a growing String takes up to twice what it holds.
        let limit = (buffer as usize / (shards + 1) / 2).max(1);
        let shared = Arc::new(Shared {
            buffers: (0..shards).map(|_| Buffer::default()).collect(),
            limit,
            wake_at: WAKE_AT.min(limit / 2),
            dropped,
            reopen: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        });
        let (done, finished) = mpsc::channel();
        let mut worker = Worker { shared: shared.clone(), output, spare: String::new(), trouble: None };
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            worker.run();
            // The other side is gone if nobody waits.
            let _ = done.send(());
        })?;
        Ok(Writer { to, buffer, shared, thread: thread.thread().clone(), finished: Mutex::new(finished) })
    }

    /// Whether this writer does what a new one for these settings would do.
    pub fn serves(&self, to: &Destination, buffer: u64) -> bool {
        self.to == *to && self.buffer == buffer
    }

    /// Appends a line that `render` writes with its end, or counts it as dropped. Never waits for the destination.
    pub fn append(&self, render: impl FnOnce(&mut String)) {
        let shared = &*self.shared;
        let mut buffer = shared.buffers[shard::thread_index() % shared.buffers.len()].lock();
        let before = buffer.len();
        if before >= shared.limit {
            drop(buffer);
            shared.dropped.inc();
            return;
        }
        render(&mut buffer);
        if buffer.len() > shared.limit {
            buffer.truncate(before);
            shared.dropped.inc();
        }
        let after = buffer.len();
        drop(buffer);
        if before < shared.wake_at && after >= shared.wake_at {
            self.thread.unpark();
        }
    }

    /// Opens the file again before the next line, for a log rotation. It is also done unasked when the file at the path is
    /// another one than was opened.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }

    /// Writes what is left and ends, or gives up after two seconds.
    pub fn close(&self) {
        self.finish_up();
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        // An error that says the thread has ended is as good.
        let _ = finished.recv_timeout(CLOSE_WITHIN);
    }

    fn finish_up(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish_up();
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("to", &self.to).finish_non_exhaustive()
    }
}

/// What the thread works with.
struct Worker {
    shared: Arc<Shared>,
    output: Output,
    /// Exchanged for each full buffer.
    spare: String,
    trouble: Option<Trouble>,
}

/// A destination that fails: since its last report.
struct Trouble {
    reported: Instant,
    lost: u64,
}

impl Worker {
    fn run(&mut self) {
        loop {
            // Read before the buffers: lines appended before the close are then among them.
            let closing = self.shared.closing.load(Ordering::Acquire);
            self.flush();
            if closing {
                return;
            }
            thread::park_timeout(INTERVAL);
        }
    }

    fn flush(&mut self) {
        let asked = self.shared.reopen.swap(false, Ordering::Relaxed);
        let mut checked = asked;
        if asked {
            self.reopen(true);
        }
        let shared = self.shared.clone();
        for buffer in &shared.buffers {
            {
                let mut lines = buffer.lock();
                if lines.is_empty() {
                    continue;
                }
                std::mem::swap(&mut *lines, &mut self.spare);
            }
            if !checked {
                self.reopen(false);
                checked = true;
            }
            self.write();
            self.spare.clear();
            // What a burst needed is given back.
            self.spare.shrink_to(2 * WAKE_AT);
        }
    }

    fn reopen(&mut self, asked: bool) {
        if let Err(error) = self.output.reopen(asked) {
            self.report(0, &error);
        }
    }

    fn write(&mut self) {
        let lines = self.spare.as_bytes();
        match self.output.write_all(lines, &self.shared.closing) {
            Ok(()) => {
                if let Some(trouble) = self.trouble.take() {
                    log::warn!(
                        "the access log is being written again; lines lost since the last report: {}",
                        trouble.lost
                    );
                }
            }
            Err((written, error)) => {
                let lost = memchr::memchr_iter(b'\n', &lines[written..]).count() as u64;
                self.shared.dropped.inc_by(lost);
                self.report(lost, &error);
            }
        }
    }

    fn report(&mut self, lost: u64, error: &io::Error) {
        let now = Instant::now();
        match &mut self.trouble {
            Some(trouble) if now - trouble.reported < REPORT_EVERY => trouble.lost += lost,
            trouble => {
                let lost = lost + trouble.as_ref().map_or(0, |trouble| trouble.lost);
                log::error!("cannot write the access log: {error}; lines lost: {lost}");
                *trouble = Some(Trouble { reported: now, lost: 0 });
            }
        }
    }
}

struct Output {
    file: File,
    /// Of a file: its path and what it was when it was opened.
    path: Option<(PathBuf, Identity)>,
    /// The last write ended inside a line.
    torn: bool,
}

/// Device and inode.
type Identity = (u64, u64);

impl Output {
    fn stream(fd: impl AsFd) -> io::Result<Output> {
        // A descriptor of our own, past the line buffering of the standard library.
        Ok(Output { file: File::from(fd.as_fd().try_clone_to_owned()?), path: None, torn: false })
    }

    fn file(path: &Path) -> io::Result<Output> {
        let (file, identity) = open(path)?;
        Ok(Output { file, path: Some((path.to_owned(), identity)), torn: false })
    }

    /// Opens the path again if asked to or if another file is there now. The old one is kept if that fails.
    fn reopen(&mut self, asked: bool) -> io::Result<()> {
        let Some((path, identity)) = &mut self.path else { return Ok(()) };
        let there = std::fs::metadata(&*path).ok().map(|meta| (meta.dev(), meta.ino()));
        if asked || there != Some(*identity) {
            (self.file, *identity) = open(path)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Writes all, or says how far it came. A pipe that is not ready is waited for, unless we are closing.
    fn write_all(&mut self, bytes: &[u8], closing: &AtomicBool) -> Result<(), (usize, io::Error)> {
        if self.torn {
            // So that one line is lost, and not the next one with it.
            match self.file.write(b"\n") {
                Ok(1) => self.torn = false,
                Ok(_) => return Err((0, ErrorKind::WriteZero.into())),
                Err(error) => return Err((0, error)),
            }
        }
        let mut written = 0;
        while written < bytes.len() {
            let error = match self.file.write(&bytes[written..]) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(n) => {
                    written += n;
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                // Standard output may be shared with a process that has made it non-blocking.
                ErrorKind::WouldBlock if !closing.load(Ordering::Relaxed) => thread::sleep(Duration::from_millis(5)),
                _ => {
                    self.torn = written > 0 && bytes[written - 1] != b'\n';
                    return Err((written, error));
                }
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, Identity)> {
    // Not readable by all: the log names people's addresses.
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    let meta = file.metadata()?;
    Ok((file, (meta.dev(), meta.ino())))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "test").unwrap()
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "waited in vain: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn file_writer(path: &Path, dropped: IntCounter) -> Writer {
        Writer::start(&Destination::File(path.to_owned()), 1 << 20, dropped).unwrap().unwrap()
    }

    /// A directory that is removed at the end of a test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("headgate-log-{}-{}", std::process::id(), fastrand::u64(..)));
            std::fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn lines_of_all_threads_arrive_whole_and_once() {
        let scratch = Scratch::new();
        let path = scratch.0.join("access.log");
        let dropped = counter();
        let writer = file_writer(&path, dropped.clone());
        thread::scope(|scope| {
            for t in 0..8 {
                let writer = &writer;
                scope.spawn(move || (0..200).for_each(|i| writer.append(|out| out.push_str(&format!("{t}-{i}\n")))));
            }
        });
        writer.close();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!((lines.len(), dropped.get()), (1600, 0));
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let output = Output { file: File::from(std::os::fd::OwnedFd::from(ours)), path: None, torn: false };
        let dropped = counter();
        let writer = Writer::start_with(output, Destination::Stdout, 1 << 20, 2, dropped.clone()).unwrap();
        let line = format!("{}\n", "x".repeat(999));
        let start = Instant::now();
        let total = 20_000;
        (0..total).for_each(|_| writer.append(|out| out.push_str(&line)));
        assert!(start.elapsed() < Duration::from_secs(5), "appending must not wait for the reader");
        assert!(dropped.get() > total / 2, "20 MB do not fit into 1 MiB and a socket: {} dropped", dropped.get());

        let reader = thread::spawn(move || BufReader::new(theirs).lines().map_while(Result::ok).count() as u64);
        writer.close();
        drop(writer);
        assert_eq!(reader.join().unwrap() + dropped.get(), total, "each line is written or counted");
    }

    #[test]
    fn a_renamed_file_is_left_for_a_new_one() {
        let scratch = Scratch::new();
        let (path, old) = (scratch.0.join("access.log"), scratch.0.join("access.log.1"));
        let writer = file_writer(&path, counter());
        writer.append(|out| out.push_str("first\n"));
        wait_until("first line", || std::fs::read_to_string(&path).unwrap() == "first\n");
        std::fs::rename(&path, &old).unwrap();
        writer.append(|out| out.push_str("second\n"));
        wait_until("second line", || std::fs::read_to_string(&path).is_ok_and(|text| text == "second\n"));
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "first\n");

        std::fs::rename(&path, &old).unwrap();
        writer.reopen();
        wait_until("new file on request", || path.exists());
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_got_over() {
        let scratch = Scratch::new();
        let path = scratch.0.join("access.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let dropped = counter();
        let writer = file_writer(&path, dropped.clone());
        (0..3).for_each(|_| writer.append(|out| out.push_str("lost\n")));
        wait_until("three lost lines", || dropped.get() == 3);

        std::fs::remove_file(&path).unwrap();
        writer.append(|out| out.push_str("kept\n"));
        wait_until("line after recovery", || std::fs::read_to_string(&path).is_ok_and(|text| text == "kept\n"));
        assert_eq!(dropped.get(), 3);
    }

    #[test]
    fn a_line_cut_off_midway_does_not_spoil_the_next() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut output = Output { file: File::from(std::os::fd::OwnedFd::from(ours)), path: None, torn: false };
        let closing = AtomicBool::new(true);
        let (written, error) = output.write_all(&[b'x'; 1 << 22], &closing).unwrap_err();
        assert!(written > 0 && error.kind() == ErrorKind::WouldBlock);
        theirs.read_exact(&mut vec![0; written]).unwrap();
        output.write_all(b"whole\n", &closing).unwrap();
        let mut rest = [0; 7];
        theirs.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"\nwhole\n");
    }

    #[test]
    fn a_destination_that_cannot_be_opened_is_an_error_at_once() {
        let missing = Destination::File("/nonexistent/access.log".into());
        assert!(Writer::start(&missing, 1 << 20, counter()).is_err());
        assert!(Writer::start(&Destination::Off, 1 << 20, counter()).unwrap().is_none());
    }
}
