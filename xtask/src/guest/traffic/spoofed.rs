//! UDP packets from any address: what a flood looks like to the machine that it hits.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::libc;

use super::raw::{one, raw_socket};
use super::{Family, Sent};

/// The two ends of one packet.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Ends {
    /// Whoever it claims to be from.
    pub(in super::super) src: Ipv4Addr,
    /// Its source port.
    pub(in super::super) sport: u16,
    /// Its destination port, on this machine.
    pub(in super::super) dport: u16,
}

/// Sends one packet for each.
pub(in super::super) fn send(packets: impl IntoIterator<Item = Ends>) -> anyhow::Result<Sent> {
    let socket = raw_socket(Family::V4, 17)?;
    own_headers(&socket)?;
    let mut sent = Sent::default();
    for ends in packets {
        one(&socket, IpAddr::V4(Ipv4Addr::LOCALHOST), &packet(ends), &mut sent)?;
    }
    Ok(sent)
}

fn own_headers(socket: &OwnedFd) -> anyhow::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_HDRINCL,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on))?,
        )
    };
    Errno::result(result).map(drop).context("IP_HDRINCL")
}

/// IPv4 and UDP headers. The kernel fills in the length, the id and the checksum; UDP does without its own.
fn packet(Ends { src, sport, dport }: Ends) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&src.octets());
    packet[16..20].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    packet[20..22].copy_from_slice(&sport.to_be_bytes());
    packet[22..24].copy_from_slice(&dport.to_be_bytes());
    packet[25] = 8;
    packet
}
