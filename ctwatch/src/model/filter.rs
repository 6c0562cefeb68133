//! Which flow types are watched.

use ctwatch_ebpf::FlowType;

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
}

impl Filter {
    /// Whether a flow type passes. The overflow row holds only what has passed already.
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
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::{AF_INET, AF_INET6};

    use super::*;

    #[test]
    fn the_set_holds_exactly_what_was_put_in() {
        let mut set = Protocols::default();
        for proto in [0, 6, 63, 64, 132, 255] {
            set.insert(proto);
        }
        let held: Vec<u8> = (0..=u8::MAX).filter(|proto| set.contains(*proto)).collect();
        assert_eq!(held, [0, 6, 63, 64, 132, 255]);
    }

    #[test]
    fn each_part_of_the_filter_must_agree() {
        let mut protos = Protocols::default();
        protos.insert(17);
        let filter = Filter { protos: Some(protos), family: Some(AF_INET), netns: Some(7) };
        let wanted = FlowType { netns: 7, family: AF_INET, proto: 17 };
        assert!(filter.wants(wanted));
        assert!(filter.wants(FlowType::OVERFLOW));
        assert!(!filter.wants(FlowType { proto: 6, ..wanted }));
        assert!(!filter.wants(FlowType { family: AF_INET6, ..wanted }));
        assert!(!filter.wants(FlowType { netns: 8, ..wanted }));
        assert!(Filter::default().wants(wanted));
    }
}
