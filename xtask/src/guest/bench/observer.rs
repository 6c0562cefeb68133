//! Who watches while cost is measured: each starts, is attached before it is used, and stops with its account.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::{ctwatch, wait};
use super::floor::Floor;

/// Starting, under emulation: bpftrace compiles its script with LLVM.
const PATIENCE: Duration = Duration::from_mins(5);

/// The events of ctwatch as bare counts, by trampolines.
const BPFTRACE_FENTRY: &str = "kfunc:nf_conntrack:__nf_conntrack_hash_insert { @insert = count(); }
kretfunc:nf_conntrack:__nf_conntrack_alloc /(uint64)retval > 0xfffffffffffff000/ { @refused = count(); }
kretfunc:nf_conntrack:early_drop /retval/ { @early_drop = count(); }
kfunc:nf_conntrack:nf_ct_delete { @delete = count(); }
BEGIN { printf(\"attached\\n\"); }";

/// The same by kprobes.
const BPFTRACE_KPROBE: &str = "kprobe:__nf_conntrack_hash_insert { @insert = count(); }
kretprobe:__nf_conntrack_alloc /(uint64)retval > 0xfffffffffffff000/ { @refused = count(); }
kretprobe:early_drop /retval & 1/ { @early_drop = count(); }
kprobe:nf_ct_delete { @delete = count(); }
BEGIN { printf(\"attached\\n\"); }";

/// An observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observer {
    /// Nobody: what is compared with.
    Nothing,
    /// See [`Floor`].
    Floor,
    /// `ctwatch --source fexit`.
    CtwatchFexit,
    /// `ctwatch --source kprobe`.
    CtwatchKprobe,
    /// bpftrace by trampolines.
    BpftraceFentry,
    /// bpftrace by kprobes.
    BpftraceKprobe,
    /// `conntrack -E`.
    ConntrackEvents,
}

impl Observer {
    pub(super) const ALL: [Self; 7] = [
        Self::Nothing,
        Self::Floor,
        Self::CtwatchFexit,
        Self::CtwatchKprobe,
        Self::BpftraceFentry,
        Self::BpftraceKprobe,
        Self::ConntrackEvents,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Floor => "floor",
            Self::CtwatchFexit => "ctwatch-fexit",
            Self::CtwatchKprobe => "ctwatch-kprobe",
            Self::BpftraceFentry => "bpftrace-fentry",
            Self::BpftraceKprobe => "bpftrace-kprobe",
            Self::ConntrackEvents => "conntrack-E",
        }
    }

    /// `--source` of ctwatch.
    pub(super) fn source(self) -> Option<&'static str> {
        match self {
            Self::CtwatchFexit => Some("fexit"),
            Self::CtwatchKprobe => Some("kprobe"),
            _ => None,
        }
    }

    /// Starts it; it is attached when this returns.
    pub(super) fn start(self) -> anyhow::Result<Running> {
        Ok(match self {
            Self::Nothing => Running::default(),
            Self::Floor => Running { child: None, output: None, floor: Some(Floor::attach()?) },
            Self::CtwatchFexit | Self::CtwatchKprobe => {
                // A report an hour: its own work stays out of what is measured here.
                ctwatch(self.source().unwrap_or_default(), "3600")?
            }
            Self::BpftraceFentry => bpftrace(BPFTRACE_FENTRY)?,
            Self::BpftraceKprobe => bpftrace(BPFTRACE_KPROBE)?,
            Self::ConntrackEvents => conntrack_events()?,
        })
    }
}

/// `ctwatch live` with this source and interval, attached.
pub(super) fn ctwatch(source: &str, interval: &str) -> anyhow::Result<Running> {
    let mut command = Command::new(ctwatch::program());
    command.args(["live", "--plain", "--source", source, "--interval", interval]);
    // Its header says that it watches.
    let running = Running::spawn(&mut command)?.when_it_says("counting by")?;
    wait::until("the end of the sample of its programs' time", PATIENCE, || {
        Ok(if running.times_programs()? { Err("the kernel measures".to_owned()) } else { Ok(()) })
    })?;
    Ok(running)
}

fn bpftrace(script: &str) -> anyhow::Result<Running> {
    Running::spawn(Command::new("bpftrace").args(["-e", script]))?.when_it_says("attached")
}

fn conntrack_events() -> anyhow::Result<Running> {
    let mut command = Command::new("sh");
    command.args(["-c", "exec conntrack -E 2>&1 >/dev/null"]);
    let running = Running::spawn(&mut command)?;
    wait::until("the subscription of conntrack -E", PATIENCE, || {
        // Columns: socket, protocol (12: netfilter), port id, groups.
        let listens = fs::read_to_string("/proc/net/netlink")?.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"12") && words.get(3).is_some_and(|groups| *groups != "00000000")
        });
        Ok(if listens { Ok(()) } else { Err("no netlink group is joined".to_owned()) })
    })?;
    Ok(running)
}

