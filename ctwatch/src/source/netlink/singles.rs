//! Single events by ctnetlink: what an event tells is handed over at once; a removal that may have been an eviction waits
//! until the kernel's statistics have told whether those that wait were.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ctwatch_ebpf::Event as Counted;
use ctwatch_ebpf::loss::{Budget, Traced, Tuple};
use ctwatch_ebpf::{FlowType, Group};
use nix::time::ClockId;
use serde::{Deserialize, Serialize};

use super::super::clock;
use super::entry::{self, Entry};
use super::fate::Fate;
use super::message::Message;
use super::room::{Kept, Share};
use super::window::{Reading, Verdict, Window};
use crate::model::Filter;
use crate::model::entry as model;
use crate::model::entry_filter::EntryFilter;
use crate::model::trace::{Certainty, NO_CPU, Names, encode};

/// A moment by two clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// CLOCK_REALTIME, nanoseconds, which events show.
    pub wall_ns: u64,
    /// CLOCK_MONOTONIC, nanoseconds, which the budget goes by: the other clock can be set, and what would then be held
    /// back depends on who sets it.
    pub mono_ns: u64,
}

impl Moment {
    /// This one.
    pub fn now() -> io::Result<Self> {
        let read = |id| clock(id).map_err(io::Error::other);
        Ok(Self { wall_ns: read(ClockId::CLOCK_REALTIME)?, mono_ns: read(ClockId::CLOCK_MONOTONIC)? })
    }
}

/// Which events are handed over.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// By name.
    pub names: Names,
    /// Of which flows.
    pub filter: Filter,
    /// Of which entries.
    pub entries: EntryFilter,
    /// At most this many in a second from each namespace.
    pub per_second: u32,
}

/// One event, at a time of CLOCK_REALTIME, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Single {
    /// As programs would write it.
    pub traced: Traced,
    /// Whether its cause was announced.
    pub certainty: Certainty,
}

/// What was heard of some namespaces.
#[derive(Debug, Default)]
pub struct Heard {
    /// Since the last time. They keep their places until they are told.
    pub events: Vec<Kept<Single>>,
    /// Held back since the start.
    pub suppressed: u64,
    /// Since the start: events that found no room, and evictions that cannot be told from other removals.
    pub lost: u64,
}

impl Heard {
    /// Takes what was decided in one namespace.
    pub fn take(&mut self, singles: &mut Singles) {
        self.events.extend(singles.take());
    }

    /// The events since the last time, with the counts, which stay.
    #[must_use]
    pub fn since_last(&mut self) -> Self {
        Self { events: std::mem::take(&mut self.events), ..*self }
    }

    /// What was heard of others as well.
    pub fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        self.suppressed += other.suppressed;
        self.lost += other.lost;
    }

    /// For a reader, where so many events were lost in the kernel. Of the same moment, entries that came go before those
    /// that went.
    pub fn told(mut self, lost: u64) -> Told {
        let came = |event: u32| event == Counted::Insert as u32 || event == Counted::InsertNetlink as u32;
        self.events.sort_by_key(|single| (single.it.traced.ktime_ns, !came(single.it.traced.event)));
        let event = |Kept { it, .. }: Kept<Single>| (encode(&it.traced), it.certainty);
        Told {
            events: self.events.into_iter().map(event).collect(),
            suppressed: self.suppressed,
            lost: lost + self.lost,
        }
    }
}

/// What one reading brings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// In the order in which they were heard, as [`crate::model::trace::decode`] reads them.
    pub events: Vec<(Vec<u8>, Certainty)>,
    /// Held back since the start.
    pub suppressed: u64,
    /// Since the start: events that were missed or found no room, and evictions that cannot be told from other
    /// removals.
    pub lost: u64,
}

/// What is to be handed over of one namespace.
#[derive(Debug)]
pub struct Singles {
    asked: Arc<Asked>,
    places: Share,
    budget: Budget,
    now: Moment,
    ready: VecDeque<Kept<Single>>,
    window: Window,
    /// Evictions that the kernel has counted, as far as the window knows of them.
    evictions: u64,
    suppressed: u64,
    lost: u64,
}

