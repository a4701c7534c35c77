//! What the black-box tests are written with: a gateway under test, scriptable origins behind it, exact clients before it.

pub mod client;
pub mod dns;
pub mod gateway;
pub mod h2;
pub mod origin;
pub mod ports;
pub mod process;
pub mod scratch;
pub mod scripted;
pub mod tls;
pub mod tokens;
pub mod wire;

mod selftest;

use std::time::{Duration, Instant};

pub use client::{Answer, Call, Client};
pub use gateway::Gateway;
pub use origin::{Origin, Reply};

/// How long anything in a test may take before it counts as a hang. Generous: machines that test are loaded machines.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Awaits a condition instead of sleeping: asks again until it holds; false if it did not within `deadline`.
pub async fn eventually<F: Future<Output = bool>>(deadline: Duration, mut condition: impl FnMut() -> F) -> bool {
    let until = Instant::now() + deadline;
    loop {
        if condition().await {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
