//! What one request carries from phase to phase.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

use super::mirror::Pending;
use crate::ai::budget::Reservation;
use crate::error::Error;
use crate::filters::chain::Chain;
use crate::filters::filter::Controls;
use crate::listener::ConnectionState;
use crate::routing::Captures;
use crate::snapshot::{Origin, Route, Snapshot};
use crate::telemetry::Observation;
use crate::telemetry::exchange::{Exchange, Scheme};
use crate::upstream::{Deadline, Limits, Pick, TargetId};

/// The context of one request; on HTTP/2, of one stream.
pub struct Context {
    /// The configuration this request runs on, whatever is published meanwhile.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Index into the snapshot's routes, once one matched.
    pub route: Option<usize>,
    /// The filters of this caller, if it or its plan has some of its own.
    pub chain: Option<Arc<Chain>>,
    pub exchange: Exchange,
    pub controls: Controls,
    /// What budgets have reserved for the call of a model; settled when the request is over.
    pub reservation: Option<Box<Reservation>>,
    pub connection: Option<Arc<ConnectionState>>,
    /// Counts and traces the request; taken when it is finished.
    pub observation: Option<Observation>,

    // Backend
    pub origin: Option<Arc<Origin>>,
    /// The time limits that hold for this request.
    pub limits: Option<Limits>,
    pub attempt: Option<Attempt>,
    /// Targets this request has failed at.
    pub tried: Vec<TargetId>,
    /// Keeps the client on the share of a split it was assigned to.
    pub split_cookie: Option<HeaderValue>,
    /// Keeps the client on the target of the last attempt.
    pub sticky_cookie: Option<HeaderValue>,
    /// The copy for a mirror, while its body is coming in.
    pub mirror: Option<Box<Pending>>,
    /// Interim answers that the origin has sent.
    pub interim: u32,
    /// A filter has waited for something.
    pub waited: bool,
    /// The attempt was ended by us, for another after an answer that is worth it.
    pub retrying: bool,
    /// Why the exchange fails, when the phase that found it cannot answer itself.
    pub failure: Option<Error>,
    /// Body bytes received in this attempt, for the body limit.
    pub received: u64,
    /// The headers as they were before filters took the credentials out, where others are called as the caller.
    pub received_headers: Option<Box<HeaderMap>>,
}

/// One try at a target.
pub struct Attempt {
    pub pick: Pick,
    pub started: Instant,
    /// Whether it has been given to Pingora to connect.
    pub begun: bool,
    /// Keeps the time limits that Pingora cannot; ends with the answer, before its connection serves another request.
    pub deadline: Option<Deadline>,
}

impl Default for Context {
    fn default() -> Self {
        Context {
            snapshot: None,
            route: None,
            chain: None,
            exchange: Exchange {
                started: Instant::now(),
                request_id: HeaderValue::from_static(""),
                client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                listener: Arc::default(),
                scheme: Scheme::Http,
                host: String::new(),
                port: 0,
                original_target: None,
                has_body: false,
                route: None,
                captures: Captures::default(),
                identity: None,
                certificate: None,
                limit: None,
                cause: None,
                ai: None,
                mcp: None,
                upstream: None,
                target: None,
                attempts: 0,
                upstream_connect: None,
                upstream_first_byte: None,
                status: 0,
                reason: None,
                request_bytes: 0,
                response_bytes: 0,
                duration: Duration::ZERO,
            },
            controls: Controls::default(),
            reservation: None,
            connection: None,
            observation: None,
            origin: None,
            limits: None,
            attempt: None,
            tried: Vec::new(),
            split_cookie: None,
            sticky_cookie: None,
            mirror: None,
            interim: 0,
            waited: false,
            retrying: false,
            failure: None,
            received: 0,
            received_headers: None,
        }
    }
}

impl Context {
    /// The matched route. The snapshot is pinned by the caller's own `Arc`, so that filters may borrow the rest.
    pub fn route<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Route> {
        self.route.and_then(|index| snapshot.routes.get(index))
    }
}
