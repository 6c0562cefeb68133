//! Where samples come from.

pub mod attached;
mod auto;
pub mod census;
mod channel;
mod counts;
mod demand;
mod global_functions;
mod invalid;
pub mod keeper;
mod kprobe;
pub mod latency;
mod logger;
pub mod losses;
pub mod namespaces;
mod needs;
pub mod netlink;
pub mod object;
mod occupant;
pub mod probe;
pub mod proc_stat;
mod program_time;
pub mod reader;
pub mod saved;
pub mod search;
mod sys;
pub mod tables;
pub mod trace;
mod trampoline;
pub mod watch;

use nix::time::{ClockId, clock_gettime};

use crate::kernel::plan::Refusal;
use crate::model::{By, Filter, Sample, SourceInfo};
use auto::Auto;
use losses::Lossy;
pub use needs::{Needs, SourceChoice};
use netlink::Netlink;
use netlink::remote::Remote;
use probe::{Mechanism, Probe, Wishes};

/// Whether there is anything to watch right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Attached and counting.
    Watching,
    /// Nothing to watch yet, or no longer: what is missing, and what brings it.
    Waiting(String),
}

/// Something that counts what connection tracking does.
///
/// Opened and used inside a current-thread tokio runtime. Dropping it detaches everything.
pub trait Source {
    /// What this source is and what it cannot tell. It may change when the source comes back after waiting.
    fn info(&self) -> &SourceInfo;

    /// Looks whether there is something to watch, attaching when it has appeared and letting go when it went away.
    ///
    /// Called often (several times a second while waiting), so it must be cheap where nothing changed.
    fn look(&mut self) -> anyhow::Result<Status>;

    /// Reads all counts since the source was opened. Works while waiting too: counts never start again from 0 because
    /// the module went away.
    fn sample(&mut self) -> anyhow::Result<Sample>;
}

/// Opens the best source that this kernel allows, or the one that was named.
pub fn open(needs: &Needs) -> anyhow::Result<Box<dyn Source>> {
    match needs.source.mechanism() {
        Some(Mechanism::Best) => {
            let (filter, by) = (needs.filter, needs.by.clone());
            let next = move |refused: &anyhow::Error| match open_netlink(&filter, &by, short(refused)) {
                Ok(netlink) => Ok(netlink),
                Err(second) => Err(anyhow::anyhow!("{refused:#}\n{second:#}")),
            };
            match open_probe(needs, Mechanism::Best) {
                Ok(probe) => Ok(Box::new(Auto::new(probe, next))),
                Err(refused) => next(&refused),
            }
        }
        Some(mechanism) => open_probe(needs, mechanism),
        None => open_netlink(&needs.filter, &needs.by, "chosen by --source netlink".into()),
    }
}

/// A ranking that nobody makes must not pass in silence.
fn open_netlink(filter: &Filter, by: &[By], why: String) -> anyhow::Result<Box<dyn Source>> {
    anyhow::ensure!(by.iter().all(|by| *by == By::Dport), "the netlink source ranks no addresses (--by)");
    // Its sockets hold namespaces: not in the process that may be stopped.
    if let Some(keeper) = keeper::get().filter(|keeper| keeper.serves(filter)) {
        return Ok(Box::new(Remote::open(keeper, why)?));
    }
    Ok(Box::new(Netlink::open(*filter, why)?))
}

/// Opens programs in the kernel, attached by this mechanism.
fn open_probe(needs: &Needs, mechanism: Mechanism) -> anyhow::Result<Box<dyn Source>> {
    let wishes = Wishes {
        mechanism,
        filter: needs.filter,
        verbose: needs.verbose,
        cost: needs.cost,
        trace: None,
        addresses: needs.addresses(),
    };
    Ok(if needs.losses { Box::new(Lossy::open(wishes)?) } else { Box::new(Probe::open(wishes)?) })
}

/// Why a source did not run, in one line: its first obstacle, or the cause of its failure.
fn short(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Refusal>().and_then(|refusal| refusal.obstacles.first()) {
        Some(obstacle) => format!("probes need {}", obstacle.missing),
        None => format!("probes failed: {error:#}").lines().next().unwrap_or_default().to_owned(),
    }
}

/// So close together, two clocks are as good as read at once.
const AT_ONCE_NS: u64 = 20_000;

/// Wall clock (nanoseconds since the Unix epoch) and monotonic clock (nanoseconds), for [`Sample`]'s stamps.
pub fn now() -> anyhow::Result<(i128, u64)> {
    let read = || {
        let before = clock(ClockId::CLOCK_MONOTONIC)?;
        let wall = clock(ClockId::CLOCK_REALTIME)?;
        anyhow::Ok((clock(ClockId::CLOCK_MONOTONIC)? - before, wall, before))
    };
    // Whoever is not scheduled between two readings takes them for the same moment (21 ms apart, seen on a busy
    // machine), so the closest of some count.
    let mut best = read()?;
    for _ in 0..4 {
        if best.0 <= AT_ONCE_NS {
            break;
        }
        best = best.min(read()?);
    }
    let (apart, wall, before) = best;
    Ok((micros(wall).into(), micros(before + apart / 2)))
}

/// Whole microseconds: finer than anything shown, and the rest would be noise that recordings have to keep.
const fn micros(ns: u64) -> u64 {
    ns / 1000 * 1000
}

/// Processor time of this process and of its keeper since they started, nanoseconds.
fn own_time() -> Option<u64> {
    clock(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok().map(|own| micros(own + keeper::own_ns()))
}

/// The same of the calling thread alone; 0 where it cannot be read.
fn thread_time() -> u64 {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or(0)
}

fn clock(id: ClockId) -> anyhow::Result<u64> {
    let time = clock_gettime(id)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}
