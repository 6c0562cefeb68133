//! What a namespace's events, statistics and count add up to: pure arithmetic.
//!
//! An event names its flow type but seldom its cause; a statistic names a cause but no flow type; the count names
//! neither, but misses nothing. What follows with certainty from all three goes to the flow type's row, the rest to the
//! namespace's row for any flow type, so that sums are exact and nothing is guessed.

use ctwatch_ebpf::{AF_INET, AF_INET6, Counters, Event as Counted, FlowType, Group};

use super::entry::status::NAT_CLASH;
use super::event::{Ending, Event};
use super::fate::Fate;
use super::statistics::{Statistic, Sums};
use crate::model::any_flow;

/// Rows of one namespace; what finds none is counted on the namespace's row for any flow type.
const MOST_ROWS: usize = 128;

/// What can remove an entry that was inserted a moment ago.
const EARLY: [Counted; 2] = [Counted::DeleteEarlyDrop, Counted::DeleteNetlink];

#[derive(Clone, Debug)]
struct Row {
    flow: FlowType,
    counters: Counters,
    /// Of [`Fate::Alive`].
    alive: u64,
    /// The same, from before the last settlement, held back because evictions were going on: the kernel counts one
    /// after it has announced the removal.
    held: u64,
    /// Of [`Fate::Expired`].
    expired: u64,
}

impl Row {
    fn new(flow: FlowType) -> Self {
        Self { flow, counters: Counters::default(), alive: 0, held: 0, expired: 0 }
    }

    fn count(&mut self, event: Counted, count: u64) {
        self.counters.0[event as usize] += count;
    }
}

/// What becomes of removals that were no evictions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    Is(Counted),
    /// It is decided at the next settlement.
    Waits,
}

/// How many events were heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// Entries that entered the table.
    pub inserts: u64,
    /// Entries that left it.
    pub deletes: u64,
}

/// One namespace's book.
#[derive(Clone, Debug)]
pub(super) struct Account {
    netns: u32,
    /// Place of a row by family and protocol; 0 means none yet.
    places: Box<[u8; 512]>,
    rows: Vec<Row>,
    any: Row,
    /// Whether the events of this kernel tell the time that was left (since 5.12).
    tells_time_left: bool,
    heard_inserts: u64,
    /// Without entries that never were announced (reply-only ones).
    heard_deletes: u64,
    /// Removals that the count shows and no event told.
    unheard_deletes: u64,
    /// Removals whose event was lost, or never came, since the last settlement.
    lost_deletes: u64,
    lost: u64,
    statistics: Sums,
    refused: u64,
    /// Evictions counted before the event of their removal, which will come.
    ahead: u64,
    /// Whether the last settlement had evictions.
    evicted_lately: bool,
    /// Reply-only entries that ended.
    ended_reply_only: u64,
    /// Inserts that were never announced.
    unannounced: u64,
}

impl Account {
    /// An empty book.
    pub(super) fn new(netns: u32) -> Self {
        Self {
            netns,
            places: Box::new([0; 512]),
            rows: Vec::new(),
            any: Row::new(any_flow(netns)),
            tells_time_left: false,
            heard_inserts: 0,
            heard_deletes: 0,
            unheard_deletes: 0,
            lost_deletes: 0,
            lost: 0,
            statistics: Sums::default(),
            refused: 0,
            ahead: 0,
            evicted_lately: false,
            ended_reply_only: 0,
            unannounced: 0,
        }
    }

    /// Whose book it is.
    pub(super) const fn netns(&self) -> u32 {
        self.netns
    }

    /// This kernel's events are known to carry the time that was left.
    pub(super) const fn set_tells_time_left(&mut self) {
        self.tells_time_left = true;
    }

    /// Whether they do.
    pub(super) const fn tells_time_left(&self) -> bool {
        self.tells_time_left
    }

    /// Events that were missed.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    /// What was heard so far.
    pub(super) const fn heard(&self) -> Heard {
        Heard { inserts: self.heard_inserts, deletes: self.heard_deletes }
    }

    /// An entry entered the table.
    pub(super) fn insert(&mut self, event: Event) {
        self.heard_inserts += 1;
        let counted = if event.portid == 0 { Counted::Insert } else { Counted::InsertNetlink };
        self.row(event).count(counted, 1);
    }

    /// An entry left it. Gives what is known of the cause; a settlement tells of the rest.
    pub(super) fn delete(&mut self, event: Event, ending: Ending) -> Fate {
        // Before 5.12 neither came with a DESTROY.
        self.tells_time_left |= ending.alive || ending.state.is_some();
        if ending.status & NAT_CLASH == 0 {
            self.heard_deletes += 1;
        } else {
            self.ended_reply_only += 1;
        }
        let fate = Fate::of(event, ending, self.tells_time_left);
        let row = self.row(event);
        match fate {
            Fate::Known(counted) => row.count(counted, 1),
            Fate::Alive => row.alive += 1,
            Fate::Expired => row.expired += 1,
        }
        fate
    }

