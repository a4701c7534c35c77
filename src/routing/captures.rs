//! What the named parts of a route's path matched.

use std::sync::Arc;

/// The values of `{name}` segments, or of the named groups of a `path_regex`, in the order they are written. Values are
/// text of the canonical path, so percent-encoded where that is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Captures(pub Vec<(Arc<str>, Box<str>)>);

impl Captures {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value)
    }
}
