//! Which entries are wanted, by what only an entry has: its reply direction, NAT, zone, mark and flow table.

use ctwatch_ebpf::FlowType;
use ctwatch_ebpf::entry::{TRACE_VALUES, TraceEntries, Words};
use ctwatch_ebpf::loss::{Net, TRACE_NETS, TRACE_PORTS, Tuple, has_ports};

use super::Filter;
use super::entry::{Entry, Nat, Offload};
use super::filter::passes_either;

/// Where a list is not empty, one of its members must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Networks of the source of answers.
    pub rsrc: Vec<Net>,
    /// Its ports.
    pub rsport: Vec<u16>,
    /// Networks of the destination of answers.
    pub rdst: Vec<Net>,
    /// Its ports.
    pub rdport: Vec<u16>,
    /// Kinds of NAT.
    pub nat: Vec<Nat>,
    /// Conntrack zones.
    pub zone: Vec<u16>,
    /// Marks.
    pub mark: Vec<Mark>,
    /// Kinds of flow tables.
    pub offload: Vec<Offload>,
}

/// A mark, of which only some bits may count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bits that it must have.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

impl EntryFilter {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether only a flow with an entry can pass: before it has one, nothing but its zone is known.
    pub const fn needs_entry(&self) -> bool {
        let Self { rsrc, rsport, rdst, rdport, nat, zone: _, mark, offload } = self;
        !(rsrc.is_empty() && rsport.is_empty() && rdst.is_empty() && rdport.is_empty())
            || !(nat.is_empty() && mark.is_empty() && offload.is_empty())
    }

    /// The flag of a list that is longer than the programs in the kernel can hold, and how much they can.
    pub fn too_long(&self) -> Option<(&'static str, usize)> {
        let lists = [
            ("--rsrc", self.rsrc.len(), TRACE_NETS),
            ("--rdst", self.rdst.len(), TRACE_NETS),
            ("--rsport", self.rsport.len(), TRACE_PORTS),
            ("--rdport", self.rdport.len(), TRACE_PORTS),
            ("--zone", self.zone.len(), TRACE_PORTS),
            ("--mark", self.mark.len(), TRACE_VALUES),
        ];
        lists.into_iter().find(|(_, length, most)| length > most).map(|(flag, _, most)| (flag, most))
    }

    /// The same for the programs in the kernel, which know nothing of flow tables; `None` where nothing is asked for.
    pub fn in_kernel(&self) -> Option<TraceEntries> {
        let mut marks = [[0; 2]; TRACE_VALUES];
        for (to, Mark { value, mask }) in marks.iter_mut().zip(&self.mark) {
            *to = [*value, *mask];
        }
        let wanted = TraceEntries {
            rsrc: nets(&self.rsrc),
            rdst: nets(&self.rdst),
            rsport: words(self.rsport.iter().map(|port| port.to_be_bytes())),
            rdport: words(self.rdport.iter().map(|port| port.to_be_bytes())),
            zones: words(self.zone.iter().map(|zone| zone.to_ne_bytes())),
            marks,
            mark_count: self.mark.len().min(TRACE_VALUES) as u64,
            nat: self.nat.iter().fold(0, |kinds, nat| kinds | 1 << nat.bits()),
            entry: self.needs_entry().into(),
        };
        (wanted != TraceEntries::default()).then_some(wanted)
    }

    /// Whether an entry passes.
    pub fn passes(&self, entry: &Entry) -> bool {
        let Self { rsrc, rsport, rdst, rdport, nat, zone, mark, offload } = self;
        any(nat, |nat| *nat == entry.nat())
            && any(zone, |zone| *zone == entry.tuple.zone)
            && any(mark, |mark| entry.mark & mark.mask == mark.value)
            && any(offload, |offload| *offload == entry.offload())
            && of_reply(rsrc, entry, |net, reply| net.has(reply.family, &reply.src))
            && of_reply(rdst, entry, |net, reply| net.has(reply.family, &reply.dst))
            && of_reply(rsport, entry, |port, reply| has(*port, reply, reply.src_part))
            && of_reply(rdport, entry, |port, reply| has(*port, reply, reply.dst_part))
    }
}

fn nets(list: &[Net]) -> [Net; TRACE_NETS] {
    let mut nets = [Net::default(); TRACE_NETS];
    for (to, from) in nets.iter_mut().zip(list) {
        *to = *from;
    }
    nets
}

fn words(values: impl Iterator<Item = [u8; 2]>) -> Words {
    let mut words = Words::default();
    for (to, from) in words.list.iter_mut().zip(values) {
        *to = from;
        words.count += 1;
    }
    words
}

fn any<T>(list: &[T], fits: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(fits)
}

fn of_reply<T>(list: &[T], entry: &Entry, fits: impl Fn(&T, &Tuple) -> bool) -> bool {
    any(list, |one| entry.reply.is_some_and(|reply| fits(one, &reply)))
}

fn has(port: u16, tuple: &Tuple, bytes: [u8; 2]) -> bool {
    has_ports(tuple.proto) && port.to_be_bytes() == bytes
}

