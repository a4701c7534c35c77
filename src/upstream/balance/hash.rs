//! Consistent hashing on Pingora's ketama ring.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use pingora::lb::Backend;
use pingora::lb::selection::{BackendIter, BackendSelection, Consistent};
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;

use super::lots::reduced;
use crate::upstream::target::Target;

/// The ring has 160 points for each unit of weight: at most about a million.
const MOST_WEIGHT: u32 = 6000;

/// The index of a target, carried by its `Backend`.
#[derive(Clone, Copy)]
struct Index(usize);

pub(super) struct Ring {
    ring: Arc<Consistent>,
    targets: usize,
}

impl Ring {
    pub(super) fn new(targets: &[Arc<Target>]) -> Self {
        let weights: Vec<u32> = targets.iter().map(|target| target.weight()).collect();
        let backends: BTreeSet<Backend> = targets
            .iter()
            .zip(reduced(&weights, MOST_WEIGHT))
            .enumerate()
            .map(|(i, (target, weight))| {
                let mut ext = http::Extensions::new();
                ext.insert(Index(i));
                Backend { addr: PeerAddress::Inet(place(target)), weight: weight as usize, ext }
            })
            .collect();
        Ring { ring: Arc::new(Consistent::build(&backends)), targets: targets.len() }
    }

    /// The first target from the key's place on whose index satisfies `usable`.
    pub(super) fn walk(&self, key: &[u8], usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut points = self.ring.iter(key);
        let mut last = None;
        // A target has many points; this many steps meet all but surely every target.
        for _ in 0..8 * self.targets + 16 {
            let Index(i) = *points.next()?.ext.get::<Index>()?;
            if last != Some(i) && usable(i) {
                return Some(i);
            }
            last = Some(i);
        }
        None
    }
}

/// Where a target stands on the ring. Pingora's ring knows only internet addresses, so a Unix socket gets one that its
/// identity determines, in the range set aside for documentation.
fn place(target: &Target) -> SocketAddr {
    match target.peer_address() {
        PeerAddress::Inet(address) => *address,
        PeerAddress::Unix(_) => {
            let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (target.id().0 >> shift) as u16);
            SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, a, b, c, d), 1, 0, 0))
        }
    }
}
