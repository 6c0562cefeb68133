//! Where samples come from.

pub mod attached;
pub mod census;
mod channel;
mod kprobe;
mod logger;
pub mod losses;
pub mod netlink;
pub mod object;
mod occupant;
pub mod probe;
pub mod reader;
mod sys;
pub mod tables;
pub mod trace;
mod trampoline;
pub mod watch;

use nix::time::{ClockId, clock_gettime};

use crate::cli::{Format, Options, SourceChoice};
use crate::kernel::plan::Refusal;
use crate::model::{By, Sample, SourceInfo};
use losses::Lossy;
use netlink::Netlink;
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
pub fn open(options: &Options) -> anyhow::Result<Box<dyn Source>> {
    // A filter that is not applied must not pass in silence, nor a ranking that nobody makes.
    anyhow::ensure!(options.filter.ends.is_none(), "no source of live counts can filter by --port or --net");
    anyhow::ensure!(
        options.by.iter().all(|by| *by == By::Dport),
        "no source of live counts ranks by anything but the destination port"
    );
    match options.source {
        SourceChoice::Auto => match open_probe(options, Mechanism::Best) {
            Ok(probe) => Ok(probe),
            Err(refused) => match Netlink::open(options.filter, short(&refused)) {
                Ok(netlink) => Ok(Box::new(netlink)),
                Err(second) => Err(anyhow::anyhow!("{refused:#}\n{second:#}")),
            },
        },
        SourceChoice::Fexit => open_probe(options, Mechanism::Trampolines),
        SourceChoice::Kprobe => open_probe(options, Mechanism::Kprobes),
        SourceChoice::Netlink => {
            Ok(Box::new(Netlink::open(options.filter, "chosen by --source netlink".into())?))
        }
    }
}

/// Programs in the kernel, by this mechanism; for the full-screen view with single losses.
fn open_probe(options: &Options, mechanism: Mechanism) -> anyhow::Result<Box<dyn Source>> {
    let wishes = Wishes {
        mechanism,
        filter: options.filter,
        verbose: options.verbose,
        cost: matches!(options.format, Format::Json | Format::Screen),
        trace: None,
    };
    Ok(if options.format == Format::Screen {
        Box::new(Lossy::open(wishes)?)
    } else {
        Box::new(Probe::open(wishes)?)
    })
}

/// Why a source did not run, in one line: its first obstacle, or the cause of its failure.
fn short(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Refusal>().and_then(|refusal| refusal.obstacles.first()) {
        Some(obstacle) => format!("probes need {}", obstacle.missing),
        None => format!("probes failed: {error:#}").lines().next().unwrap_or_default().to_owned(),
    }
}

/// Wall clock (nanoseconds since the Unix epoch) and monotonic clock (nanoseconds), for [`Sample`]'s stamps.
pub fn now() -> anyhow::Result<(i128, u64)> {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let mono = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let wall_ns = i128::from(wall.tv_sec()) * 1_000_000_000 + i128::from(wall.tv_nsec());
    let mono_ns = u64::try_from(mono.tv_sec())? * 1_000_000_000 + u64::try_from(mono.tv_nsec())?;
    Ok((wall_ns, mono_ns))
}
