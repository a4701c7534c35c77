//! One AI call: what callers and providers say, in which words, and what it costs. Knows nothing of routes and filters.

pub mod answers;
pub mod budget;
pub mod catalog;
pub mod chat;
pub mod cost;
pub mod count;
pub mod credentials;
pub mod endpoint;
pub mod form;
pub mod formats;
pub mod guardrails;
pub mod keys;
pub mod mcp;
pub mod metering;
pub mod operation;
pub mod passing;
pub mod quirks;
pub mod retry_after;
pub mod stream;
pub mod targets;
pub mod tokens;
pub mod tool_ids;
mod traced;
pub mod usage;
