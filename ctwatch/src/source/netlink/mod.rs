//! The netlink source: ctnetlink's events and statistics, for kernels that refuse probes.
//!
//! It hears each insert and delete with its flow type, and takes drops, evictions and failed inserts from the kernel's
//! own statistics, which have none: these stand on the namespace's row for any flow type.

mod account;
pub mod entry;
mod event;
mod filter;
mod listener;
pub mod message;
mod notes;
pub mod presence;
pub mod socket;
mod statistics;
pub mod table;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ctwatch_ebpf::{Counters, FlowType};
use nix::libc::sock_filter;

use self::listener::Listener;
use self::presence::Missing;
use self::watched::{Announced, Watched};
use super::namespaces::{self, Found, Roots};
use super::tables::Tables;
use super::{Source, Status, now, own_time, thread_time};
use crate::kernel::plan::{Obstacle, Refusal};
use crate::model::{Cost, Filter, Sample, SourceInfo, SourceKind};

/// How many namespaces are listened to: each has two sockets, and each event is offered to every socket of its group.
const MOST: usize = 64;
/// Kernel memory that all queues together may take when nobody empties them: an eighth of the machine's, at most this …
const QUEUES_MOST: usize = 256 << 20;
/// … and at least this.
const QUEUES_LEAST: usize = 16 << 20;
/// How often namespaces are looked for …
const LOOK_EVERY: Duration = Duration::from_millis(900);
/// … unless that took long: one look costs a `readlink` a process, and shall not take more than a fiftieth of one CPU …
const LOOK_COST: u32 = 50;
/// … but this often it is made in any case.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(10);
/// Rows of namespaces that were let go, kept for the reader's next sample.
const MOST_PAST: usize = 1024;

/// Counts by listening to ctnetlink.
#[derive(Debug)]
pub struct Netlink {
    filter: Filter,
    program: Vec<sock_filter>,
    better: String,
    info: SourceInfo,
    tables: Tables,
    own: u32,
    /// `None` while there is nothing to listen to.
    listening: Option<Listening>,
    past: BTreeMap<FlowType, Counters>,
    past_lost: u64,
    past_cost: Cost,
}

#[derive(Debug)]
struct Listening {
    listener: Listener,
    identity: [Option<u64>; 2],
    next_look: Instant,
    /// Why a namespace is not listened to.
    left_out: BTreeMap<u32, String>,
    /// Not found by the last look: a second one must agree, since a walk over /proc can miss a process that is replaced.
    absent: BTreeSet<u32>,
    /// What each queue may take of kernel memory.
    queue: usize,
    /// What the last look found; `None` before the first.
    found_before: Option<BTreeSet<u32>>,
    /// Whether a namespace was silent for a while.
    was_silent: bool,
}

impl Netlink {
    /// Prepares the source and listens at once where there is something to hear. `better` says why no better source
    /// runs.
    pub fn open(filter: Filter, better: String) -> anyhow::Result<Self> {
        let mut source = Self {
            filter,
            program: filter::program(&filter),
            info: SourceInfo {
                kind: SourceKind::Netlink,
                why: Some(better.clone()),
                unknown: BTreeMap::new(),
            },
            better,
            tables: Tables::new(filter.netns)?,
            own: Roots::default().own()?,
            listening: None,
            past: BTreeMap::new(),
            past_lost: 0,
            past_cost: Cost::default(),
        };
        match presence::check() {
            Err(missing @ (Missing::Ctnetlink | Missing::Unproven)) => {
                return Err(refusal(missing.text(), missing.way_out()).into());
            }
            // Waiting for it is what `look` is for.
            Err(Missing::Conntrack) => {}
            Ok(()) => source.listen()?,
        }
        source.inform();
        Ok(source)
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        let mut listening = Listening {
            listener: Listener::start().context("cannot start the thread that listens")?,
            identity: presence::identity(),
            next_look: Instant::now(),
            left_out: BTreeMap::new(),
            absent: BTreeSet::new(),
            queue: 0,
            found_before: None,
            was_silent: false,
        };
        listening.follow(self.own, &self.filter, &self.program)?;
        if listening.listener.watching().namespaces.is_empty() {
            let why: Vec<String> = listening
                .left_out
                .iter()
                .take(3)
                .map(|(netns, why)| format!("network namespace {netns}: {why}"))
                .collect();
            let why = if why.is_empty() { "the network namespace is gone".into() } else { why.join("; ") };
            return Err(refusal(
                &format!("the right to listen to connection tracking ({why})"),
                "run ctwatch as root (sudo ctwatch), or once: sudo setcap cap_net_admin,cap_sys_admin+ep FILE \
                 (cap_sys_admin only for namespaces other than its own)",
            )
            .into());
        }
        self.listening = Some(listening);
        Ok(())
    }

