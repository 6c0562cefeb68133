//! Single events: which are asked for, and what the programs' bytes say.

use std::net::IpAddr;
use std::time::Duration;

use ctwatch_ebpf::entry::TraceEntries;
use ctwatch_ebpf::invalid::WORDS;
use ctwatch_ebpf::loss::{Traced, Tuple, has_ports, is_icmp};
use ctwatch_ebpf::{Event, Group};
use serde::{Deserialize, Serialize};

use super::entry::Nat;
use super::filter::{ip, words};
use super::invalid::{Meaning, meaning, shown, text, unsaid};
use super::table::status::{ASSURED, SEEN_REPLY};

/// Which events are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names(u8);

impl Default for Names {
    /// What is lost: refusals, evictions, failed inserts.
    fn default() -> Self {
        let mut names = Self(0);
        for name in Group::ALL.into_iter().filter(|group| group.is_loss()) {
            names.insert(name);
        }
        names
    }
}

impl Names {
    /// Asks for one more.
    pub const fn insert(&mut self, name: Group) {
        self.0 |= 1 << name as u8;
    }

    /// Asks for one less.
    pub const fn remove(&mut self, name: Group) {
        self.0 &= !(1 << name as u8);
    }

    /// Whether it is asked for.
    pub const fn contains(self, name: Group) -> bool {
        self.0 >> name as u8 & 1 != 0
    }

    /// Whether nothing is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those asked for.
    pub fn iter(self) -> impl Iterator<Item = Group> {
        Group::ALL.into_iter().filter(move |name| self.contains(*name))
    }

    /// The kernel events behind them, one bit each.
    pub fn events(self) -> u32 {
        self.iter().flat_map(Group::events).fold(0, |bits, event| bits | 1 << *event as u32)
    }

    /// Whether this event is asked for, by any of its names.
    pub fn ask(self, event: Event) -> bool {
        self.events() >> event as u32 & 1 != 0
    }

    /// What an event is shown as. An eviction is one line, even where deletes are asked for as well.
    fn name_of(self, event: Event) -> Group {
        // The first is the one that its field belongs to; a narrower one comes behind it.
        let mut groups = event.groups().iter().rev().copied();
        groups.find(|group| self.contains(*group)).unwrap_or(event.group())
    }
}

/// What the programs shall hand over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The events.
    pub names: Names,
    /// At most this many in a second on each CPU.
    pub per_second: u32,
    /// Whether everything is counted as well.
    pub counting: bool,
    /// Of which entries alone; a flow without one may pass by its zone.
    pub entries: Option<TraceEntries>,
}

/// One event, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, in nanoseconds since the Unix epoch.
    pub wall_ns: i128,
    /// As users name it.
    pub name: Group,
    /// As the kernel half names it.
    pub event: Event,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Whom it happened to.
    pub flow: Flow,
    /// Whether the entry was ASSURED; false where there is none.
    pub assured: bool,
    /// Whether it had seen an answer.
    pub replied: bool,
    /// How long an entry that left had been in the table, where the kernel keeps that
    /// (`net.netfilter.nf_conntrack_timestamp`).
    pub age: Option<Duration>,
    /// Whom an evicted entry made room for.
    pub newcomer: Option<Flow>,
    /// What only an entry has; of an invalid packet, that of the flow that it was taken for.
    pub entry: Option<OfEntry>,
    /// What there is to say of an invalid packet, whose own ends `flow` holds.
    pub invalid: Option<Invalid>,
    /// The CPU it happened on, where that is known.
    pub cpu: Option<u32>,
    /// The local process whose doing it was.
    pub comm: Option<String>,
    /// How sure it is.
    pub certainty: Certainty,
}

/// How sure an event's cause is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Certainty {
    /// The kernel's own doing showed it.
    #[default]
    Sure,
    /// The kernel's statistics leave no other one.
    Inferred,
    /// They leave several.
    Doubtful,
}

/// Stands for the CPU in a [`Traced`] where it is not known.
pub const NO_CPU: u32 = u32::MAX;

