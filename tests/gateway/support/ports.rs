//! Ports that stay ours until the gateway listens on them.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A loopback port that is bound but does not listen. Linux lets another socket with `SO_REUSEADDR` bind and listen
/// on it meanwhile, gives it to nobody who asks for just any port, and refuses whoever connects before anyone listens.
pub struct Reserved {
    pub address: SocketAddr,
    _held: TcpSocket,
}

pub fn reserve() -> Reserved {
    let held = TcpSocket::new_v4().expect("a socket");
    held.set_reuseaddr(true).expect("SO_REUSEADDR");
    held.bind("127.0.0.1:0".parse().expect("a literal address")).expect("a free port");
    Reserved { address: held.local_addr().expect("a bound socket has an address"), _held: held }
}
