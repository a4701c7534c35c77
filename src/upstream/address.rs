//! The address of a target as it is written.

use std::net::SocketAddr;

use super::discovery::dns::Name;

/// Where a written target leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Socket(SocketAddr),
    /// An absolute path.
    Unix(String),
    /// Every address of the host, at this port.
    Host {
        name: String,
        port: u16,
    },
    /// Every address of every host that the SRV records of this name list.
    Service {
        name: String,
    },
}

impl Address {
    pub(super) fn parse(written: &str) -> Result<Self, String> {
        if let Some(path) = written.strip_prefix("unix:") {
            // 108 bytes with the closing NUL is what the kernel takes.
            return match path.starts_with('/') && path.len() < 108 && !path.contains('\0') {
                true => Ok(Address::Unix(path.into())),
                false => Err("a Unix socket is written as `unix:` and an absolute path of at most 107 bytes".into()),
            };
        }
        if let Some(name) = written.strip_prefix("srv:") {
            let labels: Vec<&str> = name.split('.').collect();
            let service = labels.len() > 2 && labels[0].starts_with('_') && labels[1].starts_with('_');
            return match service && host_name(name) {
                true => Ok(Address::Service { name: name.into() }),
                false => {
                    Err("an SRV name is written as `srv:_service._proto.domain`, such as srv:_http._tcp.example.com"
                        .into())
                }
            };
        }
        if let Some((scheme @ ("http" | "https"), rest)) = written.split_once("://") {
            let hint = if scheme == "https" { ", and `tls: {}` in the upstream" } else { "" };
            return Err(format!("an address has no scheme; write `{}`{hint}", rest.trim_end_matches('/')));
        }
        let address = match written.parse::<SocketAddr>() {
            Ok(address) => Address::Socket(address),
            Err(_) => match written.rsplit_once(':') {
                Some((name, port)) if host_name(name) => match port.parse::<u16>() {
                    Ok(port) => Address::Host { name: name.into(), port },
                    Err(_) => return Err(format!("`{port}` is not a port")),
                },
                None if host_name(written) => return Err(format!("has no port; write `{written}:80`")),
                _ => {
                    return Err(
                        "is not an address; write host:port, an IP address and port, unix:/path or srv:name".into()
                    );
                }
            },
        };
        match &address {
            Address::Socket(socket) if socket.port() == 0 => Err("port 0 cannot be connected to".into()),
            Address::Host { port: 0, .. } => Err("port 0 cannot be connected to".into()),
            _ => Ok(address),
        }
    }

    /// What the resolver has to find, for an address that is a name.
    pub(super) fn to_resolve(&self) -> Option<Name> {
        match self {
            Address::Socket(_) | Address::Unix(_) => None,
            Address::Host { name, port } => Some(Name::Host { name: name.clone(), port: *port }),
            Address::Service { name } => Some(Name::Srv { name: name.clone() }),
        }
    }

    /// The name that a target's certificate is checked against when none is configured.
    pub(super) fn server_name(&self) -> Option<String> {
        match self {
            Address::Socket(socket) => Some(socket.ip().to_string()),
            Address::Unix(_) => None,
            Address::Host { name, .. } => Some(name.trim_end_matches('.').into()),
            // What was asked for, not what an unsigned answer says (RFC 6125, section 6.2.1).
            Address::Service { name } => name.splitn(3, '.').nth(2).map(|domain| domain.trim_end_matches('.').into()),
        }
    }

    /// The authority that names the target where a `Host` is needed and none is configured.
    pub(super) fn authority(&self) -> String {
        match self {
            Address::Socket(socket) => socket.to_string(),
            Address::Host { name, port } => format!("{}:{port}", name.trim_end_matches('.')),
            Address::Service { .. } => self.server_name().unwrap_or_default(),
            Address::Unix(_) => "localhost".into(),
        }
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63, 253 in all. All digits is a mistyped address.
fn host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..64).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() < 254 && name.split('.').all(label) && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let parse = |text| Address::parse(text).unwrap();
        assert_eq!(parse("127.0.0.1:80"), Address::Socket("127.0.0.1:80".parse().unwrap()));
        assert_eq!(parse("[::1]:80"), Address::Socket("[::1]:80".parse().unwrap()));
        assert_eq!(parse("unix:/run/a.sock"), Address::Unix("/run/a.sock".into()));
        assert_eq!(parse("a.internal:80"), Address::Host { name: "a.internal".into(), port: 80 });
        assert_eq!(parse("srv:_http._tcp.a.b").server_name().as_deref(), Some("a.b"));
        assert_eq!(parse("a.internal.:80").server_name().as_deref(), Some("a.internal"));
    }

    #[test]
    fn mistakes_are_told_apart() {
        for (text, words) in [
            ("a.internal", "has no port"),
            ("a.internal:http", "not a port"),
            ("a.internal:0", "port 0"),
            ("127.0.0.1:0", "port 0"),
            ("300.1.1.1:80", "is not an address"),
            ("http://a:80/", "write `a:80`"),
            ("https://a:443", "tls: {}"),
            ("unix:run/a.sock", "absolute path"),
            ("srv:http.tcp.a", "_service._proto"),
            ("a b:80", "is not an address"),
            ("", "is not an address"),
            (":80", "is not an address"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
