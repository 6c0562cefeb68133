//! `cargo xtask test`: unit tests, then scenarios on the kernels of the matrix.

mod places;
mod runs;
mod skips;
mod tally;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build;
use crate::guest_protocol::{Line, Outcome};
use crate::monitoring;
use crate::step::{self, Step, say};
use crate::vm;
use crate::vm::boot::{Guest, Terminal};
use crate::vm::initramfs::Initramfs;
use crate::vm::kernels;
use runs::Run;
use tally::Tally;

/// How long all scenarios on one kernel may take, on a slow machine that does other work.
const GUEST_LIMIT: Duration = Duration::from_mins(40);
/// The longest scenario takes two minutes on a busy machine. An emulated CPU was seen to hang in the kernel for good.
const SILENCE: Duration = Duration::from_mins(5);

/// What to test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Only tests whose names contain this.
    pub filter: Option<String>,
    /// Only these kernels; none means the matrix.
    pub kernels: Vec<String>,
    /// Only by this source.
    pub source: Option<String>,
    /// Guests at once.
    pub jobs: Option<usize>,
    /// How much, where nothing was asked for by name, kernel or source.
    pub extent: Extent,
}

/// How much of all scenarios on all kernels by all sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What finds most in little time.
    #[default]
    Quick,
    /// Each scenario, and on each kernel what the kernel can change.
    Full,
    /// Each scenario on each kernel: hours.
    Everywhere,
}

impl Selection {
    /// What `cargo xtask ci` runs.
    pub(crate) fn full() -> Self {
        Self { extent: Extent::Full, ..Self::default() }
    }

    /// How much is run. What was asked for is run wherever it can differ.
    fn extent(&self) -> Extent {
        if self.is_asked() { Extent::Everywhere } else { self.extent }
    }

    /// Whether something was asked for by its name.
    fn is_asked(&self) -> bool {
        self.filter.is_some() || !self.kernels.is_empty() || self.source.is_some()
    }
}

/// Unit tests and the guest matrix; fails unless everything passed.
pub(crate) fn run(selection: &Selection) -> Result<()> {
    build::ebpf()?;
    unit(selection.filter.as_deref())?;
    if !selection.is_asked() && selection.extent != Extent::Quick {
        crate::prototypes::run()?;
    }
    guests(selection)
}

/// The tests that need no guest.
pub(crate) fn unit(filter: Option<&str>) -> Result<()> {
    let step = Step::begin("unit tests");
    step::run_shown(build::cargo().args(["test", "--quiet"]).args(build::EVERYTHING).args(filter))?;
    step.end();
    Ok(())
}

/// The guest matrix alone. Its last line is the tally.
pub(crate) fn guests(selection: &Selection) -> Result<()> {
    let names: Vec<String> = if selection.kernels.is_empty() {
        let others = kernels::OTHER_BUILDS
            .iter()
            .filter(|_| !selection.is_asked() && selection.extent != Extent::Quick);
        kernels::MATRIX.iter().map(|entry| entry.name).chain(others.copied()).map(str::to_owned).collect()
    } else {
        selection.kernels.clone()
    };
    let kernels = names.iter().map(|name| kernels::ensure(name)).collect::<Result<Vec<_>>>()?;
    let runs = runs::plan(&kernels, selection);
    let initramfs = vm::prepare()?;
    let with_more = if runs.iter().any(needs_more) { Some(add_more(&runs, &initramfs)?) } else { None };
    let jobs = selection.jobs.unwrap_or_else(default_jobs).clamp(1, runs.len().max(1));
    let waiting = Mutex::new(runs);
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(run) = next(&waiting) {
                    let files = with_more.as_ref().filter(|_| needs_more(&run)).unwrap_or(&initramfs);
                    let one = one_run(&run, files);
                    tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(one);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if selection.extent() == Extent::Quick {
        say("that was what finds most; `cargo xtask test --full` runs everything");
    }
    println!("{tally}");
    tally.verdict()?;
    if tally.passed == 0 {
        bail!(
            "no guest test was run: nothing is called like {:?}",
            selection.filter.as_deref().unwrap_or_default()
        );
    }
    Ok(())
}

fn needs_more(run: &Run<'_>) -> bool {
    run.needs_unit_tests() || run.needs_prometheus()
}

/// The files of guests that need programs which most do not.
fn add_more(runs: &VecDeque<Run<'_>>, initramfs: &Initramfs) -> Result<Initramfs> {
    let mut more = initramfs.clone();
    if runs.iter().any(Run::needs_unit_tests) {
        more = more.with_program(runs::UNIT_TESTS, &build::unit_tests()?)?;
    }
    if runs.iter().any(Run::needs_prometheus) {
        for (name, path) in monitoring::programs()? {
            more = more.with_program(&format!("bin/{name}"), &path)?;
        }
    }
    Ok(more)
}

/// One guest a CPU: two on two CPUs took 34 s where one after the other took 57 s, since a guest often waits.
fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn next<'a>(waiting: &Mutex<VecDeque<Run<'a>>>) -> Option<Run<'a>> {
    waiting.lock().ok()?.pop_front()
}

fn one_run(run: &Run<'_>, initramfs: &Initramfs) -> Tally {
    let kernel = run.kernel;
    let place = format!("{} {}", kernel.name, run.source);
    let guest = |names: &[&'static str]| {
        let mut args: Vec<String> = ["test", "--source", run.source].map(str::to_owned).to_vec();
        args.extend(names.iter().map(|name| format!("={name}")));
        Guest { limit: GUEST_LIMIT, silence: SILENCE, ..Guest::new(kernel, initramfs, args) }
    };
    let mut tally = Tally::default();
    let mut told = BTreeSet::new();
    let began = Instant::now();
    say(format!("booting {} for {} tests by source {}", kernel.release, run.names.len(), run.source));
    let mut boot = |names: &[&'static str]| {
        let end = guest(names).boot(Terminal::None, |line| match line {
            Line::Test { test, result, detail, seconds } => {
                let (result, detail) = skips::judge(&kernel.release, run.source, &test, result, detail);
                tally.report(&place, &test, result, &detail, seconds);
                told.insert(test);
            }
            Line::Figure { .. } | Line::End { .. } => {}
        });
        let died = match end {
            Ok(end) if end.complete && !end.crashed() => None,
            Ok(end) => Some((end.crashed(), end.explain())),
            Err(error) => Some((false, format!("{error:#}"))),
        };
        let left = names.iter().copied().filter(|name| !told.contains(*name));
        (died, left.collect::<Vec<_>>())
    };
    let (mut died, mut left) = boot(&run.names);
    // A kernel that crashed is a finding. An emulated machine on a busy one does not always live: that is told, and
    // what it did not come to is run once more.
    let mut again = None;
    if let Some((false, why)) = &died
        && !left.is_empty()
    {
        say(format!("{place}: the guest died and is booted again for {} tests: {why}", left.len()));
        again = Some(format!("{place} for {} tests: {}", left.len(), why.lines().next().unwrap_or_default()));
        (died, left) = boot(&left);
    }
    tally.booted_again.extend(again);
    let took = began.elapsed().as_secs_f64();
    if let Some((_, why)) = died {
        tally.report(&place, "guest", Outcome::Failed, &format!("the guest died: {why}"), took);
    } else if !left.is_empty() {
        let detail = format!("the guest never reported {}", left.join(", "));
        tally.report(&place, "guest", Outcome::Failed, &detail, took);
    } else {
        say(format!("{} by {} is done after {took:.0} s", kernel.release, run.source));
    }
    tally
}
