//! A process of its own for everything that enters foreign network namespaces or holds sockets in them.
//!
//! What a process holds stays open while it is stopped, and SIGSTOP can be neither caught nor refused. So the process that
//! people stop, or that waits for the reader of its output, holds nothing foreign. The keeper does. It is in a session of
//! its own, which no terminal stops, and it never waits for ctwatch: it goes on to follow namespaces, and lets go of
//! those that have ended. It ends with ctwatch, however that ends.
//!
//! Nothing can be done where the keeper itself is stopped by its number, or with ctwatch's whole cgroup frozen.

mod serve;
mod wire;

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::prctl::{set_name, set_pdeathsig, set_thp_disable};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, getppid, setsid};

pub(super) use self::wire::TableReading;
use self::wire::{Answer, Frames, Request};
use super::netlink::singles::{Asked, Told};
use super::trace::unselected;
use crate::model::{Filter, Sample, SourceInfo};
use crate::privileges::{self, Work};

/// How long an answer may take: far longer than to settle a thousand namespaces.
const PATIENCE: Duration = Duration::from_mins(1);
/// `ps` shows it.
const NAME: &std::ffi::CStr = c"ctwatch-netns";

static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// The other process, as ctwatch sees it.
#[derive(Debug)]
pub struct Keeper {
    stream: Mutex<UnixStream>,
    filter: Filter,
    asked: Option<Asked>,
    /// Processor time that it has taken, nanoseconds.
    own_ns: AtomicU64,
}

/// Starts it. Must be called before ctwatch starts any thread. Where it cannot be started ctwatch does without, and holds
/// foreign sockets itself.
pub fn start(filter: &Filter) {
    start_for(filter, None);
}

/// The same for single events by the netlink source.
pub fn start_tracing(asked: &Asked) {
    start_for(&unselected(&asked.filter), Some(asked));
}

fn start_for(filter: &Filter, asked: Option<&Asked>) {
    if let Err(error) = try_start(filter, asked) {
        log::debug!("no process for network namespaces: {error}");
    }
}

fn try_start(filter: &Filter, asked: Option<&Asked>) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let parent = std::process::id();
    // SAFETY: the caller has one thread, so no lock is held and the child may do as it likes.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(theirs);
            ours.set_read_timeout(Some(PATIENCE))?;
            ours.set_write_timeout(Some(PATIENCE))?;
            let (stream, own_ns) = (Mutex::new(ours), AtomicU64::new(0));
            let keeper = Keeper { stream, filter: *filter, asked: asked.cloned(), own_ns };
            // Started twice: the second one ends at once, since its stream is closed.
            let _ = KEEPER.set(keeper);
            Ok(())
        }
        ForkResult::Child => {
            drop(ours);
            // A panic must not unwind into what the parent was about to do.
            let served = std::panic::catch_unwind(|| {
                settle_in(parent).and_then(|()| serve::serve(theirs, filter, asked))
            });
            std::process::exit(i32::from(!matches!(served, Ok(Ok(())))));
        }
    }
}

/// Makes the child a process that only ctwatch's end ends.
fn settle_in(parent: u32) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw().cast_unsigned() != parent {
        return Err(io::Error::other("ctwatch has ended already"));
    }
    setsid()?;
    // For people who look for it, and for its memory, as of ctwatch itself; it works without.
    let _ = set_name(NAME);
    let _ = set_thp_disable(true);
    // A service manager signals all processes: ctwatch still has to ask for the last counts.
    for which in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP] {
        // SAFETY: to ignore a signal runs no code.
        unsafe { signal(which, SigHandler::SigIgn) }?;
    }
    // The reader of ctwatch's output must see its end when ctwatch ends.
    let nothing = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    // Last: from here on it opens no file to write.
    drop(nothing);
    privileges::restrict(Work { namespaces: true, ..Work::NOTHING });
    Ok(())
}

/// Whether there is a keeper.
pub fn runs() -> bool {
    get().is_some()
}

/// The keeper, where there is one.
pub(super) fn get() -> Option<&'static Keeper> {
    KEEPER.get()
}

/// Processor time that the keeper has taken, as it last said.
pub(super) fn own_ns() -> u64 {
    get().map_or(0, |keeper| keeper.own_ns.load(Ordering::Relaxed))
}

impl Keeper {
    /// Whether it may open the netlink source with this filter.
    pub(super) fn serves(&self, filter: &Filter) -> bool {
        self.filter == *filter && self.asked.is_none()
    }

    /// Whether it may open it for these single events.
    pub(super) fn traces(&self, asked: &Asked) -> bool {
        self.asked.as_ref() == Some(asked)
    }

    /// The tables of all namespaces, or of this one.
    pub(super) fn tables(&self, only: Option<u32>, met: Vec<u32>) -> anyhow::Result<TableReading> {
        match self.ask(&Request::Tables { only, met })? {
            Answer::Tables(reading) => Ok(reading),
            other => Err(other.error()),
        }
    }

    /// Opens the netlink source there.
    pub(super) fn open(&self, why: String) -> anyhow::Result<SourceInfo> {
        match self.ask(&Request::Open { why })? {
            Answer::Opened(info) => Ok(info),
            other => Err(other.error()),
        }
    }

    /// Has it look, as [`super::Source::look`] does.
    pub(super) fn look(&self) -> anyhow::Result<(super::Status, SourceInfo)> {
        match self.ask(&Request::Look)? {
            Answer::Looked { waiting, info } => {
                let status = waiting.map_or(super::Status::Watching, super::Status::Waiting);
                Ok((status, info))
            }
            other => Err(other.error()),
        }
    }

    /// A sample of it.
    pub(super) fn sample(&self) -> anyhow::Result<Sample> {
        match self.ask(&Request::Sample)? {
            Answer::Sampled(sample) => Ok(sample.into()),
            other => Err(other.error()),
        }
    }

    /// Single events since the last time, and at the `last` time what still waits for its cause.
    pub(super) fn told(&self, last: bool) -> anyhow::Result<Told> {
        match self.ask(&Request::Told { last })? {
            Answer::Told(told) => Ok(told),
            other => Err(other.error()),
        }
    }

    /// Closes the netlink source there.
    pub(super) fn close(&self) {
        // It has ended where this fails.
        let _ = self.ask(&Request::Close);
    }

    fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = exchange(&mut stream, request).inspect_err(|_| {
            // A late answer must not be taken for that of the next request. Where this fails the stream is closed.
            let _ = stream.shutdown(Shutdown::Both);
        });
        drop(stream);
        let (own_ns, answer) = answer.context("the process for network namespaces does not answer")?;
        self.own_ns.store(own_ns, Ordering::Relaxed);
        Ok(answer)
    }
}

fn exchange(stream: &mut UnixStream, request: &Request) -> io::Result<(u64, Answer)> {
    stream.write_all(&wire::frame(request)?)?;
    let mut frames = Frames::default();
    let mut bytes = [0; 1 << 14];
    loop {
        if let Some(answer) = frames.next()? {
            return Ok(answer);
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => frames.take(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
