//! Single losses as they lie in frames.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::Names;
use super::nanos;
use crate::model::ranking::Losses;
use crate::model::trace::{Certainty, Detail, Flow as Ends, Invalid, NO_CPU, Record, Tcp};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LossesWire {
    events: Vec<LossWire>,
    more: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct LossWire {
    wall_ns: i128,
    name: u8,
    event: u8,
    netns: u32,
    flow: EndsWire,
    assured: bool,
    replied: bool,
    age_ns: Option<u64>,
    newcomer: Option<EndsWire>,
    invalid: Option<InvalidWire>,
    cpu: u32,
    comm: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct InvalidWire {
    detail: Option<String>,
    known: Option<EndsWire>,
    /// Sequence, acknowledgement, window, flags.
    tcp: Option<(u32, u32, u16, u8)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct EndsWire {
    family: u8,
    proto: u8,
    src: IpAddr,
    dst: IpAddr,
    detail: DetailWire,
    zone: u16,
}

#[derive(Debug, Serialize, Deserialize)]
enum DetailWire {
    None,
    Ports(u16, u16),
    Icmp(u8, u8, u16),
}

impl From<&Losses> for LossesWire {
    fn from(losses: &Losses) -> Self {
        Self { events: losses.events.iter().map(LossWire::from).collect(), more: losses.more }
    }
}

impl LossesWire {
    pub(super) fn open(self, names: &Names) -> Option<Losses> {
        let events = self.events.into_iter().map(|wire| wire.record(names)).collect::<Option<_>>()?;
        Some(Losses { events, more: self.more })
    }
}

impl From<&Record> for LossWire {
    fn from(record: &Record) -> Self {
        Self {
            wall_ns: record.wall_ns,
            name: record.name as u8,
            event: record.event as u8,
            netns: record.netns,
            flow: EndsWire::from(&record.flow),
            assured: record.assured,
            replied: record.replied,
            age_ns: record.age.map(nanos),
            newcomer: record.newcomer.as_ref().map(EndsWire::from),
            invalid: record.invalid.as_ref().map(InvalidWire::from),
            // Only programs tell of single losses that are recorded, and they know it.
            cpu: record.cpu.unwrap_or(NO_CPU),
            comm: record.comm.clone(),
        }
    }
}

impl LossWire {
    fn record(self, names: &Names) -> Option<Record> {
        Some(Record {
            wall_ns: self.wall_ns,
            name: names.group(self.name)?,
            event: names.event(self.event)?,
            netns: self.netns,
            flow: self.flow.into(),
            assured: self.assured,
            replied: self.replied,
            age: self.age_ns.map(Duration::from_nanos),
            newcomer: self.newcomer.map(Ends::from),
            // Not kept.
            entry: None,
            invalid: self.invalid.map(Invalid::from),
            cpu: Some(self.cpu).filter(|cpu| *cpu != NO_CPU),
            comm: self.comm,
            certainty: Certainty::Sure,
        })
    }
}

impl From<&Ends> for EndsWire {
    fn from(ends: &Ends) -> Self {
        let detail = match ends.detail {
            Detail::None => DetailWire::None,
            Detail::Ports(sport, dport) => DetailWire::Ports(sport, dport),
            Detail::Icmp { kind, code, id } => DetailWire::Icmp(kind, code, id),
        };
        let Ends { family, proto, src, dst, zone, .. } = *ends;
        Self { family, proto, src, dst, detail, zone }
    }
}

impl From<EndsWire> for Ends {
    fn from(wire: EndsWire) -> Self {
        let detail = match wire.detail {
            DetailWire::None => Detail::None,
            DetailWire::Ports(sport, dport) => Detail::Ports(sport, dport),
            DetailWire::Icmp(kind, code, id) => Detail::Icmp { kind, code, id },
        };
        let EndsWire { family, proto, src, dst, zone, .. } = wire;
        Self { family, proto, src, dst, detail, zone }
    }
}

impl From<&Invalid> for InvalidWire {
    fn from(invalid: &Invalid) -> Self {
        Self {
            detail: invalid.detail.clone(),
            known: invalid.known.as_ref().map(EndsWire::from),
            tcp: invalid.tcp.map(|Tcp { seq, ack, win, flags }| (seq, ack, win, flags)),
        }
    }
}

impl From<InvalidWire> for Invalid {
    fn from(wire: InvalidWire) -> Self {
        Self {
            detail: wire.detail,
            known: wire.known.map(Ends::from),
            tcp: wire.tcp.map(|(seq, ack, win, flags)| Tcp { seq, ack, win, flags }),
        }
    }
}
