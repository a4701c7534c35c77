//! Telling systemd, where it is there, that this process serves, and that it is the main one now.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the process is ready and that it is the unit's main process: after an upgrade that is the successor, and
/// systemd must not take the predecessor's exit for the end of the service. The protocol is that of `sd_notify(3)`.
/// Without `$NOTIFY_SOCKET` it does nothing.
pub fn serving() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message = format!("READY=1\nMAINPID={}\n", std::process::id());
    let path = socket.as_bytes();
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
    if let Err(error) = sent {
        log::warn!("cannot tell systemd that the process serves: {error}");
    }
}
