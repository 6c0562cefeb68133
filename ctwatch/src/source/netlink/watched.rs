//! One network namespace that is listened to: its sockets and its book.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use ctwatch_ebpf::{Counters, FlowType};
use nix::libc::sock_filter;

use super::account::Account;
use super::event::{self, Ending, Event};
use super::message::{self, Messages};
use super::setting::{Announced, Setting};
use super::settlement::Step;
use super::singles::{Moment, Singles};
use super::socket::{Batch, Events, Group, Requests};
use super::statistics::{self, Statistics};
use crate::model::{Filter, any_flow};

/// Beyond so many system calls in a row the other namespaces get their turn: a flood may bring events as fast as they
/// are taken.
const MOST_CALLS: usize = 512;

/// How often entries are counted to know how many came before anybody listened, some microseconds each.
const MOST_COUNTS: usize = 100;

/// What is said of a namespace where forged events left no room for real ones.
pub(super) const FORGED: &str = "a process in it sends forged events, and real ones found no room";

/// The sockets that events come from.
#[derive(Debug)]
pub(super) struct Sockets {
    new: Events,
    destroy: Events,
    /// Entries that were there before.
    pub(super) count_before: u64,
    /// How many entries came when nobody listened. Since 5.19 their end may not be announced.
    pub(super) older: u64,
}

impl Sockets {
    /// Opens them in the calling thread's namespace.
    ///
    /// Removals are heard before the count is read and inserts after it: what happens in between makes the book expect
    /// too few removals, never too many.
    pub(super) fn open(program: &[sock_filter], buffer: usize) -> io::Result<Self> {
        let mut requests = Requests::open()?;
        let destroy = Events::open(Group::Destroy, buffer, program)?;
        let count_before = statistics::entries(&mut requests)?;
        let new = Events::open(Group::New, buffer, program)?;
        Ok(Self { new, destroy, count_before, older: count_before })
    }

    /// Both.
    pub(super) fn each(&self) -> [&Events; 2] {
        [&self.new, &self.destroy]
    }
}

/// A namespace with what listens in it.
#[derive(Debug)]
pub(super) struct Watched {
    /// Its inode.
    pub netns: u32,
    /// Whether there are events at all.
    pub announced: Announced,
    /// What was counted.
    pub account: Account,
    /// Single events, where they are asked for.
    pub(super) singles: Option<Singles>,
    setting: Setting,
    pub(super) sockets: Option<Sockets>,
    pub(super) requests: Requests,
    /// `None` where only some flow types are listened to, with which no statistic can be compared.
    pub(super) statistics: Option<Statistics>,
    filter: Filter,
    /// A settlement under way, and when it goes on.
    pub(super) settling: Option<(Instant, Step)>,
    /// How many settlements have ended.
    pub(super) settled: u64,
    /// Events taken since that was last asked.
    taken: u64,
    /// Whether the last time left events in a queue.
    pub(super) behind: bool,
    /// Whether others than the kernel sent events since dropped ones were last counted.
    forged: bool,
    pub(super) failed: Option<io::Error>,
}

