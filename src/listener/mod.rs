//! Accepting connections: caps, TLS, deadlines, draining. Everything above it speaks HTTP.
//!
//! [`ListenerState`] is a listener as it runs; [`service`] makes it accept. The proxy finds the connection of a request
//! with [`ConnectionState::of`]. Of an HTTP/1 connection it is given one request at a time, each with one reading; what
//! is none goes to [`Refusals`].

mod app;
mod chunks;
mod client_address;
mod connection;
mod connection_state;
mod deadline;
mod flood;
mod proxy_header;
mod state;
mod strict;
#[cfg(test)]
mod tests;
mod tls;
mod websocket;

pub use app::{ListenerApp, Refusals, Refused, service};
pub use client_address::{client_address, is_trusted};
pub use connection_state::{ConnectionState, Expired};
pub use state::{Counters, Ending, ListenerState, Settings};
pub use tls::{CertificateInfo, TlsInfo, files};
