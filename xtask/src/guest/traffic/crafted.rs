//! Whole packets as no well-behaved stack sends them, from any address to any other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use super::raw::{checksum, one, raw_socket};
use super::{Family, Sent};

/// `IPPROTO_RAW`: a socket for packets with their own headers.
const RAW: u8 = 255;

pub(in super::super) const ICMP: u8 = 1;
pub(in super::super) const TCP: u8 = 6;
pub(in super::super) const UDP: u8 = 17;
pub(in super::super) const ICMPV6: u8 = 58;
pub(in super::super) const SCTP: u8 = 132;

/// Flags of a TCP segment.
pub(in super::super) const FIN: u8 = 1;
pub(in super::super) const SYN: u8 = 2;
pub(in super::super) const RST: u8 = 4;
pub(in super::super) const ACK: u8 = 16;

/// A client behind one side of a router, or a server behind the other.
pub(in super::super) fn host(family: Family, server: bool, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    let side = if server { 2 } else { 1 };
    match family {
        Family::V4 => Ipv4Addr::new(10, 96 + side, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x99, side.into(), 0, 0, 0, 0, number).into(),
    }
}

/// One packet.
#[derive(Clone, Debug)]
pub(in super::super) struct Crafted {
    pub(in super::super) src: IpAddr,
    pub(in super::super) dst: IpAddr,
    pub(in super::super) proto: u8,
    /// From the transport header on.
    pub(in super::super) payload: Vec<u8>,
}

impl Crafted {
    /// The same with a wrong checksum; SCTP's and those of short packets are wrong anyhow.
    pub(in super::super) fn with_bad_sum(mut self) -> Self {
        if let Some(at) = sum_at(self.proto) {
            self.payload[at] ^= 0x55;
        }
        self
    }

    fn new(src: IpAddr, dst: IpAddr, proto: u8, mut payload: Vec<u8>) -> Self {
        if let Some(at) = sum_at(proto) {
            let sum = sum(src, dst, proto, &payload);
            payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        Self { src, dst, proto, payload }
    }

    /// A UDP datagram of 8 bytes that says it has `length`, header included.
    pub(in super::super) fn udp(src: IpAddr, dst: IpAddr, ports: (u16, u16), length: u16) -> Self {
        let mut payload =
            [ports.0.to_be_bytes(), ports.1.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
        payload.extend(b"ctwatch!");
        Self::new(src, dst, UDP, payload)
    }

    /// A TCP segment.
    pub(in super::super) fn tcp(src: IpAddr, dst: IpAddr, ports: (u16, u16), segment: Segment) -> Self {
        let Segment { seq, ack, flags, length } = segment;
        let mut payload = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        payload.extend(seq.to_be_bytes());
        payload.extend(ack.to_be_bytes());
        payload.extend([5 << 4, flags]);
        payload.extend(WINDOW.to_be_bytes());
        payload.extend([0; 4]);
        payload.resize(20 + length, b'x');
        Self::new(src, dst, TCP, payload)
    }

    /// An ICMP message of this type: an echo reply, or an error about `about`.
    pub(in super::super) fn icmp(src: IpAddr, dst: IpAddr, kind: u8, about: Option<&Self>) -> Self {
        let mut payload = vec![kind, 0, 0, 0, 0, 7, 0, 1];
        if let Some(about) = about {
            payload[4..8].fill(0);
            payload.extend(about.bytes());
        }
        let proto = if src.is_ipv4() { ICMP } else { ICMPV6 };
        Self::new(src, dst, proto, payload)
    }

    /// An SCTP packet with one chunk of 16 bytes, checksum 0.
    pub(in super::super) fn sctp(src: IpAddr, dst: IpAddr, ports: (u16, u16), tag: u32, chunk: u8) -> Self {
        let mut payload = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        payload.extend(tag.to_be_bytes());
        payload.extend([0; 4]);
        payload.extend([chunk, 0, 0, 16]);
        payload.extend([1; 12]);
        Self { src, dst, proto: SCTP, payload }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.payload.len()).unwrap_or(u16::MAX);
        let mut packet = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                // The kernel fills in the checksum of what it sends itself, not of what an ICMP error holds.
                let mut header = vec![0x45, 0];
                header.extend((length + 20).to_be_bytes());
                header.extend([0, 7, 0, 0, 64, self.proto, 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                let sum = checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&sum);
                header
            }
            (src, dst) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([self.proto, 64]);
                header.extend(octets(src));
                header.extend(octets(dst));
                header
            }
        };
        packet.extend(&self.payload);
        packet
    }
}

/// What is told apart in a TCP segment.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Segment {
    pub(in super::super) seq: u32,
    pub(in super::super) ack: u32,
    pub(in super::super) flags: u8,
    /// Bytes of data.
    pub(in super::super) length: usize,
}

/// The window of every segment: no options, so that it is not scaled.
pub(in super::super) const WINDOW: u16 = 8192;

/// Sends packets that are in the namespace of the caller.
#[derive(Debug)]
pub(in super::super) struct Sender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Sender {
    pub(in super::super) fn new() -> anyhow::Result<Self> {
        Ok(Self { v4: raw_socket(Family::V4, RAW)?, v6: raw_socket(Family::V6, RAW)? })
    }

    pub(in super::super) fn send(&self, packet: &Crafted) -> anyhow::Result<()> {
        let socket = if packet.dst.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut sent = Sent::default();
        one(socket, packet.dst, &packet.bytes(), &mut sent)?;
        anyhow::ensure!(sent.passed == 1, "the packet to {} was refused", packet.dst);
        Ok(())
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Where a protocol's Internet checksum lies.
fn sum_at(proto: u8) -> Option<usize> {
    match proto {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// Over the pseudo header too, except for ICMP.
fn sum(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> u16 {
    let mut summed = Vec::new();
    if proto != ICMP {
        summed.extend(octets(src));
        summed.extend(octets(dst));
        summed.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        summed.extend([0, 0, 0, proto]);
    }
    summed.extend(payload);
    checksum(&summed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_right_unless_they_shall_not_be() {
        let [client, server] = [false, true].map(|server| host(Family::V6, server, 7));
        for good in [
            Crafted::udp(client, server, (1, 2), 16),
            Crafted::tcp(client, server, (1, 2), Segment { length: 3, ..Segment::default() }),
            Crafted::icmp(client, server, 129, None),
        ] {
            assert_eq!(sum(client, server, good.proto, &good.payload), 0, "{good:?}");
            let bad = good.with_bad_sum();
            assert_ne!(sum(client, server, bad.proto, &bad.payload), 0, "{bad:?}");
        }
    }

    #[test]
    fn an_ipv4_header_has_its_sum_and_length() {
        let packet = Crafted::udp(host(Family::V4, false, 1), host(Family::V4, true, 1), (1, 2), 16).bytes();
        assert_eq!((packet.len(), &packet[2..4]), (36, &[0, 36][..]));
        assert_eq!(checksum(&packet[..20]), 0);
    }
}
