//! Bringing a namespace's book up to date: events and statistics are read until both agree.
//!
//! That takes some milliseconds of waiting for the kernel, and in the worst case a quarter of a second. So it goes on step
//! by step: all namespaces wait together, and others are listened to meanwhile.

use std::io;
use std::time::{Duration, Instant};

use super::singles::Singles;
use super::socket::Batch;
use super::statistics::{self, Statistic, Sums};
use super::watched::Watched;
use super::window::Reading;

/// How often statistics and events are read until both agree; under a flood of evictions they never do.
const MOST_READINGS: usize = 3;
/// Between announcing a removal and counting it lie some microseconds, but a preemption too where there are few CPUs.
const KERNEL_COUNTS: Duration = Duration::from_millis(2);
/// A packet between its entry's allocation and its announcement, or an entry between its end and its release, is in the
/// count. Nothing moves only if it does not for longer than a thread that is interrupted there waits for its turn.
const REST: Duration = Duration::from_millis(20);
const REST_READINGS: usize = 6;
/// What a settlement does next.
#[derive(Debug)]
pub(super) enum Step {
    Start,
    Drain(Comparison),
    Compare(Comparison),
    /// Nothing has come since the count was read: where that is more than what was heard of, it waits whether it stays
    /// so.
    Rest {
        unannounced: u64,
        count: u64,
        readings_left: usize,
    },
}

#[derive(Debug)]
pub(super) struct Comparison {
    reading: usize,
    /// Heard before the count was read.
    inserts: u64,
    count: u64,
    sums: Sums,
    /// Whether events came since.
    moved: bool,
}

/// When a settlement goes on.
#[derive(Debug)]
enum Next {
    Now(Step),
    After(Duration, Step),
    Done,
}

impl Watched {
    /// Whether a settlement is under way: it takes events itself, between readings of the kernel's statistics.
    pub(super) const fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    /// Begins a settlement, which brings the book up to this moment, or joins the one that is under way. Gives its
    /// number.
    pub(super) fn begin(&mut self) -> u64 {
        self.settling.get_or_insert_with(|| (Instant::now(), Step::Start));
        self.settled + 1
    }

    /// When the settlement of this number goes on; `None` once it has ended.
    pub(super) fn due(&self, number: u64) -> Option<Instant> {
        self.settling.as_ref().filter(|_| self.settled < number).map(|(due, _)| *due)
    }

    /// Goes on with a settlement as far as that needs no waiting.
    pub(super) fn advance(&mut self, now: Instant, batch: &mut Batch) {
        let Some((_, mut step)) = self.settling.take_if(|(due, _)| *due <= now) else { return };
        loop {
            match self.take_step(step, batch) {
                Ok(Next::Now(next)) => step = next,
                Ok(Next::After(wait, next)) => {
                    self.settling = Some((now + wait, next));
                    return;
                }
                Ok(Next::Done) => break,
                Err(error) => {
                    self.failed.get_or_insert(error);
                    break;
                }
            }
        }
        self.settled += 1;
    }

    fn take_step(&mut self, step: Step, batch: &mut Batch) -> io::Result<Next> {
        match step {
            Step::Start => self.start(batch),
            Step::Drain(mut comparison) => {
                comparison.moved |= self.try_drain(batch)? > 0;
                // The kernel announces a removal before it counts it as an eviction: so both are read until they agree,
                // and where evictions are fewer than removals that could be some, the kernel gets the time to count.
                let wait = if comparison.reading <= MOST_READINGS { KERNEL_COUNTS } else { REST };
                let undecided = self.account.is_undecided(comparison.sums) || self.is_waiting();
                self.settle_if_all(comparison.sums)?;
                let next = Step::Compare(comparison);
                Ok(if undecided { Next::After(wait, next) } else { Next::Now(next) })
            }
            Step::Compare(comparison) => self.compare(comparison, batch),
            Step::Rest { unannounced, count, readings_left } => {
                if self.try_drain(batch)? > 0 || statistics::entries(&mut self.requests)? != count {
                    return Ok(Next::Done);
                }
                Ok(if let Some(readings_left) = readings_left.checked_sub(1) {
                    Next::After(REST, Step::Rest { unannounced, count, readings_left })
                } else {
                    self.account.miss_inserts(unannounced);
                    Next::Done
                })
            }
        }
    }

