//! ctwatch as a child process, read through its promised JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::space::Space;
use super::wait;

/// The program under test; the variable is for trying scenarios outside a guest.
pub(super) fn program() -> String {
    std::env::var("CTWATCH").unwrap_or_else(|_| "/bin/ctwatch".to_owned())
}

/// Emulated guests relocate, verify and attach slowly.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// A flow type as ctwatch's rows name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Inode of the namespace.
    pub(super) netns: u64,
    /// `ipv4` or `ipv6`.
    pub(super) family: String,
    /// L4 protocol number.
    pub(super) proto: u8,
}

/// The sums of one flow type's counts; nested ones are named with a dot, as in `delete.timeout`.
pub(super) type Counts = BTreeMap<String, u64>;

/// `ctwatch live --json`, running.
#[derive(Debug)]
pub(super) struct Watch {
    child: Child,
    objects: Receiver<Value>,
    said: Arc<Mutex<String>>,
    stderr: Option<JoinHandle<()>>,
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

/// What a source says that it cannot tell: these fields are `null`, and only these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Silence {
    /// Which source it was.
    pub(super) kind: String,
    /// In every row.
    pub(super) unknown: BTreeSet<String>,
    /// In every row but the one for any flow type, where the whole namespace is counted.
    pub(super) by_namespace: BTreeSet<String>,
}

/// The family of rows that stand for all flow types of a namespace.
const ANY: &str = "any";

