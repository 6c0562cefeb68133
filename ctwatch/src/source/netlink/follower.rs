//! Follows network namespaces: opens sockets in new ones, and closes those of ended ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ctwatch_ebpf::FlowType;
use nix::libc::sock_filter;

use super::super::namespaces::{self, Roots};
use super::super::search::{self, Found, MOST, Place};
use super::super::thread_time;
use super::filter;
use super::listener::Listener;
use super::room::Room;
use super::setting::Announced;
use super::singles::{Asked, Singles};
use super::watched::{FORGED, Sockets, Watched};
use crate::model::Filter;

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
/// How often the ways into those that are listened to are tried, some microseconds each.
const CHECK_EVERY: Duration = Duration::from_millis(900);
/// When a second look must agree that one has ended: our sockets hold it until then.
const SECOND_LOOK: Duration = Duration::from_millis(300);
/// Rows of namespaces that were let go, kept for the reader's next sample.
const MOST_PAST: usize = 1024;

/// What following needs to know.
#[derive(Debug)]
pub(super) struct Follower {
    listener: Arc<Listener>,
    roots: Roots,
    own: u32,
    filter: Filter,
    /// Single events to hand over, and the room for them.
    asked: Option<Arc<Asked>>,
    room: Room,
    program: Vec<sock_filter>,
    next_look: Instant,
    next_check: Instant,
    /// Those that the last look found.
    places: BTreeMap<u32, Place>,
    /// Not found by the last look: a second one must agree, since a walk over /proc can miss a process that is replaced.
    absent: BTreeSet<u32>,
    /// What each queue may take of kernel memory.
    queue: usize,
    /// What the last look found; `None` before the first.
    found_before: Option<BTreeSet<u32>>,
}

/// What was opened in a namespace.
enum Opened {
    New(Box<Watched>),
    /// For one that was silent.
    Again(Sockets),
}

impl Follower {
    /// Nothing is listened to yet.
    pub(super) fn new(listener: Arc<Listener>, own: u32, filter: &Filter, asked: Option<Arc<Asked>>) -> Self {
        Self {
            listener,
            roots: Roots::default(),
            own,
            filter: *filter,
            asked,
            room: Room::default(),
            program: filter::program(filter),
            next_look: Instant::now(),
            next_check: Instant::now() + CHECK_EVERY,
            places: BTreeMap::new(),
            absent: BTreeSet::new(),
            queue: 0,
            found_before: None,
        }
    }

    /// Looks where that is due, or where no known way leads into one that is listened to.
    pub(super) fn look_if_due(&mut self) {
        let now = Instant::now();
        let mut ended = false;
        if now >= self.next_check {
            self.next_check = now + CHECK_EVERY;
            let watched: Vec<u32> = self.listener.watching().namespaces.keys().copied().collect();
            ended = watched.into_iter().any(|netns| netns != self.own && !self.is_reached(netns));
        }
        if ended || now >= self.next_look {
            self.look();
        }
    }

    /// When there is something to do next.
    pub(super) fn due(&self) -> Instant {
        self.next_look.min(self.next_check)
    }

    fn is_reached(&self, netns: u32) -> bool {
        let ways = self.places.get(&netns).map(|place| place.ways.as_slice()).unwrap_or_default();
        ways.iter().any(|way| way.leads_to(&self.roots) == Some(netns))
    }