impl Watched {
    /// Opens the sockets in the calling thread's namespace. `newborn` says that it was made while we watched: whatever
    /// its table and its statistics hold has been missed so far.
    pub(super) fn open(
        netns: u32,
        filter: &Filter,
        program: &[sock_filter],
        buffer: usize,
        newborn: bool,
        singles: Option<Singles>,
    ) -> io::Result<Self> {
        let mut requests = Requests::open()?;
        let by_type = filter.selects_flows();
        let statistics =
            if newborn { Statistics::from_birth(&mut requests) } else { Statistics::start(&mut requests) }?;
        let mut account = Account::new(netns);
        // Chain statistics came (5.15) after DESTROY events had learnt to tell the time left (5.12).
        if statistics.has_chaintoolong {
            account.set_tells_time_left();
        }
        let setting = Setting::here();
        let announced = setting.read();
        let sockets = match announced {
            Announced::On => Some(Sockets::open(program, buffer)?),
            Announced::Off | Announced::Never => None,
        };
        let mut watched = Self {
            netns,
            announced,
            account,
            singles,
            setting,
            sockets,
            requests,
            statistics: (!by_type).then_some(statistics),
            filter: *filter,
            settling: None,
            settled: 0,
            taken: 0,
            behind: false,
            forged: false,
            failed: None,
        };
        if newborn
            && watched.statistics.is_some()
            && let Some(sockets) = &mut watched.sockets
        {
            // The count holds what is allocated and not yet confirmed (5.10 to 7.3), of which an event comes
            // too: at most one insert a CPU is told of twice, far fewer than are said to be lost here.
            sockets.count_before = 0;
            let missed = watched.missed_at_birth()?;
            watched.account.lose_inserts(missed);
            if let Some(sockets) = &mut watched.sockets {
                sockets.older = missed;
            }
        }
        Ok(watched)
    }

    /// Entries that nobody has heard come into a namespace that had none when it was made.
    ///
    /// Flows come on meanwhile, so each count lies between two looks at the sockets: of the events between these it is
    /// not known on which side of it they were. Many counts leave one number, or nearly.
    fn missed_at_birth(&mut self) -> io::Result<u64> {
        let mut batch = Batch::default();
        self.try_drain(&mut batch)?;
        let (mut least, mut most) = (0, u64::MAX);
        for _ in 0..MOST_COUNTS {
            let before = self.account.heard();
            let count = statistics::entries(&mut self.requests)?;
            self.try_drain(&mut batch)?;
            let after = self.account.heard();
            least = least.max((count + before.deletes).saturating_sub(after.inserts));
            most = most.min((count + after.deletes).saturating_sub(before.inserts));
            if least >= most {
                break;
            }
        }
        Ok(most)
    }

    /// The setting, where it is another one than what was found when listening began.
    pub(super) fn changed(&self) -> Option<Announced> {
        Some(self.setting.read()).filter(|now| *now != self.announced)
    }

    /// Listens no longer: the kernel announces nothing any more.
    pub(super) fn fall_silent(&mut self, announced: Announced) {
        self.announced = announced;
        self.sockets = None;
    }

    /// Listens again, to these.
    pub(super) fn listen_to(&mut self, sockets: Sockets) {
        self.announced = Announced::On;
        self.account.compare_anew();
        self.sockets = Some(sockets);
    }

    /// The sockets that events come from.
    pub(super) fn events(&self) -> impl Iterator<Item = &Events> {
        self.sockets.iter().flat_map(Sockets::each)
    }

    /// Whether the kernel counts resolved clashes (5.9).
    pub(super) fn has_clash_resolve(&self) -> bool {
        self.statistics.as_ref().is_none_or(|statistics| statistics.has_clash_resolve)
    }

    /// What was counted, by flow type. The row for any flow type is there with the first of the others: that statistics
    /// show no loss is told too.
    pub(super) fn rows(&self) -> BTreeMap<FlowType, Counters> {
        let mut rows: BTreeMap<FlowType, Counters> = self.account.rows().collect();
        if self.statistics.is_some() && !rows.is_empty() {
            rows.entry(any_flow(self.netns)).or_default();
        }
        rows
    }

    /// Takes the waiting events and returns their number. An error is kept for [`Self::failed`].
    pub(super) fn drain(&mut self, batch: &mut Batch) -> u64 {
        match self.try_drain(batch) {
            Ok(taken) => taken,
            Err(error) => {
                self.failed.get_or_insert(error);
                0
            }
        }
    }

