//! Reports as they lie in frames: whole in key frames, as differences in the others.

mod change;
mod losses;
mod memory;
mod names;
mod rows;

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Counters, FlowType};
use serde::{Deserialize, Serialize};

use super::Session;
use crate::model::diff::per_second;
use crate::model::{CostReport, Flow, Rates, Report, SourceInfo, SourceKind, Table};
pub(super) use change::Model;
use losses::LossesWire;
pub(super) use names::Names;
use names::sparse;
use rows::{TableWire, TopWire, open_tops, tops};

/// More flow types than any source hands over: the programs have 1024 rows, netlink 128 for each of 1024 namespaces.
/// A frame of a stranger with more is not read, so memory stays bounded.
const MOST_FLOWS: usize = 128 << 10;

/// A key frame.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Key {
    session: u64,
    host: String,
    kernel: String,
    version: String,
    kind: u8,
    why: Option<String>,
    /// The events and groups that numbers in this frame and the next ones mean, by the names that users know.
    events: Vec<String>,
    groups: Vec<String>,
    unknown: Vec<(u8, String)>,
    /// Where the run ends: the report is the last one, and may repeat the one before.
    closing: bool,
    /// How many reports of this run came before.
    number: u64,
    wall_ns: i128,
    elapsed_ns: u64,
    watched_ns: u64,
    flows: Vec<FlowWire>,
    tables: Vec<TableWire>,
    names: BTreeMap<u32, String>,
    namespaces_left_out: u64,
    lost: u64,
    cost: Option<(f64, u64, Option<u64>)>,
    own_ns: Option<u64>,
    top: Option<Vec<TopWire>>,
    losses: Option<LossesWire>,
}

/// Any other frame of version 1: differences to the report before.
#[derive(Debug, Deserialize)]
pub(super) struct Delta {
    elapsed_ns: u64,
    /// Of the wall clock against the one before and the time that passed.
    drift_ns: i64,
    namespaces_left_out: u64,
    lost: u64,
    /// Time of the programs and their runs.
    cost: Option<(u64, u64)>,
    own_ns: Option<u64>,
    rows: Option<Vec<(u32, u8, u8)>>,
    /// Differences of the counts that were ever other than 0, row by row.
    counts: Vec<i64>,
    /// Counts other than 0 for the first time: row, event, count.
    first: Vec<(u32, u8, u64)>,
    tables: Option<Vec<TableWire>>,
    /// Where `tables` is none: differences of their counts.
    entries: Vec<i64>,
    names: Option<BTreeMap<u32, String>>,
    top: Option<Vec<TopWire>>,
    losses: Option<LossesWire>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FlowWire {
    key: (u32, u8, u8),
    counts: Vec<(u8, u64)>,
    total: Vec<(u8, u64)>,
    peak: Vec<f64>,
}

/// What a key frame holds.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) report: Report,
    pub(super) closing: bool,
    pub(super) number: u64,
    pub(super) names: Names,
}

const fn flow_type((netns, family, proto): (u32, u8, u8)) -> FlowType {
    FlowType { netns, family, proto }
}

