//! The thread that takes events, and what it shares with whoever asks for samples.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ctwatch_ebpf::{Counters, FlowType};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;

use super::super::thread_time;
use super::lock;
use super::singles::{Heard, Singles};
use super::socket::{Batch, Events};
use super::watched::{Sockets, Watched};
use crate::model::Cost;

/// While events come, they are taken at this pace and not one by one: the kernel then finds nobody to wake, which it
/// would do for each event and in the path of a packet. The queues hold far more than comes in this time.
const PACE_MS: u8 = 10;

/// What is listened to, and what was counted.
#[derive(Debug, Default)]
pub(super) struct Watching {
    /// By inode.
    pub namespaces: BTreeMap<u32, Watched>,
    /// What namespaces counted that are listened to no more.
    pub past: Past,
    /// What following namespaces has met.
    pub met: Met,
    batch: Batch,
    cost: Cost,
}

/// Counts of namespaces that were let go.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// By flow type.
    pub rows: BTreeMap<FlowType, Counters>,
    /// Events that were missed.
    pub lost: u64,
    /// Single events.
    pub heard: Heard,
}

impl Past {
    fn keep(&mut self, watched: &mut Watched) {
        watched.give_up_singles();
        if let Some(singles) = &mut watched.singles {
            self.heard.take(singles);
            self.heard.suppressed += singles.suppressed();
            self.heard.lost += singles.lost();
        }
        for (flow, counters) in watched.rows() {
            self.rows.entry(flow).or_default().add(&counters);
        }
        self.lost += watched.account.lost();
    }
}

/// What is reported to users about namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    /// How many namespaces there are beyond [`super::super::search::MOST`].
    pub beyond: usize,
    /// Why a namespace is not listened to.
    pub left_out: BTreeMap<u32, String>,
    /// Namespaces that were not listened to for a while.
    pub interrupted: BTreeSet<u32>,
    /// Whether a namespace was silent for a while.
    pub was_silent: bool,
}

impl Watching {
    /// Takes events and returns their number.
    fn drain(&mut self) -> u64 {
        let start = thread_time();
        let idle = |watched: &&mut Watched| !watched.is_settling() && watched.failed().is_none();
        let taken: u64 =
            self.namespaces.values_mut().filter(idle).map(|watched| watched.drain(&mut self.batch)).sum();
        self.spent(start);
        taken
    }

    /// Whether sockets may have events that [`Self::drain`] leaves to others.
    fn is_settling(&self) -> bool {
        self.namespaces.values().any(|watched| watched.is_settling() || watched.failed().is_some())
    }

    /// Begins settlements, or joins those under way: of all namespaces or of this one.
    fn begin(&mut self, only: Option<u32>) -> Vec<(u32, u64)> {
        let wanted = |netns: u32| only.is_none_or(|only| only == netns);
        let namespaces = self.namespaces.iter_mut().filter(|(netns, _)| wanted(**netns));
        namespaces.map(|(netns, watched)| (*netns, watched.begin())).collect()
    }

    /// Goes on with all settlements. Returns how long the next step of these has to wait, `None` once they have ended.
    fn advance(&mut self, settlements: &[(u32, u64)]) -> Option<Duration> {
        let (start, now) = (thread_time(), Instant::now());
        for watched in self.namespaces.values_mut() {
            watched.advance(now, &mut self.batch);
        }
        self.spent(start);
        let due = |(netns, number): &(u32, u64)| self.namespaces.get(netns)?.due(*number);
        settlements.iter().filter_map(due).min().map(|due| due.saturating_duration_since(now))
    }

    /// Lets a namespace go whose book was just settled: either it has ended, or it is only left. Its counts are kept.
    pub(super) fn let_go(&mut self, netns: u32, ended: bool) {
        let Some(mut watched) = self.namespaces.remove(&netns) else { return };
        let failed = watched.failed().is_some() || ended && watched.end(&mut self.batch).is_err();
        if failed {
            // Statistics go with the module; what was heard stays.
            watched.give_up(&mut self.batch);
        }
        self.past.keep(&mut watched);
    }

    /// Lets those go that can no longer be listened to: an error in one says nothing about the others.
    pub(super) fn leave_out_failed(&mut self) {
        let failed = |watched: &Watched| Some((watched.netns, watched.failed()?.to_string()));
        let failed: Vec<(u32, String)> = self.namespaces.values().filter_map(failed).collect();
        for (netns, why) in failed {
            self.let_go(netns, false);
            self.met.interrupted.insert(netns);
            self.met.left_out.insert(netns, why);
        }
    }

