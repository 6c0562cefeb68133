//! `trace --json`: one object an event, with the fields and their order as promised to users.

use serde::Serialize;

use ctwatch_ebpf::Group;

use super::json::line;
use crate::model::trace::{Certainty, Detail, Flow, Record, Tcp};
use crate::model::{family_name, protocol};

/// One event, in the namespace of this name.
pub fn record(record: &Record, netns_name: &str) -> String {
    line(&Object {
        time: time(record.wall_ns),
        event: record.name,
        netns: record.netns,
        netns_name,
        flow: FlowObject::new(&record.flow),
        reason: record.reason(),
        cause: record.cause(),
        age_s: record.age.map(|age| age.as_secs_f64()),
        assured: record.assured,
        replied: record.replied,
        newcomer: record.newcomer.as_ref().map(FlowObject::new),
        reply: record.entry.as_ref().map(|entry| FlowObject::new(&entry.reply)),
        nat: record.entry.map(|entry| entry.nat.name()),
        mark: record.entry.map(|entry| entry.mark),
        invalid: record.invalid.as_ref().map(|invalid| InvalidObject {
            detail: invalid.detail.as_deref(),
            known_flow: invalid.known.as_ref().map(FlowObject::new),
            tcp: invalid.tcp,
        }),
        cpu: record.cpu,
        comm: record.comm.as_deref(),
        inferred: record.certainty == Certainty::Inferred,
    })
}

/// Events that were held back.
pub fn suppressed(count: u64) -> String {
    line(&Count { event: "suppressed", count })
}

/// Events that are known to have been missed.
pub fn lost(count: u64) -> String {
    line(&Count { event: "lost", count })
}

/// UTC, to the microsecond: the order of a burst can be seen.
fn time(wall_ns: i128) -> String {
    let time = jiff::Timestamp::from_nanosecond(wall_ns).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.6}")
}

#[derive(Serialize)]
struct Count {
    event: &'static str,
    count: u64,
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    event: Group,
    netns: u32,
    netns_name: &'a str,
    #[serde(flatten)]
    flow: FlowObject,
    reason: Option<&'static str>,
    /// Of deletes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    age_s: Option<f64>,
    assured: bool,
    replied: bool,
    newcomer: Option<FlowObject>,
    /// Null where there is no entry.
    reply: Option<FlowObject>,
    nat: Option<&'static str>,
    mark: Option<u32>,
    #[serde(flatten)]
    invalid: Option<InvalidObject<'a>>,
    cpu: Option<u32>,
    comm: Option<&'a str>,
    /// There only where it is true.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    inferred: bool,
}

/// Fields of invalid packets alone. `detail` is what the kernel said.
#[derive(Serialize)]
struct InvalidObject<'a> {
    detail: Option<&'a str>,
    known_flow: Option<FlowObject>,
    tcp: Option<Tcp>,
}

#[derive(Serialize)]
struct FlowObject {
    family: &'static str,
    proto: String,
    #[serde(flatten)]
    ends: Ends,
    #[serde(skip_serializing_if = "is_default")]
    zone: u16,
}

/// Protocols without ports have `null` in their place, but ICMP has its own fields.
#[derive(Serialize)]
#[serde(untagged)]
enum Ends {
    Ports {
        src: String,
        sport: Option<u16>,
        dst: String,
        dport: Option<u16>,
    },
    Icmp {
        src: String,
        dst: String,
        #[serde(rename = "type")]
        kind: u8,
        code: u8,
        id: u16,
    },
}

impl FlowObject {
    fn new(flow: &Flow) -> Self {
        let (src, dst) = (flow.src.to_string(), flow.dst.to_string());
        let ends = match flow.detail {
            Detail::Ports(sport, dport) => Ends::Ports { src, sport: Some(sport), dst, dport: Some(dport) },
            Detail::Icmp { kind, code, id } => Ends::Icmp { src, dst, kind, code, id },
            Detail::None => Ends::Ports { src, sport: None, dst, dport: None },
        };
        Self {
            family: family_name(flow.family),
            proto: protocol::name(flow.proto).into_owned(),
            ends,
            zone: flow.zone,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_default(zone: &u16) -> bool {
    *zone == 0
}
