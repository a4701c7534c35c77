//! Asking authorities about callers: issuers of tokens, OpenID providers.
//!
//! [`Http`] is the only way to one: bounded in time and size, over verified TLS, and never to where an answer points.
//! [`Refreshed`] keeps what an authority publishes, and [`json`] reads it.

mod http;
pub mod json;
mod refreshed;

pub use self::http::{ClientAuth, ClientAuthMethod, Http, HttpOptions, Reply, Url};
pub use self::refreshed::{Kept, Refreshed, Version};
