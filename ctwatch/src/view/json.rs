//! `live --json`: one object a line, with the fields and their order as promised to users.

use std::collections::{BTreeMap, BTreeSet};

use ctwatch_ebpf::{Event, FlowType, Group};
use serde::Serialize;

use super::clean::json_line;
use super::{Machine, View};
use crate::model::ranking::{By, Top, unranked};
use crate::model::{Flow, Report, SourceInfo, SourceKind, family_name, protocol_name};

/// Lines of each ranking in an object, the first ones.
const TOP: usize = 20;

/// Writes each report as one JSON object.
#[derive(Debug)]
pub struct Json {
    machine: Machine,
}

impl Json {
    /// A view that names this machine in each object.
    pub const fn new(machine: Machine) -> Self {
        Self { machine }
    }
}

impl View for Json {
    fn start(&mut self, _: &SourceInfo) -> String {
        String::new()
    }

    fn report(&mut self, report: &Report, info: &SourceInfo) -> String {
        let object = Object::new(report, info, &self.machine);
        line(&object)
    }

    fn end(&mut self, _: &Report, _: &SourceInfo) -> String {
        String::new()
    }
}

/// An object on a line of its own.
pub(super) fn line(object: &impl Serialize) -> String {
    // Only a map with keys that are no strings, or a failing `Serialize`, can make this fail: no view has either.
    let mut line = json_line(serde_json::to_string(object).expect("a view's object is always JSON"));
    line.push('\n');
    line
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    elapsed_s: f64,
    host: &'a str,
    kernel: &'a str,
    source: SourceObject<'a>,
    table: Vec<TableObject<'a>>,
    flows: Vec<FlowObject>,
    top: Vec<TopObject<'a>>,
    /// By each kind of key, the events that are in none of its lines: of keys that the bounded ranking left out, and
    /// of lines beyond the first [`TOP`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    top_rest: BTreeMap<&'static str, RestObject>,
    cost: Option<CostObject>,
}

#[derive(Serialize)]
struct SourceObject<'a> {
    kind: SourceKind,
    why: Option<&'a str>,
    lost: u64,
    /// Namespaces whose tables are missing; only where there are any.
    #[serde(skip_serializing_if = "is_none")]
    namespaces_left_out: u64,
    /// Why an event is `null`, by its field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unknown: BTreeMap<&'static str, &'a str>,
    /// Events that are `null` on all rows but the one of family `any`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    by_namespace: Vec<&'static str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
pub(super) const fn is_none(count: &u64) -> bool {
    *count == 0
}

#[derive(Serialize)]
struct TableObject<'a> {
    netns: u32,
    name: &'a str,
    count: Option<u64>,
    max: Option<u64>,
}

#[derive(Serialize)]
struct FlowObject {
    netns: u32,
    family: &'static str,
    proto: String,
    #[serde(flatten)]
    counts: Fields<Count>,
    rate: Fields<Option<f64>>,
    total: Fields<Option<u64>>,
    /// Groups of which some parts are unknown and others are not: their rates and totals may be too small.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    at_least: Vec<&'static str>,
}

/// The count of a group, or of each of its events by reason or cause; unknown where there is none.
#[derive(Serialize)]
#[serde(untagged)]
enum Count {
    One(Option<u64>),
    ByReason(Fields<Option<u64>>),
}

