//! Flows that NAT changed: which ports are in use, and what goes to where no rule leads or no machine answers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use ctwatch_ebpf::loss::has_ports;

use crate::doctor::facts::{Namespace, Stale, Translated};
use crate::doctor::nat::{self, Addresses, Sources};
use crate::source::netlink::entry::{Entry, L4, Tuple, status};
use crate::source::netlink::message::Attributes;
use crate::source::netlink::socket::Requests;

/// How many are kept of each kind.
const KEPT: usize = 10;
/// How many sources and destinations are counted at once, some 6 MB of them; of what is stale the same.
const MOST: usize = 1 << 16;
/// How many silent neighbours are kept; each entry is compared with all of them.
const NEIGHBOURS: usize = 256;

/// What is counted of translated flows.
#[derive(Debug, Default)]
pub struct Translations {
    /// What rules may give as sources.
    sources: Vec<Sources>,
    /// Where rules lead, where that is known.
    targets: Option<Vec<Addresses>>,
    /// Neighbours that do not answer.
    silent: Vec<IpAddr>,
    /// Ports in use.
    given: BTreeMap<Key, Count>,
    /// Entries that lead to nobody.
    led: BTreeMap<Key, Count>,
}

/// Protocol; the source that was given, or the destination as the client has it; the destination, or where it is sent; the
/// range of a source's ports.
type Key = (u8, SocketAddr, SocketAddr, (u16, u16));
/// Entries, and those without an answer among them. Both maps are of one type, for the size of the program.
type Count = (u64, u64);

