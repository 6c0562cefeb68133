//! ctwatch as a child process, read through its promised JSON.

mod child;
mod rows;

use std::collections::BTreeMap;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::processes;
use super::space::{Space, checked};
pub(super) use child::{Ended, Running, bears_a_closed_pipe, signal};
use rows::{ANY, field_of, flatten, is_part, key_of, rows_of, sum_of};
pub(super) use rows::{Counts, Key, Silence};

/// The program under test; the variable is for trying scenarios outside a guest.
pub(super) fn program() -> String {
    std::env::var("CTWATCH").unwrap_or_else(|_| "/bin/ctwatch".to_owned())
}

/// What ctwatch knows of this kernel.
pub(super) fn facts() -> anyhow::Result<Value> {
    let facts = checked(Command::new(program()).arg("facts"))?;
    serde_json::from_str(&facts).context("ctwatch facts")
}

/// Whether a process has the kernel measure the time of all BPF programs: it does while a descriptor of
/// `BPF_ENABLE_STATS` is open (`bpf_enable_runtime_stats`, 5.8 to 7.3).
pub(super) fn times_programs(pid: u32) -> anyhow::Result<bool> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).context("its descriptors")?;
    // One that was closed meanwhile has no target.
    let mut targets = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(targets.any(|target| target.as_os_str().as_encoded_bytes() == b"anon_inode:bpf-stats"))
}

/// Runs it to its end.
pub(super) fn run(args: &[&str]) -> anyhow::Result<Output> {
    Command::new(program())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run ctwatch {args:?}"))
}

/// Emulated guests relocate, verify and attach slowly.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// `ctwatch live --json`, running.
#[derive(Debug)]
pub(super) struct Watch {
    running: Running,
    seen: Vec<Value>,
}

/// Everything one run printed, summed.
#[derive(Debug)]
pub(super) struct Totals {
    /// By flow type.
    pub(super) rows: BTreeMap<Key, Counts>,
    /// What it could not tell, in any row or by flow type.
    pub(super) silence: Silence,
    /// The objects as printed.
    pub(super) objects: Vec<Value>,
    /// What it wrote to stderr.
    pub(super) stderr: String,
    /// How it ended.
    pub(super) status: ExitStatus,
}

/// What `--source` says where a scenario names none.
static SOURCE: OnceLock<String> = OnceLock::new();

/// The source of this run.
pub(super) fn source() -> &'static str {
    SOURCE.get().map_or("auto", String::as_str)
}

/// Sets the source for all scenarios of this run.
pub(super) fn use_source(name: String) {
    SOURCE.get_or_init(|| name);
}

impl Watch {
    /// Starts it and waits until it is attached.
    pub(super) fn start(args: &[&str]) -> anyhow::Result<Self> {
        Self::start_in(&Space::init(), args)
    }

    /// The same in a namespace.
    pub(super) fn start_in(space: &Space, args: &[&str]) -> anyhow::Result<Self> {
        let mut watch = Self::spawn_in(space, args)?;
        watch.wait_object("the first object", |_| true)?;
        Ok(watch)
    }

    /// Starts it and does not wait.
    pub(super) fn spawn(args: &[&str]) -> anyhow::Result<Self> {
        Self::spawn_in(&Space::init(), args)
    }

    fn spawn_in(space: &Space, args: &[&str]) -> anyhow::Result<Self> {
        let source = SOURCE.get().filter(|_| !args.contains(&"--source"));
        let running = Running::spawn(
            space
                .command(&program())
                .args(["live", "--json", "--interval", "0.5"])
                .args(args)
                .args(source.into_iter().flat_map(|source| ["--source", source])),
        )?;
        Ok(Self { running, seen: Vec::new() })
    }

