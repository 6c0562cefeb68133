//! Selecting single events by what only an entry has: its reply direction, what NAT does to it, its zone and mark.

use crate::loss::{Net, TRACE_NETS, TRACE_PORTS, Tuple, has_ports, is_icmp};

/// How many zones or marks a filter may name.
pub const TRACE_VALUES: usize = 16;

/// NAT changes the source: a bit of what [`nat`] tells.
pub const SNAT: u64 = 1;
/// NAT changes the destination.
pub const DNAT: u64 = 2;

/// What NAT changes, by the difference of both directions. The status bits of NAT say less: IPVS translates without them.
#[inline(always)]
pub fn nat(original: &Tuple, reply: &Tuple) -> u64 {
    // An ICMP query and its answer have one id, and NAT of the source may change it. Their types differ.
    let (source, target) = if is_icmp(original.proto) {
        (original.src_part == reply.src_part, true)
    } else {
        (original.src_part == reply.dst_part, original.dst_part == reply.src_part)
    };
    let source = source && same(&original.src, &reply.dst);
    let target = target && same(&original.dst, &reply.src);
    (if source { 0 } else { SNAT }) | (if target { 0 } else { DNAT })
}

/// Word by word: comparing whole arrays is a call, which the programs have no library for.
#[inline(always)]
const fn same(one: &[u64; 2], other: &[u64; 2]) -> bool {
    one[0] == other[0] && one[1] == other[1]
}

/// Some 16-bit values, of which one must fit; none of them where all fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Words {
    /// As they lie in what is compared.
    pub list: [[u8; 2]; TRACE_PORTS],
    /// How many of them are set.
    pub count: u64,
}

impl Words {
    /// Whether nothing is asked for, or this.
    #[inline(always)]
    pub fn allow(&self, word: [u8; 2]) -> bool {
        if self.count == 0 {
            return true;
        }
        for (at, one) in self.list.iter().enumerate() {
            if at as u64 >= self.count {
                break;
            }
            if *one == word {
                return true;
            }
        }
        false
    }
}

/// Which entries' events are wanted: where a list is not empty, one of its members must fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceEntries {
    /// Networks of the source of answers, up to the first of family 0.
    pub rsrc: [Net; TRACE_NETS],
    /// Networks of the destination of answers, likewise.
    pub rdst: [Net; TRACE_NETS],
    /// Ports of the source of answers in network byte order.
    pub rsport: Words,
    /// Ports of their destination, likewise.
    pub rdport: Words,
    /// Conntrack zones.
    pub zones: Words,
    /// Bits that a mark must have, and the bits that count.
    pub marks: [[u32; 2]; TRACE_VALUES],
    /// How many of them are set.
    pub mark_count: u64,
    /// One bit for each kind of NAT, at what [`nat`] tells; 0 where each is wanted.
    pub nat: u64,
    /// Not 0 where anything but the zone is asked for, which a flow without an entry has not.
    pub entry: u64,
}

impl TraceEntries {
    /// Whether a zone is wanted.
    #[inline(always)]
    pub fn passes_zone(&self, zone: u16) -> bool {
        self.zones.allow(zone.to_ne_bytes())
    }

    /// Whether a mark is.
    #[inline(always)]
    pub fn passes_mark(&self, mark: u32) -> bool {
        if self.mark_count == 0 {
            return true;
        }
        for (at, [value, mask]) in self.marks.iter().enumerate() {
            if at as u64 >= self.mark_count {
                break;
            }
            if mark & *mask == *value {
                return true;
            }
        }
        false
    }

    /// Whether an entry with these directions is.
    #[inline(always)]
    pub fn passes_reply(&self, original: &Tuple, reply: &Tuple) -> bool {
        (self.nat == 0 || self.nat >> nat(original, reply) & 1 != 0)
            && (has_ports(reply.proto) || self.rsport.count | self.rdport.count == 0)
            && self.rsport.allow(reply.src_part)
            && self.rdport.allow(reply.dst_part)
            && one_holds(&self.rsrc, reply.family, &reply.src)
            && one_holds(&self.rdst, reply.family, &reply.dst)
    }
}

/// Whether one of the networks holds an address, or there is none.
#[inline(always)]
fn one_holds(nets: &[Net; TRACE_NETS], family: u8, at: &[u64; 2]) -> bool {
    for (number, net) in nets.iter().enumerate() {
        if net.family == 0 {
            return number == 0;
        }
        if net.has(family, at) {
            return true;
        }
    }
    false
}

const _: () = assert!(size_of::<Words>() == 40);
const _: () = assert!(size_of::<TraceEntries>() == 912);

#[cfg(feature = "user")]
// SAFETY: repr(C) of integers without padding, and every bit pattern is a value.
unsafe impl aya::Pod for TraceEntries {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_0_and_zone_0_are_values() {
        assert!(Words::default().allow([0, 1]));
        let zero = Words { count: 1, ..Words::default() };
        assert!(zero.allow([0, 0]) && !zero.allow([0, 1]));
        let mut all = Words { count: 16, ..Words::default() };
        all.list[15] = [7, 7];
        assert!(all.allow([7, 7]));
        let zones = TraceEntries { zones: zero, ..TraceEntries::default() };
        assert!(zones.passes_zone(0) && !zones.passes_zone(1));
    }

    #[test]
    fn a_mark_is_compared_by_the_bits_that_count() {
        let mut entries = TraceEntries::default();
        assert!(entries.passes_mark(7));
        entries.marks[1] = [0x4000, 0x4000];
        entries.mark_count = 1;
        assert!(entries.passes_mark(9), "no bit counts in the first");
        entries.marks[0] = [1, u32::MAX];
        assert!(entries.passes_mark(1) && !entries.passes_mark(0x4001));
        entries.mark_count = 2;
        assert!(entries.passes_mark(0x4001) && !entries.passes_mark(0x8001));
    }
}
