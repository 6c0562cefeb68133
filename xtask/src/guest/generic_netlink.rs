//! Requests by generic netlink (uapi/linux/genetlink.h), for parts of the kernel whose own programs guests do not have.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recvmsg, sendmsg, socket,
};

/// Numbers of uapi/linux/netlink.h and genetlink.h.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `nlmsghdr` and `genlmsghdr`.
const HEADERS: usize = 16 + 4;

/// A family of generic netlink, by its number.
#[derive(Debug)]
pub(super) struct Generic {
    socket: OwnedFd,
    family: u16,
}

impl Generic {
    /// The family of this name. Its module must be loaded.
    pub(super) fn open(name: &str) -> anyhow::Result<Self> {
        let protocol = SockProtocol::NetlinkGeneric;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut control = Self { socket, family: CONTROL };
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let reply = control.ask(GET_FAMILY, 1, REQUEST, &attribute(FAMILY_NAME, &text))?;
        let mut rest = reply.get(HEADERS..).unwrap_or_default();
        while let [size_0, size_1, kind_0, kind_1, ..] = *rest {
            let size = usize::from(u16::from_ne_bytes([size_0, size_1]));
            if let (FAMILY_ID, Some([low, high])) = (u16::from_ne_bytes([kind_0, kind_1]), rest.get(4..6)) {
                control.family = u16::from_ne_bytes([*low, *high]);
                return Ok(control);
            }
            rest = rest.get(size.max(4).next_multiple_of(4)..).unwrap_or_default();
        }
        anyhow::bail!("the kernel gave no number for {name}")
    }

    /// Asks for something to be made or set. `body` is the family's own header and its attributes.
    pub(super) fn make(&self, command: u8, version: u8, body: &[u8]) -> anyhow::Result<()> {
        self.ask(command, version, REQUEST | ACK | CREATE, body).map(drop)
    }

    /// Sends a request and gives the answer, which may be an acknowledgement.
    fn ask(&self, command: u8, version: u8, flags: u16, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut message = u32::try_from(HEADERS + body.len())?.to_ne_bytes().to_vec();
        message.extend(self.family.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence and port, which the kernel fills in, then the generic header.
        message.extend([0; 8]);
        message.extend([command, version, 0, 0]);
        message.extend(body);
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&message)], &[], MsgFlags::empty(), None)?;
        let mut reply = vec![0; 8192];
        let size = {
            let mut room = [IoSliceMut::new(&mut reply)];
            recvmsg::<()>(self.socket.as_raw_fd(), &mut room, None, MsgFlags::empty())?.bytes
        };
        reply.truncate(size);
        if reply.get(4..6) == Some(&ERROR.to_ne_bytes()[..]) {
            let code = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).context("a short answer")?;
            let code = i32::from_ne_bytes(code);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code))
                    .with_context(|| format!("command {command} of generic netlink family {}", self.family));
            }
        }
        Ok(reply)
    }
}

/// `nlattr`: its size, its kind and its value, padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let size = 4 + value.len();
    let mut bytes = u16::try_from(size).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(size.next_multiple_of(4), 0);
    bytes
}
