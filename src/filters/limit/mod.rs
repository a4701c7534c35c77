//! How much a caller may have, and of what.

pub mod bandwidth;
pub mod concurrency;
pub mod key;
pub mod plan;
pub mod quota;
pub mod rate_limit;
mod report;
pub mod shield;
pub mod usage;
