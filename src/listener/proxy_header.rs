//! The PROXY protocol, versions 1 and 2: a proxy before us says whom it speaks for, ahead of the first byte.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::client_address::is_trusted;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its CRLF included.
const V1_LONGEST: usize = 107;
/// Addresses and extensions of version 2; honest proxies stay far below.
const V2_LONGEST: usize = 2048;

/// Whether this peer has to send a header. A Unix socket is only open to those we let in: it counts as trusted.
pub(super) fn expected_from(peer: Option<IpAddr>, trusted: &[IpNet]) -> bool {
    peer.is_none_or(|peer| is_trusted(peer, trusted))
}

/// Reads exactly the header. `None` if the proxy speaks for itself (health checks), or for no TCP client.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    // Both versions are longer than this, and nothing behind the header may be taken.
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start == *V2_SIGNATURE { read_v2(stream).await } else { read_v1(stream, &start).await }
}

async fn read_v1(stream: &mut (impl AsyncRead + Unpin), start: &[u8]) -> io::Result<Option<IpAddr>> {
    if !start.starts_with(b"PROXY ") {
        return Err(invalid("not a PROXY header"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_LONGEST {
            return Err(invalid("the line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    parse_v1(&line).ok_or_else(|| invalid("the line is not that of version 1"))
}

fn parse_v1(line: &[u8]) -> Option<Option<IpAddr>> {
    let line = std::str::from_utf8(line.strip_suffix(b"\r\n")?).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Some(None),
        ["PROXY", family, source, destination, source_port, destination_port] => {
            source_port.parse::<u16>().ok()?;
            destination_port.parse::<u16>().ok()?;
            let source = match family {
                "TCP4" => {
                    destination.parse::<Ipv4Addr>().ok()?;
                    IpAddr::V4(source.parse().ok()?)
                }
                "TCP6" => {
                    destination.parse::<Ipv6Addr>().ok()?;
                    IpAddr::V6(source.parse().ok()?)
                }
                _ => return None,
            };
            Some(Some(source.to_canonical()))
        }
        _ => None,
    }
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let version_and_command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = usize::from(stream.read_u16().await?);
    if length > V2_LONGEST {
        return Err(invalid("the header is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match version_and_command {
        // LOCAL: the proxy's own connection.
        0x20 => Ok(None),
        0x21 => match family {
            0x11 | 0x12 => {
                let source = rest.get(..12).and_then(|r| r.first_chunk::<4>());
                source.map(|s| Some(IpAddr::from(*s))).ok_or_else(|| invalid("the address is cut off"))
            }
            0x21 | 0x22 => {
                let source = rest.get(..36).and_then(|r| r.first_chunk::<16>());
                source.map(|s| Some(IpAddr::from(*s).to_canonical())).ok_or_else(|| invalid("the address is cut off"))
            }
            _ => Ok(None),
        },
        _ => Err(invalid("neither LOCAL nor PROXY of version 2")),
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parse(bytes: &[u8]) -> Result<(Option<String>, usize), ()> {
        let mut rest = bytes;
        let named = read(&mut rest).await.map_err(drop)?;
        Ok((named.map(|a| a.to_string()), rest.len()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend((rest.len() as u16).to_be_bytes());
        header.extend(rest);
        header
    }

    #[tokio::test]
    async fn a_header_names_the_client_and_nothing_behind_it_is_taken() {
        let v4 = [&[1, 2, 3, 4, 10, 0, 0, 1, 0, 80, 1, 187][..], b"\x04\0\x01x"].concat();
        let v6 = [&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 20]].concat();
        for (header, client) in [
            (b"PROXY TCP4 1.2.3.4 10.0.0.1 5678 443\r\n".to_vec(), Some("1.2.3.4")),
            (b"PROXY TCP6 2001:db8::1 ::1 5678 443\r\n".to_vec(), Some("2001:db8::1")),
            (b"PROXY TCP6 ::ffff:1.2.3.4 ::1 5678 443\r\n".to_vec(), Some("1.2.3.4")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("1.2.3.4")),
            (v2(0x21, 0x21, &v6), Some("2001:db8::1")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let request = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&request).await, Ok((client.map(str::to_owned), 16)), "{header:?}");
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]).await, Err(()), "{header:?} cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 10.0.0.1 5678\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4  10.0.0.1 5678 443\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 5678 443\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 10.0.0.1 5678 99999\r\n".to_vec(),
            b"PROXY TCP5 1.2.3.4 10.0.0.1 5678 443\r\n".to_vec(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat(),
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x11, &[0; 3000]),
        ] {
            assert_eq!(parse(&bytes).await, Err(()), "{bytes:?}");
        }
    }
}
