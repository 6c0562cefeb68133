//! `cargo xtask bench`: what watching costs, in guest instructions per new flow.
//!
//! The guest's clock counts instructions, so that a figure depends on the kernel and on ctwatch, and not on the
//! machine or its load. What an observer adds is its figure less the one of nobody in the same boot.

mod baseline;
mod burst;
pub(crate) mod figure;
mod million;
mod start;
mod table;

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::guest_protocol::Line;
use crate::step::{Step, say};
use crate::vm;
use crate::vm::boot::{End, Guest, Terminal};
use crate::vm::initramfs::Initramfs;
use crate::vm::kernels::{self, Kernel};
use figure::Figure;

/// A guest counts every instruction: slow, but bounded.
const GUEST_LIMIT: Duration = Duration::from_mins(20);

/// The kernels whose cost is promised.
const KERNELS: [&str; 2] = ["6.1", "7.3"];

/// The programs that only this bench needs in a guest.
const BPFTRACE: crate::packages::Need = ("bpftrace", "bpftrace");

/// What is measured only where it is named: whole commands that show what fills the table.
pub(crate) const LISTING: &str = "table";

/// What an operator would make such a list with; busybox has its own and slower ones.
const PIPELINE: [crate::packages::Need; 3] = [("mawk", "mawk"), ("sort", "coreutils"), ("uniq", "coreutils")];

/// Flags of `bench`.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Options {
    /// Only on this kernel (may be repeated)
    #[arg(long = "kernel")]
    kernels: Vec<String>,
    /// Only observers whose names contain this (may be repeated); nobody is always measured. `table`: whole commands
    /// that show what fills a table of 200,000 entries
    #[arg(long)]
    only: Vec<String>,
    /// Fail where ctwatch costs more than the committed baseline says
    #[arg(long)]
    check: bool,
    /// Write the measured figures as the new baseline
    #[arg(long, conflicts_with = "check")]
    write_baseline: bool,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One million flows on two CPUs with the table full instead: are the totals exact?
    #[arg(long, conflicts_with_all = ["check", "only", "write_baseline"])]
    million: bool,
    /// A burst of 60,000 flows instead: who keeps up with ctnetlink's events? On the machine itself in a network
    /// namespace of its own, as root; nothing else is changed there
    #[arg(long, value_name = "WHERE", conflicts_with_all = ["check", "only", "write_baseline", "million"])]
    burst: Option<burst::Place>,
    /// How long ctwatch takes on this machine from its start until it counts, by each source that can run here
    #[arg(long, conflicts_with_all = ["check", "only", "write_baseline", "million", "burst"])]
    start: bool,
}

impl Options {
    /// What ctwatch costs must not have grown.
    pub(crate) fn check() -> Self {
        Self { only: vec!["ctwatch".to_owned()], check: true, ..Self::default() }
    }
}

/// What was measured on one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// As the kernel was asked for.
    pub kernel: String,
    /// What it is.
    pub release: String,
    /// In the order of measuring.
    pub figures: Vec<Figure>,
}

/// Measures, shows, and compares where that was asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.start {
        return start::run();
    }
    if options.million {
        return million::run(&options.kernels);
    }
    if options.burst == Some(burst::Place::Native) {
        return burst::native();
    }
    let names: Vec<String> = if options.kernels.is_empty() {
        KERNELS.map(str::to_owned).to_vec()
    } else {
        options.kernels.clone()
    };
    if options.burst.is_some() {
        return burst::guests(&names);
    }
    let kernels = names.iter().map(|name| kernels::ensure(name)).collect::<Result<Vec<_>>>()?;
    // bpftrace brings LLVM: a guest boots faster without it.
    let bpftrace =
        options.only.is_empty() || options.only.iter().any(|part| "bpftrace-".contains(part.as_str()));
    let mut more = Vec::new();
    if bpftrace {
        more.push(BPFTRACE);
    }
    if options.only.iter().any(|part| part == LISTING) {
        more.extend(PIPELINE);
    }
    let initramfs = vm::prepare_with(&more)?;
    let mut args = vec!["bench".to_owned()];
    args.extend(options.only.iter().cloned());
    let all = measure(&kernels, &initramfs, &args)?;
    for measured in &all {
        print!("{}", table::costs(measured));
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&all)? + "\n")
            .with_context(|| format!("writing {}", file.display()))?;
    }
    if options.write_baseline {
        baseline::write(&all)?;
    }
    if options.check { baseline::check(&all) } else { Ok(()) }
}

/// Boots each kernel once, two at a time: a guest that counts instructions has one CPU.
fn measure(kernels: &[Kernel], initramfs: &Initramfs, args: &[String]) -> Result<Vec<Measured>> {
    let step = Step::begin(format!("measuring on {} kernels", kernels.len()));
    let failures = Mutex::new(Vec::new());
    let all: Vec<Measured> = thread::scope(|scope| {
        let guests: Vec<_> = kernels
            .iter()
            .map(|kernel| scope.spawn(|| one(&counting(kernel, initramfs, args.to_vec()))))
            .collect();
        let outcomes = guests.into_iter().map(|guest| match guest.join() {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("a measuring thread panicked")),
        });
        outcomes
            .filter_map(|outcome| {
                outcome.map_err(|error| failures.lock().map(|mut all| all.push(error))).ok()
            })
            .collect()
    });
    if let Some(error) = failures.into_inner().ok().and_then(|all| all.into_iter().next()) {
        return Err(error);
    }
    step.end();
    Ok(all)
}

fn counting<'a>(kernel: &'a Kernel, initramfs: &'a Initramfs, args: Vec<String>) -> Guest<'a> {
    Guest { count_instructions: true, limit: GUEST_LIMIT, ..Guest::new(kernel, initramfs, args) }
}

/// Boots a guest and collects its figures; once more where the emulator failed.
pub(crate) fn one(guest: &Guest<'_>) -> Result<Measured> {
    match attempt(guest)? {
        Ok(measured) => Ok(measured),
        Err(end) if end.emulator_failed() => {
            say(format!("the guest with {} is booted again: {}", guest.kernel.release, end.explain()));
            attempt(guest)?.map_err(|end| unfinished(guest, &end))
        }
        Err(end) => Err(unfinished(guest, &end)),
    }
}

fn unfinished(guest: &Guest<'_>, end: &End) -> anyhow::Error {
    anyhow::anyhow!("the guest with {} did not finish: {}", guest.kernel.release, end.explain())
}

fn attempt(guest: &Guest<'_>) -> Result<Result<Measured, End>> {
    let mut figures = Vec::new();
    let name = &guest.kernel.name;
    let end = guest.boot(Terminal::None, |line| {
        if let Line::Figure { figure } = line {
            match &figure {
                Figure::Cost(cost) => {
                    say(format!("{name} {} {}: {:.0}", cost.scenario, cost.observer, cost.instructions()));
                }
                Figure::Absent { observer, why } => say(format!("{name} {observer}: {why}")),
                _ => {}
            }
            figures.push(figure);
        }
    })?;
    if !end.complete {
        return Ok(Err(end));
    }
    Ok(Ok(Measured { kernel: name.clone(), release: guest.kernel.release.clone(), figures }))
}
