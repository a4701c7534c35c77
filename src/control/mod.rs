//! The side that operators and tools use: the admin listener, reloads, readiness.

pub mod admin;
pub mod readiness;
pub mod reload;