    /// Waits for an object that `fits`, counting everything before it too.
    pub(super) fn wait_object(
        &mut self,
        what: &str,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let Some(object) = self.running.next(left).with_context(|| format!("waited for {what}"))? else {
                let last = self.seen.last().map(Value::to_string).unwrap_or_default();
                anyhow::bail!("ctwatch gave no {what} within {} s; its last: {last}", PATIENCE.as_secs());
            };
            let done = fits(&object);
            self.seen.push(object);
            if done {
                return Ok(());
            }
        }
    }

    /// The sum over all flow types in the objects read so far.
    pub(super) fn sum(&self, field: &str) -> anyhow::Result<u64> {
        Ok(sum_of(&rows_of(&self.seen)?, field))
    }

    /// How often its programs ran, as the objects read so far have it.
    pub(super) fn program_runs(&self) -> u64 {
        self.seen.iter().filter_map(|object| object["cost"]["events"].as_u64()).sum()
    }

    /// What kprobes are said to have missed in the objects read so far; other sources' losses are in the sums.
    fn skipped(&self) -> u64 {
        let last = self.seen.last().map(|object| &object["source"]);
        let of_kprobes = last.filter(|source| source["kind"] == "kprobe");
        of_kprobes.and_then(|source| source["lost"].as_u64()).unwrap_or(0)
    }

    /// Waits until that sum reaches `least`, what kprobes missed included.
    pub(super) fn wait_sum(&mut self, field: &str, least: u64) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let (sum, skipped) = (self.sum(field)?, self.skipped());
            if sum + skipped >= least {
                return Ok(());
            }
            anyhow::ensure!(
                start.elapsed() < PATIENCE,
                "waited for {least} {field}, ctwatch has {sum} and missed {skipped}"
            );
            self.wait_object("the next object", |_| true)?;
        }
    }

    /// Reads until an object holds all that has happened by now. It is the second that comes from now on: the counts of
    /// the first may have been read before, those of the second were read after the first was printed.
    pub(super) fn catch_up(&mut self) -> anyhow::Result<()> {
        while let Some(object) = self.running.next(Duration::ZERO)? {
            self.seen.push(object);
        }
        self.wait_object("the next object", |_| true)?;
        self.wait_object("the one after it", |_| true)
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.running.signal(signal)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        self.running.pid()
    }

    /// A line of its `/proc/PID/status` that has an amount of memory, in KiB.
    pub(super) fn memory_kib(&self, name: &str) -> anyhow::Result<u64> {
        processes::memory_kib(self.pid()?, name)
    }

    /// A line of its `/proc/PID/status`.
    pub(super) fn status(&self, name: &str) -> anyhow::Result<String> {
        processes::status(self.pid()?, name)
    }

    /// Ctrl-C, then everything it counted; fails unless it ends well.
    pub(super) fn stop(self) -> anyhow::Result<Totals> {
        let totals = self.stop_with(Signal::SIGINT)?;
        anyhow::ensure!(totals.status.success(), "ctwatch: {}: {}", totals.status, totals.stderr);
        Ok(totals)
    }

    /// Sends `signal` and reads to the end.
    pub(super) fn stop_with(mut self, signal: Signal) -> anyhow::Result<Totals> {
        self.signal(signal)?;
        self.finish()
    }

    /// Waits for its end.
    pub(super) fn finish(&mut self) -> anyhow::Result<Totals> {
        let Ended { objects, stderr, status } = self.running.end()?;
        self.seen.extend(objects);
        Ok(Totals {
            rows: rows_of(&self.seen)?,
            silence: self.seen.last().map(Silence::of).unwrap_or_default(),
            objects: std::mem::take(&mut self.seen),
            stderr,
            status,
        })
    }

    /// Waits until it has said something to its user.
    pub(super) fn wait_said(&self) -> anyhow::Result<()> {
        self.running.wait_said()
    }
}

/// What kprobes missed of so many events, where the kernel tells: those that an interrupt meets inside of another one are
/// skipped (`kprobe_ftrace_handler`, 5.10 to 7.3). So few that a mistake of ours cannot hide among them.
pub(super) fn missed(report: &Value, events: u64) -> anyhow::Result<u64> {
    if report["source"]["kind"] != "kprobe" {
        return Ok(0);
    }
    Ok(lost(report)?.min(events / 100))
}

