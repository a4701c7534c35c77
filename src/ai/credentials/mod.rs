//! How the gateway shows providers who it is, where that takes more than a header with a key.

pub mod sigv4;