/// The sum of one column over the lines of totals that ctwatch ends with.
pub(super) fn total(text: &str, column: &str) -> anyhow::Result<u64> {
    let header = |line: &&str| line.trim_start().starts_with("netns") && line.contains(column);
    let header = text.lines().rfind(header).with_context(|| format!("no column {column}: {text}"))?;
    let titles: Vec<&str> = header.split_whitespace().collect();
    let from_end = titles.iter().rev().position(|title| *title == column).context("a column")?;
    let rows = text.lines().filter(|line| line.starts_with("total ") && !line.contains(" by "));
    let mut sum = 0;
    for row in rows {
        let word = row.split_whitespace().rev().nth(from_end).with_context(|| format!("ctwatch: {row}"))?;
        // Counts of losses are marked.
        let count: u64 = word.trim_start_matches('!').parse().with_context(|| format!("ctwatch: {row}"))?;
        sum += count;
    }
    Ok(sum)
}

/// An observer at work; stopped when dropped.
#[derive(Debug, Default)]
pub(super) struct Running {
    child: Option<Child>,
    output: Option<BufReader<ChildStdout>>,
    pub(super) floor: Option<Floor>,
}

impl Running {
    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let output = child.stdout.take().map(BufReader::new);
        Ok(Self { child: Some(child), output, floor: None })
    }

    /// Reads what it prints up to the line with this word.
    fn when_it_says(mut self, word: &str) -> anyhow::Result<Self> {
        let output = self.output.as_mut().context("it has no output")?;
        let mut said = String::new();
        loop {
            let from = said.len();
            if output.read_line(&mut said)? == 0 {
                let errors = self.end(Signal::SIGKILL)?;
                anyhow::bail!("it ended without {word:?}: {}{errors}", said.trim());
            }
            if said[from..].to_lowercase().contains(word) {
                return Ok(self);
            }
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it has the kernel measure the time of programs (`BPF_ENABLE_STATS`), which makes them dearer meanwhile.
    pub(super) fn times_programs(&self) -> anyhow::Result<bool> {
        self.pid().map_or(Ok(false), ctwatch::times_programs)
    }

    /// Reads one more line of its output.
    pub(super) fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let output = self.output.as_mut().context("it has no output")?;
        anyhow::ensure!(output.read_line(&mut line)? > 0, "its output ended");
        Ok(line)
    }

    /// Ends it as a user would; gives what it printed since.
    pub(super) fn stop(mut self) -> anyhow::Result<String> {
        self.end(Signal::SIGINT)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<String> {
        let Some(mut child) = self.child.take() else { return Ok(String::new()) };
        kill(Pid::from_raw(i32::try_from(child.id())?), signal).context("stop it")?;
        let mut text = String::new();
        if let Some(mut output) = self.output.take() {
            output.read_to_string(&mut text)?;
        }
        if let Some(mut errors) = child.stderr.take() {
            errors.read_to_string(&mut text)?;
        }
        child.wait()?;
        Ok(text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A measurement that failed half-way; there is nobody to tell.
        let _ = self.end(Signal::SIGKILL);
    }
}
