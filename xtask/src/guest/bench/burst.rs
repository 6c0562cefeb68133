//! A burst of new flows, as fast as one core makes them, heard by whoever listens to ctnetlink.
//!
//! In a namespace of its own, so that it can run on the machine itself too: nothing but that namespace is touched.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::ctwatch::{PATIENCE, Watch};
use super::super::report::Report;
use super::super::space::Space;
use super::super::traffic::{Family, Flows, udp};
use super::super::{modules, state, wait, witness};
use super::clock;
use crate::bench::figure::{Burst, Figure};

/// How many flows.
const FLOWS: u32 = 60_000;

/// Who listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listener {
    Nobody,
    Ctwatch,
    ConntrackEvents,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nothing",
            Self::Ctwatch => "ctwatch-netlink",
            Self::ConntrackEvents => "conntrack-E",
        }
    }
}

/// Runs it under each; `native` on the machine itself, which has conntrack and is left as it is.
pub(in super::super) fn run(native: bool, results: &Path) -> anyhow::Result<ExitCode> {
    let mut report = Report::open(results)?;
    if !native {
        modules::load()?;
        state::fresh(&Space::init())?;
    }
    let space = Space::create("ctwatch-burst")?;
    // What the boot has left behind is in the first one.
    one(&space, Listener::Nobody)?;
    for listener in [Listener::Nobody, Listener::Ctwatch, Listener::ConntrackEvents] {
        report.figure(&Figure::Burst(one(&space, listener)?))?;
    }
    report.end(0)?;
    Ok(ExitCode::SUCCESS)
}

fn one(space: &Space, listener: Listener) -> anyhow::Result<Burst> {
    state::fresh(space)?;
    let mut burst = Burst { observer: listener.name().to_owned(), ..Burst::default() };
    match listener {
        Listener::Nobody => send(space, &mut burst)?,
        Listener::Ctwatch => {
            let watch = Watch::start_in(space, &["--source", "netlink", "--netns", "self"])?;
            heard(space, watch.pid()?, &mut burst)?;
            let totals = watch.stop()?;
            burst.heard = totals.sum_of_family("ipv4", "insert");
            burst.lost = Some(totals.lost()?);
        }
        Listener::ConntrackEvents => {
            let mut command = space.command("conntrack");
            command
                .args(["-E", "-e", "NEW"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            let mut child = Ended(command.spawn().context("start conntrack -E")?);
            let pid = Pid::from_raw(i32::try_from(child.0.id())?);
            heard(space, pid, &mut burst)?;
            kill(pid, Signal::SIGINT)?;
            let mut said = String::new();
            child.0.stderr.take().context("its stderr")?.read_to_string(&mut said)?;
            let line = said.lines().find(|line| line.contains("flow events have been shown"));
            let words = line.with_context(|| format!("conntrack -E: {said}"))?.split_whitespace();
            burst.heard = words.filter_map(|word| word.parse().ok()).next_back().context("conntrack -E")?;
        }
    }
    Ok(burst)
}

/// A child that does not outlive its measurement.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Gone already unless the measurement failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The burst while a process listens, until it has taken all that came.
fn heard(space: &Space, pid: Pid, burst: &mut Burst) -> anyhow::Result<()> {
    wait::until("the subscription", PATIENCE, || {
        Ok(queued(pid)?.map(drop).ok_or_else(|| "none".to_owned()))
    })?;
    let before = ran(pid)?;
    send(space, burst)?;
    wait::until("empty queues", PATIENCE, || {
        let queued = queued(pid)?.context("the subscription is gone")?;
        Ok(if queued == 0 { Ok(()) } else { Err(format!("{queued} bytes wait")) })
    })?;
    burst.process_ns = ran(pid)? - before;
    Ok(())
}

fn send(space: &Space, burst: &mut Burst) -> anyhow::Result<()> {
    let began = clock()?;
    let sent = space.enter(|| udp::send(Flows::new(Family::V4, FLOWS)))?;
    burst.elapsed_ns = clock()? - began;
    anyhow::ensure!(sent.refused == 0, "{} flows were refused", sent.refused);
    anyhow::ensure!(
        witness::count(space)? == sent.passed,
        "the table does not hold the {} flows",
        sent.passed
    );
    burst.sent = sent.passed;
    Ok(())
}

/// Bytes in the queues of a process's namespace whose sockets have joined a group of netfilter; `None` without such.
fn queued(pid: Pid) -> anyhow::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/netlink"))?;
    let mut sum = None;
    for line in text.lines().skip(1) {
        // Columns: socket, protocol (12: netfilter), port id, groups, bytes that wait.
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, "12", _, groups, waiting, ..] = words[..]
            && groups != "00000000"
        {
            *sum.get_or_insert(0) += waiting.parse::<u64>().with_context(|| line.to_owned())?;
        }
    }
    Ok(sum)
}

/// Processor time of all threads of a process, user and system.
fn ran(pid: Pid) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first: Option<u64> = text.split_whitespace().next().and_then(|word| word.parse().ok());
        sum += first.with_context(|| format!("schedstat: {text}"))?;
    }
    Ok(sum)
}
