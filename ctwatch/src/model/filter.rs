//! Which flows are watched.

use std::net::IpAddr;

use ctwatch_ebpf::loss::{Net, TRACE_PORTS, TraceFilter, Tuple};
use ctwatch_ebpf::{AF_INET, AF_INET6, FlowType};

/// A set of L4 protocol numbers, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols(pub [u64; 4]);

impl Protocols {
    /// Adds a protocol number.
    pub fn insert(&mut self, proto: u8) {
        self.0[usize::from(proto / 64)] |= 1 << (proto % 64);
    }

    /// Whether a protocol number is in the set.
    pub const fn contains(&self, proto: u8) -> bool {
        self.0[(proto / 64) as usize] >> (proto % 64) & 1 == 1
    }
}

/// What to watch; `None` means everything. Sources apply it in the kernel where they can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these protocols.
    pub protos: Option<Protocols>,
    /// Only this family, [`ctwatch_ebpf::AF_INET`] or [`ctwatch_ebpf::AF_INET6`].
    pub family: Option<u8>,
    /// Only the network namespace with this inode.
    pub netns: Option<u32>,
    /// Only flows with these ports or networks at either end, in the form the programs in the kernel take; never an
    /// empty one.
    pub ends: Option<TraceFilter>,
}

impl Filter {
    /// Whether a flow type passes; ports and networks are no part of it. The overflow row holds only what has passed
    /// already.
    pub fn wants(&self, flow: FlowType) -> bool {
        flow == FlowType::OVERFLOW
            || self.protos.is_none_or(|protos| protos.contains(flow.proto))
                && self.family.is_none_or(|family| family == flow.family)
                && self.wants_netns(flow.netns)
    }

    /// Whether a network namespace passes.
    pub fn wants_netns(&self, netns: u32) -> bool {
        self.netns.is_none_or(|wanted| wanted == netns)
    }

    /// Whether it leaves out some flows of a namespace, and not just namespaces.
    pub const fn selects_flows(&self) -> bool {
        self.protos.is_some() || self.family.is_some() || self.ends.is_some()
    }

    /// Whether a flow of a namespace passes. The programs in the kernel apply the same check of the tuple.
    pub fn passes(&self, netns: u32, tuple: &Tuple) -> bool {
        self.wants(FlowType { netns, family: tuple.family, proto: tuple.proto })
            && self.ends.as_ref().is_none_or(|ends| ends.passes(tuple))
    }
}

/// Whether a port and an address of an entry fit, each in whichever of its directions.
pub fn passes_either(ends: &TraceFilter, original: &Tuple, reply: Option<&Tuple>) -> bool {
    let reply = reply.unwrap_or(original);
    (ends.passes_ports(original) || ends.passes_ports(reply))
        && (ends.passes_nets(original) || ends.passes_nets(reply))
}

/// A tuple for [`Filter::passes`]. Without ports it passes no filter by port.
pub fn tuple(proto: u8, src: IpAddr, dst: IpAddr, ports: Option<(u16, u16)>) -> Tuple {
    let (src_part, dst_part) = ports.unwrap_or_default();
    let (family, src) = address(src);
    Tuple {
        src,
        dst: address(dst).1,
        src_part: src_part.to_be_bytes(),
        dst_part: dst_part.to_be_bytes(),
        zone: 0,
        family,
        proto,
    }
}

/// A network from text: an address, or an address and the length of its prefix.
pub fn parse_net(text: &str) -> Result<Net, String> {
    let (at, length) = match text.split_once('/') {
        Some((at, length)) => (at, Some(length)),
        None => (text, None),
    };
    let at: IpAddr = at
        .parse()
        .map_err(|_| format!("no network `{text}`; give one as 10.0.0.0/8, 2001:db8::/32 or an address"))?;
    let longest = if at.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => longest,
        Some(length) => length
            .parse()
            .ok()
            .filter(|given| *given <= longest && length.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| format!("a prefix of `{text}` has 0 to {longest} bits"))?,
    };
    let mask = words(u128::MAX.checked_shl(128 - length).unwrap_or(0).to_be_bytes());
    let (family, all) = address(at);
    Ok(Net { address: [all[0] & mask[0], all[1] & mask[1]], mask, family: family.into() })
}

/// The filter for these ports and networks, of which the first 16 and 8 count; `None` where there are none.
pub fn ends(ports: &[u16], nets: &[Net]) -> Option<TraceFilter> {
    let port_count = ports.len().min(TRACE_PORTS) as u64;
    let mut filter = TraceFilter { port_count, ..TraceFilter::default() };
    for (to, from) in filter.ports.iter_mut().zip(ports) {
        *to = from.to_be_bytes();
    }
    for (to, from) in filter.nets.iter_mut().zip(nets) {
        *to = *from;
    }
    (!filter.is_empty()).then_some(filter)
}

/// An address as it lies in a [`Tuple`], with its family.
fn address(at: IpAddr) -> (u8, [u64; 2]) {
    match at {
        IpAddr::V4(at) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&at.octets());
            (AF_INET, words(octets))
        }
        IpAddr::V6(at) => (AF_INET6, words(at.octets())),
    }
}

/// The address in the words of a [`Tuple`] of this family.
pub(crate) fn ip(family: u8, words: [u64; 2]) -> Option<IpAddr> {
    let octets = octets(words);
    match (family, octets) {
        (AF_INET, [a, b, c, d, ..]) => Some(IpAddr::from([a, b, c, d])),
        (AF_INET6, octets) => Some(IpAddr::from(octets)),
        _ => None,
    }
}

/// The words of a [`Tuple`]'s address.
pub(crate) fn words(octets: [u8; 16]) -> [u64; 2] {
    let mut words = [0; 2];
    for (word, part) in words.iter_mut().zip(octets.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*part);
    }
    words
}

/// The bytes behind the words.
fn octets(words: [u64; 2]) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&words[0].to_ne_bytes());
    octets[8..].copy_from_slice(&words[1].to_ne_bytes());
    octets
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
