//! The DNS server of the resolver's own tests, and records for it.

use std::net::IpAddr;

use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record};

#[allow(dead_code, reason = "the resolver's own tests use the rest")]
#[path = "../../../src/upstream/discovery/dns/tests/server.rs"]
mod server;

use server::record;
pub use server::{Mood, Server};

pub fn a(name: &str, address: IpAddr) -> Record {
    let IpAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    record(name, 0, RData::A(A(address)))
}

pub fn srv(name: &str, priority: u16, weight: u16, port: u16, host: &str) -> Record {
    record(name, 0, RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(host).unwrap())))
}
