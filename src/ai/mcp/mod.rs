//! The Model Context Protocol: its messages, sessions and tools. Knows nothing of connections.

pub mod events;
pub mod message;
pub mod openapi;
pub mod operation;
pub mod pattern;
pub mod session;

use std::fmt;

/// A revision of the protocol that sessions are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The last with batches of messages.
    V2025_03_26,
    V2025_06_18,
    V2025_11_25,
}

impl Version {
    /// From the oldest to the latest.
    pub const ALL: [Version; 3] = [Version::V2025_03_26, Version::V2025_06_18, Version::V2025_11_25];

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V2025_03_26 => "2025-03-26",
            Version::V2025_06_18 => "2025-06-18",
            Version::V2025_11_25 => "2025-11-25",
        }
    }

    pub fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// What a session is held in whose client would like `asked`: that, or the latest there is.
    pub fn negotiate(asked: Option<&str>) -> Version {
        asked.and_then(Version::parse).unwrap_or(Version::V2025_11_25)
    }

    /// Whether several messages may come as one array. Later revisions have no batches.
    pub fn has_batches(self) -> bool {
        self == Version::V2025_03_26
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_that_is_not_known_becomes_the_latest() {
        assert_eq!(Version::negotiate(Some("2025-03-26")), Version::V2025_03_26);
        for asked in [Some("2024-11-05"), Some("2026-07-28"), Some(""), None] {
            assert_eq!(Version::negotiate(asked), Version::V2025_11_25, "{asked:?}");
        }
    }
}
