//! Filters that bound how much and how long.

pub mod body_limit;
pub mod fault;
pub mod timeout;
