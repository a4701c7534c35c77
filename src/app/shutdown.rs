//! What each signal does, and leaving as soon as nothing is in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

use super::gateway::Gateway;
use super::upgrade::Meeting;
use crate::control::readiness::{Phase, Readiness};
use crate::control::reload::Reloader;

/// Turns signals into what Pingora's server has to do.
pub struct Signals {
    pub readiness: Arc<Readiness>,
    pub reloader: Arc<Reloader>,
    pub gateway: Arc<Gateway>,
    pub meeting: Meeting,
    /// Between readiness failing and the listeners closing, so that load balancers can look away first.
    pub delay: Duration,
    /// Set before the listening sockets go to a successor.
    pub handed_over: Arc<AtomicBool>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut term), Ok(mut int), Ok(mut quit), Ok(mut hup), Ok(mut usr1)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::quit()),
            signal(SignalKind::hangup()),
            signal(SignalKind::user_defined1()),
        ) else {
            log::error!("cannot listen for signals; only SIGKILL ends this process");
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                _ = term.recv() => {
                    log::info!("SIGTERM: no longer ready; closing the listeners in {:?}", self.delay);
                    self.readiness.set(Phase::Draining);
                    // A second one means: now.
                    tokio::select! {
                        _ = tokio::time::sleep(self.delay) => {}
                        _ = term.recv() => {}
                    }
                    return ShutdownSignal::GracefulTerminate;
                }
                _ = int.recv() => {
                    self.readiness.set(Phase::Draining);
                    return ShutdownSignal::FastShutdown;
                }
                _ = quit.recv() => {
                    if self.meeting.successor_waits() {
                        self.handed_over.store(true, Ordering::Release);
                        log::info!("SIGQUIT: handing the listening sockets to the successor");
                        return ShutdownSignal::GracefulUpgrade;
                    }
                    log::warn!("SIGQUIT ignored: no successor of this user waits on {}", self.meeting.socket.display());
                }
                _ = hup.recv() => {
                    let reloader = self.reloader.clone();
                    tokio::task::spawn_blocking(move || reloader.reload("SIGHUP"));
                }
                _ = usr1.recv() => self.gateway.reopen_logs(),
            }
        }
    }
}

/// Ends the process once draining has begun and nothing is in flight any more, or its time is up. Pingora itself would
/// sleep through the whole grace period.
pub fn exit_when_idle(
    mut phases: broadcast::Receiver<ExecutionPhase>,
    gateway: Arc<Gateway>,
    meeting: Meeting,
    limit: Duration,
) {
    std::thread::spawn(move || {
        loop {
            match phases.blocking_recv() {
                Ok(ExecutionPhase::ShutdownGracePeriod) => break,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
        let deadline = Instant::now() + limit;
        while gateway.connections() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        leave(&gateway, &meeting);
        std::process::exit(0);
    });
}

/// The last things a process does: no log line and no span may be lost, and the pid file must not name a dead process.
pub fn leave(gateway: &Gateway, meeting: &Meeting) {
    log::info!("exiting with {} connections open", gateway.connections());
    meeting.withdraw();
    gateway.settle();
    gateway.telemetry.close();
}