impl Translations {
    /// For the calling thread's namespace, which has these rules.
    pub fn new(namespace: &Namespace) -> Self {
        Self {
            sources: nat::rules(namespace).into_iter().map(|(_, sources)| sources).collect(),
            targets: nat::targets(namespace),
            silent: silent_neighbours().unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Counts an entry.
    pub fn add(&mut self, entry: &Entry) {
        if let Some(reply) = &entry.reply {
            self.add_source(&entry.original, reply);
            self.add_target(entry, reply);
        }
    }

    /// Counts the port that an entry's answers go to, once for each range that has it: a port is taken whichever rule gave
    /// it. A source that stayed as it was counts where a rule names its address.
    fn add_source(&mut self, original: &Tuple, reply: &Tuple) {
        let (L4::Ports { src, .. }, L4::Ports { src: dport, dst: given }) = (original.l4, reply.l4) else {
            return;
        };
        let changed = original.src != reply.dst || src != given;
        let mut counted: Vec<(u16, u16)> = Vec::new();
        for sources in &self.sources {
            let concerned = changed || sources.addresses.is_some();
            if !concerned || !sources.gives(reply.dst, given) || counted.contains(&sources.ports) {
                continue;
            }
            counted.push(sources.ports);
            let (given, to) = (SocketAddr::new(reply.dst, 0), SocketAddr::new(reply.src, dport));
            count(&mut self.given, (original.proto, given, to, sources.ports), false);
        }
    }

    /// Counts an entry whose destination was changed, where it leads to nobody. Helpers change destinations without a rule,
    /// of connections that they expected.
    fn add_target(&mut self, entry: &Entry, reply: &Tuple) {
        let (L4::Ports { dst, .. }, L4::Ports { src: port, .. }) = (entry.original.l4, reply.l4) else {
            return;
        };
        let by_rule = entry.status & status::DST_NAT != 0 && entry.status & status::EXPECTED == 0;
        if !by_rule
            || !has_ports(entry.original.proto)
            || (self.ruled(reply.src) && !self.is_silent(reply.src))
        {
            return;
        }
        let to = SocketAddr::new(reply.src, port);
        let key = (entry.original.proto, SocketAddr::new(entry.original.dst, dst), to, (0, 0));
        count(&mut self.led, key, entry.status & status::SEEN_REPLY == 0);
    }

    /// Whether a rule leads there, or may.
    fn ruled(&self, address: IpAddr) -> bool {
        let leads = |(first, last): &Addresses| (*first..=*last).contains(&address);
        self.targets.as_ref().is_none_or(|targets| targets.iter().any(leads))
    }

    fn is_silent(&self, address: IpAddr) -> bool {
        self.silent.contains(&address)
    }

    /// The first few by the part of their ports that is in use.
    pub fn fullest(&self) -> Vec<Translated> {
        let part =
            |&(.., ports): &Key, &(used, _): &Count| (used.saturating_mul(1 << 20) / nat::ports(ports), 0);
        let flows = |((proto, source, to, ports), (used, _)): (Key, Count)| Translated {
            proto,
            src: source.ip(),
            ports,
            dst: to.ip(),
            dport: to.port(),
            used,
        };
        most(&self.given, part).into_iter().map(flows).collect()
    }

    /// The first few by how many entries have no answer.
    pub fn stale(&self) -> Vec<Stale> {
        let flows = |((proto, dst, to, _), (count, unanswered)): (Key, Count)| Stale {
            proto,
            dst: dst.ip(),
            dport: dst.port(),
            to: to.ip(),
            port: to.port(),
            count,
            unanswered,
            ruled: self.ruled(to.ip()),
            silent: self.is_silent(to.ip()),
        };
        most(&self.led, |_, &(count, unanswered)| (unanswered, count)).into_iter().map(flows).collect()
    }
}

fn count(counts: &mut BTreeMap<Key, Count>, key: Key, unanswered: bool) {
    if counts.len() < MOST || counts.contains_key(&key) {
        let count = counts.entry(key).or_default();
        count.0 += 1;
        count.1 += u64::from(unanswered);
    }
}

/// The first few by weight, the heaviest first.
fn most(counts: &BTreeMap<Key, Count>, weight: fn(&Key, &Count) -> (u64, u64)) -> Vec<(Key, Count)> {
    let mut kept: Vec<(Key, Count)> = Vec::new();
    for (key, count) in counts {
        let heavier = |other: &(Key, Count)| weight(&other.0, &other.1) >= weight(key, count);
        let place = kept.iter().take_while(|other| heavier(other)).count();
        if place < KEPT {
            kept.truncate(KEPT - 1);
            kept.insert(place, (*key, *count));
        }
    }
    kept
}

/// Neighbours that the kernel asked for their address in vain. Asking loads no module.
fn silent_neighbours() -> io::Result<Vec<IpAddr>> {
    /// `RTM_GETNEIGH`.
    const NEIGHBOUR_GET: u16 = 30;
    /// `struct ndmsg` has this much behind its family; the kernel lists all interfaces where it is 0.
    const REST_OF_NDMSG: usize = 8;
    let mut silent = Vec::new();
    Requests::open_to_routes()?.dump_where(NEIGHBOUR_GET, 0, &[0; REST_OF_NDMSG], |message| {
        silent.extend(silent_neighbour(message.payload));
        if silent.len() < NEIGHBOURS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(silent)
}

/// Its address, where it does not answer (`NUD_FAILED`, 5.10 to 7.3).
fn silent_neighbour(payload: &[u8]) -> Option<IpAddr> {
    const HEADER: usize = 12;
    const FAILED: u16 = 0x20;
    /// `NDA_DST`.
    const DESTINATION: u16 = 1;
    let state =
        payload.get(8..).and_then(<[u8]>::first_chunk::<2>).map(|bytes| u16::from_ne_bytes(*bytes))?;
    let address = Attributes::new(payload.get(HEADER..)?).find(DESTINATION)?.value;
    let address = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(v4), _) => Ipv4Addr::from(v4).into(),
        (_, Ok(v6)) => Ipv6Addr::from(v6).into(),
        _ => return None,
    };
    (state & FAILED != 0).then_some(address)
}

#[cfg(test)]
#[path = "translations_tests.rs"]
mod tests;
