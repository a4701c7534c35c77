//! One AI call: what callers and providers say, in which words, and what it costs. Knows nothing of routes and filters.

pub mod catalog;
pub mod chat;
pub mod cost;
pub mod formats;
pub mod quirks;
pub mod stream;
pub mod tool_ids;
