//! Measures what watching costs, in instructions: the guest's clock counts them (`-icount shift=0,sleep=off`, one CPU).

mod burst;
pub(super) mod floor;
mod listing;
mod million;
mod observer;
pub(super) mod programs;
mod workload;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};

use super::modules;
use super::report::Report;
use super::space::Space;
use super::traffic::tcp::Held;
use super::traffic::{Family, Flows, Sent};
use super::witness::{self, Stats};
use crate::bench::LISTING;
use crate::bench::figure::{Cost, Figure, Process, Told};
use observer::{Observer, Running};
use workload::Workload;

pub(super) use burst::run as burst;
pub(super) use million::run as million;

/// Flows of one window.
const FLOWS: u32 = 6000;
/// How many of the lowest windows have to agree, and how closely.
const AGREEING: usize = 3;
const AGREEMENT: f64 = 0.002;
/// The windows of one measurement: each is compared with the one of the same flows.
const WINDOWS: usize = 5;
/// The most windows of a guest's first minutes.
const BOOT_WINDOWS: usize = 60;
/// Flows between an observer's or a witness's own work and the first window.
const SETTLE: u32 = 600;
/// Reports that an observer's process is measured over.
const REPORTS: u64 = 10;

/// Every workload under every observer whose name contains one of `only` (all where that is empty).
pub(super) fn run(only: &[String], results: &Path) -> anyhow::Result<ExitCode> {
    let mut report = Report::open(results)?;
    modules::load()?;
    // No observer of flows, so only where it is named.
    if only.iter().any(|part| part == LISTING) {
        listing::run(&mut report)?;
        if only.len() == 1 {
            report.end(0)?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut bench = Bench {
        space: Space::init(),
        flows: Flows::new(Family::V4, 0),
        held: Held::default(),
        sent: Sent::default(),
        report: &mut report,
    };
    let wanted = |observer: &Observer| {
        *observer == Observer::Nothing
            || only.is_empty()
            || only.iter().any(|part| observer.name().contains(part.as_str()))
    };
    bench.quiet()?;
    for observer in Observer::ALL.into_iter().filter(wanted) {
        workload::make_room()?;
        match observer.start() {
            Ok(running) => bench.observe(observer, running)?,
            Err(error) => {
                let absent =
                    Figure::Absent { observer: observer.name().to_owned(), why: format!("{error:#}") };
                bench.report.figure(&absent)?;
            }
        }
    }
    report.end(0)?;
    Ok(ExitCode::SUCCESS)
}

/// The guest's clock in nanoseconds, which are instructions.
fn clock() -> anyhow::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

struct Bench<'a> {
    space: Space,
    /// The number of the next flow.
    flows: Flows,
    /// What no flow can evict, where the workload wants that.
    held: Held,
    /// Flows since the observer came.
    sent: Sent,
    report: &'a mut Report,
}

impl Bench<'_> {
    fn observe(&mut self, observer: Observer, running: Running) -> anyhow::Result<()> {
        self.sent = Sent::default();
        let before = witness::count(&self.space)?;
        for workload in Workload::ALL {
            let cost = self.measure(observer, workload)?;
            anyhow::ensure!(!running.times_programs()?, "{} had its programs timed", workload.name());
            self.report.figure(&Figure::Cost(cost))?;
        }
        // Every entry that came, all that are there no more, and every flow that was refused.
        let Sent { passed, refused } = self.sent;
        let events = passed + before + passed - witness::count(&self.space)? + refused;
        self.account(observer, running, events)?;
        if let Some(source) = observer.source() {
            self.process(observer, source)?;
        }
        if observer.source().is_some() || observer == Observer::Floor {
            self.hooks(observer)?;
        }
        Ok(())
    }

    /// Runs flows until what the boot has left behind is done: on 7.3 that made the first flows two times as dear.
    fn quiet(&mut self) -> anyhow::Result<()> {
        self.arrange(Workload::UdpFull)?;
        self.windows(Workload::UdpFull, BOOT_WINDOWS, agree)
            .and_then(|(windows, _)| {
                anyhow::ensure!(agree(&windows), "flows cost {windows:?} instructions");
                Ok(())
            })
            .context("the guest does not become quiet")
    }

    fn arrange(&mut self, workload: Workload) -> anyhow::Result<()> {
        self.sent += workload.arrange(&self.space, &mut self.flows, &mut self.held)?;
        Ok(())
    }

    fn run(&mut self, workload: Workload, flows: u32) -> anyhow::Result<Sent> {
        let sent = workload.run(&mut self.flows, flows)?;
        self.sent += sent;
        Ok(sent)
    }

    /// Instructions per flow of one window after the other, until these are enough.
    fn windows(
        &mut self,
        workload: Workload,
        limit: usize,
        enough: fn(&[f64]) -> bool,
    ) -> anyhow::Result<(Vec<f64>, Sent)> {
        let (mut windows, mut sent) = (Vec::new(), Sent::default());
        while windows.len() < limit && !enough(&windows) {
            let began = clock()?;
            sent += self.run(workload, FLOWS)?;
            windows.push((clock()? - began) as f64 / f64::from(FLOWS));
        }
        Ok((windows, sent))
    }

    /// Instructions per flow of a workload.
    fn measure(&mut self, observer: Observer, workload: Workload) -> anyhow::Result<Cost> {
        self.arrange(workload)?;
        let (stats, entries) = (Stats::read(&self.space)?, witness::count(&self.space)?);
        let mut sent = self.run(workload, SETTLE)?;
        let (windows, more) = self.windows(workload, WINDOWS, |_| false)?;
        sent += more;
        let left = (entries + sent.passed).saturating_sub(witness::count(&self.space)?);
        let evicted = Stats::read(&self.space)?.since(&stats).get("early_drop").unwrap_or(0);
        let each = |count: u64| count as f64 / (sent.passed + sent.refused) as f64;
        let cost = Cost {
            scenario: workload.name().to_owned(),
            observer: observer.name().to_owned(),
            flows: FLOWS.into(),
            windows,
            refusals: each(sent.refused),
            deletes: each(left),
            early_drops: each(evicted),
        };
        workload::verify(workload, &cost)
            .with_context(|| format!("{} under {}", workload.name(), observer.name()))?;
        Ok(cost)
    }

    /// Stops an observer and compares what it told of with what happened: one that saw nothing cost nothing.
    fn account(&mut self, observer: Observer, running: Running, happened: u64) -> anyhow::Result<()> {
        let accounted = match observer {
            Observer::Nothing => return Ok(()),
            Observer::Floor => {
                let counts = running.floor.as_ref().context("the floor")?.counts()?;
                let [asked, _, _, removed] = counts[..] else { anyhow::bail!("the floor's {counts:?}") };
                // Whoever asks for an entry either gets it or is refused.
                asked + removed
            }
            Observer::CtwatchFexit | Observer::CtwatchKprobe => {
                let text = running.stop()?;
                ["insert", "delete", "drop"]
                    .iter()
                    .map(|column| observer::total(&text, column))
                    .sum::<anyhow::Result<u64>>()?
            }
            Observer::BpftraceFentry | Observer::BpftraceKprobe => {
                let text = running.stop()?;
                number(&text, "@insert: ")? + number(&text, "@delete: ")? + number(&text, "@refused: ")?
            }
            Observer::ConntrackEvents => {
                let text = running.stop()?;
                let line = text.lines().find(|line| line.contains("flow events have been shown"));
                let words = line.with_context(|| format!("conntrack -E: {text}"))?.split_whitespace();
                words.filter_map(|word| word.parse().ok()).next_back().context("conntrack -E")?
            }
        };
        // What conntrack -E loses is one of the figures. Nobody announces refusals to it.
        anyhow::ensure!(
            observer == Observer::ConntrackEvents || accounted * 100 >= happened * 99,
            "{} told of {accounted} of {happened} events",
            observer.name()
        );
        let told = Told { observer: observer.name().to_owned(), happened, accounted };
        self.report.figure(&Figure::Told(told))
    }

    /// What ctwatch's process does beside the flows.
    fn process(&mut self, observer: Observer, source: &str) -> anyhow::Result<()> {
        let began = clock()?;
        let mut running = observer::ctwatch(source, "0.2")?;
        let elapsed = clock()? - began;
        let pid = running.pid().context("its process")?;
        let ran = || -> anyhow::Result<u64> {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
            text.split_whitespace().next().and_then(|word| word.parse().ok()).context("schedstat")
        };
        let attach = ran()?;
        running.line()?;
        let before = ran()?;
        for _ in 0..REPORTS {
            running.line()?;
        }
        let report = (ran()? - before) / REPORTS;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = number(&status, "VmHWM:")?;
        running.stop()?;
        let process = Process { observer: observer.name().to_owned(), attach, elapsed, report, resident };
        self.report.figure(&Figure::Process(process))
    }

    /// Each program's share, measured apart since the measuring costs.
    fn hooks(&mut self, observer: Observer) -> anyhow::Result<()> {
        workload::make_room()?;
        let _running = observer.start()?;
        let _measuring = programs::Statistics::switch_on()?;
        for workload in Workload::ALL {
            self.arrange(workload)?;
            let before = programs::read()?;
            self.run(workload, FLOWS)?;
            let hooks = programs::since(&before, &programs::read()?);
            self.report.figure(&Figure::Hooks(crate::bench::figure::Hooks {
                scenario: workload.name().to_owned(),
                observer: observer.name().to_owned(),
                flows: FLOWS.into(),
                programs: hooks,
            }))?;
        }
        Ok(())
    }
}

/// Whether enough windows came out alike: the kernel's own work in the background only ever adds to a window.
fn agree(windows: &[f64]) -> bool {
    let mut sorted = windows.to_vec();
    sorted.sort_by(f64::total_cmp);
    matches!((sorted.first(), sorted.get(AGREEING - 1)), (Some(low), Some(high)) if high - low <= low * AGREEMENT)
}

/// The number behind `name` on the line that begins with it; 0 without such a line.
fn number(text: &str, name: &str) -> anyhow::Result<u64> {
    let Some(rest) = text.lines().find_map(|line| line.trim().strip_prefix(name)) else { return Ok(0) };
    rest.split_whitespace().next().and_then(|word| word.parse().ok()).with_context(|| format!("{name}{rest}"))
}
