//! The thread that takes events, and what it shares with whoever asks for samples.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;

use super::super::thread_time;
use super::lock;
use super::socket::Batch;
use super::watched::Watched;
use crate::model::Cost;

/// While events come, they are taken at this pace and not one by one: the kernel then finds nobody to wake, which it
/// would do for each event and in the path of a packet. The queues hold far more than comes in this time.
const PACE_MS: u8 = 10;

/// What is listened to.
#[derive(Debug, Default)]
pub struct Watching {
    /// By inode.
    pub namespaces: BTreeMap<u32, Watched>,
    batch: Batch,
    cost: Cost,
    failed: Option<io::Error>,
}

impl Watching {
    fn drain(&mut self) -> u64 {
        let start = thread_time();
        let mut taken = 0;
        for watched in self.namespaces.values_mut() {
            match watched.drain(&mut self.batch) {
                Ok(some) => taken += some,
                Err(error) => self.failed = Some(error),
            }
        }
        self.spent(start, taken);
        taken
    }

    /// Brings all books up to date.
    pub fn settle(&mut self) -> io::Result<()> {
        let start = thread_time();
        let mut taken = 0;
        for watched in self.namespaces.values_mut() {
            taken += watched.settle(&mut self.batch)?;
        }
        self.spent(start, taken);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Lets a namespace go, its book brought to the end: either it has ended, or it is only left.
    pub fn let_go(&mut self, netns: u32, ended: bool) -> Option<Watched> {
        let mut watched = self.namespaces.remove(&netns)?;
        let settled = if ended { watched.end(&mut self.batch) } else { watched.settle(&mut self.batch) };
        if settled.is_err() {
            // Statistics go with the module; what was heard stays.
            watched.give_up(&mut self.batch);
        }
        Some(watched)
    }

    /// Takes out those whose setting has changed, what they heard in their books.
    pub fn take_changed(&mut self) -> BTreeMap<u32, Watched> {
        let changed: Vec<u32> = self
            .namespaces
            .values()
            .filter(|watched| watched.has_changed())
            .map(|watched| watched.netns)
            .collect();
        let mut taken = BTreeMap::new();
        for netns in changed {
            if let Some(mut watched) = self.namespaces.remove(&netns) {
                // What cannot be settled now is when it is back.
                let _ = watched.settle(&mut self.batch);
                taken.insert(netns, watched);
            }
        }
        taken
    }

    /// Processor time of taking events, and how many were taken.
    pub const fn cost(&self) -> Cost {
        self.cost
    }

    fn spent(&mut self, start: u64, taken: u64) {
        self.cost.run_ns += thread_time().saturating_sub(start);
        self.cost.runs += taken;
    }
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Listener {
    watching: Arc<Mutex<Watching>>,
    ready: Arc<Epoll>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts it, with nothing to listen to.
    pub fn start() -> io::Result<Self> {
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

    /// What is listened to; events wait in their queues meanwhile.
    pub fn watching(&self) -> MutexGuard<'_, Watching> {
        lock(&self.watching)
    }

    /// Listens to one more namespace.
    pub fn add(&self, watched: Watched) -> io::Result<()> {
        let mut watching = self.watching();
        for events in watched.events() {
            // Closing the socket takes it out again.
            self.ready.add(events, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        }
        watching.namespaces.insert(watched.netns, watched);
        Ok(())
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
        let taken = lock(watching).drain();
        let woken = if taken == 0 {
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