    /// What was counted, ended namespaces included.
    pub(super) fn rows(&self) -> impl Iterator<Item = (FlowType, Counters)> {
        let past = self.past.rows.iter().map(|(flow, counters)| (*flow, *counters));
        past.chain(self.namespaces.values().flat_map(Watched::rows))
    }

    /// Events that were missed, those of ended namespaces included.
    pub(super) fn lost(&self) -> u64 {
        self.past.lost + self.namespaces.values().map(|watched| watched.account.lost()).sum::<u64>()
    }

    /// Single events since the last time, and how many were held back or lost since the start.
    pub(super) fn heard(&mut self) -> Heard {
        let mut heard = self.past.heard.since_last();
        for singles in self.singles() {
            heard.take(singles);
            heard.suppressed += singles.suppressed();
            heard.lost += singles.lost();
        }
        heard
    }

    /// What is to be handed over, of each namespace.
    pub(super) fn singles(&mut self) -> impl Iterator<Item = &mut Singles> {
        self.namespaces.values_mut().filter_map(|watched| watched.singles.as_mut())
    }

    /// Processor time of taking events, and how many were taken.
    pub(super) const fn cost(&self) -> Cost {
        self.cost
    }

    fn spent(&mut self, start: u64) {
        self.cost.run_ns += thread_time().saturating_sub(start);
        self.cost.runs += self.namespaces.values_mut().map(Watched::take_taken).sum::<u64>();
    }
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    watching: Arc<Mutex<Watching>>,
    ready: Arc<Epoll>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts it, with nothing to listen to.
    pub(super) fn start() -> io::Result<Self> {
        let watching = Arc::new(Mutex::new(Watching::default()));
        let ready = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        ready.add(&*stop, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let thread = {
            let (watching, ready, stop) = (Arc::clone(&watching), Arc::clone(&ready), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("ctnetlink".into())
                .stack_size(256 << 10)
                .spawn(move || listen(&watching, &ready, &stop))?
        };
        Ok(Self { watching, ready, stop, thread: Some(thread) })
    }

    /// Brings books up to date: those of all namespaces, or of this one.
    pub(super) fn settle(&self, only: Option<u32>) {
        let settlements = self.watching().begin(only);
        loop {
            let wait = self.watching().advance(&settlements);
            let Some(wait) = wait else { return };
            std::thread::sleep(wait);
        }
    }

    /// What is listened to; events wait in their queues meanwhile.
    pub(super) fn watching(&self) -> MutexGuard<'_, Watching> {
        lock(&self.watching)
    }

    /// Listens to one more namespace.
    pub(super) fn add(&self, watched: Watched) -> io::Result<()> {
        let mut watching = self.watching();
        for events in watched.events() {
            self.hear(events)?;
        }
        watching.namespaces.insert(watched.netns, watched);
        Ok(())
    }

    /// Listens again to a namespace that was silent.
    pub(super) fn resume(&self, netns: u32, sockets: Sockets) -> io::Result<()> {
        let mut watching = self.watching();
        let Some(watched) = watching.namespaces.get_mut(&netns) else { return Ok(()) };
        for events in sockets.each() {
            self.hear(events)?;
        }
        watched.listen_to(sockets);
        Ok(())
    }

    fn hear(&self, events: &Events) -> io::Result<()> {
        // Closing the socket takes it out again.
        Ok(self.ready.add(events, EpollEvent::new(EpollFlags::EPOLLIN, 1))?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Fails only if the counter were full, and then the thread is woken just the same.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(watching: &Mutex<Watching>, ready: &Epoll, stop: &EventFd) {
    loop {
        let (taken, settling) = {
            let mut watching = lock(watching);
            (watching.drain(), watching.is_settling())
        };
        // What a settlement leaves in a queue for a moment would wake us at once.
        let woken = if taken == 0 && !settling {
            let mut events = [EpollEvent::empty(); 1];
            ready.wait(&mut events, EpollTimeout::NONE).is_ok_and(|woken| woken > 0 && events[0].data() == 0)
        } else {
            poll(&mut [PollFd::new(stop.as_fd(), PollFlags::POLLIN)], PollTimeout::from(PACE_MS))
                .is_ok_and(|woken| woken > 0)
        };
        if woken {
            return;
        }
    }
}
