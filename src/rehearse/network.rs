//! The sandbox's network: a loopback device that holds the metadata service's address and the repository's.
//! Nothing leads out of it.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::error::{Code, Error, Result};

/// Where every instance finds its metadata service.
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The repository: an address that is reserved for examples (RFC 5737) and so is nobody's.
pub(super) const REPOSITORY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const REQUEST_AND_ACK: u16 = 5;
const CREATE_OR_REPLACE: u16 = 0x500;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NLMSG_ERROR: u16 = 2;
const AF_INET: u8 = 2;

/// Raises the loopback device of this network namespace and gives it both addresses.
pub(super) fn set_up() -> Result<()> {
    request(&link_up()).map_err(|e| failed("raise the loopback device", e))?;
    for address in [METADATA, REPOSITORY] {
        request(&add_address(address)).map_err(|e| failed(&format!("add the address {address}"), e))?;
    }
    Ok(())
}

fn failed(what: &str, e: std::io::Error) -> Error {
    Error::new(Code::RehearsalFailed, format!("cannot {what} in the sandbox")).because(e)
}

/// `struct ifinfomsg`: family, pad, type, index, flags, change mask.
fn link_up() -> Vec<u8> {
    let mut body = vec![0; 4];
    for n in [LOOPBACK, IFF_UP, IFF_UP] {
        body.extend(n.to_ne_bytes());
    }
    message(RTM_NEWLINK, 0, &body)
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index; then the address, twice, as attributes.
fn add_address(address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 32, 0, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    message(RTM_NEWADDR, CREATE_OR_REPLACE, &body)
}

/// `struct nlmsghdr`: length, type, flags, sequence number, sender (0: the kernel fills it in).
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend((REQUEST_AND_ACK | flags).to_ne_bytes());
    out.extend([0; 8]);
    out.extend(body);
    out
}

/// Sends one request to the kernel's routing socket and waits for its acknowledgement.
fn request(message: &[u8]) -> std::io::Result<()> {
    let fd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(fd.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut reply = [0; 4096];
    let got = recv(fd.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    // The acknowledgement is an error message whose number is 0.
    match (u16::from_ne_bytes([reply[4], reply[5]]), got) {
        (NLMSG_ERROR, 20..) => match i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]) {
            0 => Ok(()),
            number => Err(std::io::Error::from_raw_os_error(-number)),
        },
        (kind, _) => Err(std::io::Error::other(format!("unexpected reply of type {kind}"))),
    }
}
