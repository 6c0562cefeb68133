//! `cargo xtask test`: unit tests, then every scenario on every kernel of the matrix.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build;
use crate::guest_protocol::{Line, Outcome};
use crate::step::{self, Step, say};
use crate::vm;
use crate::vm::boot::{Guest, Terminal};
use crate::vm::initramfs::Initramfs;
use crate::vm::kernels::{self, Kernel};

/// How long all scenarios on one kernel may take, on a slow machine.
const GUEST_LIMIT: Duration = Duration::from_mins(25);

/// What to test.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only tests whose names contain this.
    pub filter: Option<String>,
    /// Only these kernels; none means the matrix.
    pub kernels: Vec<String>,
    /// Guests at once.
    pub jobs: Option<usize>,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed, dead guests included.
    pub failed: usize,
    /// Could not run.
    pub skipped: usize,
}

/// Unit tests and the guest matrix; fails unless everything passed.
pub fn run(selection: &Selection) -> Result<()> {
    build::ebpf()?;
    unit(selection.filter.as_deref())?;
    guests(selection)
}

/// The tests that need no guest.
pub fn unit(filter: Option<&str>) -> Result<()> {
    let step = Step::begin("unit tests");
    step::run_shown(build::cargo().args(["test", "--quiet", "--workspace", "--all-targets"]).args(filter))?;
    step.end();
    Ok(())
}

/// The guest matrix alone. Its last line is the tally.
pub fn guests(selection: &Selection) -> Result<()> {
    let names: Vec<String> = if selection.kernels.is_empty() {
        kernels::MATRIX.iter().map(|entry| entry.name.to_owned()).collect()
    } else {
        selection.kernels.clone()
    };
    let kernels = names.iter().map(|name| kernels::ensure(name)).collect::<Result<Vec<_>>>()?;
    let initramfs = vm::prepare()?;
    let jobs = selection.jobs.unwrap_or_else(default_jobs).clamp(1, kernels.len());
    let waiting = Mutex::new(kernels.iter().collect::<VecDeque<_>>());
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(kernel) = next(&waiting) {
                    let one = on_kernel(kernel, &initramfs, selection.filter.as_deref());
                    add(&tally, one);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    println!("{} passed, {} failed{skipped}", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} guest tests failed", tally.failed);
    }
    if tally.passed == 0 {
        bail!(
            "no guest test was run: nothing is called like {:?}",
            selection.filter.as_deref().unwrap_or_default()
        );
    }
    Ok(())
}

/// A guest has two virtual CPUs, which emulation keeps busy.
fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, usize::from).div_ceil(2)
}

fn next<'a>(waiting: &Mutex<VecDeque<&'a Kernel>>) -> Option<&'a Kernel> {
    waiting.lock().ok()?.pop_front()
}

fn add(tally: &Mutex<Tally>, one: Tally) {
    let mut all = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.passed += one.passed;
    all.failed += one.failed;
    all.skipped += one.skipped;
}

fn on_kernel(kernel: &Kernel, initramfs: &Initramfs, filter: Option<&str>) -> Tally {
    let mut args = vec!["test".to_owned()];
    args.extend(filter.map(str::to_owned));
    let guest = Guest { limit: GUEST_LIMIT, ..Guest::new(kernel, initramfs, args) };
    let mut tally = Tally::default();
    let began = Instant::now();
    say(format!("booting {} for the tests", kernel.release));
    let end = guest.boot(Terminal::None, |line| match line {
        Line::Test { test, result, detail, seconds } => {
            report(&mut tally, &kernel.name, &test, result, &detail, seconds);
        }
        Line::End { .. } => {}
    });
    let died = match end {
        Ok(end) if end.complete => None,
        Ok(end) => Some(end.explain()),
        Err(error) => Some(format!("{error:#}")),
    };
    if let Some(why) = died {
        let detail = format!("the guest died: {why}");
        report(&mut tally, &kernel.name, "guest", Outcome::Failed, &detail, began.elapsed().as_secs_f64());
    } else {
        say(format!("{} is done after {:.0} s", kernel.release, began.elapsed().as_secs_f64()));
    }
    tally
}

fn report(tally: &mut Tally, kernel: &str, test: &str, result: Outcome, detail: &str, seconds: f64) {
    let (count, word) = match result {
        Outcome::Ok => (&mut tally.passed, "ok"),
        Outcome::Failed => (&mut tally.failed, "FAILED"),
        Outcome::Skipped => (&mut tally.skipped, "skipped"),
    };
    *count += 1;
    let mut lines = vec![format!("test guest {kernel} {test} ... {word} ({seconds:.1} s)")];
    match (result, detail) {
        (_, "") => {}
        (Outcome::Skipped, _) => lines[0] = format!("test guest {kernel} {test} ... skipped: {detail}"),
        _ => lines.extend(detail.lines().map(|line| format!("    {line}"))),
    }
    lines.push(String::new());
    // One write, so that guests side by side do not mix their lines; a closed pipe shows in the exit status.
    let _ = std::io::stdout().lock().write_all(lines.join("\n").as_bytes());
}