const fn parts(flow: FlowType) -> (u32, u8, u8) {
    (flow.netns, flow.family, flow.proto)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn cost(run_ns: u64, events: u64, elapsed: Duration) -> CostReport {
    CostReport {
        cpu_pct: per_second(run_ns, elapsed) / 1e9 * 100.0,
        events,
        ns_per_event: run_ns.checked_div(events),
    }
}

/// Its reverse, nearly.
fn run_ns(cost: CostReport, elapsed: Duration) -> u64 {
    let seconds = cost.cpu_pct / 100.0 * elapsed.as_secs_f64();
    nanos(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

impl Key {
    pub(super) fn new(session: &Session, report: &Report, number: u64, closing: bool) -> Self {
        let info = &session.info;
        let (events, groups) = Names::own().written();
        Self {
            session: session.id,
            host: session.host.clone(),
            kernel: session.kernel.clone(),
            version: session.version.clone(),
            kind: match info.kind {
                SourceKind::Fexit => 0,
                SourceKind::Kprobe => 1,
                SourceKind::Netlink => 2,
                SourceKind::Replay => 3,
            },
            why: info.why.clone(),
            events,
            groups,
            unknown: info.unknown.iter().map(|(event, note)| (*event as u8, note.clone())).collect(),
            closing,
            number,
            wall_ns: report.wall_ns,
            elapsed_ns: nanos(report.elapsed),
            watched_ns: nanos(report.watched),
            flows: report
                .flows
                .iter()
                .map(|flow| FlowWire {
                    key: parts(flow.key),
                    counts: sparse(&flow.counts),
                    total: sparse(&flow.total),
                    peak: flow.peak.all().to_vec(),
                })
                .collect(),
            tables: report.tables.iter().map(TableWire::from).collect(),
            names: report.names.clone(),
            namespaces_left_out: report.namespaces_left_out,
            lost: report.lost,
            cost: report.cost.map(|cost| (cost.cpu_pct, cost.events, cost.ns_per_event)),
            own_ns: report.own.map(nanos),
            top: tops(report),
            losses: report.losses.as_ref().map(LossesWire::from),
        }
    }

    /// `None` where it contradicts itself, or has something that this ctwatch does not know.
    pub(super) fn open(self) -> Option<Opened> {
        if self.flows.len() > MOST_FLOWS {
            return None;
        }
        let names = Names::read(&self.events, &self.groups)?;
        let unknown = |(number, note): (u8, String)| Some((names.event(number)?, note));
        let info = SourceInfo {
            kind: match self.kind {
                0 => SourceKind::Fexit,
                1 => SourceKind::Kprobe,
                2 => SourceKind::Netlink,
                _ => SourceKind::Replay,
            },
            why: self.why,
            unknown: self.unknown.into_iter().map(unknown).collect::<Option<_>>()?,
        };
        let elapsed = Duration::from_nanos(self.elapsed_ns);
        let flow = |wire: FlowWire| {
            let counts = names.counters(&wire.counts)?;
            Some(Flow {
                key: flow_type(wire.key),
                counts,
                rates: Rates::new(&counts, elapsed),
                total: names.counters(&wire.total)?,
                peak: names.rates(&wire.peak),
            })
        };
        let report = Report {
            wall_ns: self.wall_ns,
            elapsed,
            watched: Duration::from_nanos(self.watched_ns),
            flows: self.flows.into_iter().map(flow).collect::<Option<_>>()?,
            tables: self.tables.into_iter().map(Table::from).collect(),
            names: self.names,
            namespaces_left_out: self.namespaces_left_out,
            lost: self.lost,
            cost: self.cost.map(|(cpu_pct, events, ns_per_event)| CostReport {
                cpu_pct: if cpu_pct.is_finite() { cpu_pct } else { 0.0 },
                events,
                ns_per_event,
            }),
            own: self.own_ns.map(Duration::from_nanos),
            top: match self.top {
                Some(top) => Some(open_tops(top)?),
                None => None,
            },
            losses: match self.losses {
                Some(losses) => Some(losses.open(&names)?),
                None => None,
            },
        };
        let session =
            Session { id: self.session, host: self.host, kernel: self.kernel, version: self.version, info };
        believable(&report).then_some(Opened {
            session,
            report,
            closing: self.closing,
            number: self.number,
            names,
        })
    }
}

impl Delta {
    /// The report that follows; `None` where the frame does not fit to the one before.
    pub(super) fn apply(self, before: &Report, names: &Names) -> Option<Report> {
        let elapsed = Duration::from_nanos(self.elapsed_ns);
        if self.rows.as_ref().is_some_and(|rows| rows.len() > MOST_FLOWS) {
            return None;
        }
        let mut flows = carried(before, self.rows.as_deref());
        let places = names.cells(&flows);
        if places.len() != self.counts.len() {
            return None;
        }
        let old: Vec<Counters> = flows.iter_mut().map(|flow| std::mem::take(&mut flow.counts)).collect();
        for ((row, event), difference) in places.into_iter().zip(self.counts) {
            flows[row].counts.0[event as usize] = old[row].get(event).wrapping_add_signed(difference);
        }
        for (row, number, count) in self.first {
            let flow = flows.get_mut(usize::try_from(row).ok()?)?;
            flow.counts.0[names.event(number)? as usize] = count;
        }
        for flow in &mut flows {
            flow.total.add(&flow.counts);
            flow.rates = Rates::new(&flow.counts, elapsed);
            flow.peak.raise_after(&flow.rates, elapsed);
        }
        let tables = match self.tables {
            Some(tables) => tables.into_iter().map(Table::from).collect(),
            None if self.entries.len() == before.tables.len() => {
                let changed = |(table, difference): (&Table, i64)| Table {
                    count: table.count.map(|count| count.wrapping_add_signed(difference)),
                    ..table.clone()
                };
                before.tables.iter().zip(self.entries).map(changed).collect()
            }
            None => return None,
        };
        let report = Report {
            wall_ns: before
                .wall_ns
                .checked_add(i128::from(self.elapsed_ns))?
                .checked_add(i128::from(self.drift_ns))?,
            elapsed,
            watched: before.watched.checked_add(elapsed)?,
            flows,
            tables,
            names: self.names.unwrap_or_else(|| before.names.clone()),
            namespaces_left_out: self.namespaces_left_out,
            lost: before.lost.checked_add(self.lost)?,
            cost: self.cost.map(|(run_ns, events)| cost(run_ns, events, elapsed)),
            own: self.own_ns.map(Duration::from_nanos),
            top: match self.top {
                Some(top) => Some(open_tops(top)?),
                None => None,
            },
            losses: match self.losses {
                Some(losses) => Some(losses.open(names)?),
                None => None,
            },
        };
        believable(&report).then_some(report)
    }
}

/// Whether sums of what is in it stay in 64 bits, whichever a view makes. Only a stranger's recording has more.
fn believable(report: &Report) -> bool {
    let mut sum = u128::from(report.lost) + u128::from(report.namespaces_left_out);
    let mut add =
        |counts: &[u64]| sum = counts.iter().fold(sum, |sum, count| sum.saturating_add((*count).into()));
    for flow in &report.flows {
        add(&flow.counts.0);
        add(&flow.total.0);
    }
    for table in &report.tables {
        add(&[table.count.unwrap_or(0), table.max.unwrap_or(0)]);
    }
    for top in report.top.iter().flatten() {
        add(&top.counts());
    }
    add(&[report.losses.as_ref().map_or(0, |losses| losses.more), report.cost.map_or(0, |cost| cost.events)]);
    sum < 1 << 60
}

/// The rows before, in the order of the new ones; a new row has nothing yet.
fn carried(before: &Report, rows: Option<&[(u32, u8, u8)]>) -> Vec<Flow> {
    let Some(rows) = rows else { return before.flows.clone() };
    let old: BTreeMap<FlowType, &Flow> = before.flows.iter().map(|flow| (flow.key, flow)).collect();
    let row = |key: &(u32, u8, u8)| {
        let key = flow_type(*key);
        old.get(&key).copied().cloned().unwrap_or_else(|| Flow {
            key,
            counts: Counters::default(),
            rates: Rates::default(),
            total: Counters::default(),
            peak: Rates::default(),
        })
    };
    rows.iter().map(row).collect()
}
