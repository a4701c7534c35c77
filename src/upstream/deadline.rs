//! Time limits on an attempt that Pingora's per-read timeout cannot express: on the first byte alone, and on the whole.
//!
//! No hook of a proxied request runs while it waits for the origin. What does end the wait is the end of the connection,
//! so the watch shuts the connection down when time is up, and the proxy finds out from [`Deadline::passed`] that it was
//! not the origin that closed it. Only for connections that no other request shares.

use std::future::pending;
use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// A watch over one attempt. Drop it when the attempt is over, before its connection goes back to the pool.
pub struct Deadline {
    shared: Arc<Shared>,
    task: AbortHandle,
    ends_with_answer: bool,
}

#[derive(Default)]
struct Shared {
    sent: Notify,
    answered: AtomicBool,
    passed: AtomicBool,
}

impl Deadline {
    /// Starts to watch. `fd` must be open; it is duplicated, so that a number which has come to mean another connection
    /// is never shut down.
    pub(super) fn arm(fd: RawFd, first_byte: Option<Duration>, total: Option<Duration>) -> io::Result<Self> {
        // SAFETY: the caller has the connection open, and the borrow ends with this statement.
        let connection = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(watch(connection, shared.clone(), first_byte, total)).abort_handle();
        Ok(Deadline { shared, task, ends_with_answer: total.is_none() })
    }

    /// The request has been sent whole; from here the time to the first byte is counted, however long an upload took.
    /// Further calls change nothing.
    pub fn request_sent(&self) {
        self.shared.sent.notify_one();
    }

    /// The header of the answer is here: from now on only the limit on the whole counts.
    pub fn answered(&self) {
        self.shared.answered.store(true, Release);
        if self.ends_with_answer {
            self.task.abort();
        }
    }

    /// Whether the connection was shut down because time was up; the attempt is then a timeout, and not to be retried
    /// when it was the limit on the whole.
    pub fn passed(&self) -> bool {
        self.shared.passed.load(Acquire)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(connection: OwnedFd, shared: Arc<Shared>, first_byte: Option<Duration>, total: Option<Duration>) {
    let unanswered = async {
        let Some(first_byte) = first_byte else { return pending().await };
        shared.sent.notified().await;
        sleep(first_byte).await;
        if shared.answered.load(Acquire) {
            pending().await
        }
    };
    let over = async {
        let Some(total) = total else { return pending().await };
        sleep(total).await;
    };
    tokio::select! {
        () = unanswered => {}
        () = over => {}
    }
    shut_down(connection, &shared);
}

/// Ends the connection for whoever reads or writes it.
fn shut_down(connection: OwnedFd, shared: &Shared) {
    // Before the shutdown: the reader may be woken at once.
    shared.passed.store(true, Release);
    // The call is the same for every kind of socket. It fails only if the origin was faster.
    let _ = UnixStream::from(connection).shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(50));
    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// Waits for the origin as Pingora does; 0 is the end of the connection.
    async fn read(near: &mut TcpStream) -> usize {
        let mut buffer = [0; 8];
        tokio::time::timeout(Duration::from_secs(5), near.read(&mut buffer)).await.expect("no hang").unwrap()
    }

    #[tokio::test]
    async fn a_silent_origin_is_cut_off_at_the_first_byte_limit_or_at_the_total() {
        for (first_byte, total) in [(SHORT, None), (None, SHORT), (LONG, SHORT), (SHORT, LONG)] {
            let (mut near, _far) = connection().await;
            let deadline = Deadline::arm(near.as_raw_fd(), first_byte, total).unwrap();
            deadline.request_sent();
            assert_eq!(read(&mut near).await, 0);
            assert!(deadline.passed());
        }
    }

    #[tokio::test]
    async fn after_the_answer_only_the_total_counts() {
        let (mut near, mut far) = connection().await;
        let deadline = Deadline::arm(near.as_raw_fd(), SHORT, None).unwrap();
        deadline.request_sent();
        deadline.answered();
        tokio::time::sleep(Duration::from_millis(120)).await;
        far.write_all(b"late").await.unwrap();
        assert_eq!(read(&mut near).await, 4);
        assert!(!deadline.passed());

        let deadline = Deadline::arm(near.as_raw_fd(), SHORT, Some(Duration::from_millis(100))).unwrap();
        deadline.request_sent();
        deadline.answered();
        assert_eq!(read(&mut near).await, 0);
        assert!(deadline.passed());
    }

    #[tokio::test]
    async fn a_long_upload_is_not_taken_for_a_silent_origin() {
        let (mut near, _far) = connection().await;
        let deadline = Deadline::arm(near.as_raw_fd(), SHORT, None).unwrap();
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!deadline.passed());
        deadline.request_sent();
        assert_eq!(read(&mut near).await, 0);
    }

    #[tokio::test]
    async fn a_dropped_watch_does_nothing() {
        let (mut near, mut far) = connection().await;
        drop(Deadline::arm(near.as_raw_fd(), SHORT, SHORT).unwrap());
        tokio::time::sleep(Duration::from_millis(120)).await;
        far.write_all(b"late").await.unwrap();
        assert_eq!(read(&mut near).await, 4);
    }
}