/// What it says by this report that it missed.
fn lost(report: &Value) -> anyhow::Result<u64> {
    report["source"]["lost"].as_u64().context("ctwatch does not say what it lost")
}

impl Totals {
    /// A count of one flow type; 0 where no row told of it. `delete` and the like sum their reasons.
    pub(super) fn get(&self, key: &Key, field: &str) -> u64 {
        self.rows.get(key).map_or(0, |counts| field_of(counts, field))
    }

    /// What it says that it missed.
    pub(super) fn lost(&self) -> anyhow::Result<u64> {
        lost(self.objects.last().context("ctwatch printed nothing")?)
    }

    /// The same over all flow types.
    pub(super) fn sum(&self, field: &str) -> u64 {
        sum_of(&self.rows, field)
    }

    /// The same over those of one family; `any` is what was told without one.
    pub(super) fn sum_of_family(&self, family: &str, field: &str) -> u64 {
        let fits = |(key, _): &(&Key, &Counts)| key.family == family;
        self.rows.iter().filter(fits).map(|(_, counts)| field_of(counts, field)).sum()
    }

    /// The same over those of one namespace.
    pub(super) fn sum_in(&self, netns: u64, field: &str) -> u64 {
        let here = |(key, _): &(&Key, &Counts)| key.netns == netns;
        self.rows.iter().filter(here).map(|(_, counts)| field_of(counts, field)).sum()
    }

    /// What kprobes missed: see [`missed`].
    pub(super) fn missed(&self) -> anyhow::Result<u64> {
        let events = ["insert", "drop", "insert_failed"].iter().map(|field| self.sum(field)).sum();
        missed(self.objects.last().context("ctwatch printed nothing")?, events)
    }

    /// What must hold whatever was watched: the intervals add up to the totals, and nothing is missing in them.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let last = self.objects.last().context("ctwatch printed nothing")?;
        // What an event never told is in the row for any flow type.
        let corrected: u64 = self
            .rows
            .iter()
            // By probes that row holds flow types beyond those that are told apart.
            .filter(|(key, _)| key.family == ANY && self.silence.kind == "netlink")
            .map(|(_, counts)| field_of(counts, "insert"))
            .sum();
        anyhow::ensure!(
            self.lost()? == corrected + self.missed()?,
            "ctwatch lost events and corrected {corrected} inserts: {}",
            last["source"]
        );
        for row in last["flows"].as_array().context("flows")? {
            let key = key_of(row)?;
            let counts = self.rows.get(&key).with_context(|| format!("no row {key:?}"))?;
            for (field, total) in row["total"].as_object().context("total")? {
                if total.is_null() {
                    let told = counts.keys().find(|name| is_part(name, field));
                    anyhow::ensure!(
                        told.is_none(),
                        "{key:?}: the total of {field} is unknown, {told:?} is not"
                    );
                    continue;
                }
                let mut flat = Counts::new();
                flatten(field, total, &|_| true, &mut flat)?;
                let total: u64 = flat.values().sum();
                let sum = field_of(counts, field);
                anyhow::ensure!(
                    total == sum,
                    "{key:?}: the last total of {field} is {total}, the intervals add up to {sum}"
                );
            }
        }
        for (key, counts) in &self.rows {
            let (evicted, deleted) = (field_of(counts, "early_drop"), field_of(counts, "delete.early_drop"));
            anyhow::ensure!(
                evicted == deleted,
                "{key:?}: early_drop {evicted}, deletes by early_drop {deleted}"
            );
        }
        Ok(())
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (key, counts) in &self.rows {
            write!(f, "[{} {} {}", key.netns, key.family, key.proto)?;
            for (name, count) in counts.iter().filter(|(_, count)| **count > 0) {
                write!(f, " {name}={count}")?;
            }
            f.write_str("] ")?;
        }
        Ok(())
    }
}
