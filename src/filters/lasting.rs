//! What filters keep longer than a configuration: it is made once in the life of the process, and every snapshot's
//! filters build upon it.

use tokio::runtime::Handle;

/// Shared by the filters of all snapshots.
#[derive(Default)]
pub struct Lasting {
    background: Option<Handle>,
}

impl Lasting {
    /// `background` runs what must not take a worker's time. Without it, as in `headgate check`, nothing is begun.
    pub fn new(background: Option<Handle>) -> Self {
        Lasting { background }
    }

    /// Where work beside requests runs; `None` if filters are only compiled to be looked at.
    pub fn background(&self) -> Option<&Handle> {
        self.background.as_ref()
    }
}
