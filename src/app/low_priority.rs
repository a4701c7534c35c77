//! Work that has time, on a machine whose processors are there for requests.

use std::panic::resume_unwind;
use std::thread;

/// Of a thread that does such work. The scheduler gives it a tenth of a processor that serving threads could use up, and
/// all of one that is idle.
const NICE: libc::c_int = 10;

/// Does `work` on a thread that gives way to the others, and waits for its end. `work` must not start threads: they would
/// inherit the priority.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // SAFETY: no memory is involved. On Linux, 0 is the calling thread, and giving way needs no privilege.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            work()
        });
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
