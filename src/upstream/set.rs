//! The targets of an upstream at one moment: written addresses and what names stand for, in tiers.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{ALPN, HttpPeer};

use super::Shared;
use super::address::Address;
use super::balance::Tier;
use super::clock::Moment;
use super::discovery::dns::Resolved;
use super::state::TargetState;
use super::target::{Target, TargetId, set_timeouts};
use crate::config::upstream::{Balance, Protocol};

/// A target as it is written, understood.
#[derive(Debug)]
pub(super) struct Written {
    /// The text of the configuration; by it, resolved addresses are kept.
    pub(super) text: String,
    pub(super) address: Address,
    pub(super) weight: u32,
    pub(super) tier: u8,
    pub(super) name: Option<Arc<str>>,
}

/// What a target needs beyond its address.
pub(super) struct Template {
    pub(super) tls: Option<super::tls::Tls>,
    pub(super) protocol: Protocol,
    pub(super) keep_alive: std::time::Duration,
    pub(super) max_streams: usize,
    pub(super) check_port: Option<u16>,
    pub(super) balance: Balance,
    pub(super) group_key: u64,
}

/// All targets, and those that take new requests by tier.
#[derive(Default)]
pub(super) struct TargetSet {
    pub(super) targets: Vec<Arc<Target>>,
    pub(super) tiers: Vec<Tier>,
    by_sticky: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
}

impl TargetSet {
    /// Builds the set; targets known from `previous` keep their state. `now` starts the slow start of the others, unless
    /// all are new.
    pub(super) fn build(
        shared: &Arc<Shared>,
        template: &Template,
        written: &[Written],
        resolved: &HashMap<String, Vec<Resolved>>,
        previous: &HashMap<TargetId, Arc<TargetState>>,
        now: Moment,
    ) -> Self {
        let since = if previous.is_empty() { Moment::NEVER } else { now };
        let mut set = TargetSet::default();
        let mut seen = HashMap::new();
        for target in written {
            for place in places(target, resolved) {
                let id = identify(&shared.name, &place.text);
                // Two names may lead to one server; the first written counts.
                if seen.insert(id, ()).is_some() {
                    continue;
                }
                let state = match previous.get(&id) {
                    Some(state) => state.clone(),
                    None => Arc::new(TargetState::new(since, now)),
                };
                if let Some(target) = template.target(shared, target, place, id, state) {
                    set.targets.push(Arc::new(target));
                }
            }
        }
        let mut tiers: BTreeMap<u16, Vec<Arc<Target>>> = BTreeMap::new();
        for (i, target) in set.targets.iter().enumerate() {
            if !target.sticky.is_empty() {
                set.by_sticky.insert(target.sticky.clone(), i);
            }
            if target.weight > 0 {
                tiers.entry(target.tier).or_default().push(target.clone());
            }
        }
        set.tiers = tiers.into_values().map(|targets| Tier::new(targets, &template.balance)).collect();
        set
    }

    pub(super) fn by_sticky(&self, value: &str) -> Option<&Arc<Target>> {
        self.by_sticky.get(value).map(|i| &self.targets[*i])
    }

    pub(super) fn states(&self) -> HashMap<TargetId, Arc<TargetState>> {
        self.targets.iter().map(|target| (target.id, target.state.clone())).collect()
    }
}

/// One address of a written target.
struct Place {
    text: String,
    /// Absent for a Unix socket.
    socket: Option<SocketAddr>,
    weight: u32,
    tier: u16,
}

fn places(target: &Written, resolved: &HashMap<String, Vec<Resolved>>) -> Vec<Place> {
    let tier = u16::from(target.tier);
    match &target.address {
        Address::Socket(socket) => {
            vec![Place { text: socket.to_string(), socket: Some(*socket), weight: target.weight, tier }]
        }
        Address::Unix(path) => {
            vec![Place { text: format!("unix:{path}"), socket: None, weight: target.weight, tier }]
        }
        Address::Host { .. } | Address::Service { .. } => resolved
            .get(&target.text)
            .into_iter()
            .flatten()
            .map(|found| Place {
                text: found.address.to_string(),
                socket: Some(found.address),
                weight: target.weight.saturating_mul(found.weight.clamp(1, 65_535)),
                tier: tier + u16::from(found.tier),
            })
            .collect(),
    }
}

/// The same in every process, as it is also a place on the hash ring.
fn identify(upstream: &str, address: &str) -> TargetId {
    let mut hasher = DefaultHasher::new();
    (upstream, address).hash(&mut hasher);
    TargetId(hasher.finish())
}

impl Template {
    fn target(
        &self,
        shared: &Arc<Shared>,
        written: &Written,
        place: Place,
        id: TargetId,
        state: Arc<TargetState>,
    ) -> Option<Target> {
        let peer = self.peer(shared, written, &place)?;
        let check_peer = self.check_port.zip(place.socket).map(|(port, mut socket)| {
            socket.set_port(port);
            let mut peer = peer.clone();
            peer._address = pingora::protocols::l4::socket::SocketAddr::Inet(socket);
            peer
        });
        let address: Arc<str> = place.text.into();
        Some(Target {
            id,
            name: written.name.clone().unwrap_or_else(|| address.clone()),
            weight: place.weight,
            tier: place.tier,
            authority: written.address.authority().into(),
            sticky: shared
                .rules
                .sticky
                .as_ref()
                .map(|sticky| sticky.value_for(&shared.name, &address))
                .unwrap_or_default(),
            address,
            peer,
            check_peer,
            state,
            shared: shared.clone(),
        })
    }

    /// `None` only for a socket path that no address can hold, which the configuration check refuses.
    fn peer(&self, shared: &Shared, written: &Written, place: &Place) -> Option<HttpPeer> {
        let sni = match &self.tls {
            Some(tls) => tls.sni.clone().or_else(|| written.address.server_name())?,
            None => String::new(),
        };
        let tls = self.tls.is_some();
        let mut peer = match (&written.address, place.socket) {
            (Address::Unix(path), _) => HttpPeer::new_uds(path, tls, sni).ok()?,
            (_, Some(socket)) => HttpPeer::new(socket, tls, sni),
            (_, None) => return None,
        };
        peer.group_key = self.group_key;
        if let Some(tls) = &self.tls {
            peer.client_cert_key = tls.client.clone();
            peer.options.ca = tls.ca.clone();
            peer.options.verify_cert = tls.verify;
            peer.options.verify_hostname = tls.verify;
        }
        peer.options.alpn = match (self.protocol, tls) {
            (Protocol::Auto, true) => ALPN::H2H1,
            (Protocol::Auto, false) | (Protocol::Http1, _) => ALPN::H1,
            (Protocol::Http2 | Protocol::H2c, _) => ALPN::H2,
        };
        peer.options.max_h2_streams = self.max_streams;
        peer.options.idle_timeout = Some(self.keep_alive);
        if place.socket.is_some() {
            // Finds peers that vanished behind a router that forgot the connection.
            peer.options.tcp_keepalive = Some(TcpKeepalive {
                idle: std::time::Duration::from_secs(60),
                interval: std::time::Duration::from_secs(10),
                count: 3,
                #[cfg(target_os = "linux")]
                user_timeout: std::time::Duration::ZERO,
            });
        }
        set_timeouts(&mut peer, &shared.rules.limits);
        Some(peer)
    }
}
