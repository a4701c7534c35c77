//! Filters that change what passes, or answer in its place.

pub mod compression;
pub mod grpc_web;
pub mod headers;
pub mod redirect;
pub mod respond;
pub mod rewrite;
