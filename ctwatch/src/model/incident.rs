//! What happened over a time, in as many parts as a page has room for.

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Counters, Event, FlowType, Group};

use super::ranking::{By, Top};
use super::trace::Record;
use super::{Report, SourceInfo};

/// Parts are joined in pairs where there are more.
const MOST_PARTS: usize = 240;
/// Flow types and tables of a part, and keys of a ranking, that are told apart; a stranger's recording may have any
/// number.
const MOST_KINDS: usize = 256;
const MOST_KEYS: usize = 1 << 14;
/// Single losses kept of the worst minute.
const MOST_LOSSES: usize = 100;
/// Flow types of the whole time.
const MOST_FLOWS: usize = 1 << 12;
const MINUTE_NS: i128 = 60_000_000_000;

/// Adds up reports, oldest first.
#[derive(Debug, Default)]
pub struct Incident {
    /// In order; each holds at least one report.
    pub parts: Vec<Part>,
    /// How many reports a part takes before the next begins.
    width: u64,
    /// Counts of the whole time.
    pub flows: BTreeMap<FlowType, Counters>,
    /// Names of namespaces.
    pub names: BTreeMap<u32, String>,
    /// The minute with most losses, or with most inserts where nothing was lost.
    pub worst: Option<Minute>,
    now: Option<Minute>,
    /// The source, as it was last.
    pub info: Option<SourceInfo>,
    /// Events that a source could not tell, with its notes.
    pub unknown: BTreeMap<Event, String>,
    /// What sources know they missed.
    pub missed: u64,
    run: Option<(u64, u64)>,
    /// Namespaces that were not looked at, at most.
    pub namespaces_left_out: u64,
}

/// Some reports in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    reports: u64,
    /// Wall clock at the beginning and at the end, nanoseconds since the Unix epoch.
    pub from_ns: i128,
    /// See `from_ns`.
    pub to_ns: i128,
    /// The time that was watched in it.
    pub elapsed: Duration,
    /// Counts of all flow types.
    pub counts: Counters,
    /// Inserts of each flow type.
    pub inserts: BTreeMap<FlowType, u64>,
    /// Each table at its fullest: entries and limit.
    pub tables: BTreeMap<u32, (u64, Option<u64>)>,
}

impl Part {
    /// Events per second.
    pub fn rate(&self, count: u64) -> f64 {
        super::diff::per_second(count, self.elapsed)
    }

    /// New flows refused, live entries evicted, packets dropped as their entries could not enter.
    pub fn losses(&self) -> u64 {
        losses(&self.counts)
    }

    fn join(&mut self, next: &Self) {
        self.reports += next.reports;
        self.from_ns = self.from_ns.min(next.from_ns);
        self.to_ns = self.to_ns.max(next.to_ns);
        self.elapsed = self.elapsed.saturating_add(next.elapsed);
        add(&mut self.counts, &next.counts);
        for (flow, count) in &next.inserts {
            *slot(&mut self.inserts, *flow, FlowType::OVERFLOW, MOST_KINDS) += count;
        }
        for (netns, (count, max)) in &next.tables {
            self.table(*netns, *count, *max);
        }
    }

    fn table(&mut self, netns: u32, count: u64, max: Option<u64>) {
        if self.tables.len() < MOST_KINDS || self.tables.contains_key(&netns) {
            let fullest = self.tables.entry(netns).or_insert((0, max));
            if count >= fullest.0 {
                *fullest = (count, max);
            }
        }
    }
}

/// A minute and what was ranked in it.
#[derive(Clone, Debug)]
pub struct Minute {
    /// When it began, nanoseconds since the Unix epoch.
    pub from_ns: i128,
    /// Losses and inserts.
    weight: (u64, u64),
    keys: BTreeMap<(By, u32, u8, u8, String), [u64; 4]>,
    /// Some single losses.
    pub losses: Vec<Record>,
}

impl Minute {
    /// The ranking by one kind of key, most losses first, then most inserts.
    pub fn top(&self, by: By, most: usize) -> Vec<Top> {
        let mut rows: Vec<Top> = self
            .keys
            .iter()
            .filter(|((kind, ..), _)| *kind == by)
            .map(|((_, netns, family, proto, key), counts)| {
                let [insert, early_drop, drop, invalid] = *counts;
                let (netns, family, proto, key) = (*netns, *family, *proto, key.clone());
                Top { by, netns, family, proto, key, insert, early_drop, drop, invalid }
            })
            .collect();
        let weight = |top: &Top| (top.drop.saturating_add(top.early_drop), top.insert, top.invalid);
        rows.sort_by_key(|top| std::cmp::Reverse(weight(top)));
        rows.truncate(most);
        rows
    }

    /// What was lost in it.
    pub const fn lost(&self) -> u64 {
        self.weight.0
    }
}