    pub(super) fn try_drain(&mut self, batch: &mut Batch) -> io::Result<u64> {
        let Some(sockets) = &self.sockets else { return Ok(0) };
        let before = self.taken;
        self.behind = false;
        // One time for all that is taken now: an event has none of its own.
        if let Some(singles) = &mut self.singles {
            singles.set_now(Moment::now()?);
        }
        for (events, group) in [(&sockets.destroy, Group::Destroy), (&sockets.new, Group::New)] {
            let mut more = true;
            for _ in 0..MOST_CALLS {
                more = batch.receive(events)?;
                self.forged |= batch.forged() > 0;
                for datagram in batch.datagrams() {
                    self.taken += 1;
                    take(&mut self.account, self.singles.as_mut(), &self.filter, group, datagram);
                }
                if !more {
                    break;
                }
            }
            self.behind |= more;
        }
        Ok(self.taken - before)
    }

    /// How many events were taken since it was last asked.
    pub(super) const fn take_taken(&mut self) -> u64 {
        std::mem::replace(&mut self.taken, 0)
    }

    /// Why it can no longer be listened to.
    pub(super) const fn failed(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }

    /// Brings a book that was just settled to its end: what the namespace still holds goes with it.
    pub(super) fn end(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.try_drain(batch)?;
        if self.sockets.is_some() && self.statistics.is_some() {
            let left = statistics::entries(&mut self.requests)?;
            self.account.end(left);
        }
        Ok(())
    }

    /// Ends the book without the kernel's statistics, which can no longer be asked for.
    pub(super) fn give_up(&mut self, batch: &mut Batch) {
        // An error here has nobody left to act on it: the sockets are about to be closed.
        let _ = self.try_drain(batch);
        let _ = self.take_drops();
        self.account.settle(None, true);
        self.give_up_singles();
    }

    /// What waits for statistics will not learn its cause.
    pub(super) fn give_up_singles(&mut self) {
        if let Some(singles) = &mut self.singles {
            singles.give_up();
        }
    }

    pub(super) fn take_drops(&mut self) -> io::Result<()> {
        let forged = std::mem::take(&mut self.forged);
        let Some(Sockets { new, destroy, .. }) = &mut self.sockets else { return Ok(()) };
        let (inserts, deletes) = (new.take_drops()?, destroy.take_drops()?);
        if forged && inserts | deletes != 0 {
            // How many of these the kernel had sent cannot be known.
            return Err(io::Error::other(FORGED));
        }
        self.account.lose_inserts(inserts.into());
        self.account.lose_deletes(deletes.into());
        if let Some(singles) = &mut self.singles {
            singles.lose(deletes.into());
        }
        Ok(())
    }
}

fn take(
    account: &mut Account,
    mut singles: Option<&mut Singles>,
    filter: &Filter,
    group: Group,
    datagram: &[u8],
) {
    let mut messages = Messages::new(datagram);
    for message in messages.by_ref() {
        let event = match (group, message.kind) {
            (Group::New, message::CT_NEW) | (Group::Destroy, message::CT_DELETE) => Event::parse(&message),
            _ => continue,
        };
        match (event, group) {
            (Some(Event { family, proto, .. }), _)
                if !filter.wants(FlowType { netns: account.netns(), family, proto })
                    || filter.ends.is_some_and(|ends| !event::passes(&message, &ends)) => {}
            (Some(event), Group::New) => {
                account.insert(event);
                if let Some(singles) = &mut singles {
                    singles.insert(account.netns(), &message);
                }
            }
            (Some(event), Group::Destroy) => {
                let fate = account.delete(event, Ending::parse(&message));
                if let Some(singles) = &mut singles {
                    singles.delete(account.netns(), &message, fate);
                }
            }
            (None, _) => lose(account, singles.as_deref_mut(), group),
        }
    }
    if messages.is_malformed() || datagram.is_empty() {
        lose(account, singles, group);
    }
}

fn lose(account: &mut Account, singles: Option<&mut Singles>, group: Group) {
    match group {
        Group::New => account.lose_inserts(1),
        Group::Destroy => {
            account.lose_deletes(1);
            if let Some(singles) = singles {
                singles.lose(1);
            }
        }
    }
}
