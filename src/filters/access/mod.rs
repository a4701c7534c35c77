//! Filters that decide whether a request may pass at all.

pub mod cors;
pub mod ip_restriction;