impl Singles {
    /// Nothing is heard yet.
    pub fn new(asked: Arc<Asked>, places: Share) -> Self {
        Self {
            asked,
            places,
            budget: Budget::default(),
            now: Moment::default(),
            ready: VecDeque::new(),
            window: Window::default(),
            evictions: 0,
            suppressed: 0,
            lost: 0,
        }
    }

    /// What comes from now on is heard, or decided, at this moment.
    pub const fn set_now(&mut self, now: Moment) {
        self.now = now;
    }

    /// An entry entered the table.
    pub fn insert(&mut self, netns: u32, message: &Message<'_>) {
        let event = if message.portid == 0 { Counted::Insert } else { Counted::InsertNetlink };
        if self.asked.names.ask(event)
            && let Some(mut traced) = self.traced(netns, message)
        {
            // What is kept for the end of an entry.
            traced.start_ns = 0;
            self.tell(traced, event);
        }
    }

    /// An entry left it. What became of it is known, or told by a settlement.
    pub fn delete(&mut self, netns: u32, message: &Message<'_>, fate: Fate) {
        let wanted = match fate {
            Fate::Known(event) => self.asked.names.ask(event),
            Fate::Alive | Fate::Expired => self.asks_for_removals(),
        };
        let traced = wanted.then(|| self.traced(netns, message)).flatten();
        match (fate, traced) {
            (Fate::Known(event), Some(traced)) => self.tell(traced, event),
            (Fate::Known(_), None) => {}
            (Fate::Alive | Fate::Expired, Some(traced)) => match self.places.take() {
                Some(place) => self.window.kept.push(Kept { it: (traced, fate), place }),
                None => self.window.refused += 1,
            },
            (Fate::Alive | Fate::Expired, None) => self.window.others += 1,
        }
    }

    /// Removals whose events were lost: that they are missing is counted already.
    pub const fn lose(&mut self, count: u64) {
        self.window.lost += count;
    }

    /// Removals that the kernel did not announce.
    pub const fn miss(&mut self, count: u64) {
        self.window.unheard += count;
    }

    /// Whether removals wait for the kernel's statistics.
    pub const fn is_waiting(&self) -> bool {
        !self.window.kept.is_empty()
    }

    /// Whether removals wait, and evictions were counted that may be some of them.
    pub const fn has_evictions(&self, reading: Reading) -> bool {
        self.is_waiting() && (self.window.evicted > 0 || reading.evictions > self.evictions)
    }

    /// Hands over the removals that wait, where all are certain to have been evictions. So many were counted since
    /// listening began, and all that were announced of them are among these.
    pub fn settle_if_all(&mut self, evictions: u64) {
        if self.window.is_all(evictions.saturating_sub(self.evictions)) {
            self.settle(Reading { evictions, calm: false, complete: true });
        }
    }

    /// Hands over the removals of which a settlement tells what became of them.
    pub fn settle(&mut self, reading: Reading) {
        let more = reading.evictions.saturating_sub(self.evictions);
        self.evictions = self.evictions.max(reading.evictions);
        let Some(verdict) = self.window.settle(more, reading) else { return };
        let window = self.window.close(verdict, reading.calm);
        self.lost += self.missing(&window, verdict);
        for Kept { it: (traced, fate), place } in window.kept {
            let removal = Kept { it: traced, place };
            let rest = if fate == Fate::Expired { Counted::DeleteTimeout } else { Counted::DeleteOther };
            match verdict {
                Verdict::All => self.hand_over(removal, Counted::DeleteEarlyDrop, Certainty::Inferred),
                Verdict::None if self.asked.names.ask(rest) => self.hand_over(removal, rest, Certainty::Sure),
                Verdict::None => {}
                Verdict::Some => self.doubt(removal),
            }
        }
    }