impl Filter {
    /// Whether an entry passes. Ports and networks may be those of either direction.
    pub fn passes_entry(&self, entry: &Entry) -> bool {
        let Entry { netns, tuple, reply, .. } = entry;
        self.wants(FlowType { netns: *netns, family: tuple.family, proto: tuple.proto })
            && self.ends.as_ref().is_none_or(|ends| passes_either(ends, tuple, reply.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::filter::{ends, parse_net, tuple};
    use crate::model::table::status;

    /// A client reaches a server behind a public address, and the server's answers leave by another port.
    fn entry() -> Entry {
        let of = |src: &str, sport, dst: &str, dport| {
            tuple(17, src.parse().unwrap(), dst.parse().unwrap(), Some((sport, dport)))
        };
        Entry {
            tuple: Tuple { zone: 9, ..of("192.0.2.8", 4000, "198.51.100.1", 5353) },
            reply: Some(of("10.9.0.77", 53, "10.9.0.1", 1024)),
            mark: 0x4001,
            status: status::CONFIRMED | status::OFFLOAD,
            ..Entry::default()
        }
    }

    fn net(text: &str) -> Vec<Net> {
        vec![parse_net(text).unwrap()]
    }

    /// As the programs ask, in their order.
    fn passes_in_kernel(wanted: &TraceEntries, entry: &Entry) -> bool {
        wanted.passes_zone(entry.tuple.zone)
            && (wanted.entry == 0
                || wanted.passes_mark(entry.mark)
                    && entry.reply.is_some_and(|reply| wanted.passes_reply(&entry.tuple, &reply)))
    }

    #[test]
    fn all_but_the_zone_needs_an_entry() {
        let zone = EntryFilter { zone: vec![0], ..EntryFilter::default() };
        assert!(!zone.needs_entry());
        assert_eq!(zone.in_kernel().map(|wanted| (wanted.entry, wanted.zones.count)), Some((0, 1)));
        for filter in [
            EntryFilter { rsrc: net("10.9.0.0/24"), ..EntryFilter::default() },
            EntryFilter { rsport: vec![1], ..EntryFilter::default() },
            EntryFilter { rdst: net("10.9.0.0/24"), ..EntryFilter::default() },
            EntryFilter { rdport: vec![1], ..EntryFilter::default() },
            EntryFilter { nat: vec![Nat::None], ..EntryFilter::default() },
            EntryFilter { mark: vec![Mark { value: 0, mask: 1 }], ..EntryFilter::default() },
        ] {
            assert!(filter.needs_entry(), "{filter:?}");
            assert_eq!(filter.in_kernel().map(|wanted| wanted.entry), Some(1), "{filter:?}");
        }
    }

    #[test]
    fn icmp_has_no_ports_to_pass_a_filter_by_ports() {
        let echo = |id, code| tuple(1, [10, 0, 0, 1].into(), [10, 0, 0, 2].into(), Some((id, code)));
        let entry = Entry { tuple: echo(7, 0x0800), reply: Some(echo(7, 0)), ..Entry::default() };
        for filter in [
            EntryFilter { rsport: vec![7], ..EntryFilter::default() },
            EntryFilter { rdport: vec![0], ..EntryFilter::default() },
        ] {
            assert!(!filter.passes(&entry) && !passes_in_kernel(&filter.in_kernel().unwrap(), &entry));
        }
    }

    #[test]
    fn each_part_must_fit() {
        let all = EntryFilter {
            rsrc: net("10.9.0.0/24"),
            rsport: vec![1, 53],
            rdst: net("10.9.0.1"),
            rdport: vec![1024],
            nat: vec![Nat::Both],
            zone: vec![0, 9],
            mark: vec![Mark { value: 0x4000, mask: 0x4000 }],
            offload: vec![Offload::Software],
        };
        assert!(all.passes(&entry()) && !all.is_empty());
        let in_kernel = EntryFilter { offload: Vec::new(), ..all.clone() }.in_kernel().unwrap();
        assert!(passes_in_kernel(&in_kernel, &entry()));
        for wrong in [
            EntryFilter { rsrc: net("192.0.2.8"), ..all.clone() },
            EntryFilter { rsport: vec![5353], ..all.clone() },
            EntryFilter { rdst: net("192.0.2.8"), ..all.clone() },
            EntryFilter { rdport: vec![4000], ..all.clone() },
            EntryFilter { nat: vec![Nat::Dnat, Nat::Snat], ..all.clone() },
            EntryFilter { zone: vec![0], ..all.clone() },
            EntryFilter { mark: vec![Mark { value: 0x4000, mask: u32::MAX }], ..all.clone() },
            EntryFilter { offload: vec![Offload::None], ..all.clone() },
        ] {
            assert!(!wrong.passes(&entry()), "{wrong:?}");
            // The programs in the kernel say the same, but of flow tables, of which they know nothing.
            let in_kernel = passes_in_kernel(&wrong.in_kernel().unwrap(), &entry());
            assert_eq!(in_kernel, wrong.offload != all.offload, "{wrong:?}");
        }
        let unknown = Entry { reply: None, ..entry() };
        assert!(!EntryFilter { rsport: vec![53], ..EntryFilter::default() }.passes(&unknown));
        assert!(EntryFilter::default().passes(&unknown) && EntryFilter::default().is_empty());
        assert_eq!(EntryFilter::default().in_kernel(), None);
    }

    #[test]
    fn ports_and_networks_of_either_direction_pass() {
        let passes = |ports: &[u16], nets: &[Net]| {
            Filter { ends: ends(ports, nets), ..Filter::default() }.passes_entry(&entry())
        };
        assert!(passes(&[], &net("10.9.0.77")) && passes(&[], &net("198.51.100.1")));
        assert!(passes(&[53], &[]) && passes(&[5353], &[]));
        assert!(passes(&[5353], &net("10.9.0.77")), "the public port and the real server");
        assert!(!passes(&[54], &net("10.9.0.77")) && !passes(&[53], &net("10.9.0.78")));
        assert!(!Filter { family: Some(10), ..Filter::default() }.passes_entry(&entry()));
    }
}