/// What only an entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfEntry {
    /// Its direction of answers, which NAT makes different.
    pub reply: Flow,
    /// What NAT changes.
    pub nat: Nat,
    /// `ct mark`; 0 where rules set none.
    pub mark: u32,
}

/// What belongs to an invalid packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invalid {
    /// The kernel's own words, where it said any.
    pub detail: Option<String>,
    /// The flow that the packet was taken for, as its first packet went.
    pub known: Option<Flow>,
    /// The numbers of a TCP segment.
    pub tcp: Option<Tcp>,
}

/// The numbers of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as it stands in the segment, not scaled.
    pub win: u16,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.
    pub flags: u8,
}

/// The two ends of a flow, as its first packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// [`ctwatch_ebpf::AF_INET`] or [`ctwatch_ebpf::AF_INET6`].
    pub family: u8,
    /// L4 protocol number.
    pub proto: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// What tells flows between the same addresses apart.
    pub detail: Detail,
    /// Conntrack zone; 0 unless rules set one.
    pub zone: u16,
}

/// The protocol's own part of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Source and destination port.
    Ports(u16, u16),
    /// ICMP or `ICMPv6`.
    Icmp {
        /// Message type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The query's id.
        id: u16,
    },
    /// Nothing but the addresses.
    None,
}

impl Record {
    /// The reason as the contract words it, where the event has one.
    pub fn reason(&self) -> Option<&'static str> {
        match self.event {
            Event::ClashResolve => Some("merged"),
            Event::ClashReplyOnly => Some("reply_only"),
            event if event.group() == Group::Delete => None,
            event => event.field().contains('.').then(|| event.reason()),
        }
    }

    /// Why an entry left, where the record is shown as a delete.
    pub fn cause(&self) -> Option<&'static str> {
        let cause = if self.certainty == Certainty::Doubtful { "unknown" } else { self.event.reason() };
        (self.name == Group::Delete).then_some(cause)
    }
}

/// The record in the bytes of a [`Traced`] or a [`ctwatch_ebpf::invalid::TracedInvalid`], shown under the names asked
/// for. `wall_minus_mono` is what to add to the kernel's monotonic clock. `None` for bytes that are none of our
/// programs', and for packets that were accepted all the same.
pub fn decode(bytes: &[u8], names: Names, wall_minus_mono: i128) -> Option<Record> {
    let mut reader = Reader(bytes);
    let mut traced = reader.traced()?;
    let mut event = Event::ALL.into_iter().find(|event| *event as u32 == traced.event)?;
    let mut invalid = None;
    let mut original = traced.tuple;
    if !reader.0.is_empty() {
        original = std::mem::take(&mut traced.newcomer);
        let (reason, more) = reader.invalid(flow(&original))?;
        event = reason;
        invalid = Some(more);
    }
    if !reader.0.is_empty() {
        return None;
    }
    // A timeout or the collector's round meets whatever process happens to run: none of its doing.
    let bystander = matches!(event, Event::DeleteTimeout | Event::DeletePressure);
    let wall_ns = i128::from(traced.ktime_ns) + wall_minus_mono;
    Some(Record {
        wall_ns,
        name: names.name_of(event),
        event,
        netns: traced.netns,
        flow: flow(&traced.tuple)?,
        assured: traced.status & ASSURED != 0,
        replied: traced.status & SEEN_REPLY != 0,
        age: age(traced.start_ns, wall_ns),
        newcomer: flow(&traced.newcomer),
        entry: of_entry(&original, &traced),
        invalid,
        cpu: Some(traced.cpu).filter(|cpu| *cpu != NO_CPU),
        comm: if bystander { None } else { comm(&traced.comm) },
        certainty: Certainty::Sure,
    })
}

