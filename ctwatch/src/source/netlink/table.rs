//! The entries of a table, streamed: one dump a namespace, filtered by the kernel as far as it can.
//!
//! Opening loads nfnetlink and dumping loads nf_conntrack_netlink where they are missing: ask [`super::presence`] first.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use ctwatch_ebpf::{AF_INET, AF_INET6, loss};
use nix::libc;

use super::super::namespaces::{self, Roots};
use super::super::search::{self, Found};
use super::entry::{self, cta};
use super::message::{CT_GET, Message};
use super::socket::{Dumped, Requests};
use super::statistics;
use crate::model::Filter;
use crate::model::held::Reading;
use crate::model::table::{Entry, Traffic};

/// The network namespaces that can be seen and that a filter wants.
#[derive(Debug)]
pub struct Spaces {
    own: u32,
    roots: Roots,
    found: Found,
}

/// How a table was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Entries that the kernel sent, before the rest of the filter was applied to them.
    pub sent: u64,
    /// Whether the kernel said that the table changed too much under it.
    pub interrupted: bool,
    /// The same against the kernel's count; `None` where the kernel sent only a part, or not all of it.
    pub reading: Option<Reading>,
}

impl Spaces {
    /// Finds them; our own is always among them, unless it is not wanted.
    pub fn find(filter: &Filter) -> io::Result<Self> {
        let roots = Roots::default();
        let own = roots.own()?;
        let found = search::find(&roots, own, |netns| filter.wants_netns(netns));
        Ok(Self { own, roots, found })
    }

    /// Their inodes.
    pub fn inodes(&self) -> impl Iterator<Item = u32> {
        self.found.places.keys().copied()
    }

    /// How many the search left out.
    pub const fn left_out(&self) -> usize {
        self.found.left_out
    }

    /// Hands over the entries of one of them that pass the filter.
    pub fn walk(&self, netns: u32, filter: &Filter, mut each: impl FnMut(&Entry)) -> io::Result<Walked> {
        let mut requests = self.open(netns)?;
        let mut walked = Walked { sent: 0, interrupted: false, reading: None };
        let before = statistics::entries(&mut requests).ok();
        let mut receive = |message: &Message<'_>| {
            walked.sent += 1;
            if let Some(entry) = parse(netns, message).filter(|entry| filter.passes_entry(entry)) {
                each(&entry);
            }
            ControlFlow::Continue(())
        };
        let mut interrupted = false;
        let selections = selections(filter);
        let whole = selections.iter().all(|one| one.family == 0 && one.attributes.is_empty());
        for Selection { family, attributes } in selections {
            let dumped = match requests.dump_where(CT_GET, family, &attributes, &mut receive) {
                // Refused before the first entry: a kernel may know the attribute and not what we want of it.
                Err(error) if !attributes.is_empty() && is_refusal(&error) => {
                    requests.dump(CT_GET, family, &mut receive)?
                }
                dumped => dumped?,
            };
            interrupted |= dumped == Dumped::Interrupted;
        }
        walked.interrupted = interrupted;
        if whole && !interrupted {
            let after = statistics::entries(&mut requests).ok();
            walked.reading =
                before.zip(after).map(|(before, after)| Reading { before, listed: walked.sent, after });
        }
        Ok(walked)
    }

    /// A socket stays in the namespace it was opened in.
    fn open(&self, netns: u32) -> io::Result<Requests> {
        if netns == self.own {
            return Requests::open();
        }
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let place = self.found.places.get(&netns).ok_or_else(gone)?;
        let place = BTreeMap::from([(netns, place.clone())]);
        namespaces::in_each(&self.roots, &place, |_| Requests::open()).pop().ok_or_else(gone)?.1
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

fn parse(netns: u32, message: &Message<'_>) -> Option<Entry> {
    let entry = entry::Entry::parse(message)?;
    let placed = |tuple: entry::Tuple| loss::Tuple { zone: entry.zone, ..tuple.for_filter() };
    Some(Entry {
        netns,
        tuple: placed(entry.original),
        reply: entry.reply.map(placed),
        state: entry.state,
        status: entry.status,
        mark: entry.mark.unwrap_or(0),
        traffic: entry.packets.zip(entry.bytes).map(|(packets, bytes)| Traffic { packets, bytes }),
    })
}

/// What one dump asks the kernel for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    family: u8,
    attributes: Vec<u8>,
}

