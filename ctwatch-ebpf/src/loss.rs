//! Single events as the programs hand them to userspace, what selects them, and the budget that bounds them.

/// The tuple of one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple {
    /// Source address as it lies in memory; an IPv4 address fills the first four bytes.
    pub src: [u64; 2],
    /// Destination address, likewise.
    pub dst: [u64; 2],
    /// `nf_conntrack_tuple.src.u` as it lies in memory: a port, or the id of an ICMP query.
    pub src_part: [u8; 2],
    /// `nf_conntrack_tuple.dst.u`: a port, or ICMP's type and code.
    pub dst_part: [u8; 2],
    /// `nf_conntrack_zone.id`.
    pub zone: u16,
    /// [`crate::AF_INET`] or [`crate::AF_INET6`]; 0 where there is no tuple.
    pub family: u8,
    /// L4 protocol number.
    pub proto: u8,
}

/// One event in the ring buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traced {
    /// CLOCK_MONOTONIC when it happened, nanoseconds.
    pub ktime_ns: u64,
    /// CLOCK_REALTIME when the entry entered the table, nanoseconds; 0 unless it left the table and carried that time.
    pub start_ns: u64,
    /// Inode of the network namespace.
    pub netns: u32,
    /// An [`crate::Event`] as its number.
    pub event: u32,
    /// The lower half of `nf_conn.status`; 0 where there is no entry.
    pub status: u32,
    /// The CPU it happened on.
    pub cpu: u32,
    /// Whom it happened to.
    pub tuple: Tuple,
    /// Whom an evicted entry made room for.
    pub newcomer: Tuple,
    /// The direction of answers of the entry; of family 0 where there is no entry.
    pub reply: Tuple,
    /// `nf_conn.mark`; 0 where there is no entry, or this kernel has no marks.
    pub mark: u64,
    /// The process in whose context it happened; all zero outside of one.
    pub comm: [u8; 16],
}

/// How many ports a filter may name.
pub const TRACE_PORTS: usize = 16;
/// How many networks a filter may name.
pub const TRACE_NETS: usize = 8;

/// A network that one end of a flow must lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Net {
    /// The network's address, laid out as in [`Tuple`].
    pub address: [u64; 2],
    /// The bits that count.
    pub mask: [u64; 2],
    /// Its address family; 0 ends the list.
    pub family: u64,
}

/// The filters beyond the flow type: where a list is not empty, one of its members must fit either end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceFilter {
    /// Networks, up to the first of family 0.
    pub nets: [Net; TRACE_NETS],
    /// Ports in network byte order.
    pub ports: [[u8; 2]; TRACE_PORTS],
    /// How many of them are set.
    pub port_count: u64,
}

impl Net {
    /// Whether one end of the tuple lies in it.
    #[inline(always)]
    pub fn holds(&self, tuple: &Tuple) -> bool {
        self.family == u64::from(tuple.family) && (self.inside(&tuple.src) || self.inside(&tuple.dst))
    }

    /// Whether one address lies in it.
    #[inline(always)]
    pub fn has(&self, family: u8, at: &[u64; 2]) -> bool {
        self.family == u64::from(family) && self.inside(at)
    }

    #[inline(always)]
    const fn inside(&self, at: &[u64; 2]) -> bool {
        at[0] & self.mask[0] == self.address[0] && at[1] & self.mask[1] == self.address[1]
    }
}

impl TraceFilter {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.nets[0].family == 0 && self.port_count == 0
    }

    /// Whether a tuple passes. What has no ports passes no filter by port.
    #[inline(always)]
    pub fn passes(&self, tuple: &Tuple) -> bool {
        self.passes_ports(tuple) && self.passes_nets(tuple)
    }

    /// Whether a port of the tuple is asked for. What has no ports passes only where none is asked for.
    #[inline(always)]
    pub fn passes_ports(&self, tuple: &Tuple) -> bool {
        if self.port_count == 0 {
            return true;
        }
        if !has_ports(tuple.proto) {
            return false;
        }
        for (at, port) in self.ports.iter().enumerate() {
            if at as u64 >= self.port_count {
                break;
            }
            if *port == tuple.src_part || *port == tuple.dst_part {
                return true;
            }
        }
        false
    }

    /// Whether an address of the tuple is asked for.
    #[inline(always)]
    pub fn passes_nets(&self, tuple: &Tuple) -> bool {
        for (at, net) in self.nets.iter().enumerate() {
            if net.family == 0 {
                return at == 0;
            }
            if net.holds(tuple) {
                return true;
            }
        }
        false
    }
}

/// Whether the tuples of a protocol hold ports (TCP, UDP, DCCP, SCTP, UDPLITE; `nf_ct_get_tuple`, 5.10 to 7.3).
#[inline(always)]
pub const fn has_ports(proto: u8) -> bool {
    matches!(proto, 6 | 17 | 33 | 132 | 136)
}

/// Whether they hold ICMP's type, code and id.
#[inline(always)]
pub const fn is_icmp(proto: u8) -> bool {
    matches!(proto, 1 | 58)
}