/// The bytes that [`decode`] reads.
pub fn encode(traced: &Traced) -> Vec<u8> {
    let Traced { ktime_ns, start_ns, netns, event, status, cpu, tuple, newcomer, reply, mark, comm } = traced;
    let mut out = Vec::with_capacity(size_of::<Traced>());
    out.extend(ktime_ns.to_ne_bytes());
    out.extend(start_ns.to_ne_bytes());
    for word in [netns, event, status, cpu] {
        out.extend(word.to_ne_bytes());
    }
    for Tuple { src, dst, src_part, dst_part, zone, family, proto } in [tuple, newcomer, reply] {
        for word in src.iter().chain(dst) {
            out.extend(word.to_ne_bytes());
        }
        out.extend(src_part.iter().chain(dst_part));
        out.extend(zone.to_ne_bytes());
        out.extend([*family, *proto]);
    }
    out.extend(mark.to_ne_bytes());
    out.extend(comm);
    out
}

/// The kernel keeps the wall clock: where that was set back since, there is no telling.
fn age(start_ns: u64, wall_ns: i128) -> Option<Duration> {
    let age = (start_ns != 0).then(|| wall_ns - i128::from(start_ns))?;
    u64::try_from(age).ok().map(Duration::from_nanos)
}

fn of_entry(original: &Tuple, traced: &Traced) -> Option<OfEntry> {
    // The zone is not written twice.
    let reply = flow(&Tuple { zone: original.zone, ..traced.reply })?;
    let mark = u32::try_from(traced.mark).unwrap_or(0);
    Some(OfEntry { reply, nat: Nat::between(original, &traced.reply), mark })
}

fn flow(tuple: &Tuple) -> Option<Flow> {
    let detail = if has_ports(tuple.proto) {
        Detail::Ports(u16::from_be_bytes(tuple.src_part), u16::from_be_bytes(tuple.dst_part))
    } else if is_icmp(tuple.proto) {
        let [kind, code] = tuple.dst_part;
        Detail::Icmp { kind, code, id: u16::from_be_bytes(tuple.src_part) }
    } else {
        Detail::None
    };
    Some(Flow {
        family: tuple.family,
        proto: tuple.proto,
        src: ip(tuple.family, tuple.src)?,
        dst: ip(tuple.family, tuple.dst)?,
        detail,
        zone: tuple.zone,
    })
}

/// A process names itself: any bytes, up to the first zero.
fn comm(bytes: &[u8; 16]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Takes bytes off the front, in the kernel's byte order.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*part)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn traced(&mut self) -> Option<Traced> {
        Some(Traced {
            ktime_ns: self.take().map(u64::from_ne_bytes)?,
            start_ns: self.take().map(u64::from_ne_bytes)?,
            netns: self.u32()?,
            event: self.u32()?,
            status: self.u32()?,
            cpu: self.u32()?,
            tuple: self.tuple()?,
            newcomer: self.tuple()?,
            reply: self.tuple()?,
            mark: self.take().map(u64::from_ne_bytes)?,
            comm: self.take()?,
        })
    }

    /// What follows for an invalid packet, and its reason.
    fn invalid(&mut self, known: Option<Flow>) -> Option<(Event, Invalid)> {
        let words = text(&self.take::<WORDS>()?);
        let shown_by = self.take().map(u64::from_ne_bytes)?;
        let has_tcp = self.take().map(u64::from_ne_bytes)? != 0;
        let header = self.take::<16>()?;
        let reason = match words.as_deref().map(meaning) {
            Some(Meaning::Accepted) => return None,
            Some(Meaning::Invalid(reason)) => reason,
            None => unsaid(shown_by),
        };
        let [.., s0, s1, s2, s3, a0, a1, a2, a3, _, flags, w0, w1] = header;
        let tcp = Tcp {
            seq: u32::from_be_bytes([s0, s1, s2, s3]),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            win: u16::from_be_bytes([w0, w1]),
            flags,
        };
        let detail = words.as_deref().map(shown);
        Some((reason, Invalid { detail, known, tcp: has_tcp.then_some(tcp) }))
    }

    fn tuple(&mut self) -> Option<Tuple> {
        Some(Tuple {
            src: words(self.take()?),
            dst: words(self.take()?),
            src_part: self.take()?,
            dst_part: self.take()?,
            zone: u16::from_ne_bytes(self.take()?),
            family: u8::from_ne_bytes(self.take()?),
            proto: u8::from_ne_bytes(self.take()?),
        })
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
