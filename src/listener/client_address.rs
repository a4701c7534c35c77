//! Who the client is, when proxies that we trust stand between.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::config::Problems;

/// More hops than any honest chain has. A walk that has not ended by then stops where it is.
const MAX_HOPS: usize = 64;

/// The address of the client: the walk starts at the connection's peer and goes through `X-Forwarded-For` from right to
/// left for as long as the address it stands on is trusted. What an untrusted hop claims about others is not believed.
///
/// `forwarded` gives the values of all `X-Forwarded-For` lines in the order they came. An entry that is no address
/// (`unknown`, an obfuscated name, garbage) ends the walk at the last good one. `Forwarded` (RFC 7239) is not read.
pub fn client_address<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    for entry in forwarded.rev().flat_map(|line| line.rsplit(',')).take(MAX_HOPS) {
        let entry = entry.trim_ascii();
        if entry.is_empty() {
            // An empty list element says nothing (RFC 9110, section 5.6.1).
            continue;
        }
        let Some(address) = parse_hop(entry) else { break };
        client = address;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    client
}

pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// Reads one hop: an address, with or without port, IPv6 with or without brackets.
fn parse_hop(text: &str) -> Option<IpAddr> {
    // Longer than any address with a port: not worth parsing.
    if text.len() > 64 {
        return None;
    }
    let address = if let Ok(address) = text.parse::<IpAddr>() {
        address
    } else if let Ok(address) = text.parse::<SocketAddr>() {
        address.ip()
    } else {
        IpAddr::V6(text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?)
    };
    Some(address.to_canonical())
}

/// Reads the networks of a `trusted_proxies` list; a plain address is a network of one.
pub fn parse_networks(list: &[String], path: &str, problems: &mut Problems) -> Vec<IpNet> {
    let mut networks = Vec::with_capacity(list.len());
    for (i, text) in list.iter().enumerate() {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(net) => networks.push(net),
            Err(_) => problems.add(
                format!("{path}[{i}]"),
                format!("`{text}` is neither an address nor a network, such as 10.0.0.0/8 or 2001:db8::/32"),
            ),
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_first_untrusted_address_from_the_right() {
        let trusted = ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128"].map(|n| n.parse::<IpNet>().unwrap());
        // peer, X-Forwarded-For lines, expected
        let table: &[(&str, &[&str], &str)] = &[
            // Untrusted peers are believed nothing.
            ("198.51.100.7", &[], "198.51.100.7"),
            ("198.51.100.7", &["1.2.3.4"], "198.51.100.7"),
            ("198.51.100.7", &["10.0.0.1"], "198.51.100.7"),
            ("198.51.100.7", &["10.0.0.1, 1.2.3.4", "10.0.0.2"], "198.51.100.7"),
            ("2001:dead::1", &["1.2.3.4"], "2001:dead::1"),
            ("192.0.2.2", &["1.2.3.4"], "192.0.2.2"),
            ("11.0.0.1", &["1.2.3.4"], "11.0.0.1"),
            // A trusted peer without a claim is itself the client.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[" , ,"], "10.0.0.1"),
            // One hop.
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("192.0.2.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["  1.2.3.4\t"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4,"], "1.2.3.4"),
            ("10.0.0.1", &[",1.2.3.4"], "1.2.3.4"),
            ("::1", &["1.2.3.4"], "1.2.3.4"),
            ("2001:db8::5", &["2001:dead::1"], "2001:dead::1"),
            // What stands left of an untrusted hop is its claim.
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["10.0.0.9, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["127.0.0.1, 1.2.3.4"], "1.2.3.4"),
            // Through several trusted hops, over any number of lines.
            ("10.0.0.1", &["1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, 10.0.0.3, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4", "10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4", "10.0.0.3,10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4", ""], "1.2.3.4"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.2.3.4, 2001:db8::1"], "1.2.3.4"),
            ("2001:db8::5", &["2001:dead::1, 10.0.0.1"], "2001:dead::1"),
            // Ports and brackets.
            ("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
            ("10.0.0.1", &["[2001:dead::1]:443"], "2001:dead::1"),
            ("10.0.0.1", &["[2001:dead::1]"], "2001:dead::1"),
            ("10.0.0.1", &["2001:dead::1"], "2001:dead::1"),
            ("10.0.0.1", &["1.2.3.4, 10.0.0.2:99"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, [2001:db8::7]:1"], "1.2.3.4"),
            // IPv4 in IPv6 is IPv4.
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("::ffff:198.51.100.7", &["1.2.3.4"], "198.51.100.7"),
            ("10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, ::ffff:10.0.0.2"], "1.2.3.4"),
            // No address: the walk ends at the last good one.
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["unknown, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["_hidden, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["1.2.3.4, 10.0.0.256"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, 010.0.0.2"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, 0x0a000002"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4:99999"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4 5.6.7.8"], "10.0.0.1"),
            ("10.0.0.1", &["for=1.2.3.4"], "10.0.0.1"),
            ("10.0.0.1", &["\"1.2.3.4\""], "10.0.0.1"),
            ("10.0.0.1", &["[1.2.3.4]"], "10.0.0.1"),
            ("10.0.0.1", &["[2001:dead::1"], "10.0.0.1"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4;5.6.7.8"], "10.0.0.1"),
        ];
        assert!(table.len() >= 40);
        for (peer, lines, expected) in table {
            assert_eq!(
                client_address(peer.parse().unwrap(), lines.iter().copied(), &trusted),
                expected.parse::<IpAddr>().unwrap(),
                "{peer} {lines:?}"
            );
        }
    }

    #[test]
    fn without_trusted_proxies_nothing_is_believed() {
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(client_address(peer, ["1.2.3.4"].into_iter(), &[]), peer);
    }

    #[test]
    fn a_thousand_trusted_hops_end_the_walk_early() {
        let trusted = ["10.0.0.0/8".parse::<IpNet>().unwrap()];
        let chain = (0..1000).map(|i| format!("10.0.{}.{}", i / 250, i % 250)).collect::<Vec<_>>().join(", ");
        let client = client_address("10.0.0.1".parse().unwrap(), ["1.2.3.4", &chain].into_iter(), &trusted);
        assert!(is_trusted(client, &trusted), "{client}");
    }

    #[test]
    fn a_network_that_cannot_be_read_is_a_problem_with_its_place() {
        let mut problems = Problems::default();
        let list = ["10.0.0.1".to_owned(), "10.0.0.0/33".to_owned(), "localhost".to_owned()];
        let networks = parse_networks(&list, "listeners.http.trusted_proxies", &mut problems);
        assert_eq!(networks, ["10.0.0.1/32".parse::<IpNet>().unwrap()]);
        let places: Vec<_> = problems.0.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(places, ["listeners.http.trusted_proxies[1]", "listeners.http.trusted_proxies[2]"]);
    }
}