impl Incident {
    /// Takes in the next report of a run.
    pub fn add(&mut self, run: u64, info: &SourceInfo, report: &Report) {
        let part = part(report);
        self.minute(report, &part.counts);
        let full = self.parts.last().is_none_or(|last| last.reports >= self.width.max(1));
        match self.parts.last_mut() {
            Some(last) if !full => last.join(&part),
            _ => self.parts.push(part),
        }
        if self.parts.len() > MOST_PARTS {
            self.width = self.width.max(1) * 2;
            self.parts = self.parts.chunks(2).map(joined).collect();
        }
        for flow in &report.flows {
            let sum = slot(&mut self.flows, flow.key, FlowType::OVERFLOW, MOST_FLOWS);
            add(sum, &flow.counts);
        }
        for (netns, name) in &report.names {
            if self.names.len() < MOST_FLOWS {
                self.names.insert(*netns, name.clone());
            }
        }
        let lost_before = self.run.filter(|(last, _)| *last == run).map_or(0, |(_, lost)| lost);
        self.missed = self.missed.saturating_add(report.lost.saturating_sub(lost_before));
        self.run = Some((run, report.lost));
        self.namespaces_left_out = self.namespaces_left_out.max(report.namespaces_left_out);
        if self.info.as_ref() != Some(info) {
            self.unknown.extend(info.unknown.clone());
            self.info = Some(info.clone());
        }
    }

    /// To be called behind the last report.
    pub fn finish(&mut self) {
        if let Some(now) = self.now.take() {
            self.compare(now);
        }
    }

    /// How long was watched.
    pub fn watched(&self) -> Duration {
        self.parts.iter().fold(Duration::ZERO, |sum, part| sum.saturating_add(part.elapsed))
    }

    /// Counts of all flow types over the whole time.
    pub fn total(&self) -> Counters {
        let mut total = Counters::default();
        for counts in self.flows.values() {
            add(&mut total, counts);
        }
        total
    }

    fn minute(&mut self, report: &Report, counts: &Counters) {
        if self.now.as_ref().is_some_and(|now| !(0..MINUTE_NS).contains(&(report.wall_ns - now.from_ns)))
            && let Some(now) = self.now.take()
        {
            self.compare(now);
        }
        let now = self.now.get_or_insert_with(|| Minute {
            from_ns: report.wall_ns,
            weight: (0, 0),
            keys: BTreeMap::new(),
            losses: Vec::new(),
        });
        now.weight.0 = now.weight.0.saturating_add(losses(counts));
        now.weight.1 = now.weight.1.saturating_add(Group::Insert.of(counts));
        for top in report.top.iter().flatten() {
            let key = (top.by, top.netns, top.family, top.proto, top.key.clone());
            if now.keys.len() < MOST_KEYS || now.keys.contains_key(&key) {
                let sums = now.keys.entry(key).or_default();
                for (sum, count) in sums.iter_mut().zip(top.counts()) {
                    *sum = sum.saturating_add(count);
                }
            }
        }
        if let Some(single) = &report.losses {
            let room = MOST_LOSSES.saturating_sub(now.losses.len());
            now.losses.extend(single.events.iter().take(room).cloned());
        }
    }

    fn compare(&mut self, minute: Minute) {
        if self.worst.as_ref().is_none_or(|worst| minute.weight > worst.weight) {
            self.worst = Some(minute);
        }
    }
}

fn joined(parts: &[Part]) -> Part {
    let mut joined = parts[0].clone();
    for part in &parts[1..] {
        joined.join(part);
    }
    joined
}

fn part(report: &Report) -> Part {
    let elapsed = i128::try_from(report.elapsed.as_nanos()).unwrap_or(i128::MAX);
    let mut part = Part {
        reports: 1,
        from_ns: report.wall_ns.saturating_sub(elapsed),
        to_ns: report.wall_ns,
        elapsed: report.elapsed,
        counts: Counters::default(),
        inserts: BTreeMap::new(),
        tables: BTreeMap::new(),
    };
    for flow in &report.flows {
        add(&mut part.counts, &flow.counts);
        let inserts = Group::Insert.of(&flow.counts);
        if inserts > 0 {
            *slot(&mut part.inserts, flow.key, FlowType::OVERFLOW, MOST_KINDS) += inserts;
        }
    }
    for table in &report.tables {
        if let Some(count) = table.count {
            part.table(table.netns, count, table.max);
        }
    }
    part
}

fn losses(counts: &Counters) -> u64 {
    Group::ALL.into_iter().filter(|group| group.is_loss()).map(|group| group.of(counts)).sum()
}

fn add(sums: &mut Counters, counts: &Counters) {
    for (sum, count) in sums.0.iter_mut().zip(counts.0) {
        *sum = sum.saturating_add(count);
    }
}

/// The value of a key, or that of the key for all others where there is no more room.
fn slot<K: Ord, V: Default>(map: &mut BTreeMap<K, V>, key: K, others: K, most: usize) -> &mut V {
    let key = if map.len() < most || map.contains_key(&key) { key } else { others };
    map.entry(key).or_default()
}

#[cfg(test)]
#[path = "incident_tests.rs"]
mod tests;