    /// Keeps what was heard and closes all sockets.
    fn stop(&mut self) {
        let Some(listening) = self.listening.take() else { return };
        let mut watching = listening.listener.watching();
        let all: Vec<u32> = watching.namespaces.keys().copied().collect();
        for netns in all {
            if let Some(watched) = watching.let_go(netns, false) {
                keep(&mut self.past, &mut self.past_lost, &watched);
            }
        }
        let cost = watching.cost();
        self.past_cost.run_ns += cost.run_ns;
        self.past_cost.runs += cost.runs;
    }

    /// Looks for namespaces that came or went.
    fn follow(&mut self) -> anyhow::Result<()> {
        let Some(listening) = &mut self.listening else { return Ok(()) };
        if Instant::now() < listening.next_look {
            return Ok(());
        }
        for watched in listening.follow(self.own, &self.filter, &self.program)? {
            keep(&mut self.past, &mut self.past_lost, &watched);
        }
        let live: BTreeSet<u32> = listening.listener.watching().namespaces.keys().copied().collect();
        if self.past.len() > MOST_PAST {
            self.past.retain(|flow, _| live.contains(&flow.netns));
        }
        self.inform();
        Ok(())
    }

    fn inform(&mut self) {
        (self.info.why, self.info.unknown) = match &self.listening {
            Some(listening) => {
                let watching = listening.listener.watching();
                let listening = notes::Listening {
                    watched: watching.namespaces.values().collect(),
                    left_out: &listening.left_out,
                    was_silent: listening.was_silent,
                };
                notes::notes(&self.better, &self.filter, &listening)
            }
            None => notes::notes(&self.better, &self.filter, &notes::Listening::none()),
        };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn queues() -> usize {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (total_memory(&memory).unwrap_or(0) / 8).clamp(QUEUES_LEAST, QUEUES_MOST)
}

/// `MemTotal` in bytes, from the text of `/proc/meminfo`.
fn total_memory(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}

fn refusal(missing: &str, mend: &str) -> Refusal {
    Refusal {
        kind: SourceKind::Netlink,
        obstacles: vec![Obstacle { missing: missing.into(), mend: mend.into() }],
    }
}

fn keep(past: &mut BTreeMap<FlowType, Counters>, lost: &mut u64, watched: &Watched) {
    for (flow, counters) in watched.rows() {
        past.entry(flow).or_default().add(&counters);
    }
    *lost += watched.account.lost();
}

impl Listening {
    /// Opens sockets in new namespaces and closes those of ended ones, which are given back.
    fn follow(&mut self, own: u32, filter: &Filter, program: &[sock_filter]) -> io::Result<Vec<Watched>> {
        let start = thread_time();
        let found = namespaces::find(own, |netns| filter.wants_netns(netns));
        let cost = Duration::from_nanos(thread_time().saturating_sub(start));
        self.next_look = Instant::now() + LOOK_EVERY.max(cost * LOOK_COST).min(LOOK_AT_LEAST_EVERY);

        let mut watching = self.listener.watching();
        let absent: BTreeSet<u32> =
            watching.namespaces.keys().filter(|netns| !found.contains_key(netns)).copied().collect();
        let mut ended: Vec<Watched> =
            absent.intersection(&self.absent).filter_map(|netns| watching.let_go(*netns, true)).collect();
        self.absent = absent;
        let changed = watching.take_changed();
        let known: BTreeSet<u32> = watching.namespaces.keys().copied().collect();
        drop(watching);

        self.left_out.retain(|netns, _| found.contains_key(netns));
        // Our own first: it must not be the one that is left out.
        let is_fresh = |netns: &&u32| !known.contains(netns) && !changed.contains_key(netns);
        let mut fresh: Vec<u32> = found.keys().filter(is_fresh).copied().collect();
        fresh.sort_by_key(|netns| *netns != own);
        let room = MOST - known.len() - changed.len();
        for netns in fresh.split_off(room.min(fresh.len())) {
            self.left_out.insert(netns, format!("at most {MOST} are listened to"));
        }
        self.share_queues(known.len() + changed.len() + fresh.len())?;
        let queue = self.queue;
        self.was_silent |= changed.values().any(|watched| watched.announced != Announced::On);
        // One that was left out may have existed all the time.
        let before = self.found_before.replace(found.keys().copied().collect());
        let newborn = |netns| before.as_ref().is_some_and(|before| !before.contains(&netns));
        let to_open: BTreeSet<u32> = fresh.into_iter().chain(changed.keys().copied()).collect();
        let changed = Mutex::new(changed);
        let take = |netns| lock(&changed).remove(&netns);
        let open = |netns| match take(netns) {
            Some(mut watched) => match watched.listen(program, queue) {
                Ok(()) => Ok(watched),
                Err(error) => {
                    lock(&changed).insert(netns, watched);
                    Err(error)
                }
            },
            None => Watched::open(netns, filter, program, queue, newborn(netns)),
        };
        let mut opened = Vec::new();
        if to_open.contains(&own) {
            opened.push((own, open(own)));
        }
        let others: Found =
            found.into_iter().filter(|(netns, _)| *netns != own && to_open.contains(netns)).collect();
        opened.extend(namespaces::in_each(&others, open));
        // Gone meanwhile: what they counted stays.
        ended.extend(std::mem::take(&mut *lock(&changed)).into_values());
        for (netns, outcome) in opened {
            match outcome {
                Ok(watched) => {
                    self.left_out.remove(&netns);
                    self.listener.add(watched)?;
                }
                // Gone again before it could be entered.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.left_out.insert(netns, error.to_string());
                }
            }
        }
        Ok(ended)
    }

    /// Keeps the sum of all queues within bounds.
    fn share_queues(&mut self, namespaces: usize) -> io::Result<()> {
        // Two queues a namespace; doubling steps, so that one more namespace seldom changes all others.
        let queue = queues() / (2 * namespaces.max(1).next_power_of_two());
        if queue != self.queue {
            self.queue = queue;
            for watched in self.listener.watching().namespaces.values() {
                for events in watched.events() {
                    events.set_buffer(queue)?;
                }
            }
        }
        Ok(())
    }
}

impl Source for Netlink {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        if let Err(missing) = presence::check() {
            self.stop();
            return Ok(Status::Waiting(format!("{}; {}", missing.text(), missing.way_out())));
        }
        if self.listening.as_ref().is_some_and(|listening| listening.identity != presence::identity()) {
            self.stop();
        }
        if self.listening.is_some() {
            self.follow()?;
        } else {
            match self.listen() {
                // A module can leave between the look and the listening.
                Err(_) if presence::check().is_err() => {
                    return Ok(Status::Waiting("connection tracking is being unloaded".into()));
                }
                other => other?,
            }
            self.inform();
        }
        Ok(Status::Watching)
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        let mut rows = self.past.clone();
        let mut lost = self.past_lost;
        let mut cost = self.past_cost;
        if let Some(listening) = &self.listening {
            let mut watching = listening.listener.watching();
            let settled = watching.settle();
            // A module that is being unloaded takes the answers with it: `look` will see it.
            if presence::check().is_ok() {
                settled.context("cannot read connection tracking's statistics")?;
            }
            for watched in watching.namespaces.values() {
                for (flow, counters) in watched.rows() {
                    rows.entry(flow).or_default().add(&counters);
                }
                lost += watched.account.lost();
            }
            cost.run_ns += watching.cost().run_ns;
            cost.runs += watching.cost().runs;
        }
        let (wall_ns, mono_ns) = now()?;
        let tables = self.tables.read(rows.keys().map(|flow| flow.netns));
        Ok(Sample {
            wall_ns,
            mono_ns,
            rows,
            tables,
            lost,
            cost: Some(cost),
            own_ns: own_time(),
            ..Sample::default()
        })
    }
}

#[cfg(test)]
mod tests;
