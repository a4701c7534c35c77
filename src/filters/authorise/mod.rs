//! Whether the caller, who is known by now, may do what it asks for.

pub mod subscription;
