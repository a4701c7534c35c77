//! How much a caller may have at once, and of what.

pub mod key;
