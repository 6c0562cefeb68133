//! What a namespace's events, statistics and count add up to: pure arithmetic.
//!
//! An event names its flow type but seldom its cause; a statistic names a cause but no flow type; the count names
//! neither, but misses nothing. What follows with certainty from all three goes to the flow type's row, the rest to the
//! namespace's row for any flow type, so that sums are exact and nothing is guessed.

use ctwatch_ebpf::{AF_INET, AF_INET6, Counters, Event as Counted, FlowType};

use super::entry::status::{ASSURED, NAT_CLASH, SEEN_REPLY};
use super::event::{Ending, Event};
use super::statistics::{Statistic, Sums};
use crate::model::any_flow;

/// Rows of one namespace; what finds none is counted on the namespace's row for any flow type.
const MOST_ROWS: usize = 128;
/// `TCP_CONNTRACK_CLOSE`.
const TCP_CLOSE: u8 = 8;

#[derive(Clone, Debug)]
struct Row {
    flow: FlowType,
    counters: Counters,
    /// Ended un-ASSURED with time left and at nobody's request: evicted, unless something else removed it.
    alive: u64,
    /// Ended un-ASSURED without a second left: expired, unless it was evicted in its last second.
    expired: u64,
}

/// One namespace's book.
#[derive(Clone, Debug)]
pub struct Account {
    netns: u32,
    /// Place of a row by family and protocol; 0 means none yet.
    places: Box<[u8; 512]>,
    rows: Vec<Row>,
    any: Counters,
    /// Whether the events of this kernel tell the time that was left (since 5.12).
    tells_time_left: bool,
    heard_inserts: u64,
    /// Without entries that never were announced (reply-only ones).
    heard_deletes: u64,
    /// Removals that the count shows and no event told.
    unheard_deletes: u64,
    /// Removals whose event was lost since the last settlement.
    lost_deletes: u64,
    lost: u64,
    statistics: Sums,
    refused: u64,
    /// Evictions counted before the event of their removal, which will come.
    ahead: u64,
}

impl Account {
    /// An empty book.
    pub fn new(netns: u32) -> Self {
        Self {
            netns,
            places: Box::new([0; 512]),
            rows: Vec::new(),
            any: Counters::default(),
            tells_time_left: false,
            heard_inserts: 0,
            heard_deletes: 0,
            unheard_deletes: 0,
            lost_deletes: 0,
            lost: 0,
            statistics: Sums::default(),
            refused: 0,
            ahead: 0,
        }
    }

    /// This kernel's events are known to carry the time that was left.
    pub const fn set_tells_time_left(&mut self) {
        self.tells_time_left = true;
    }

    /// Whether they do.
    pub const fn tells_time_left(&self) -> bool {
        self.tells_time_left
    }

    /// Events that were missed.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Inserts heard so far.
    pub const fn heard_inserts(&self) -> u64 {
        self.heard_inserts
    }

    /// An entry entered the table.
    pub fn insert(&mut self, event: Event) {
        self.heard_inserts += 1;
        let counted = if event.portid == 0 { Counted::Insert } else { Counted::InsertNetlink };
        self.counters(event).0[counted as usize] += 1;
    }

    /// An entry left it.
    pub fn delete(&mut self, event: Event, ending: Ending) {
        // Before 5.12 neither came with a DESTROY.
        self.tells_time_left |= ending.alive || ending.state.is_some();
        if ending.status & NAT_CLASH == 0 {
            self.heard_deletes += 1;
        }
        let tells_time_left = self.tells_time_left;
        // A reset of a connection that nobody answered kills it within that packet (nf_conntrack_tcp_packet).
        let reset = ending.state == Some(TCP_CLOSE) && ending.status & SEEN_REPLY == 0;
        let known = if event.portid != 0 {
            Some(Counted::DeleteNetlink)
        } else if ending.status & ASSURED == 0 && !reset {
            None
        } else if ending.alive || !tells_time_left {
            Some(Counted::DeleteOther)
        } else {
            Some(Counted::DeleteTimeout)
        };
        match (known, self.row(event)) {
            (Some(counted), Some(row)) => row.counters.0[counted as usize] += 1,
            (None, Some(row)) if ending.alive || !tells_time_left => row.alive += 1,
            (None, Some(row)) => row.expired += 1,
            (counted, None) => self.any.0[counted.unwrap_or(Counted::DeleteOther) as usize] += 1,
        }
    }

    /// Inserts whose events were missed: their number is exact.
    pub fn lose_inserts(&mut self, count: u64) {
        self.lost += count;
        self.heard_inserts += count;
        self.any.0[Counted::Insert as usize] += count;
    }

    /// Removals whose events were missed.
    pub fn lose_deletes(&mut self, count: u64) {
        self.lost += count;
        self.heard_deletes += count;
        self.lost_deletes += count;
    }

    /// Compares what was heard with how the count changed. `inserts` were heard before the count was read, and all
    /// removals up to then are in the book: so unheard removals may be seen late, but never too many.
    ///
    /// Since 5.19 an entry made while nobody listened ends without an event (`nf_conntrack_events` = 2).
    pub fn compare_with_count(&mut self, inserts: u64, count_before: u64, count: u64) {
        let unheard = i128::from(inserts) + i128::from(count_before) - i128::from(self.heard_deletes) - i128::from(count);
        let unheard = u64::try_from(unheard).unwrap_or(0);
        if let Some(new) = unheard.checked_sub(self.unheard_deletes) {
            self.unheard_deletes = unheard;
            self.lost_deletes += new;
        }
    }