    /// Hands over what waits, of which no more will be known: any of it may have been an eviction.
    pub fn give_up(&mut self) {
        let window = self.window.give_up();
        self.lost += self.missing(&window, Verdict::Some);
        for Kept { it: (traced, _), place } in window.kept {
            self.doubt(Kept { it: traced, place });
        }
    }

    /// What was decided since the last time.
    pub fn take(&mut self) -> impl Iterator<Item = Kept<Single>> {
        std::mem::take(&mut self.ready).into_iter()
    }

    /// How many events were held back since the start.
    pub const fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// How many events found no room since the start, and evictions that could not be told from other removals.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    fn asks_for_removals(&self) -> bool {
        self.asked.names.contains(Group::Delete) || self.asked.names.contains(Group::EarlyDrop)
    }

    /// How many events of a window will not be shown, or not as the evictions that they may have been: at most, where it
    /// is not known. What the kernel lost is counted where that was seen. Of removals that it did not announce only
    /// evictions count: an entry that was on its way out as listening began looks like one of them.
    fn missing(&self, window: &Window, verdict: Verdict) -> u64 {
        let deletes = self.asked.names.contains(Group::Delete);
        let evictions = self.asked.names.contains(Group::EarlyDrop);
        let &Window { refused, unheard, late, evicted, .. } = window;
        let doubtful = window.kept.len() as u64 + late;
        match verdict {
            Verdict::All if evictions => refused + unheard + late,
            Verdict::All if deletes => refused + unheard,
            Verdict::None if deletes => refused,
            Verdict::Some if deletes && evictions => {
                refused + evicted.min(unheard) + window.excess() + evicted.min(doubtful)
            }
            Verdict::Some if deletes => refused + evicted.min(unheard) + window.excess(),
            Verdict::Some if evictions => evicted.min(doubtful + refused + unheard) + window.excess(),
            _ => 0,
        }
    }

    fn doubt(&mut self, removal: Kept<Traced>) {
        if self.asked.names.contains(Group::Delete) {
            self.hand_over(removal, Counted::DeleteOther, Certainty::Doubtful);
        }
    }

    /// Hands over what is known at once.
    fn tell(&mut self, traced: Traced, event: Counted) {
        match self.places.take() {
            Some(place) => self.hand_over(Kept { it: traced, place }, event, Certainty::Sure),
            None => self.lost += 1,
        }
    }

    fn hand_over(&mut self, Kept { it: traced, place }: Kept<Traced>, event: Counted, certainty: Certainty) {
        // A removal spends of the second in which it is decided: else older ones would begin a second anew.
        if self.budget.spend(self.now.mono_ns, self.asked.per_second.into()) {
            let traced = Traced { event: event as u32, ..traced };
            self.ready.push_back(Kept { it: Single { traced, certainty }, place });
        } else {
            self.suppressed += 1;
        }
    }

    /// The entry of a message, where it passes the filters.
    fn traced(&self, netns: u32, message: &Message<'_>) -> Option<Traced> {
        let entry = Entry::parse(message)?;
        let placed = |tuple: &entry::Tuple| Tuple { zone: entry.zone, ..tuple.for_filter() };
        let seen = model::Entry {
            netns,
            tuple: placed(&entry.original),
            reply: entry.reply.as_ref().map(placed),
            state: entry.state,
            status: entry.status,
            mark: entry.mark.unwrap_or(0),
            traffic: None,
        };
        let flow = FlowType { netns, family: seen.tuple.family, proto: seen.tuple.proto };
        let Asked { filter, entries, .. } = &*self.asked;
        let passes = filter.wants(flow) && filter.passes(netns, &seen.tuple) && entries.passes(&seen);
        passes.then(|| Traced {
            ktime_ns: self.now.wall_ns,
            start_ns: entry.started_ns.unwrap_or(0),
            netns,
            event: 0,
            status: entry.status,
            cpu: NO_CPU,
            tuple: seen.tuple,
            newcomer: Tuple::default(),
            reply: seen.reply.unwrap_or_default(),
            mark: seen.mark.into(),
            comm: [0; 16],
        })
    }
}

#[cfg(test)]
#[path = "singles_tests.rs"]
mod tests;