impl Silence {
    fn of(object: &Value) -> Self {
        let source = &object["source"];
        let unknown = source["unknown"].as_object().into_iter().flatten();
        let by_namespace = source["by_namespace"].as_array().into_iter().flatten();
        Self {
            kind: source["kind"].as_str().unwrap_or_default().to_owned(),
            unknown: unknown.map(|(field, _)| field.clone()).collect(),
            by_namespace: by_namespace.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    /// What a source may leave unknown, and must. `told_apart` says that the kernel announces whether an entry that
    /// left had time left; `by_type` that only some flow types were asked for.
    pub(super) fn expected(kind: &str, told_apart: bool, by_type: bool) -> Self {
        const FAILED: [&str; 4] = [
            "insert_failed.clash",
            "insert_failed.chaintoolong",
            "insert_failed.dying",
            "insert_failed.other",
        ];
        if kind != "netlink" {
            return Self { kind: kind.to_owned(), ..Self::default() };
        }
        let mut unknown = vec!["clash_reply_only", "delete.closed", "delete.pressure", "delete.cleanup"];
        unknown.extend(["drop.no_memory", "insert_failed.clash", "insert_failed.dying"]);
        let statistics = ["clash_resolve", "drop.table_full", FAILED[1], FAILED[3]];
        if !told_apart {
            unknown.push("delete.timeout");
        }
        if by_type {
            unknown.push("delete.early_drop");
            unknown.extend(statistics);
        }
        let by_namespace = if by_type { &[][..] } else { &statistics };
        let set = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
        Self { kind: kind.to_owned(), unknown: set(&unknown), by_namespace: set(by_namespace) }
    }

    /// Whether it tells this field in any row at all.
    pub(super) fn tells_somewhere(&self, field: &str) -> bool {
        self.tells(ANY, field)
    }

    /// Whether it tells this field in rows of this family.
    pub(super) fn tells(&self, family: &str, field: &str) -> bool {
        // An eviction stands in a row twice.
        let field = if field == "early_drop" { "delete.early_drop" } else { field };
        !self.unknown.contains(field) && (family == ANY || !self.by_namespace.contains(field))
    }
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
        let mut child = space
            .command(&program())
            .args(["live", "--json", "--interval", "0.5"])
            .args(args)
            .args(
                SOURCE
                    .get()
                    .filter(|_| !args.contains(&"--source"))
                    .into_iter()
                    .flat_map(|source| ["--source", source]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program()))?;
        let stdout = child.stdout.take().context("its stdout")?;
        let stderr = child.stderr.take().context("its stderr")?;
        let (sender, objects) = channel();
        // Ends with the pipe: a line that is no JSON is handed on as a string and fails whoever reads it.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let object = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(object).is_err() {
                    break;
                }
            }
        });
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        let stderr = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_str(&line);
                said.push('\n');
            }
        });
        Ok(Self { child, objects, said, stderr: Some(stderr), seen: Vec::new() })
    }

    /// Waits for an object that `fits`, counting everything before it too.
    pub(super) fn wait_object(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.objects.recv_timeout(left) {
                Ok(object) => {
                    let done = fits(&object);
                    self.seen.push(object);
                    if done {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let last = self.seen.last().map(Value::to_string).unwrap_or_default();
                    anyhow::bail!("ctwatch gave no {what} within {} s; its last: {last}", PATIENCE.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    anyhow::bail!("ctwatch ended before {what}: {status}: {}", self.stderr_text());
                }
            }
        }
    }

    /// The sum over all flow types in the objects read so far.
    pub(super) fn sum(&self, field: &str) -> anyhow::Result<u64> {
        Ok(sum_of(&rows_of(&self.seen)?, field))
    }

    /// Waits until that sum reaches `least`.
    pub(super) fn wait_sum(&mut self, field: &str, least: u64) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let sum = self.sum(field)?;
            if sum >= least {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < PATIENCE, "waited for {least} {field}, ctwatch has {sum}");
            self.wait_object("the next object", |_| true)?;
        }
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("send {signal} to ctwatch"))
    }

    /// Its process id.
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
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
        let mut status = None;
        let child = &mut self.child;
        wait::until("the end of ctwatch", PATIENCE, || {
            status = child.try_wait()?;
            Ok(status.map(drop).ok_or_else(|| "still running".to_owned()))
        })?;
        self.seen.extend(self.objects.iter());
        Ok(Totals {
            rows: rows_of(&self.seen)?,
            silence: self.seen.last().map(Silence::of).unwrap_or_default(),
            objects: std::mem::take(&mut self.seen),
            stderr: self.stderr_text(),
            status: status.context("it ended")?,
        })
    }

    /// Waits until it has said something to its user.
    pub(super) fn wait_said(&self) -> anyhow::Result<()> {
        wait::until("a word from ctwatch", PATIENCE, || {
            let silent = self.said.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            Ok(if silent { Err("silence".to_owned()) } else { Ok(()) })
        })
    }

    /// All it wrote to stderr; for a child that has ended.
    fn stderr_text(&mut self) -> String {
        if let Some(thread) = self.stderr.take() {
            // It ends with the pipe; a panic in it leaves what came before.
            let _ = thread.join();
        }
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A scenario that failed half-way; gone already in every other case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Totals {
    /// A count of one flow type; 0 where no row told of it. `delete` and the like sum their reasons.
    pub(super) fn get(&self, key: &Key, field: &str) -> u64 {
        self.rows.get(key).map_or(0, |counts| field_of(counts, field))
    }

    /// What it says that it missed.
    pub(super) fn lost(&self) -> anyhow::Result<u64> {
        let last = self.objects.last().context("ctwatch printed nothing")?;
        last["source"]["lost"].as_u64().context("ctwatch does not say what it lost")
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
            self.lost()? == corrected,
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

fn sum_of(rows: &BTreeMap<Key, Counts>, field: &str) -> u64 {
    rows.values().map(|counts| field_of(counts, field)).sum()
}

/// A field by its full name, or the sum of everything below it.
fn field_of(counts: &Counts, field: &str) -> u64 {
    counts.iter().filter(|(name, _)| is_part(name, field)).map(|(_, count)| count).sum()
}

fn is_part(name: &str, field: &str) -> bool {
    name.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn rows_of(objects: &[Value]) -> anyhow::Result<BTreeMap<Key, Counts>> {
    let mut rows: BTreeMap<Key, Counts> = BTreeMap::new();
    for object in objects {
        let flows = object["flows"].as_array().with_context(|| format!("no flows in {object}"))?;
        let silence = Silence::of(object);
        for row in flows {
            let key = key_of(row)?;
            let tells = |field: &str| silence.tells(&key.family, field);
            let counts = rows.entry(key.clone()).or_default();
            for (field, value) in row.as_object().context("a row")? {
                if !matches!(
                    field.as_str(),
                    "netns" | "family" | "proto" | "rate" | "total" | "name" | "unknown"
                ) {
                    flatten(field, value, &tells, counts).with_context(|| format!("row {row}"))?;
                }
            }
        }
    }
    Ok(rows)
}

/// A field that the source does not tell has to be `null`, every other one a number.
fn flatten(
    name: &str,
    value: &Value,
    tells: &impl Fn(&str) -> bool,
    into: &mut Counts,
) -> anyhow::Result<()> {
    if let Value::Object(fields) = value {
        return fields
            .iter()
            .try_for_each(|(field, value)| flatten(&format!("{name}.{field}"), value, tells, into));
    }
    if !tells(name) {
        anyhow::ensure!(value.is_null(), "{name} is {value}, and said to be unknown");
        return Ok(());
    }
    let count = value.as_u64().with_context(|| format!("{name} is no count: {value}"))?;
    *into.entry(name.to_owned()).or_default() += count;
    Ok(())
}

fn key_of(row: &Value) -> anyhow::Result<Key> {
    let key = || {
        Some(Key {
            netns: row["netns"].as_u64()?,
            family: row["family"].as_str()?.to_owned(),
            proto: proto_of(&row["proto"])?,
        })
    };
    key().with_context(|| format!("no flow type in {row}"))
}

fn proto_of(value: &Value) -> Option<u8> {
    let Some(name) = value.as_str() else { return u8::try_from(value.as_u64()?).ok() };
    Some(match name {
        ANY | "overflow" => 0,
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "gre" => 47,
        "icmpv6" => 58,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Key, rows_of, sum_of};
    use serde_json::json;

    #[test]
    fn intervals_add_up() {
        let row = |insert: u64, timeout: u64| {
            json!({"flows": [{"netns": 7, "family": "ipv4", "proto": "udp", "insert": insert,
                "delete": {"timeout": timeout, "closed": 1}, "rate": {"insert": 0.5}, "total": {"insert": 9}}]})
        };
        let rows = rows_of(&[row(3, 4), row(6, 0)]).expect("rows");
        let key = Key { netns: 7, family: "ipv4".to_owned(), proto: 17 };
        assert_eq!(rows[&key]["insert"], 9);
        assert_eq!(rows[&key]["delete.timeout"], 4);
        assert_eq!(sum_of(&rows, "delete"), 6);
    }

    #[test]
    fn unknown_is_not_zero() {
        let object = |source: &serde_json::Value, family: &str, insert: &serde_json::Value| json!({"source": source, "flows": [{"netns": 7, "family": family, "proto": "253", "insert": insert}]});
        let (known, unknown) = (json!({}), json!({"unknown": {"insert": "why"}}));
        let by_namespace = json!({"by_namespace": ["insert"]});
        let fits = |source, family, insert| rows_of(&[object(source, family, &insert)]).is_ok();
        assert!(fits(&known, "ipv4", json!(1)) && !fits(&known, "ipv4", json!(null)));
        assert!(fits(&unknown, "any", json!(null)) && !fits(&unknown, "any", json!(0)));
        assert!(fits(&by_namespace, "ipv4", json!(null)) && !fits(&by_namespace, "ipv4", json!(0)));
        assert!(fits(&by_namespace, "any", json!(3)) && !fits(&by_namespace, "any", json!(null)));
    }
}
