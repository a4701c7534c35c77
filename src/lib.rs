//! Headgate, an API gateway and AI gateway on Pingora. The modules in reading order:
//!
//! - [`error`]: the one error and its closed list of reasons.
//! - [`config`]: what the user wrote; strict, documented, without behaviour.
//! - [`routing`]: from host, path and predicates to a route.
//! - [`upstream`]: the origin side: targets, balance, health, retries.
//! - [`filters`]: one policy each, in one ordered registry.
//! - [`listener`]: accepting connections: TLS, limits, deadlines.
//! - [`variables`]: what texts of a configuration may hold of a request.
//! - [`telemetry`]: metrics, access log, traces.

pub mod config;
pub mod error;
pub mod filters;
pub mod listener;
pub mod routing;
pub mod telemetry;
pub mod upstream;
pub mod variables;
