//! Headgate, an API gateway and AI gateway on Pingora. The modules in reading order:
//!
//! - [`error`]: the one error and its closed list of reasons.
//! - [`config`]: what the user wrote; strict, documented, without behaviour.
//! - [`routing`]: from host, path and predicates to a route.
//! - [`identity`]: consumers, and what they are found by.
//! - [`limits`]: rates and quotas, and where what was used is counted.
//! - [`ai`]: calls of models: wire formats, providers, tokens and money.
//! - [`authority`]: asking issuers and providers about callers.
//! - [`upstream`]: the origin side: targets, balance, health, retries.
//! - [`filters`]: one policy each, in one ordered registry.
//! - [`snapshot`]: the immutable compiled form of a configuration that requests run on.
//! - [`listener`]: accepting connections: TLS, limits, deadlines.
//! - [`proxy`]: one request, phase by phase.
//! - [`variables`]: what texts of a configuration may hold of a request.
//! - [`telemetry`]: metrics, access log, traces.
//! - [`control`]: the admin listener, reloads.
//! - [`app`]: the composition root; [`cli`]: the command line.
//! - [`demo_origin`]: an origin to try things out with.

pub mod ai;
pub mod app;
pub mod authority;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo_origin;
pub mod error;
pub mod filters;
pub mod identity;
pub mod limits;
pub mod listener;
pub mod proxy;
pub mod routing;
pub mod snapshot;
pub mod telemetry;
pub mod upstream;
pub mod variables;