/// The kernel selects by family, and by one protocol (`CTA_FILTER`, since 5.8) within a family. It cannot select several
/// protocols, nor a port or network at either end.
fn selections(filter: &Filter) -> Vec<Selection> {
    let only = filter.protos.as_ref().and_then(|protos| {
        let mut wanted = (0..=u8::MAX).filter(|proto| protos.contains(*proto));
        wanted.next().filter(|_| wanted.next().is_none())
    });
    match (only, filter.family) {
        (None, family) => vec![Selection { family: family.unwrap_or(0), attributes: Vec::new() }],
        (Some(proto), Some(family)) => vec![Selection { family, attributes: by_protocol(proto) }],
        (Some(proto), None) => {
            [AF_INET, AF_INET6].map(|family| Selection { family, attributes: by_protocol(proto) }).to_vec()
        }
    }
}

fn by_protocol(proto: u8) -> Vec<u8> {
    const CTA_FILTER: u16 = 25;
    const CTA_FILTER_ORIG_FLAGS: u16 = 1;
    /// `CTA_FILTER_F_CTA_PROTO_NUM` of the kernel's nf_internals.h: user space has no header with it.
    const PROTO_NUM_COUNTS: u32 = 1 << 3;
    let proto = nest(cta::TUPLE_PROTO, &attribute(cta::PROTO_NUM, &[proto, 0, 0, 0], 1));
    let flags = attribute(CTA_FILTER_ORIG_FLAGS, &PROTO_NUM_COUNTS.to_ne_bytes(), 4);
    [nest(cta::TUPLE_ORIG, &proto), nest(CTA_FILTER, &flags)].concat()
}

/// An attribute of which `length` bytes count.
fn attribute(kind: u16, padded: &[u8], length: u16) -> Vec<u8> {
    [&(length + 4).to_ne_bytes()[..], &kind.to_ne_bytes(), padded].concat()
}

/// The kernel insists on the flag (`nla_parse_nested`).
fn nest(kind: u16, inside: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, inside, u16::try_from(inside.len()).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::message::{Attributes, Messages, build};
    use super::*;
    use crate::model::Protocols;
    use crate::model::filter::{ends, parse_net};

    fn filter(protos: &[u8], family: Option<u8>) -> Filter {
        let mut set = Protocols::default();
        for proto in protos {
            set.insert(*proto);
        }
        Filter { protos: (!protos.is_empty()).then_some(set), family, ..Filter::default() }
    }

    #[test]
    fn the_kernel_is_asked_for_one_protocol_of_a_family() {
        let families = |filter: &Filter| -> Vec<(u8, bool)> {
            selections(filter).iter().map(|one| (one.family, one.attributes.is_empty())).collect()
        };
        assert_eq!(families(&filter(&[], None)), [(0, true)]);
        assert_eq!(families(&filter(&[], Some(AF_INET6))), [(AF_INET6, true)]);
        assert_eq!(families(&filter(&[6, 17], Some(AF_INET))), [(AF_INET, true)]);
        assert_eq!(families(&filter(&[17], Some(AF_INET))), [(AF_INET, false)]);
        assert_eq!(families(&filter(&[17], None)), [(AF_INET, false), (AF_INET6, false)]);

        let bytes = by_protocol(17);
        let asked = Attributes::new(&bytes).find(cta::TUPLE_ORIG).unwrap().nested();
        let number = asked.clone().find(cta::TUPLE_PROTO).unwrap().nested().find(cta::PROTO_NUM);
        assert_eq!(number.unwrap().u8(), Some(17));
        let flags = Attributes::new(&bytes).find(25).unwrap().nested().find(1).unwrap();
        assert_eq!(flags.value, 8_u32.to_ne_bytes());
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn an_entry_passes_by_its_own_tuple() {
        let message = build::message(
            CT_GET,
            0,
            AF_INET,
            &[
                build::nest(
                    1,
                    &[
                        build::nest(
                            1,
                            &[build::attribute(1, &[10, 0, 0, 1]), build::attribute(2, &[10, 0, 0, 2])],
                        ),
                        build::nest(
                            2,
                            &[
                                build::attribute(1, &[17]),
                                build::attribute(2, &4000_u16.to_be_bytes()),
                                build::attribute(3, &53_u16.to_be_bytes()),
                            ],
                        ),
                    ],
                ),
                build::attribute(3, &0x8_u32.to_be_bytes()),
                build::attribute(18, &9_u16.to_be_bytes()),
            ],
        );
        let entry = parse(7, &Messages::new(&message).next().unwrap()).unwrap();
        assert_eq!((entry.netns, entry.status, entry.state, entry.tuple.zone), (7, 8, None, 9));
        let passes = |ports: &[u16], net: &str| {
            let ends = ends(ports, &[parse_net(net).unwrap()]);
            Filter { ends, ..Filter::default() }.passes_entry(&entry)
        };
        assert!(passes(&[53], "10.0.0.1") && passes(&[4000], "10.0.0.0/8"));
        assert!(!passes(&[54], "10.0.0.1") && !passes(&[53], "10.0.0.3"));
    }
}
