//! `record` and `replay`: what is read again equals what was printed beside it, wherever the file ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use nix::sys::utsname::uname;
use serde_json::Value;

use super::super::ctwatch::{PATIENCE, missed, program, run, signal, source};
use super::super::space::checked;
use super::super::traffic::{Family, Flows, PORT, spread, udp};
use super::super::trial::equal;
use super::super::witness::Stats;
use super::super::{modules, state, wait};
use super::{Scenario, Skip, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("record::flood", || flood(Signal::SIGINT)),
    scenario("record::killed", || flood(Signal::SIGKILL)),
    scenario("record::plain", plain),
    scenario("record::full_disk", full_disk),
];

pub(super) const FILE: &str = "/tmp/record.ctw";
const PRINTED: &str = "/tmp/record.json";
const SAID: &str = "/tmp/record.stderr";

/// `ctwatch record`, running; what it prints goes to files.
pub(super) struct Recording(Child);

impl Recording {
    pub(super) fn start(file: &str, args: &[&str]) -> anyhow::Result<Self> {
        let recording = Self::spawn(&[&[file, "--json"], args].concat())?;
        Self::wait_printed("the first report", |lines| !lines.is_empty())?;
        Ok(recording)
    }

    fn spawn(args: &[&str]) -> anyhow::Result<Self> {
        let child = Command::new(program())
            .arg("record")
            .args(args)
            .args(["--source", source()])
            .stdin(Stdio::null())
            .stdout(File::create(PRINTED)?)
            .stderr(File::create(SAID)?)
            .spawn()
            .context("start ctwatch record")?;
        Ok(Self(child))
    }

    pub(super) fn wait_printed(what: &str, fits: impl Fn(&[Value]) -> bool) -> anyhow::Result<()> {
        wait::until(what, PATIENCE, || {
            let lines = printed()?;
            Ok(if fits(&lines) {
                Ok(())
            } else {
                Err(format!("{} reports; it said: {}", lines.len(), fs::read_to_string(SAID)?))
            })
        })
    }