    /// Inserts whose events were missed: their number is exact.
    pub(super) fn lose_inserts(&mut self, count: u64) {
        self.lost += count;
        self.heard_inserts += count;
        self.any.count(Counted::Insert, count);
    }

    /// Removals whose events were missed.
    pub(super) fn lose_deletes(&mut self, count: u64) {
        self.lost += count;
        self.heard_deletes += count;
        self.lost_deletes += count;
    }

    /// Compares what was heard with how the count changed. `inserts` were heard before the count was read, and all
    /// removals up to then are in the book: so unheard removals may be seen late, but never too many.
    ///
    /// Since 5.19 an entry made while nobody listened ends without an event (`nf_conntrack_events` = 2). Gives how many
    /// such removals are new.
    pub(super) fn compare_with_count(&mut self, inserts: u64, count_before: u64, count: u64) -> u64 {
        let unheard = i128::from(inserts) + i128::from(count_before)
            - i128::from(self.heard_deletes)
            - i128::from(count);
        let unheard = u64::try_from(unheard).unwrap_or(0);
        let new = unheard.saturating_sub(self.unheard_deletes);
        self.unheard_deletes += new;
        self.lost_deletes += new;
        new
    }

    /// How many removals no event told.
    pub(super) const fn unheard(&self) -> u64 {
        self.unheard_deletes
    }

    /// From now on the count is compared with what is heard from now on.
    pub(super) const fn compare_anew(&mut self) {
        (self.heard_inserts, self.heard_deletes, self.unheard_deletes) = (0, 0, 0);
    }

    /// Inserts that the kernel never announced, if nothing moves and `count` entries are there; statistics are in the
    /// book. It announces an entry after it has inserted it, and not if it was removed in between, though it announces
    /// the removal (`nf_ct_deliver_cached_events`, 5.10 to 7.3).
    pub(super) fn unannounced(&self, count_before: u64, count: u64) -> u64 {
        let removed = i128::from(self.heard_deletes) + i128::from(self.unheard_deletes);
        let reply_only = self.statistics.get(Statistic::ClashResolve).saturating_sub(self.ended_reply_only);
        let surplus = i128::from(count) + removed
            - i128::from(self.heard_inserts)
            - i128::from(count_before)
            - i128::from(reply_only);
        // The count holds packets too that wait for their confirmation (NFQUEUE): only what can have been removed so
        // early is taken to have been.
        let early =
            |(_, counters): (FlowType, Counters)| EARLY.map(|event| counters.get(event)).iter().sum::<u64>();
        let early: u64 = self.rows().map(early).sum();
        u64::try_from(surplus).unwrap_or(0).min(early.saturating_sub(self.unannounced))
    }

    /// Counts these.
    pub(super) fn miss_inserts(&mut self, count: u64) {
        self.unannounced += count;
        self.lose_inserts(count);
    }

    /// Distributes the removals that wait for their cause. `statistics` are the kernel's, read before the last events
    /// were; `None` where they cannot be compared, because only some flow types are listened to. `calm` says that no
    /// eviction was counted meanwhile.
    pub(super) fn settle(&mut self, statistics: Option<Sums>, calm: bool) {
        let evicted = statistics.map_or(0, |now| self.take_statistics(now));
        self.evicted_lately = evicted > 0;
        let evicted = self.distribute(evicted, |row| &mut row.held, Rest::Is(Counted::DeleteOther));
        let rest = if calm { Rest::Is(Counted::DeleteOther) } else { Rest::Waits };
        let evicted = self.distribute(evicted, |row| &mut row.alive, rest);

        let lost = std::mem::take(&mut self.lost_deletes);
        let lost_evicted = evicted.min(lost);
        let lost_others = lost - lost_evicted;
        let paid = self.pay(lost_others);
        self.any.count(Counted::DeleteEarlyDrop, lost_evicted);
        self.any.count(Counted::DeleteOther, lost_others - paid);

        let expiry = if self.tells_time_left { Counted::DeleteTimeout } else { Counted::DeleteOther };
        let evicted = self.distribute(evicted - lost_evicted, |row| &mut row.expired, Rest::Is(expiry));
        self.any.count(Counted::DeleteEarlyDrop, evicted);
        self.ahead += evicted;
    }

