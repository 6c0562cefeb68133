//! Single events by ctnetlink: what an event tells is handed over at once; a removal that may have been an eviction waits
//! until the kernel's statistics have told how many of those that wait were.

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
use super::fate::{Fate, Settled, Share};
use super::message::Message;
use super::room::{Kept, Share as Places};
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
    /// Evictions since the start that cannot be told from other removals.
    pub untold: u64,
}

impl Heard {
    /// Takes what was decided in one namespace.
    pub fn take(&mut self, singles: &mut Singles) {
        self.events.extend(singles.take());
    }

    /// What was heard of others as well.
    pub fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        self.suppressed += other.suppressed;
        self.untold += other.untold;
    }

    /// For a reader, where so many events were lost. Of the same moment, entries that came go before those that went.
    pub fn told(mut self, lost: u64) -> Told {
        let came = |event: u32| event == Counted::Insert as u32 || event == Counted::InsertNetlink as u32;
        self.events.sort_by_key(|single| (single.it.traced.ktime_ns, !came(single.it.traced.event)));
        let event = |Kept { it, .. }: Kept<Single>| (encode(&it.traced), it.certainty);
        Told {
            events: self.events.into_iter().map(event).collect(),
            suppressed: self.suppressed,
            lost: lost + self.untold,
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
    /// Missed since the start, or evictions that cannot be told from other removals.
    pub lost: u64,
}

/// Removals of which it is not known yet how many were evictions, and all that the kernel counted among them so far.
#[derive(Debug, Default)]
struct Waiting {
    removals: Vec<Kept<Traced>>,
    /// How many removals there were, those included that nobody asked for.
    of: u64,
    evicted: u64,
}

/// What is to be handed over of one namespace.
#[derive(Debug)]
pub struct Singles {
    asked: Arc<Asked>,
    places: Places,
    budget: Budget,
    now: Moment,
    ready: VecDeque<Kept<Single>>,
    /// Ended with time left at nobody's request, from before the last settlement and since.
    held: Waiting,
    alive: Vec<Kept<Traced>>,
    /// Ended without time left.
    expired: Vec<Kept<Traced>>,
    suppressed: u64,
    untold: u64,
}

impl Singles {
    /// Nothing is heard yet.
    pub fn new(asked: Arc<Asked>, places: Places) -> Self {
        Self {
            asked,
            places,
            budget: Budget::default(),
            now: Moment::default(),
            ready: VecDeque::new(),
            held: Waiting::default(),
            alive: Vec::new(),
            expired: Vec::new(),
            suppressed: 0,
            untold: 0,
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
        let names = self.asked.names;
        let wanted = match fate {
            Fate::Known(event) => names.ask(event),
            Fate::Alive | Fate::Expired => names.contains(Group::Delete) || names.contains(Group::EarlyDrop),
        };
        let Some(traced) = wanted.then(|| self.traced(netns, message)).flatten() else { return };
        if let Fate::Known(event) = fate {
            self.tell(traced, event);
            return;
        }
        let Some(place) = self.places.take() else {
            self.suppressed += 1;
            return;
        };
        let removal = Kept { it: traced, place };
        if fate == Fate::Alive {
            self.alive.push(removal);
        } else {
            self.expired.push(removal);
        }
    }

    /// Hands over the removals that a settlement decided on.
    pub fn settle(&mut self, settled: &Settled) {
        let Settled { held, alive, expired, waits, tells_time_left, .. } = *settled;
        let before = std::mem::take(&mut self.held);
        let evicted = before.evicted + held.evicted;
        self.decide(before.removals, Share { evicted, of: before.of }, Counted::DeleteOther);

        let removals = std::mem::take(&mut self.alive);
        if waits && alive.evicted < alive.of {
            self.held = Waiting { removals, of: alive.of, evicted: alive.evicted };
        } else {
            self.decide(removals, alive, Counted::DeleteOther);
        }
        let rest = if tells_time_left { Counted::DeleteTimeout } else { Counted::DeleteOther };
        let removals = std::mem::take(&mut self.expired);
        self.decide(removals, expired, rest);
    }

    /// Hands over what waits, of which no more will be known.
    pub fn give_up(&mut self) {
        let held = std::mem::take(&mut self.held).removals;
        let (alive, expired) = (std::mem::take(&mut self.alive), std::mem::take(&mut self.expired));
        for removal in held.into_iter().chain(alive).chain(expired) {
            self.doubt(removal);
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

    /// How many evictions could not be told from other removals since the start.
    pub const fn untold(&self) -> u64 {
        self.untold
    }

    fn decide(&mut self, removals: Vec<Kept<Traced>>, share: Share, rest: Counted) {
        if share.evicted > 0 && share.evicted < share.of && self.asked.names.contains(Group::EarlyDrop) {
            self.untold += share.evicted.min(removals.len() as u64);
        }
        for removal in removals {
            if share.evicted >= share.of {
                self.hand_over(removal, Counted::DeleteEarlyDrop, Certainty::Inferred);
            } else if share.evicted > 0 {
                self.doubt(removal);
            } else if self.asked.names.ask(rest) {
                self.hand_over(removal, rest, Certainty::Sure);
            }
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
            None => self.suppressed += 1,
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
