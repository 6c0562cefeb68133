//! Protocols that have no stream or datagram socket here: ICMP echo, GRE, SCTP, and numbers nobody knows.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};

use super::{Family, Flows, PORT, Sent};

/// RFC 3692: a number for experiments, so no tracker of its own.
pub(in super::super) const EXPERIMENT: u8 = 253;
/// Generic routing encapsulation.
pub(in super::super) const GRE: u8 = 47;
/// Stream control transmission protocol.
pub(in super::super) const SCTP: u8 = 132;
/// Transmission control protocol.
const TCP: u8 = 6;

/// One echo request for each flow, told apart by id, then by destination. The kernel answers each.
pub(in super::super) fn echo(flows: Flows) -> anyhow::Result<Sent> {
    let (proto, kind) = match flows.family {
        Family::V4 => (1, 8),
        Family::V6 => (58, 128),
    };
    let socket = raw_socket(flows.family, proto)?;
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let id = u16::try_from(number & 0xffff)?.to_be_bytes();
        let mut packet = [kind, 0, 0, 0, id[0], id[1], 0, 1];
        if flows.family == Family::V4 {
            // The kernel fills this in for ICMPv6 sockets only.
            let sum = checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        one(&socket, flows.family.target(number >> 16), &packet, &mut sent)?;
    }
    Ok(sent)
}

/// One packet of a bare protocol to each destination.
pub(in super::super) fn protocol(flows: Flows, proto: u8) -> anyhow::Result<Sent> {
    let socket = raw_socket(flows.family, proto)?;
    let packet = match proto {
        // Version 0, no options, carrying IPv4: not PPTP, so the tuple is the addresses alone.
        GRE => vec![0, 0, 8, 0, 0, 0, 0, 0],
        SCTP => sctp_init(),
        _ => b"ctwatch!".to_vec(),
    };
    let mut sent = Sent::default();
    for number in flows.numbers() {
        one(&socket, flows.family.target(number), &packet, &mut sent)?;
    }
    Ok(sent)
}

/// A TCP SYN to `port` of each destination. No socket of the sender's remembers it, so what a flow costs is the
/// network's part alone: a connecting socket of its own costs as much again, and never twice the same.
pub(in super::super) fn syn(flows: Flows, port: u16) -> anyhow::Result<Sent> {
    segments(flows, port, SYN)
}

/// A bare ACK to `port` of each destination: a segment of a connection that nobody knows.
pub(in super::super) fn ack(flows: Flows, port: u16) -> anyhow::Result<Sent> {
    segments(flows, port, ACK)
}

/// Flags of a TCP header.
const SYN: u8 = 2;
const ACK: u8 = 16;

fn segments(flows: Flows, port: u16, flags: u8) -> anyhow::Result<Sent> {
    let socket = raw_socket(flows.family, TCP)?;
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let target = flows.family.target(number);
        one(&socket, target, &segment(flows.family.home(), target, port, flags), &mut sent)?;
    }
    Ok(sent)
}

/// With a checksum: whoever refuses the connection looks at it.
fn segment(source: IpAddr, target: IpAddr, port: u16, flags: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(PORT.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    // Five words of header; flags; a window; room for the checksum; nothing urgent.
    packet.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut summed = Vec::new();
    for address in [source, target] {
        match address {
            IpAddr::V4(address) => summed.extend(address.octets()),
            IpAddr::V6(address) => summed.extend(address.octets()),
        }
    }
    summed.extend([0, TCP, 0, 20]);
    summed.extend(&packet);
    packet[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
    packet
}

/// An SCTP INIT: the only chunk that opens a flow for conntrack. It wants the verification tag 0; the checksum is
/// looked at on the way in only, where loopback packets have their entry already.
fn sctp_init() -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(PORT.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(0x1234_5678_u32.to_be_bytes());
    packet.extend(65_536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1_u32.to_be_bytes());
    packet
}

pub(super) fn one(socket: &OwnedFd, target: IpAddr, packet: &[u8], sent: &mut Sent) -> anyhow::Result<()> {
    // Port 0: raw IPv6 sockets take any other for a protocol number and refuse.
    let address: SockaddrStorage = SocketAddr::new(target, 0).into();
    match sendto(socket.as_raw_fd(), packet, &address, MsgFlags::empty()) {
        Ok(_) => sent.passed += 1,
        Err(Errno::EPERM) => sent.refused += 1,
        Err(errno) => return Err(errno).with_context(|| format!("send to {target}")),
    }
    Ok(())
}

/// A raw socket. It also receives the protocol, so that nothing is answered with "protocol unreachable".
pub(super) fn raw_socket(family: Family, proto: u8) -> anyhow::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // nix knows no protocol without a name of its own.
    // SAFETY: socket(2) takes three integers and touches no memory of ours.
    let fd = unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::c_int::from(proto)) };
    let fd = Errno::result(fd).with_context(|| format!("raw socket for protocol {proto}"))?;
    // SAFETY: the call above just returned this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    setsockopt(&fd, sockopt::RcvBuf, &1)?;
    Ok(fd)
}

pub(super) fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in packet.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::{SYN, checksum, segment};

    #[test]
    fn checksum_makes_the_sum_zero() {
        let mut packet = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn a_syn_has_the_checksum_of_its_addresses() {
        // Of a SYN from 127.0.0.1:6881 to 127.64.0.7:9, as Python's sum over the words of pseudo header and header.
        let packet = segment([127, 0, 0, 1].into(), [127, 64, 0, 7].into(), 9, SYN);
        assert_eq!((packet.len(), &packet[16..18]), (20, &[0x96, 0xb0][..]));
    }
}
