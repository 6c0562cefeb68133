//! What changed from one report to the next: numbers for the coder, and in words what is rare.

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Counters, Event, FlowType};
use serde::{Deserialize, Serialize};

use super::losses::LossesWire;
use super::memory::{Ranked, Share, Time};
use super::names::{Names, sparse};
use super::rows::{TableWire, TopWire, open_tops};
use super::{MOST_FLOWS, believable, carried, cost, nanos, parts, run_ns};
use crate::model::live::{entered, left};
use crate::model::ranking::{self, By, Losses, Top};
use crate::model::{Flow, Rates, Report, Table};
use crate::record::coder::{Bit, Cell, Coder, Reading, Writing};

/// Numbers that have a memory of their own; all others share one.
const MOST_CELLS: usize = 4096;
/// Lines of rankings that are remembered.
const MOST_RANKED: usize = 256;
/// A line that is in none of so many reports is forgotten.
const FORGOTTEN_AFTER: u16 = 1000;

/// What most reports have nothing of.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Extra {
    rows: Option<Vec<(u32, u8, u8)>>,
    /// Counts other than 0 for the first time: row, event, count.
    first: Vec<(u32, u8, u64)>,
    tables: Option<Vec<TableWire>>,
    names: Option<BTreeMap<u32, String>>,
    /// Lines of rankings that are not remembered.
    top: Vec<TopWire>,
    /// Their times are those since the report.
    losses: Option<LossesWire>,
}

/// What numbers one can expect, learned from the frames since the key frame. Writer and reader learn the same.
pub(in crate::record) struct Model {
    elapsed: Time,
    drift: Time,
    own: Time,
    left_out: Cell,
    lost: Cell,
    runs: Cell,
    run_ns: Cell,
    per_event: Share,
    per_run: Share,
    has_cost: Bit,
    has_own: Bit,
    has_top: Bit,
    has_losses: Bit,
    cells: BTreeMap<Place, Cell>,
    shared: Cell,
    ranked: Vec<Ranked>,
}

/// A number that each report has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Count(FlowType, Event),
    /// What rankings leave of it.
    Unranked(FlowType, Event),
    Entries(u32),
}

/// What the counts of a frame are read with.
struct Rows<'a> {
    before: &'a Report,
    now: Option<&'a Report>,
    order: Option<&'a [(u32, u8, u8)]>,
    first: &'a [(u32, u8, u64)],
    top: Option<&'a [Top]>,
}

/// The events that lines of rankings count too.
const SUMS: [Event; 3] = [Event::Insert, Event::DeleteEarlyDrop, Event::DropTableFull];

impl Model {
    /// As it is behind a key frame with this report.
    pub(in crate::record) fn new(report: &Report) -> Self {
        let (cell, bit) = (Cell::new(), Bit::new());
        Self {
            elapsed: Time::new(),
            drift: Time::new(),
            own: Time::new(),
            left_out: cell.clone(),
            lost: cell.clone(),
            runs: cell.clone(),
            run_ns: cell.clone(),
            per_event: Share::default(),
            per_run: Share::default(),
            has_cost: bit,
            has_own: bit,
            has_top: bit,
            has_losses: bit,
            cells: BTreeMap::new(),
            shared: cell,
            ranked: report.top.iter().flatten().take(MOST_RANKED).map(Ranked::new).collect(),
        }
    }

