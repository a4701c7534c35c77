//! The immutable compiled form of a configuration: what requests run on.

pub mod ai;
mod budgets;
mod compile;
pub mod mcp;
mod split;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderName;

pub use budgets::Standings;
pub use compile::{Ground, compile};
pub use split::Split;

use crate::config::units::Share;
use crate::filters::chain::Chain;
use crate::filters::filter::OnRequest;
use crate::filters::limit::usage::Limit;
use crate::identity::Directory;
use crate::limits::Fleet;
use crate::routing::Router;
use crate::telemetry::exchange::RouteName;
use crate::telemetry::metrics::{RouteMetrics, UpstreamMetrics};
use crate::upstream::Upstream;

/// A whole configuration, compiled. Never changed once published; a reload publishes another.
pub struct Snapshot {
    /// Counts publications since the process started, from 1.
    pub revision: u64,
    pub router: Router,
    /// Indexed by what the router finds.
    pub routes: Box<[Route]>,
    pub origins: BTreeMap<String, Arc<Origin>>,
    pub directory: Arc<Directory>,
    pub owned_headers: OwnedHeaders,
    /// What consumers can be shown their part of.
    pub limits: Box<[Arc<dyn Limit>]>,
    /// Models that can be called.
    pub models: Option<Arc<ai::Models>>,
    /// What may be used of models.
    pub budgets: Option<Arc<Standings>>,
    /// The other gateways whose limits hold together with ours.
    pub fleet: Option<Arc<Fleet>>,
}

impl Snapshot {
    /// Whether there is a quota, which has to be kept somewhere.
    pub fn counts(&self) -> bool {
        self.limits.iter().any(|limit| limit.counts())
    }

    /// Whether there is something that is counted to be kept, or together with the other gateways of a fleet.
    pub fn counts_together(&self) -> bool {
        self.counts() || (self.fleet.is_some() && self.budgets.is_some())
    }
}

/// Headers that only the gateway may set. What clients send under these names is dropped, whatever the route.
#[derive(Default)]
pub struct OwnedHeaders {
    /// Those that begin with `x-`, which most requests have none of.
    pub prefixed: Box<[HeaderName]>,
    pub others: Box<[HeaderName]>,
}

impl OwnedHeaders {
    fn new(mut names: Vec<HeaderName>) -> Self {
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        let (prefixed, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.as_str().starts_with("x-"));
        OwnedHeaders { prefixed: prefixed.into(), others: others.into() }
    }
}

/// One route, ready to run.
pub struct Route {
    pub name: Arc<RouteName>,
    pub chain: Arc<Chain>,
    pub backend: Backend,
    pub mirror: Option<MirrorTo>,
    pub metrics: Arc<RouteMetrics>,
}

/// What answers a request once every filter let it pass.
pub enum Backend {
    Upstream(Arc<Origin>),
    Split(Split),
    /// The gateway itself: `respond` and `redirect`.
    Answer(Arc<dyn OnRequest>),
    /// Providers of models.
    Ai(ai::AiBackend),
    /// Tools for agents.
    Mcp(Box<mcp::McpBackend>),
}

/// An upstream with what is counted of it.
pub struct Origin {
    pub upstream: Arc<Upstream>,
    pub metrics: Arc<UpstreamMetrics>,
}

/// A second upstream that gets a copy of some requests; its answers are ignored.
pub struct MirrorTo {
    pub origin: Arc<Origin>,
    pub share: Share,
}

/// The snapshot that new requests run on.
pub struct Published(ArcSwap<Snapshot>);

impl Published {
    pub fn new(snapshot: Snapshot) -> Self {
        Published(ArcSwap::from_pointee(snapshot))
    }

    /// Pins the current snapshot for one request.
    pub fn current(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Makes `snapshot` the one that new requests run on; running requests keep theirs. Returns the one before: whoever
    /// drops the last handle of it takes a whole configuration apart, and that should not be a request.
    pub fn publish(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        self.0.swap(Arc::new(snapshot))
    }
}