/// What one CPU has handed over in this second, and what it held back since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// The second of CLOCK_MONOTONIC that `spent` belongs to.
    second: u64,
    spent: u64,
    /// Events that were not handed over because the budget was spent or the ring buffer full.
    pub suppressed: u64,
}

impl Budget {
    /// Takes one event's share at `now_ns`, where at most `per_second` are allowed. False where none is left.
    #[inline(always)]
    pub const fn spend(&mut self, now_ns: u64, per_second: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.spent = 0;
        }
        if self.spent >= per_second {
            return false;
        }
        self.spent += 1;
        true
    }
}

const _: () = assert!(size_of::<Tuple>() == 40);
const _: () = assert!(size_of::<Traced>() == 176);
const _: () = assert!(size_of::<Net>() == 40);
const _: () = assert!(size_of::<TraceFilter>() == 360);
const _: () = assert!(size_of::<Budget>() == 24);

#[cfg(feature = "user")]
// SAFETY: repr(C) of integers without padding, and every bit pattern is a value.
unsafe impl aya::Pod for TraceFilter {}

#[cfg(feature = "user")]
// SAFETY: repr(C) of integers without padding, and every bit pattern is a value.
unsafe impl aya::Pod for Budget {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AF_INET, AF_INET6};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_budget_holds_for_a_second_and_begins_anew() {
        let mut budget = Budget::default();
        for (now, fits) in [
            (7 * SECOND, true),
            (7 * SECOND + 1, true),
            (7 * SECOND + 2, false),
            (8 * SECOND - 1, false),
            (8 * SECOND, true),
            (100 * SECOND, true),
            (100 * SECOND, true),
            (100 * SECOND, false),
        ] {
            assert_eq!(budget.spend(now, 2), fits, "{now}");
        }
        assert!(!Budget::default().spend(SECOND, 0));
    }

    fn words(bytes: &[u8]) -> [u64; 2] {
        let mut all = [0; 16];
        all[..bytes.len()].copy_from_slice(bytes);
        let (first, last) = all.split_at(8);
        [u64::from_ne_bytes(first.try_into().unwrap()), u64::from_ne_bytes(last.try_into().unwrap())]
    }

    fn udp(src: [u8; 4], dst: [u8; 4], dport: u16) -> Tuple {
        Tuple {
            src: words(&src),
            dst: words(&dst),
            src_part: 4000_u16.to_be_bytes(),
            dst_part: dport.to_be_bytes(),
            family: AF_INET,
            proto: 17,
            ..Tuple::default()
        }
    }

    fn ports(list: &[u16]) -> TraceFilter {
        let mut filter = TraceFilter { port_count: list.len() as u64, ..TraceFilter::default() };
        for (to, from) in filter.ports.iter_mut().zip(list) {
            *to = from.to_be_bytes();
        }
        filter
    }

    #[test]
    fn a_port_may_be_at_either_end_and_port_0_is_a_port() {
        let tuple = udp([10, 0, 0, 1], [10, 0, 0, 2], 53);
        assert!(TraceFilter::default().passes(&tuple) && TraceFilter::default().is_empty());
        assert!(ports(&[53]).passes(&tuple) && ports(&[9, 4000]).passes(&tuple));
        assert!(!ports(&[54]).passes(&tuple) && !ports(&[0]).passes(&tuple));
        assert!(ports(&[0]).passes(&udp([1; 4], [2; 4], 0)));
        let all: Vec<u16> = (100..116).collect();
        assert!(ports(&all).passes(&udp([1; 4], [2; 4], 115)));
        assert!(!ports(&[53]).passes(&Tuple { proto: 1, ..tuple }), "ICMP has no ports");
    }

    #[test]
    fn a_network_may_hold_either_end_and_is_of_one_family() {
        let tuple = udp([10, 0, 0, 1], [192, 168, 7, 2], 53);
        let net = |address: &[u8], mask: &[u8], family: u8| {
            let mut filter = TraceFilter::default();
            filter.nets[0] = Net { address: words(address), mask: words(mask), family: family.into() };
            filter
        };
        assert!(net(&[10, 0, 0, 0], &[255, 255, 255, 0], AF_INET).passes(&tuple));
        assert!(net(&[192, 168, 0, 0], &[255, 255, 0, 0], AF_INET).passes(&tuple));
        assert!(net(&[0; 4], &[0; 4], AF_INET).passes(&tuple));
        assert!(!net(&[10, 0, 1, 0], &[255, 255, 255, 0], AF_INET).passes(&tuple));
        assert!(!net(&[0; 16], &[0; 16], AF_INET6).passes(&tuple));
        let mut both = net(&[10, 0, 0, 0], &[255; 4], AF_INET);
        both.nets[1] = Net { address: words(&[10, 0, 0, 1]), mask: words(&[255; 4]), family: 2 };
        assert!(both.passes(&tuple), "the second of two networks");
        both.ports = ports(&[80]).ports;
        both.port_count = 1;
        assert!(!both.passes(&tuple), "both kinds of filter must agree");
    }
}
