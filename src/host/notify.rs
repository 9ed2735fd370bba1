//! What a unit of `Type=notify` says to systemd.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::{Error, Result};

/// Where systemd listens, if it started us and wants to hear.
const SOCKET: &str = "NOTIFY_SOCKET";

/// From here on, what is ordered after our unit may start. Said more than once, it means no more; without systemd, nothing.
pub fn ready() -> Result<()> {
    env::var_os(SOCKET).filter(|name| !name.is_empty()).map_or(Ok(()), |name| send(&name))
}

fn send(name: &OsStr) -> Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
        None => SocketAddr::from_pathname(name),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    sent.map(drop).map_err(|e| Error::io("write to", name, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_may_listen_at_a_path_or_at_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("gpu-bootstrap-test-{}", std::process::id());
        let named = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&named).unwrap(), format!("@{name}").into()),
        ] {
            send(&address).unwrap();
            let mut said = [0; 16];
            let length = listener.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1", "{}", address.display());
        }
        let gone = dir.path().join("gone");
        assert!(send(gone.as_os_str()).unwrap_err().to_string().contains("gone"));
    }
}
