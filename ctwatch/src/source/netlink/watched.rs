//! One network namespace that is listened to: its sockets and its book.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use ctwatch_ebpf::{Counters, FlowType};
use nix::libc::sock_filter;

use super::account::Account;
use super::event::{self, Ending, Event};
use super::message::{self, Messages};
use super::socket::{Batch, Events, Group, Requests};
use super::statistics::{self, Statistics};
use crate::model::{Filter, any_flow};

/// Beyond so many system calls in a row the other namespaces get their turn: a flood may bring events as fast as they
/// are taken.
const MOST_CALLS: usize = 512;

/// How often statistics and events are read until both agree; under a flood of evictions they never do.
const MOST_READINGS: usize = 3;
/// Between announcing a removal and counting it lie some microseconds, but a preemption too where there are few CPUs.
const KERNEL_COUNTS: Duration = Duration::from_millis(2);
/// A packet between its entry's allocation and its announcement, or an entry between its end and its release, is in the
/// count. Nothing moves only if it does not for longer than a thread that is interrupted there waits for its turn.
const REST: Duration = Duration::from_millis(20);
const REST_READINGS: usize = 6;
/// How often entries are counted to know how many came before anybody listened, some microseconds each.
const MOST_COUNTS: usize = 100;

/// Whether the kernel makes events in a namespace (`nf_conntrack_events`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// For every entry, or since 5.19 for those made while somebody listens.
    On,
    /// Switched off.
    Off,
    /// The kernel was built without CONFIG_NF_CONNTRACK_EVENTS.
    Never,
}

/// The setting of one namespace, kept open: the file stays that of the namespace it was opened in.
#[derive(Debug)]
enum Setting {
    File(File),
    /// A namespace that hides its settings (an unprivileged user's may) is taken to have the default.
    Fixed(Announced),
}

impl Setting {
    /// The calling thread's namespace.
    fn here() -> Self {
        const DIRECTORY: &str = "/proc/sys/net/netfilter";
        match File::open(format!("{DIRECTORY}/nf_conntrack_events")) {
            Ok(file) => Self::File(file),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && fs::exists(format!("{DIRECTORY}/nf_conntrack_count")).unwrap_or(false) =>
            {
                Self::Fixed(Announced::Never)
            }
            Err(_) => Self::Fixed(Announced::On),
        }
    }

    fn read(&self) -> Announced {
        let file = match self {
            Self::Fixed(announced) => return *announced,
            Self::File(file) => file,
        };
        let mut text = [0; 8];
        match file.read_at(&mut text, 0) {
            Ok(length) if text[..length].trim_ascii() == b"0" => Announced::Off,
            // Unreadable once the namespace or the module is gone, which is seen elsewhere.
            _ => Announced::On,
        }
    }
}

#[derive(Debug)]
struct Sockets {
    new: Events,
    destroy: Events,
}

/// A namespace with what listens in it.
#[derive(Debug)]
pub struct Watched {
    /// Its inode.
    pub netns: u32,
    /// Whether there are events at all.
    pub announced: Announced,
    /// What was counted.
    pub account: Account,
    setting: Setting,
    sockets: Option<Sockets>,
    requests: Requests,
    /// `None` where only some flow types are listened to, with which no statistic can be compared.
    statistics: Option<Statistics>,
    count_before: u64,
    filter: Filter,
}

impl Watched {
    /// Opens the sockets in the calling thread's namespace. `newborn` says that it was made while we watched: whatever
    /// its table and its statistics hold has been missed so far.
    pub fn open(
        netns: u32,
        filter: &Filter,
        program: &[sock_filter],
        buffer: usize,
        newborn: bool,
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
        let mut watched = Self {
            netns,
            announced: Announced::Off,
            account,
            setting: Setting::here(),
            sockets: None,
            requests,
            statistics: (!by_type).then_some(statistics),
            count_before: 0,
            filter: *filter,
        };
        watched.listen(program, buffer)?;
        if newborn && watched.sockets.is_some() && watched.statistics.is_some() {
            // The count holds what is allocated and not yet confirmed (5.10 to 7.3), of which an event comes
            // too: at most one insert a CPU is told of twice, far fewer than are said to be lost here.
            let missed = watched.missed_at_birth()?;
            watched.count_before = 0;
            watched.account.lose_inserts(missed);
        }
        Ok(watched)
    }

    /// Entries that nobody has heard come into a namespace that had none when it was made.
    ///
    /// Flows come on meanwhile, so each count lies between two looks at the sockets: of the events between these it is
    /// not known on which side of it they were. Many counts leave one number, or nearly.
    fn missed_at_birth(&mut self) -> io::Result<u64> {
        let mut batch = Batch::default();
        self.drain(&mut batch)?;
        let (mut least, mut most) = (0, u64::MAX);
        for _ in 0..MOST_COUNTS {
            let before = self.account.heard();
            let count = statistics::entries(&mut self.requests)?;
            self.drain(&mut batch)?;
            let after = self.account.heard();
            least = least.max((count + before.deletes).saturating_sub(after.inserts));
            most = most.min((count + after.deletes).saturating_sub(before.inserts));
            if least >= most {
                break;
            }
        }
        Ok(most)
    }

    /// Whether the setting is another one than what [`Self::listen`] has found.
    pub fn has_changed(&self) -> bool {
        self.setting.read() != self.announced
    }