    /// The frame of this report: what is in words, if anything is, and the numbers. `None` where reading it would not
    /// give exactly the same report; then a key frame must come next.
    pub(in crate::record) fn write(
        &mut self,
        before: &Report,
        now: &Report,
    ) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
        let extra = self.extra(before, now)?;
        let words = if extra.is_empty() { None } else { Some(postcard::to_stdvec(&extra).ok()?) };
        let mut coder = Writing::new();
        let read = self.walk(&mut coder, before, Some(now), extra, &Names::own())?;
        (read == *now).then(|| (words, coder.finish()))
    }

    /// The report that follows; `None` where the frame does not fit to the one before.
    pub(in crate::record) fn read(
        &mut self,
        before: &Report,
        words: Option<&[u8]>,
        numbers: &[u8],
        names: &Names,
    ) -> Option<Report> {
        let extra = words.map_or_else(|| Some(Extra::default()), |words| postcard::from_bytes(words).ok())?;
        self.walk(&mut Reading::new(numbers), before, None, extra, names)
    }

    fn extra(&self, before: &Report, now: &Report) -> Option<Extra> {
        let keys = |report: &Report| report.flows.iter().map(|flow| parts(flow.key)).collect::<Vec<_>>();
        let rows = (keys(before) != keys(now)).then(|| keys(now));
        let old = carried(before, rows.as_deref());
        let mut first = Vec::new();
        for (row, (flow, was)) in now.flows.iter().zip(&old).enumerate() {
            let new =
                sparse(&flow.counts).into_iter().filter(|(event, _)| was.total.0[usize::from(*event)] == 0);
            for (event, count) in new {
                first.push((u32::try_from(row).ok()?, event, count));
            }
        }
        let alike = before.tables.len() == now.tables.len()
            && before.tables.iter().zip(&now.tables).all(|(a, b)| {
                (a.netns, &a.name, a.max, a.count.is_some()) == (b.netns, &b.name, b.max, b.count.is_some())
            });
        let new = |top: &&Top| !self.ranked.iter().any(|ranked| ranked.line.identity() == top.identity());
        let losses = now.losses.as_ref().filter(|losses| **losses != Losses::default());
        Some(Extra {
            rows,
            first,
            tables: (!alike).then(|| now.tables.iter().map(TableWire::from).collect()),
            names: (before.names != now.names).then(|| now.names.clone()),
            top: now.top.iter().flatten().filter(new).map(TopWire::from).collect(),
            losses: losses.map(|losses| LossesWire::from(&moved(losses.clone(), now.wall_ns.wrapping_neg()))),
        })
    }

    /// Writes the numbers of `now`, or reads them where there is none. Both ways it returns the report as it is read.
    fn walk(
        &mut self,
        coder: &mut impl Coder,
        before: &Report,
        now: Option<&Report>,
        extra: Extra,
        names: &Names,
    ) -> Option<Report> {
        if extra.rows.as_ref().is_some_and(|rows| rows.len() > MOST_FLOWS) {
            return None;
        }
        let elapsed_ns = self.elapsed.near_mean(coder, now.map_or(0, |now| nanos(now.elapsed)));
        let elapsed = Duration::from_nanos(elapsed_ns);
        let expected = before.wall_ns.checked_add(i128::from(elapsed_ns))?;
        let drift = now.map_or(Some(0), |now| i64::try_from(now.wall_ns.checked_sub(expected)?).ok())?;
        let wall_ns = expected.checked_add(i128::from(self.drift.around_zero(coder, drift)))?;
        let left_out = now.map_or(0, |now| now.namespaces_left_out);
        let namespaces_left_out = self.left_out.near(coder, before.namespaces_left_out, left_out);
        let lost = self.lost.near(coder, before.lost, now.map_or(0, |now| now.lost));

        // Rankings first: they add up to most of the inserts and losses of flow types with ports.
        let top = if coder.bit(&mut self.has_top, now.is_some_and(|now| now.top.is_some())) {
            let written = now.and_then(|now| now.top.as_deref()).unwrap_or_default();
            Some(self.top(coder, written, open_tops(extra.top)?))
        } else {
            None
        };
        let rows =
            Rows { before, now, order: extra.rows.as_deref(), first: &extra.first, top: top.as_deref() };
        let flows = self.flows(coder, &rows, elapsed, names)?;
        let tables = match extra.tables {
            Some(tables) => tables.into_iter().map(Table::from).collect(),
            None => self.tables(coder, before, now, &flows),
        };
        let cost = if coder.bit(&mut self.has_cost, now.is_some_and(|now| now.cost.is_some())) {
            let written = now.and_then(|now| Some((run_ns(now.cost?, elapsed), now.cost?.events)));
            let (run_ns, runs) = self.cost(coder, &flows, written.unwrap_or_default());
            Some(cost(run_ns, runs, elapsed))
        } else {
            None
        };
        let own = if coder.bit(&mut self.has_own, now.is_some_and(|now| now.own.is_some())) {
            let own = now.and_then(|now| now.own).map_or(0, nanos);
            Some(Duration::from_nanos(self.own.near_mean(coder, own)))
        } else {
            None
        };
        let losses = match extra.losses {
            Some(losses) => Some(moved(losses.open(names)?, wall_ns)),
            None => coder
                .bit(&mut self.has_losses, now.is_some_and(|now| now.losses.is_some()))
                .then(Losses::default),
        };
        let report = Report {
            wall_ns,
            elapsed,
            watched: before.watched.checked_add(elapsed)?,
            flows,
            tables,
            names: extra.names.unwrap_or_else(|| before.names.clone()),
            namespaces_left_out,
            lost,
            cost,
            own,
            top,
            losses,
        };
        believable(&report).then_some(report)
    }

    fn flows(
        &mut self,
        coder: &mut impl Coder,
        report: &Rows<'_>,
        elapsed: Duration,
        names: &Names,
    ) -> Option<Vec<Flow>> {
        let ranked = self.sums(report.top.unwrap_or_default());
        let mut flows = carried(report.before, report.order);
        let places = names.cells(&flows);
        for flow in &mut flows {
            flow.counts = Counters::default();
        }
        for (row, event) in places {
            let count = match report.now {
                Some(now) => now.flows.get(row)?.counts.get(event),
                None => 0,
            };
            let key = flows[row].key;
            let sum = SUMS.iter().position(|sum| *sum == event);
            let sum = sum.and_then(|at| Some(ranked.get(&key)?[at]));
            flows[row].counts.0[event as usize] = match sum {
                Some(sum) => self.cell(Place::Unranked(key, event)).near(coder, sum, count),
                None => self.cell(Place::Count(key, event)).near_mean(coder, count),
            };
        }
        for (row, number, count) in report.first {
            let flow = flows.get_mut(usize::try_from(*row).ok()?)?;
            flow.counts.0[names.event(*number)? as usize] = *count;
        }
        for flow in &mut flows {
            flow.total.add(&flow.counts);
            flow.rates = Rates::new(&flow.counts, elapsed);
            flow.peak.raise_after(&flow.rates, elapsed);
        }
        Some(flows)
    }

    /// What lines of rankings by port add up to, by flow type: 0 where a flow type has lines, but none now.
    fn sums(&self, top: &[Top]) -> BTreeMap<FlowType, [u64; SUMS.len()]> {
        let mut sums: BTreeMap<FlowType, [u64; SUMS.len()]> = BTreeMap::new();
        let known = self.ranked.iter().map(|ranked| &ranked.line);
        for line in known.chain(top).filter(|line| line.by == By::Dport) {
            let flow = FlowType { netns: line.netns, family: line.family, proto: line.proto };
            let sum = sums.entry(flow).or_default();
            let counts = [line.insert, line.early_drop, line.drop];
            *sum = std::array::from_fn(|at| sum[at].wrapping_add(counts[at]));
        }
        sums
    }

    /// A table has what it had, and what entered, without what left.
    fn tables(
        &mut self,
        coder: &mut impl Coder,
        before: &Report,
        now: Option<&Report>,
        flows: &[Flow],
    ) -> Vec<Table> {
        let mut grown: BTreeMap<u32, u64> = BTreeMap::new();
        for flow in flows {
            let grown = grown.entry(flow.key.netns).or_default();
            *grown = grown.wrapping_add(entered(&flow.counts)).wrapping_sub(left(&flow.counts));
        }
        let mut tables = before.tables.clone();
        for (at, table) in tables.iter_mut().enumerate() {
            let Some(count) = table.count else { continue };
            let guess = count.wrapping_add(grown.get(&table.netns).copied().unwrap_or(0));
            let count = now.and_then(|now| now.tables.get(at)?.count).unwrap_or(0);
            table.count = Some(self.cell(Place::Entries(table.netns)).near(coder, guess, count));
        }
        tables
    }

    /// Programs run a few times for each event, each time for a while.
    fn cost(&mut self, coder: &mut impl Coder, flows: &[Flow], (run_ns, runs): (u64, u64)) -> (u64, u64) {
        let happened = |flow: &Flow| flow.counts.0.iter().fold(0u64, |sum, count| sum.wrapping_add(*count));
        let events = flows.iter().map(happened).fold(0, u64::wrapping_add);
        let runs = self.runs.near(coder, self.per_event.guess(events), runs);
        self.per_event.learn(runs, events);
        let run_ns = self.run_ns.near(coder, self.per_run.guess(runs), run_ns);
        self.per_run.learn(run_ns, runs);
        (run_ns, runs)
    }

    fn top(&mut self, coder: &mut impl Coder, written: &[Top], new: Vec<Top>) -> Vec<Top> {
        let written: BTreeMap<_, _> = written.iter().map(|top| (top.identity(), top.counts())).collect();
        let mut top = Vec::new();
        for ranked in &mut self.ranked {
            let counts = written.get(&ranked.line.identity()).copied().unwrap_or_default();
            let mut read = counts;
            for (cell, count) in ranked.cells.iter_mut().zip(&mut read) {
                *count = cell.near_mean(coder, *count);
            }
            let [insert, early_drop, drop, invalid] = read;
            if read == [0; 4] {
                ranked.absent += 1;
            } else {
                ranked.absent = 0;
                top.push(Top { insert, early_drop, drop, invalid, ..ranked.line.clone() });
            }
        }
        self.ranked.retain(|ranked| ranked.absent < FORGOTTEN_AFTER);
        let room = MOST_RANKED - self.ranked.len();
        self.ranked.extend(new.iter().take(room).map(Ranked::new));
        top.extend(new);
        ranking::sort(&mut top);
        top
    }

    fn cell(&mut self, place: Place) -> &mut Cell {
        if self.cells.len() >= MOST_CELLS && !self.cells.contains_key(&place) {
            return &mut self.shared;
        }
        self.cells.entry(place).or_insert_with(Cell::new)
    }
}

impl Extra {
    const fn is_empty(&self) -> bool {
        let Self { rows, first, tables, names, top, losses } = self;
        rows.is_none()
            && first.is_empty()
            && tables.is_none()
            && names.is_none()
            && top.is_empty()
            && losses.is_none()
    }
}

/// Losses at times so much later.
fn moved(mut losses: Losses, by_ns: i128) -> Losses {
    for event in &mut losses.events {
        event.wall_ns = event.wall_ns.wrapping_add(by_ns);
    }
    losses
}