    /// Whether more removals wait for their cause than these statistics have evictions.
    pub(super) fn is_undecided(&self, statistics: Sums) -> bool {
        let evicted =
            statistics.get(Statistic::EarlyDrop).saturating_sub(self.statistics.get(Statistic::EarlyDrop));
        let waiting: u64 = self.rows.iter().chain([&self.any]).map(|row| row.alive + row.held).sum();
        // Before 5.12 what expired waits too.
        waiting > evicted && (evicted > 0 || self.evicted_lately || self.tells_time_left)
    }

    /// The namespace ended and took its entries with it. Where every one of them was heard of, their flow types are
    /// known.
    pub(super) fn end(&mut self, entries: u64) {
        let left = |row: &Row| {
            let entered = row.counters.get(Counted::Insert) + row.counters.get(Counted::InsertNetlink);
            entered.checked_sub(Group::Delete.of(&row.counters))
        };
        let rows: Option<Vec<u64>> = self.rows.iter().chain([&self.any]).map(left).collect();
        match rows {
            Some(rows) if rows.iter().sum::<u64>() == entries => {
                for (row, left) in self.rows.iter_mut().chain([&mut self.any]).zip(rows) {
                    row.count(Counted::DeleteOther, left);
                }
            }
            _ => self.any.count(Counted::DeleteOther, entries),
        }
    }

    /// What was counted, by flow type.
    pub(super) fn rows(&self) -> impl Iterator<Item = (FlowType, Counters)> {
        let any = (self.any.counters != Counters::default()).then_some(&self.any);
        self.rows.iter().chain(any).map(|row| (row.flow, row.counters))
    }

    /// Counts what statistics alone tell, and gives the number of new evictions.
    fn take_statistics(&mut self, now: Sums) -> u64 {
        let before = std::mem::replace(&mut self.statistics, now);
        let grown = |which| now.get(which).saturating_sub(before.get(which));
        let long = grown(Statistic::ChainTooLong);
        self.any.count(Counted::ClashResolve, grown(Statistic::ClashResolve));
        self.any.count(Counted::FailedChaintoolong, long);
        self.any.count(Counted::InvalidOther, grown(Statistic::Invalid) + grown(Statistic::IcmpError));
        self.any.count(Counted::FailedOther, grown(Statistic::InsertFailed).saturating_sub(long));
        // An unresolved clash raises both `drop` and `insert_failed`; the one is not a refusal (5.10 to 7.3).
        let clashed = now.get(Statistic::InsertFailed).saturating_sub(now.get(Statistic::ChainTooLong));
        let refused = now.get(Statistic::Drop).saturating_sub(clashed);
        self.any.count(Counted::DropTableFull, refused.saturating_sub(self.refused));
        self.refused = self.refused.max(refused);
        grown(Statistic::EarlyDrop)
    }

    /// Of the removals in these pools, `evicted` were evictions, and `rest` says what the others were. Each row gets of
    /// both what is certain whichever removals they were; the doubtful ones are counted without their flow type. Gives
    /// the evictions that are not among them.
    fn distribute(&mut self, evicted: u64, pool: fn(&mut Row) -> &mut u64, rest: Rest) -> u64 {
        let total: u64 = self.rows.iter_mut().chain([&mut self.any]).map(|row| *pool(row)).sum();
        let evicted_here = evicted.min(total);
        let (mut evictions_left, mut others_left) = (evicted_here, total - evicted_here);
        let mut ahead = self.ahead;
        let mut settle = |row: &mut Row, evictions: u64, others: u64| {
            row.count(Counted::DeleteEarlyDrop, evictions);
            match rest {
                Rest::Is(event) => {
                    let paid = others.min(ahead);
                    ahead -= paid;
                    row.count(event, others - paid);
                }
                Rest::Waits => row.held += others,
            }
        };
        for row in self.rows.iter_mut().chain([&mut self.any]) {
            let removals = std::mem::take(pool(row));
            let evictions = evicted_here.saturating_sub(total - removals);
            let others = removals.saturating_sub(evicted_here);
            settle(row, evictions, others);
            evictions_left -= evictions;
            others_left -= others;
        }
        settle(&mut self.any, evictions_left, others_left);
        self.ahead = ahead;
        evicted - evicted_here
    }

    /// How many of these removals were counted already, as evictions whose event had not come.
    fn pay(&mut self, removals: u64) -> u64 {
        let paid = removals.min(self.ahead);
        self.ahead -= paid;
        paid
    }

    /// The row of a flow type. Beyond the most it is the namespace's for any flow type: what happens to such flows is
    /// as uncertain as to others.
    fn row(&mut self, event: Event) -> &mut Row {
        match self.place(event) {
            Some(place) => &mut self.rows[place],
            None => &mut self.any,
        }
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
            self.rows.push(Row::new(flow));
            self.places[slot] = u8::try_from(self.rows.len()).ok()?;
        }
        Some(usize::from(self.places[slot]) - 1)
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
