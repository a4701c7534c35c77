//! Whether the caller, who is known by now, may do what it asks for.

pub mod acl;
pub mod subscription;