    pub(super) fn end(mut self, with: Signal) -> anyhow::Result<()> {
        signal(&self.0, with)?;
        let status = self.0.wait()?;
        anyhow::ensure!(
            status.success() || with == Signal::SIGKILL,
            "record ended with {status}: {}",
            fs::read_to_string(SAID)?
        );
        Ok(())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // A scenario that failed half-way; gone already in every other case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The whole lines printed so far.
fn printed() -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(PRINTED)?;
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

fn sum(objects: &[Value], field: impl Fn(&Value) -> Option<u64>) -> u64 {
    let flows = objects.iter().filter_map(|object| object["flows"].as_array());
    flows.flatten().filter_map(field).sum()
}

fn inserts(objects: &[Value]) -> u64 {
    sum(objects, |flow| flow["insert"].as_u64())
}

pub(super) fn drops(objects: &[Value]) -> u64 {
    sum(objects, |flow| flow["drop"]["table_full"].as_u64())
}

fn totals(object: &Value, field: &str) -> u64 {
    sum(std::slice::from_ref(object), |flow| flow["total"][field].as_u64())
}

fn replay(file: &str) -> anyhow::Result<String> {
    let ended = run(&["replay", file, "--json"])?;
    anyhow::ensure!(ended.status.success(), "replay: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(String::from_utf8(ended.stdout)?)
}

/// A table-full flood; the recording ends well or by SIGKILL, and is then cut at 100 places.
fn flood(end: Signal) -> anyhow::Result<()> {
    modules::load()?;
    let space = init();
    state::fresh(&space)?;
    state::set("nf_conntrack_max", 1000)?;
    let _ = fs::remove_file(FILE);
    let recording = Recording::start(FILE, &["--interval", "0.2"])?;
    let second = run(&["record", FILE])?;
    anyhow::ensure!(
        !second.status.success()
            && String::from_utf8_lossy(&second.stderr).contains("another ctwatch records"),
        "a second writer: {second:?}"
    );
    let (before, was) = (Stats::read(&space)?, printed()?);
    let (was_in, was_refused) = (inserts(&was), drops(&was));
    let sent = spread(Flows::new(Family::V4, 6000), 2, udp::send)?;
    let kernel = Stats::read(&space)?.since(&before);
    let happened = sent.passed + sent.refused;
    Recording::wait_printed("all flows in reports", |lines| {
        let counted = inserts(lines) - was_in + drops(lines) - was_refused;
        let missed = lines.last().and_then(|last| missed(last, happened).ok());
        counted + missed.unwrap_or(0) >= happened
    })?;
    recording.end(end)?;

    let (replayed, shown) = (replay(FILE)?, fs::read_to_string(PRINTED)?);
    if end == Signal::SIGKILL {
        // A report is written down before it is printed: the last one may not have been.
        anyhow::ensure!(replayed.starts_with(&shown), "replay is not what was printed");
        anyhow::ensure!(replayed.lines().count() <= shown.lines().count() + 1, "replay has more reports");
    } else {
        anyhow::ensure!(replayed == shown, "replay is not what was printed:\n{replayed}\n{shown}");
    }
    let objects: Vec<Value> = replayed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let last = objects.last().context("no report")?;
    equal("refusals and the kernel's", Some(sent.refused), kernel.get("drop"))?;
    let (entered, refused) = (inserts(&objects) - was_in, drops(&objects) - was_refused);
    let not_counted = |counted: u64, sent: u64| sent.checked_sub(counted).context("more counted than sent");
    anyhow::ensure!(
        not_counted(entered, sent.passed)? + not_counted(refused, sent.refused)? <= missed(last, happened)?,
        "{entered} inserts and {refused} refusals are in the recording, of {} and {}, and {} are lost",
        sent.passed,
        sent.refused,
        last["source"]["lost"]
    );
    anyhow::ensure!(sent.refused > 0, "nothing was refused");
    equal("the last total of inserts", totals(last, "insert"), inserts(&objects))?;

    if end == Signal::SIGKILL { cut_anywhere(&replayed) } else { single_losses(&objects) }
}

/// `trace --from`: each loss of the reports is there, one by one or in the number of those left out.
fn single_losses(objects: &[Value]) -> anyhow::Result<()> {
    let losses = sum(objects, |flow| flow["early_drop"].as_u64())
        + ["drop", "insert_failed"]
            .map(|group| sum(objects, |flow| by_reason(&flow[group])))
            .iter()
            .sum::<u64>();
    let ended = run(&["trace", "--from", FILE, "--json"])?;
    anyhow::ensure!(ended.status.success(), "trace --from: {}", String::from_utf8_lossy(&ended.stderr));
    let text = String::from_utf8(ended.stdout)?;
    let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (kept, left_out): (Vec<&Value>, Vec<&Value>) =
        events.iter().partition(|event| event["event"] != "suppressed");
    let left_out: u64 = left_out.iter().filter_map(|event| event["count"].as_u64()).sum();
    let told = kept.len() as u64 + left_out;
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for event in &kept {
        *kinds.entry(format!("{} {}", event["event"], event["reason"])).or_default() += 1;
    }
    anyhow::ensure!(
        told == losses,
        "{told} losses told for {losses} counted: {left_out} left out, and one by one {kinds:?}"
    );
    anyhow::ensure!(
        kept.iter().any(|event| event["event"] == "drop" && event["dport"] == PORT),
        "no refused flow of the generator:\n{text}"
    );
    // The flood is over, and doctor still finds it.
    let doctor = run(&["doctor", "--from", FILE, "--json"])?;
    equal("doctor's exit code", doctor.status.code(), Some(2))?;
    let judged: Value = serde_json::from_slice(&doctor.stdout).context("doctor --from")?;
    let finding = &judged["findings"][0];
    equal("doctor's finding", finding["id"].as_str(), Some("table-full"))?;
    equal(
        "refused flows that doctor knows of",
        finding["evidence"]["refused"]["value"].as_u64(),
        Some(drops(objects)),
    )?;
    a_page(drops(objects))?;
    what_changed(objects)?;
    let other = run(&["trace", "--from", FILE, "--json", "--proto", "tcp", "--events", "-early_drop"])?;
    let shown = String::from_utf8(other.stdout)?;
    anyhow::ensure!(
        shown.lines().all(|line| line.contains("\"suppressed\"")),
        "a filter lets through what it should not:\n{shown}"
    );
    Ok(())
}

/// `replay --against`: the flood against the time before it, in the same file.
fn what_changed(objects: &[Value]) -> anyhow::Result<()> {
    let first = objects.iter().position(|object| drops(std::slice::from_ref(object)) > 0);
    let flood = &objects[first.context("no refusal")?..];
    let start = flood[0]["time"].as_str().context("a time")?;
    let ended = run(&["replay", FILE, "--to", start, "--against", FILE, "--against-from", start])?;
    anyhow::ensure!(ended.status.success(), "replay: {}", String::from_utf8_lossy(&ended.stderr));
    let text = String::from_utf8(ended.stdout)?;
    let line = text.lines().find(|line| line.contains(" drop.table_full "));
    let cells: Vec<&str> = line.with_context(|| text.clone())?.split_whitespace().collect();
    let [.., before, after, change] = cells[..] else { anyhow::bail!("{text}") };
    equal("before and change", (before, change), (".", "new"))?;
    let seconds: f64 = flood.iter().filter_map(|object| object["elapsed_s"].as_f64()).sum();
    let rate = drops(flood) as f64 / seconds;
    // It is shown without decimals, and elapsed_s has three.
    let shown: f64 = after.parse().with_context(|| text.clone())?;
    anyhow::ensure!((shown - rate).abs() <= 1.0 + rate / 100.0, "{rate} a second:\n{text}");
    let same = run(&["replay", FILE, "--against", FILE])?;
    anyhow::ensure!(String::from_utf8_lossy(&same.stdout).contains("No rate changed."), "{same:?}");
    Ok(())
}

/// `report`: the page has the sums of the flood, masked or not.
fn a_page(refused: u64) -> anyhow::Result<()> {
    const PAGE: &str = "/tmp/record.html";
    for mask in [&[][..], &["--mask"]] {
        let ended = run(&[&["report", FILE, "-o", PAGE], mask].concat())?;
        anyhow::ensure!(ended.status.success(), "report: {}", String::from_utf8_lossy(&ended.stderr));
        let page = fs::read_to_string(PAGE)?;
        for told in ["CRITICAL", "table-full", &format!("<b>{}</b> new flows refused", thousands(refused))] {
            anyhow::ensure!(page.contains(told), "`{told}` is missing, {mask:?}");
        }
        let scripts = page.matches("<script").count();
        anyhow::ensure!(scripts == 1 && page.ends_with("</html>\n"), "no page: {mask:?}");
    }
    Ok(())
}

/// As the page has numbers below a million.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    match digits.len() {
        ..=3 => digits,
        length => format!("{},{}", &digits[..length - 3], &digits[length - 3..]),
    }
}

fn by_reason(counts: &Value) -> Option<u64> {
    Some(counts.as_object()?.values().filter_map(Value::as_u64).sum())
}

/// Whether to show here at length what is the same on all kernels.
pub(super) fn is_first_choice() -> anyhow::Result<bool> {
    Ok(source() == "auto" && uname()?.release().to_string_lossy().starts_with("6.12."))
}

/// What 100 other kills would have left: all whole reports before that byte.
fn cut_anywhere(replayed: &str) -> anyhow::Result<()> {
    let whole = fs::read(FILE)?;
    // An odd step that spreads the cuts over the file, the same in every run.
    let cuts =
        (0..if is_first_choice()? { 100_usize } else { 5 }).map(|cut| 32 + cut * 7919 % (whole.len() - 32));
    for length in cuts {
        let cut = "/tmp/record.cut";
        fs::write(cut, &whole[..length])?;
        let part = replay(cut)?;
        anyhow::ensure!(replayed.starts_with(&part), "cut at {length} of {} bytes: {part}", whole.len());
        if let Some(last) = part.lines().last() {
            let objects: Vec<Value> = part.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            equal("the last total", totals(&serde_json::from_str(last)?, "insert"), inserts(&objects))?;
        }
    }
    Ok(())
}

/// Plain lines: those printed while recording.
fn plain() -> anyhow::Result<()> {
    modules::load()?;
    let space = init();
    state::fresh(&space)?;
    let _ = fs::remove_file(FILE);
    let recording = Recording::spawn(&[FILE, "--plain", "--interval", "0.2"])?;
    let shows = |what: &str| {
        wait::until(what, PATIENCE, || {
            let text = fs::read_to_string(PRINTED)?;
            Ok(if text.contains(what) { Ok(()) } else { Err(text) })
        })
    };
    shows("early_drop")?;
    spread(Flows::new(Family::V4, 200), 1, udp::send)?;
    shows("ipv4 udp")?;
    recording.end(Signal::SIGINT)?;
    let ended = run(&["replay", FILE])?;
    let (printed, replayed) = (fs::read_to_string(PRINTED)?, String::from_utf8(ended.stdout)?);
    anyhow::ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    anyhow::ensure!(printed == replayed, "replay is not what was printed:\n{replayed}\n{printed}");
    Ok(())
}

/// A disk that is full and gets room again: reports are missing, told and counted; the rest is read.
fn full_disk() -> anyhow::Result<()> {
    if !is_first_choice()? {
        return Err(Skip("it is shown on 6.12 by auto".to_owned()).into());
    }
    modules::load()?;
    state::fresh(&init())?;
    let at = Path::new("/tmp/small");
    fs::create_dir_all(at)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
        .context("mount a small disk")?;
    let outcome = fill_and_free(at);
    umount(at).context("umount the small disk")?;
    outcome
}

fn fill_and_free(at: &Path) -> anyhow::Result<()> {
    let file = at.join("record.ctw");
    let file = file.to_str().context("a path")?;
    let recording = Recording::start(file, &["--interval", "0.1"])?;
    let filler = at.join("filler");
    checked(Command::new("sh").args([
        "-c",
        "cat /dev/zero > \"$0\" 2>/dev/null || true",
        &filler.to_string_lossy(),
    ]))?;
    wait::until("a word about the full disk", PATIENCE, || {
        let said = fs::read_to_string(SAID)?;
        Ok(if said.contains("is not recorded") { Ok(()) } else { Err(said) })
    })?;
    let before = printed()?.len();
    fs::remove_file(&filler)?;
    wait::until("a word that it records again", PATIENCE, || {
        let said = fs::read_to_string(SAID)?;
        Ok(if said.contains("recording again") { Ok(()) } else { Err(said) })
    })?;
    Recording::wait_printed("reports after that", |lines| lines.len() > before + 5)?;
    recording.end(Signal::SIGINT)?;
    let (replayed, shown) = (replay(file)?, fs::read_to_string(PRINTED)?);
    let missing = shown.lines().count() - replayed.lines().count();
    anyhow::ensure!(missing > 0, "nothing was missing: the disk was never full");
    anyhow::ensure!(replayed.lines().all(|line| shown.contains(line)), "replay shows what was not printed");
    equal("the last report", replayed.lines().last(), shown.lines().last())?;
    let said = fs::read_to_string(SAID)?;
    anyhow::ensure!(
        said.contains(&format!("{missing} reports are missing")),
        "{missing} are missing: {said}"
    );
    Ok(())
}