    /// Looks for namespaces that came or went. An error in one of them leaves out that one.
    pub(super) fn look(&mut self) {
        let start = thread_time();
        let (own, filter) = (self.own, self.filter);
        let Found { places: found, left_out } =
            search::find(&self.roots, own, |netns| filter.wants_netns(netns));
        let cost = Duration::from_nanos(thread_time().saturating_sub(start));
        self.next_look = Instant::now() + LOOK_EVERY.max(cost * LOOK_COST).min(LOOK_AT_LEAST_EVERY);

        self.listener.watching().leave_out_failed();
        self.end(&found);
        let silent = self.take_changes();

        let mut watching = self.listener.watching();
        watching.met.left_out.retain(|netns, _| found.contains_key(netns));
        watching.met.beyond = left_out;
        let known: BTreeSet<u32> = watching.namespaces.keys().copied().collect();
        // A process that sent forged events would send them again.
        let forged: BTreeSet<u32> =
            watching.met.left_out.iter().filter(|(_, why)| *why == FORGED).map(|(netns, _)| *netns).collect();
        drop(watching);

        let is_fresh = |netns: &u32| !known.contains(netns) && !forged.contains(netns);
        let mut fresh: Vec<u32> = found.keys().filter(|netns| is_fresh(netns)).copied().collect();
        // Our own first: it must not be the one that is left out.
        fresh.sort_by_key(|netns| *netns != own);
        let room = MOST.saturating_sub(known.len());
        for netns in fresh.split_off(room.min(fresh.len())) {
            self.leave_out(netns, format!("at most {MOST} are listened to"));
        }
        self.share_queues(known.len() + fresh.len());
        // One that was left out may have existed all the time.
        let before = self.found_before.replace(found.keys().copied().collect());
        let newborn = |netns| before.as_ref().is_some_and(|before| !before.contains(&netns));
        let open = |netns| {
            if silent.contains(&netns) {
                Sockets::open(&self.program, self.queue).map(Opened::Again)
            } else {
                let singles = self.asked.clone().map(|asked| Singles::new(asked, self.room.share()));
                let watched =
                    Watched::open(netns, &filter, &self.program, self.queue, newborn(netns), singles);
                watched.map(|watched| Opened::New(Box::new(watched)))
            }
        };
        let to_open: BTreeSet<u32> = fresh.into_iter().chain(silent.iter().copied()).collect();
        let mut opened = Vec::new();
        if to_open.contains(&own) {
            opened.push((own, open(own)));
        }
        self.places.clone_from(&found);
        let others: BTreeMap<u32, Place> =
            found.into_iter().filter(|(netns, _)| *netns != own && to_open.contains(netns)).collect();
        opened.extend(namespaces::in_each(&self.roots, &others, open));
        for (netns, outcome) in opened {
            let outcome = outcome.and_then(|opened| match opened {
                Opened::New(watched) => self.listener.add(*watched),
                Opened::Again(sockets) => self.listener.resume(netns, sockets),
            });
            match outcome {
                Ok(()) => {
                    self.listener.watching().met.left_out.remove(&netns);
                }
                // Gone again before it could be entered.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.leave_out(netns, error.to_string()),
            }
        }
        self.forget(&known);
    }

    fn leave_out(&self, netns: u32, why: String) {
        self.listener.watching().met.left_out.insert(netns, why);
    }

    /// Lets go of those that have ended, and with them of their sockets.
    fn end(&mut self, found: &BTreeMap<u32, Place>) {
        let watching = self.listener.watching();
        let absent: BTreeSet<u32> =
            watching.namespaces.keys().filter(|netns| !found.contains_key(netns)).copied().collect();
        drop(watching);
        for netns in absent.intersection(&self.absent) {
            self.listener.settle(Some(*netns));
            self.listener.watching().let_go(*netns, true);
        }
        self.absent = absent;
        if !self.absent.is_empty() {
            self.next_look = self.next_look.min(Instant::now() + SECOND_LOOK);
        }
    }

    /// Stops listening where the kernel no longer announces events. Returns the namespaces where it does again.
    fn take_changes(&self) -> BTreeSet<u32> {
        let changed: BTreeMap<u32, Announced> = {
            let watching = self.listener.watching();
            let changed = |watched: &Watched| Some((watched.netns, watched.changed()?));
            watching.namespaces.values().filter_map(changed).collect()
        };
        let mut again = BTreeSet::new();
        for (netns, announced) in changed {
            // What was heard up to now is settled with what was counted up to now.
            self.listener.settle(Some(netns));
            let mut watching = self.listener.watching();
            watching.met.was_silent = true;
            match (announced, watching.namespaces.get_mut(&netns)) {
                (Announced::On, Some(_)) => {
                    again.insert(netns);
                }
                (_, Some(watched)) => watched.fall_silent(announced),
                (_, None) => {}
            }
        }
        again
    }

    /// Rows of namespaces that are gone are kept for a while only.
    fn forget(&self, live: &BTreeSet<u32>) {
        let rows = &mut self.listener.watching().past.rows;
        if rows.len() > MOST_PAST {
            rows.retain(|flow: &FlowType, _| live.contains(&flow.netns));
        }
    }

    /// Keeps the sum of all queues within bounds.
    fn share_queues(&mut self, namespaces: usize) {
        // Two queues a namespace; doubling steps, so that one more namespace seldom changes all others.
        let queue = queues() / (2 * namespaces.max(1).next_power_of_two());
        if queue != self.queue {
            self.queue = queue;
            for watched in self.listener.watching().namespaces.values() {
                for events in watched.events() {
                    // A queue that keeps its size is no reason to stop listening.
                    let _ = events.set_buffer(queue);
                }
            }
        }
    }
}

fn queues() -> usize {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (total_memory(&memory).unwrap_or(0) / 8).clamp(QUEUES_LEAST, QUEUES_MOST)
}

/// `MemTotal` in bytes, from the text of `/proc/meminfo`.
pub(super) fn total_memory(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}