    /// Listens, or no longer, as the kernel announces or not; in the namespace itself.
    pub fn listen(&mut self, program: &[sock_filter], buffer: usize) -> io::Result<()> {
        self.announced = self.setting.read();
        self.sockets = None;
        if self.announced != Announced::On {
            return Ok(());
        }
        // Removals are heard before the count is read and inserts after it: what happens in between makes the book
        // expect too few removals, never too many.
        let destroy = Events::open(Group::Destroy, buffer, program)?;
        self.count_before = statistics::entries(&mut self.requests)?;
        self.account.compare_anew();
        let new = Events::open(Group::New, buffer, program)?;
        self.sockets = Some(Sockets { new, destroy });
        Ok(())
    }

    /// The sockets that events come from.
    pub fn events(&self) -> impl Iterator<Item = &Events> {
        self.sockets.iter().flat_map(|sockets| [&sockets.new, &sockets.destroy])
    }

    /// Whether the kernel counts resolved clashes (5.9).
    pub fn has_clash_resolve(&self) -> bool {
        self.statistics.as_ref().is_none_or(|statistics| statistics.has_clash_resolve)
    }

    /// What was counted, by flow type. The row for any flow type is there with the first of the others: that statistics
    /// show no loss is told too.
    pub fn rows(&self) -> BTreeMap<FlowType, Counters> {
        let mut rows: BTreeMap<FlowType, Counters> = self.account.rows().collect();
        if self.statistics.is_some() && !rows.is_empty() {
            rows.entry(any_flow(self.netns)).or_default();
        }
        rows
    }

    /// Takes the events that wait, and tells how many there were.
    pub fn drain(&mut self, batch: &mut Batch) -> io::Result<u64> {
        let Some(sockets) = &self.sockets else { return Ok(0) };
        let mut taken = 0;
        for (events, group) in [(&sockets.destroy, Group::Destroy), (&sockets.new, Group::New)] {
            for _ in 0..MOST_CALLS {
                let more = batch.receive(events)?;
                for datagram in batch.datagrams() {
                    taken += 1;
                    take(&mut self.account, &self.filter, group, datagram);
                }
                if !more {
                    break;
                }
            }
        }
        Ok(taken)
    }

    /// Brings the book up to this moment.
    pub fn settle(&mut self, batch: &mut Batch) -> io::Result<u64> {
        let mut taken = self.drain(batch)?;
        let inserts = self.account.heard().inserts;
        let Some(statistics) = &mut self.statistics else {
            self.take_drops()?;
            self.account.settle(None, true);
            return Ok(taken);
        };
        let count = statistics::entries(&mut self.requests)?;
        let mut sums = statistics.read(&mut self.requests)?;
        let before = taken;
        let mut calm = false;
        // The kernel announces a removal before it counts it as an eviction: so both are read until they agree, and
        // where evictions are fewer than removals that could be some, the kernel gets the time to count.
        for reading in 1.. {
            taken += self.drain(batch)?;
            if self.account.is_undecided(sums) {
                std::thread::sleep(if reading <= MOST_READINGS { KERNEL_COUNTS } else { REST });
            }
            let Some(statistics) = &mut self.statistics else { break };
            let now = statistics.read(&mut self.requests)?;
            calm = now == sums;
            sums = now;
            let enough = if calm { MOST_READINGS + REST_READINGS } else { MOST_READINGS };
            if reading >= enough || calm && !self.account.is_undecided(sums) {
                break;
            }
        }
        if !calm {
            taken += self.drain(batch)?;
        }
        self.take_drops()?;
        if self.sockets.is_some() {
            self.account.compare_with_count(inserts, self.count_before, count);
        }
        self.account.settle(Some(sums), calm);
        if self.sockets.is_some() && calm && taken == before {
            taken += self.settle_at_rest(batch, count)?;
        }
        Ok(taken)
    }

    /// Nothing has come since `count` was read: where that is more than what was heard of, it waits whether it stays so.
    fn settle_at_rest(&mut self, batch: &mut Batch, count: u64) -> io::Result<u64> {
        let unannounced = self.account.unannounced(self.count_before, count);
        if unannounced == 0 {
            return Ok(0);
        }
        for _ in 0..REST_READINGS {
            std::thread::sleep(REST);
            let taken = self.drain(batch)?;
            if taken > 0 || statistics::entries(&mut self.requests)? != count {
                return Ok(taken);
            }
        }
        self.account.miss_inserts(unannounced);
        Ok(0)
    }

    /// Brings the book to its end: whatever the namespace still holds goes with it.
    pub fn end(&mut self, batch: &mut Batch) -> io::Result<u64> {
        let taken = self.settle(batch)?;
        if self.sockets.is_some() && self.statistics.is_some() {
            let left = statistics::entries(&mut self.requests)?;
            self.account.end(left);
        }
        Ok(taken)
    }

    /// Ends the book without the kernel's statistics, which can no longer be asked for.
    pub fn give_up(&mut self, batch: &mut Batch) {
        // An error here has nobody left to act on it: the sockets are about to be closed.
        let _ = self.drain(batch);
        let _ = self.take_drops();
        self.account.settle(None, true);
    }

    fn take_drops(&mut self) -> io::Result<()> {
        if let Some(Sockets { new, destroy }) = &mut self.sockets {
            self.account.lose_inserts(new.take_drops()?.into());
            self.account.lose_deletes(destroy.take_drops()?.into());
        }
        Ok(())
    }
}

fn take(account: &mut Account, filter: &Filter, group: Group, datagram: &[u8]) {
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
            (Some(event), Group::New) => account.insert(event),
            (Some(event), Group::Destroy) => account.delete(event, Ending::parse(&message)),
            (None, _) => lose(account, group),
        }
    }
    if messages.is_malformed() || datagram.is_empty() {
        lose(account, group);
    }
}

fn lose(account: &mut Account, group: Group) {
    match group {
        Group::New => account.lose_inserts(1),
        Group::Destroy => account.lose_deletes(1),
    }
}