    /// Distributes the removals that wait for their cause. `statistics` are the kernel's, read before the last events
    /// were; `None` where they cannot be compared, because only some flow types are listened to.
    pub fn settle(&mut self, statistics: Option<Sums>) {
        let evicted = statistics.map_or(0, |now| self.take_statistics(now));
        let evicted = self.distribute(evicted, |row| &mut row.alive, Counted::DeleteOther);
        let lost = std::mem::take(&mut self.lost_deletes);
        let lost_evicted = evicted.min(lost);
        self.any.0[Counted::DeleteEarlyDrop as usize] += lost_evicted;
        self.any.0[Counted::DeleteOther as usize] += lost - lost_evicted;
        let expiry = if self.tells_time_left { Counted::DeleteTimeout } else { Counted::DeleteOther };
        let evicted = self.distribute(evicted - lost_evicted, |row| &mut row.expired, expiry);
        self.any.0[Counted::DeleteEarlyDrop as usize] += evicted;
        self.ahead += evicted;
    }

    /// The namespace ended and took its entries with it.
    pub fn end(&mut self, entries: u64) {
        self.any.0[Counted::DeleteOther as usize] += entries;
    }

    /// What was counted, by flow type.
    pub fn rows(&self) -> impl Iterator<Item = (FlowType, Counters)> {
        let any = (self.any != Counters::default()).then_some((any_flow(self.netns), self.any));
        self.rows.iter().map(|row| (row.flow, row.counters)).chain(any)
    }

    /// Counts what statistics alone tell, and gives the number of new evictions.
    fn take_statistics(&mut self, now: Sums) -> u64 {
        let before = std::mem::replace(&mut self.statistics, now);
        let grown = |which| now.get(which).saturating_sub(before.get(which));
        let long = grown(Statistic::ChainTooLong);
        self.any.0[Counted::ClashResolve as usize] += grown(Statistic::ClashResolve);
        self.any.0[Counted::FailedChaintoolong as usize] += long;
        self.any.0[Counted::FailedOther as usize] += grown(Statistic::InsertFailed).saturating_sub(long);
        // An unresolved clash raises both `drop` and `insert_failed`; the one is not a refusal (5.10 to 7.3).
        let clashed = now.get(Statistic::InsertFailed).saturating_sub(now.get(Statistic::ChainTooLong));
        let refused = now.get(Statistic::Drop).saturating_sub(clashed);
        self.any.0[Counted::DropTableFull as usize] += refused.saturating_sub(self.refused);
        self.refused = self.refused.max(refused);
        grown(Statistic::EarlyDrop)
    }

    /// Of the removals in these pools, `evicted` were evictions and the others were `rest`. Each row gets of both what
    /// is certain whichever removals they were; the doubtful ones are counted without their flow type. Gives the
    /// evictions that are not among them.
    fn distribute(&mut self, evicted: u64, pool: fn(&mut Row) -> &mut u64, rest: Counted) -> u64 {
        let total: u64 = self.rows.iter_mut().map(|row| *pool(row)).sum();
        let evicted_here = evicted.min(total);
        let (mut evictions_left, mut rest_left) = (evicted_here, total - evicted_here);
        let rest_here = rest_left;
        for row in &mut self.rows {
            let held = std::mem::take(pool(row));
            let evictions = evicted_here.saturating_sub(total - held);
            let others = held.saturating_sub(evicted_here);
            row.counters.0[Counted::DeleteEarlyDrop as usize] += evictions;
            // Counted as evictions already, before their event came.
            let paid = others.min(self.ahead);
            self.ahead -= paid;
            row.counters.0[rest as usize] += others - paid;
            evictions_left -= evictions;
            rest_left -= others;
        }
        debug_assert!(rest_left <= rest_here);
        self.any.0[Counted::DeleteEarlyDrop as usize] += evictions_left;
        let paid = rest_left.min(self.ahead);
        self.ahead -= paid;
        self.any.0[rest as usize] += rest_left - paid;
        evicted - evicted_here
    }

    fn counters(&mut self, event: Event) -> &mut Counters {
        match self.place(event) {
            Some(place) => &mut self.rows[place].counters,
            None => &mut self.any,
        }
    }

    fn row(&mut self, event: Event) -> Option<&mut Row> {
        self.place(event).map(|place| &mut self.rows[place])
    }

    fn place(&mut self, event: Event) -> Option<usize> {
        let slot = match event.family {
            AF_INET => usize::from(event.proto),
            AF_INET6 => 256 + usize::from(event.proto),
            _ => return None,
        };
        if self.places[slot] == 0 {
            if self.rows.len() >= MOST_ROWS {
                return None;
            }
            let flow = FlowType { netns: self.netns, family: event.family, proto: event.proto };
            self.rows.push(Row { flow, counters: Counters::default(), alive: 0, expired: 0 });
            self.places[slot] = u8::try_from(self.rows.len()).ok()?;
        }
        Some(usize::from(self.places[slot]) - 1)
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