/// An object whose fields come from the table of events, in this order.
struct Fields<T>(Vec<(&'static str, T)>);

impl<T: Serialize> Serialize for Fields<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The counts of a row, in the order of the groups.
fn counts(count: impl Fn(Event) -> Option<u64>) -> Fields<Count> {
    let mut fields = Vec::new();
    for group in Group::ALL {
        let own = || group.events().iter().copied().filter(|event| event.group() == group);
        let by_reason = own().any(|event| event.field().contains('.'));
        if by_reason {
            let reasons = own().map(|event| (event.reason(), count(event))).collect();
            fields.push((group.name(), Count::ByReason(Fields(reasons))));
        } else if own().next().is_some() {
            fields.extend(own().map(|event| (event.field(), Count::One(count(event)))));
        } else {
            // A part of another group that has a field of its own as well.
            fields.extend(group.parts().iter().map(|event| (group.name(), Count::One(count(*event)))));
        }
    }
    Fields(fields)
}

#[derive(Serialize)]
struct TopObject<'a> {
    by: &'static str,
    netns: u32,
    family: &'static str,
    proto: String,
    key: &'a str,
    insert: u64,
    early_drop: u64,
    drop: u64,
    invalid: u64,
}

#[derive(Serialize)]
struct RestObject {
    insert: u64,
    early_drop: u64,
    drop: u64,
    invalid: u64,
}

#[derive(Serialize)]
struct CostObject {
    cpu_pct: f64,
    events: u64,
    ns_per_event: Option<u64>,
    /// Milliseconds of processor time that ctwatch's own process took.
    #[serde(skip_serializing_if = "Option::is_none")]
    own_ms: Option<f64>,
}

impl<'a> Object<'a> {
    fn new(report: &'a Report, info: &'a SourceInfo, machine: &'a Machine) -> Self {
        let shown = first(report.top.as_deref().unwrap_or_default());
        Self {
            time: time(report.wall_ns),
            elapsed_s: rounded(report.elapsed.as_secs_f64(), 1000.0),
            host: &machine.host,
            kernel: &machine.kernel,
            source: SourceObject {
                kind: info.kind,
                why: info.why.as_deref(),
                lost: report.lost,
                namespaces_left_out: report.namespaces_left_out,
                unknown: info.unknown.iter().map(|(event, note)| (event.field(), note.as_str())).collect(),
                by_namespace: by_namespace(info).collect(),
            },
            table: report
                .tables
                .iter()
                .map(|table| TableObject {
                    netns: table.netns,
                    name: &table.name,
                    count: table.count,
                    max: table.max,
                })
                .collect(),
            flows: report.flows.iter().map(|flow| FlowObject::new(flow, info)).collect(),
            top: shown.iter().copied().map(TopObject::new).collect(),
            top_rest: rest(&shown, report),
            cost: report.cost.map(|cost| CostObject {
                cpu_pct: rounded(cost.cpu_pct, 1000.0),
                events: cost.events,
                ns_per_event: cost.ns_per_event,
                own_ms: report.own.map(|own| rounded(own.as_secs_f64() * 1e3, 1000.0)),
            }),
        }
    }
}

/// The first lines of each ranking.
fn first(top: &[Top]) -> Vec<&Top> {
    let mut shown: BTreeMap<By, usize> = BTreeMap::new();
    let mut fits = |by| {
        let count = shown.entry(by).or_default();
        *count += 1;
        *count <= TOP
    };
    top.iter().filter(|top| fits(top.by)).collect()
}

fn rest(shown: &[&Top], report: &Report) -> BTreeMap<&'static str, RestObject> {
    let kinds: BTreeSet<By> = shown.iter().map(|top| top.by).collect();
    let left = |by| {
        let [insert, early_drop, drop, invalid] =
            unranked(shown.iter().copied(), by, report.flows.iter().map(|flow| (&flow.key, &flow.counts)));
        (by.name(), RestObject { insert, early_drop, drop, invalid })
    };
    kinds.into_iter().map(left).collect()
}

impl<'a> TopObject<'a> {
    fn new(top: &'a Top) -> Self {
        let Top { by, netns, family, proto, key, insert, early_drop, drop, invalid } = top;
        let flow = FlowType { netns: *netns, family: *family, proto: *proto };
        Self {
            by: by.name(),
            netns: *netns,
            family: family_name(*family),
            proto: protocol_name(flow).into_owned(),
            key,
            insert: *insert,
            early_drop: *early_drop,
            drop: *drop,
            invalid: *invalid,
        }
    }
}

impl FlowObject {
    fn new(flow: &Flow, info: &SourceInfo) -> Self {
        let count = |event: Event| info.tells(flow.key, event).then(|| flow.counts.get(event));
        let rate = |group: Group| known(group, flow.key, info).then(|| rounded(flow.rates.get(group), 10.0));
        let total = |group: Group| known(group, flow.key, info).then(|| sum_of_known(group, flow, info));
        Self {
            netns: flow.key.netns,
            family: family_name(flow.key.family),
            proto: protocol_name(flow.key).into_owned(),
            counts: counts(count),
            rate: Fields(Group::TOTALS.map(|group| (group.name(), rate(group))).into()),
            total: Fields(Group::TOTALS.map(|group| (group.name(), total(group))).into()),
            at_least: Group::TOTALS
                .into_iter()
                .filter(|group| partly_known(*group, flow.key, info))
                .map(Group::name)
                .collect(),
        }
    }
}

/// A sum is unknown only when all its parts are; a part that is unknown shows as `null` beside it.
pub(super) fn known(sum: Group, flow: FlowType, info: &SourceInfo) -> bool {
    sum.parts().iter().any(|event| info.tells(flow, *event))
}

fn partly_known(sum: Group, flow: FlowType, info: &SourceInfo) -> bool {
    known(sum, flow, info) && !sum.parts().iter().all(|event| info.tells(flow, *event))
}

fn sum_of_known(sum: Group, flow: &Flow, info: &SourceInfo) -> u64 {
    let parts = sum.parts().iter().filter(|event| info.tells(flow.key, **event));
    parts.fold(0, |sum, event| sum.saturating_add(flow.total.get(*event)))
}

/// What the source tells by namespace alone, by its field.
pub(super) fn by_namespace(info: &SourceInfo) -> impl Iterator<Item = &'static str> {
    let known = info.by_namespace().iter().filter(|event| !info.unknown.contains_key(event));
    known.map(|event| event.field())
}

/// RFC 3339, UTC, milliseconds.
pub(super) fn time(wall_ns: i128) -> String {
    let time = jiff::Timestamp::from_nanosecond(wall_ns).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

/// Rounded to a fraction of 1 / `parts`; the rounded value is finite whatever comes in.
pub(super) fn rounded(value: f64, parts: f64) -> f64 {
    let rounded = (value * parts).round() / parts;
    if rounded.is_finite() { rounded } else { f64::MAX }
}