    fn start(&mut self, batch: &mut Batch) -> io::Result<Next> {
        self.try_drain(batch)?;
        let inserts = self.account.heard().inserts;
        let Some(statistics) = &mut self.statistics else {
            self.take_drops()?;
            self.account.settle(None, true);
            self.give_up_singles();
            return Ok(Next::Done);
        };
        let count = statistics::entries(&mut self.requests)?;
        let sums = statistics.read(&mut self.requests)?;
        Ok(Next::Now(Step::Drain(Comparison { reading: 1, inserts, count, sums, moved: false })))
    }

    fn compare(&mut self, mut comparison: Comparison, batch: &mut Batch) -> io::Result<Next> {
        let Some(statistics) = &mut self.statistics else { return Ok(Next::Done) };
        let sums = statistics.read(&mut self.requests)?;
        let calm = sums.is_calm_since(&comparison.sums) && !self.behind;
        let evictions = |sums: &Sums| sums.get(Statistic::EarlyDrop);
        // All evictions that were counted by now have been taken.
        let still = evictions(&sums) == evictions(&comparison.sums) && !self.behind;
        comparison.sums = sums;
        // Under a flood of evictions they never agree.
        let enough = if calm { MOST_READINGS + REST_READINGS } else { MOST_READINGS };
        if comparison.reading < enough && (!calm || self.account.is_undecided(sums)) {
            comparison.reading += 1;
            return Ok(Next::Now(Step::Drain(comparison)));
        }
        if !still {
            self.try_drain(batch)?;
        }
        self.take_drops()?;
        let count = comparison.count;
        self.compare_with_count(comparison.inserts, count);
        let mut reading = Reading { evictions: evictions(&sums), calm: still, complete: !self.behind };
        if self.has_older() && self.singles.as_ref().is_some_and(|singles| singles.has_evictions(reading)) {
            let known = still && self.counts_older(batch)?;
            reading = Reading { calm: known, complete: known, ..reading };
        }
        self.account.settle(Some(sums), calm);
        if let Some(singles) = &mut self.singles {
            singles.settle(reading);
        }
        if let Some(sockets) = &self.sockets
            && calm
            && !comparison.moved
        {
            let unannounced = self.account.unannounced(sockets.count_before, count);
            if unannounced > 0 {
                let readings_left = REST_READINGS - 1;
                return Ok(Next::After(REST, Step::Rest { unannounced, count, readings_left }));
            }
        }
        Ok(Next::Done)
    }

    fn is_waiting(&self) -> bool {
        self.singles.as_ref().is_some_and(Singles::is_waiting)
    }

    /// Whether there may be entries that came before anybody listened. The kernel may evict them unannounced.
    fn has_older(&self) -> bool {
        self.sockets.as_ref().is_some_and(|sockets| sockets.older > self.account.unheard())
    }

    /// Hands over evictions while more are going on, where all removals that were taken were some: by these sums, which
    /// were read before.
    fn settle_if_all(&mut self, sums: Sums) -> io::Result<()> {
        if self.is_waiting() && !self.behind && !self.has_older() {
            self.take_drops()?;
            if let Some(singles) = &mut self.singles {
                singles.settle_if_all(sums.get(Statistic::EarlyDrop));
            }
        }
        Ok(())
    }

    fn compare_with_count(&mut self, inserts: u64, count: u64) {
        let Some(sockets) = &self.sockets else { return };
        let unheard = self.account.compare_with_count(inserts, sockets.count_before, count);
        if let Some(singles) = &mut self.singles {
            singles.miss(unheard);
        }
    }

    /// Counts the entries once more, and says whether that tells for certain how many ended unannounced: nothing may come
    /// or go meanwhile.
    fn counts_older(&mut self, batch: &mut Batch) -> io::Result<bool> {
        let inserts = self.account.heard().inserts;
        let count = statistics::entries(&mut self.requests)?;
        if self.try_drain(batch)? > 0 {
            return Ok(false);
        }
        self.compare_with_count(inserts, count);
        Ok(true)
    }
}
