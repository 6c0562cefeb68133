//! `replay A --against B --json`: what changed, as one object on a line.

use serde::Serialize;

use super::compare::Time;
use super::json::{line, rounded, time};
use crate::model::compare::{Comparison, Seen};
use crate::model::{SourceKind, family_name, protocol_name};

#[derive(Serialize)]
struct Object<'a> {
    a: TimeObject<'a>,
    b: TimeObject<'a>,
    changes: Vec<ChangeObject<'a>>,
    same: usize,
    table: Vec<TableObject<'a>>,
}

#[derive(Serialize)]
struct TimeObject<'a> {
    file: &'a str,
    host: &'a str,
    kernel: &'a str,
    source: Option<SourceKind>,
    from: Option<String>,
    to: Option<String>,
    watched_s: f64,
    lost: u64,
}

#[derive(Serialize)]
struct ChangeObject<'a> {
    netns: &'a str,
    family: &'static str,
    proto: String,
    event: &'static str,
    loss: bool,
    /// Events per second. `null`: the source does not count this event.
    a: Option<f64>,
    b: Option<f64>,
}

#[derive(Serialize)]
struct TableObject<'a> {
    netns: &'a str,
    a: Option<FillObject>,
    b: Option<FillObject>,
}

#[derive(Serialize)]
struct FillObject {
    count: u64,
    max: Option<u64>,
}

impl<'a> TimeObject<'a> {
    fn new(of: &'a Time<'_>) -> Self {
        let Time { file, host, kernel, incident } = of;
        Self {
            file,
            host,
            kernel,
            source: incident.info.as_ref().map(|info| info.kind),
            from: incident.parts.first().map(|part| time(part.from_ns)),
            to: incident.parts.last().map(|part| time(part.to_ns)),
            watched_s: rounded(incident.watched().as_secs_f64(), 1000.0),
            lost: incident.missed,
        }
    }
}

/// All of it, with a line end. Names are those of strangers.
pub fn json(before: &Time<'_>, after: &Time<'_>, comparison: &Comparison) -> String {
    let seen = |seen| match seen {
        Seen::Rate(rate) => Some(rounded(rate, 1000.0)),
        Seen::Unknown => None,
    };
    let fill = |fill: Option<(u64, Option<u64>)>| fill.map(|(count, max)| FillObject { count, max });
    let changes = comparison.changes.iter().map(|change| ChangeObject {
        netns: &change.netns,
        family: family_name(change.flow.family),
        proto: protocol_name(change.flow).into_owned(),
        event: change.event.field(),
        loss: change.event.is_loss(),
        a: seen(change.before),
        b: seen(change.after),
    });
    let table = comparison.tables.iter().map(|table| TableObject {
        netns: &table.netns,
        a: fill(table.before),
        b: fill(table.after),
    });
    line(&Object {
        a: TimeObject::new(before),
        b: TimeObject::new(after),
        changes: changes.collect(),
        same: comparison.same,
        table: table.collect(),
    })
}
