//! Finding the targets of an upstream that is named rather than listed.

pub mod dns;
