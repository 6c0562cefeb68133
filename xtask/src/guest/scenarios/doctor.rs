//! `ctwatch doctor`: what it finds is there, its commands cure it, and their undo brings the old state back.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use super::super::ctwatch::program;
use super::super::space::{Space, checked};
use super::super::traffic::{Family, Flows, PORT, udp};
use super::super::{modules, state, witness};
use super::{Scenario, Skip, init, scenario};

/// These need a kernel without conntrack.
pub(super) const SCENARIOS_BEFORE: &[Scenario] = &[scenario("doctor::loads_nothing", loads_nothing)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("doctor::healthy", healthy),
    scenario("doctor::raise_limit", raise_limit),
    scenario("doctor::notrack_nft", || notrack("with nft")),
    scenario("doctor::notrack_iptables", || notrack("with iptables")),
    scenario("doctor::other_namespace", other_namespace),
    scenario("doctor::shorter_timeout", shorter_timeout),
    scenario("doctor::more_buckets", more_buckets),
    scenario("doctor::wrong_usage", wrong_usage),
    // Last: it takes the rules and the module away.
    scenario("doctor::switch_off", switch_off),
    scenario("doctor::switch_off_legacy", switch_off_legacy),
];

/// The limit of the article's machine, scaled down.
const MAX: u32 = 2000;

/// What doctor answered.
struct Answer {
    code: i32,
    object: Value,
}

impl Answer {
    fn status(&self) -> &str {
        self.object["status"].as_str().unwrap_or_default()
    }

    fn finding(&self, id: &str) -> anyhow::Result<&Value> {
        let mut findings = self.object["findings"].as_array().into_iter().flatten();
        findings
            .find(|finding| finding["id"] == id)
            .with_context(|| format!("no finding {id}: {}", self.object))
    }

    /// The remedy of a finding whose name holds `words`.
    fn remedy(&self, id: &str, words: &str) -> anyhow::Result<&Value> {
        let mut remedies = self.finding(id)?["remedies"].as_array().into_iter().flatten();
        remedies
            .find(|remedy| remedy["what"].as_str().is_some_and(|what| what.contains(words)))
            .with_context(|| format!("{id} has no remedy that says “{words}”: {}", self.object))
    }

    fn expect(&self, code: i32, status: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.code == code && self.status() == status,
            "exit code {} and status {}, not {code} and {status}: {}",
            self.code,
            self.status(),
            self.object
        );
        Ok(())
    }
}

/// Runs doctor; while it looks, new flows keep coming, each to another address.
fn doctor(args: &[&str], first: u32) -> anyhow::Result<Answer> {
    let mut child = Command::new(program())
        .args(["doctor", "--json", "--sample", "1"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start doctor")?;
    let mut next = first;
    // It prints one line at its very end, so its pipe cannot fill before.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if first > 0 && next < first + 50_000 {
            udp::send(Flows::new(Family::V4, 10).from(next))?;
            next += 10;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let output = child.wait_with_output()?;
    let code = status.code().context("doctor was killed")?;
    let object = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("doctor: {status}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Answer { code, object })
}

/// Runs the commands of one list of a remedy by the shell, as they are printed.
fn shell(remedy: &Value, list: &str) -> anyhow::Result<()> {
    let commands = remedy[list].as_array().context("no list of commands")?;
    for command in commands {
        let command = command.as_str().context("a command is text")?;
        // The guest's shell prefers busybox's own `ip`, which knows no namespaces.
        let script = format!("ip() {{ /bin/ip \"$@\"; }}\n{command}");
        checked(Command::new("sh").args(["-c", &script])).with_context(|| format!("{list}: {command}"))?;
    }
    Ok(())
}

fn sysctl(name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))?;
    text.trim().parse().with_context(|| format!("{name}: {text}"))
}

/// Files that persist left and undo should have taken.
fn no_files_left() -> anyhow::Result<()> {
    for folder in ["/etc/sysctl.d", "/etc/modules-load.d", "/etc/modprobe.d"] {
        if let Some(file) = fs::read_dir(folder)?.next() {
            anyhow::bail!("undo left {}", file?.path().display());
        }
    }
    Ok(())
}

/// Folders that a distribution has and a guest has not.
fn configuration_folders() -> anyhow::Result<()> {
    for folder in ["/etc/sysctl.d", "/etc/modules-load.d", "/etc/modprobe.d", "/etc/iptables", "/root"] {
        fs::create_dir_all(folder)?;
    }
    if !fs::exists("/etc/nftables.conf")? {
        fs::write("/etc/nftables.conf", "flush ruleset\n")?;
    }
    Ok(())
}

/// The article's machine: a UDP node whose table is full.
fn full_table() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    let sent = udp::send(Flows::new(Family::V4, MAX * 2))?;
    anyhow::ensure!(sent.passed >= u64::from(MAX), "only {} flows passed", sent.passed);
    Ok(())
}

/// Every module that was not there before is one too many.
fn loads_nothing() -> anyhow::Result<()> {
    if modules::present() {
        modules::unload()?;
    }
    let loaded = || fs::read_to_string("/proc/modules").map(|text| text.lines().count());
    let before = loaded()?;
    let answer = doctor(&["--all"], 0)?;
    answer.expect(0, "ok")?;
    answer.finding("not-loaded")?;
    let brief = doctor(&[], 0)?;
    anyhow::ensure!(brief.object["findings"].as_array().is_some_and(Vec::is_empty), "{}", brief.object);
    anyhow::ensure!(loaded()? == before && !modules::present(), "doctor loaded a module");
    Ok(())
}

/// A machine that nothing ails gets one line and nothing else.
fn healthy() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let answer = doctor(&[], 1)?;
    answer.expect(0, "ok")?;
    anyhow::ensure!(answer.object["findings"].as_array().is_some_and(Vec::is_empty), "{}", answer.object);
    let plain = checked(Command::new(program()).args(["doctor", "--sample", "0.5"]))?;
    anyhow::ensure!(plain.lines().count() == 1 && plain.starts_with("OK: "), "{plain}");
    Ok(())
}

fn raise_limit() -> anyhow::Result<()> {
    full_table()?;
    let before = (sysctl("max")?, sysctl("buckets")?);
    let sick = doctor(&[], 10_000)?;
    sick.expect(2, "critical")?;
    let what = sick.finding("table-full")?["what"].to_string();
    anyhow::ensure!(what.contains(&format!("udp port {PORT}")), "the flow type is not named: {what}");
    anyhow::ensure!(what.contains("refused") || what.contains("thrown out"), "no loss is named: {what}");
    let remedy = sick.remedy("table-full", "Raise the limit")?.clone();
    shell(&remedy, "commands")?;
    doctor(&[], 60_000)?.expect(0, "ok")?;
    // What lasts over a reboot is what a boot would set.
    shell(&remedy, "persist")?;
    let raised = (sysctl("max")?, sysctl("buckets")?);
    state::set("nf_conntrack_max", MAX)?;
    checked(Command::new("sysctl").args(["-p", "/etc/sysctl.d/90-ctwatch-limit.conf"]))?;
    anyhow::ensure!(
        (sysctl("max")?, sysctl("buckets")?) == raised,
        "the file does not set what the commands set"
    );
    shell(&remedy, "undo")?;
    anyhow::ensure!((sysctl("max")?, sysctl("buckets")?) == before, "undo left another state");
    no_files_left()?;
    doctor(&[], 110_000)?.expect(2, "critical")
}

fn notrack(tool: &str) -> anyhow::Result<()> {
    full_table()?;
    if tool.contains("iptables") && checked(Command::new("iptables").arg("-V")).is_err() {
        return Err(Skip("this guest has no iptables".into()).into());
    }
    let rules = || checked(Command::new("nft").args(["-s", "list", "ruleset"]));
    let before = rules()?;
    let file = fs::read_to_string("/etc/nftables.conf")?;
    let sick = doctor(&[], 10_000)?;
    sick.expect(2, "critical")?;
    let remedy = sick.remedy("table-full", tool)?.clone();
    shell(&remedy, "commands")?;
    shell(&remedy, "persist")?;
    // What is in the table stays until it runs out, which this guest's timeouts put off.
    checked(Command::new("conntrack").arg("-F"))?;
    let sent =
        udp::send(Flows::new(Family::V4, 500))?.passed + udp::send(Flows::new(Family::V6, 500))?.passed;
    anyhow::ensure!(sent == 1000, "only {sent} of 1000 untracked flows passed");
    let count = witness::count(&init())?;
    anyhow::ensure!(count == 0, "{count} entries in spite of notrack");
    doctor(&[], 60_000)?.expect(0, "ok")?;
    shell(&remedy, "undo")?;
    let tracked = udp::send(Flows::new(Family::V4, 50))?.passed;
    anyhow::ensure!(witness::count(&init())? == tracked, "undo did not bring tracking back");
    if tool.contains("nft") {
        anyhow::ensure!(rules()? == before, "undo left other rules: {}", rules()?);
        anyhow::ensure!(fs::read_to_string("/etc/nftables.conf")? == file, "undo left another file");
    }
    Ok(())
}

fn shorter_timeout() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    // Entries with this much left are, under the timeout set afterwards, entries silent for 15 s.
    state::set("nf_conntrack_udp_timeout", 15)?;
    udp::send(Flows::new(Family::V4, MAX))?;
    state::set("nf_conntrack_udp_timeout", 30)?;
    let sick = doctor(&["--all"], 0)?;
    if sick.finding("long-timeouts").is_err() && sick.object.to_string().contains("not_seen") {
        return Err(Skip("this kernel lets nobody see the table's entries".into()).into());
    }
    let finding = sick.finding("long-timeouts")?;
    let gone = finding["evidence"]["would_be_gone"]["value"].as_u64().unwrap_or(0);
    anyhow::ensure!(gone > u64::from(MAX) * 9 / 10, "only {gone} of {MAX} would be gone: {finding}");
    let remedy = sick.remedy("long-timeouts", "udp_timeout")?.clone();
    shell(&remedy, "commands")?;
    anyhow::ensure!(sysctl("udp_timeout")? == 10, "the command did not set it");
    let cured = doctor(&["--all"], 0)?;
    anyhow::ensure!(cured.finding("long-timeouts").is_err(), "it is still found: {}", cured.object);
    shell(&remedy, "persist")?;
    state::set("nf_conntrack_udp_timeout", 30)?;
    checked(Command::new("sysctl").args(["-p", "/etc/sysctl.d/90-ctwatch-udp_timeout.conf"]))?;
    anyhow::ensure!(sysctl("udp_timeout")? == 10, "the file does not set what the command set");
    shell(&remedy, "undo")?;
    anyhow::ensure!(sysctl("udp_timeout")? == 30, "undo left another timeout");
    no_files_left()?;
    Ok(())
}

/// What fills another namespace is cured from here, by commands that reach into it.
fn other_namespace() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    let space = Space::create("crowded")?;
    state::fresh(&space)?;
    let fill = |flows: Flows| space.enter(|| udp::send(flows));
    fill(Flows::new(Family::V4, MAX))?;
    let rules = || checked(space.command("nft").args(["-s", "list", "ruleset"]));
    let before = rules()?;
    let sick = doctor(&[], 0)?;
    sick.expect(2, "critical")?;
    let found = sick.object["findings"][0].clone();
    anyhow::ensure!(
        found["evidence"]["netns"]["value"] == space.inode,
        "another namespace is blamed: {found}"
    );
    let remedy = &found["remedies"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|remedy| remedy["what"].as_str().is_some_and(|what| what.ends_with("with nft")))
        .with_context(|| format!("no rules by nft: {found}"))?;
    shell(remedy, "commands")?;
    checked(space.command("conntrack").arg("-F"))?;
    fill(Flows::new(Family::V4, 100))?;
    anyhow::ensure!(witness::count(&space)? == 0, "{} entries in spite of notrack", witness::count(&space)?);
    doctor(&[], 0)?.expect(0, "ok")?;
    shell(remedy, "undo")?;
    anyhow::ensure!(rules()? == before, "undo left other rules: {}", rules()?);
    space.delete()
}

/// Few buckets for many entries, as old advice has it.
fn more_buckets() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::buckets(1024)?;
    state::set("nf_conntrack_max", 32_768)?;
    udp::send(Flows::new(Family::V4, 4096))?;
    let before = sysctl("buckets")?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    let remedy = sick.remedy("long-chains", "bucket")?.clone();
    shell(&remedy, "commands")?;
    shell(&remedy, "persist")?;
    doctor(&[], 0)?.expect(0, "ok")?;
    shell(&remedy, "undo")?;
    anyhow::ensure!(sysctl("buckets")? == before, "undo left {} buckets, not {before}", sysctl("buckets")?);
    Ok(())
}

/// 2 means critical to a monitoring system, so wrong usage must be 3.
fn wrong_usage() -> anyhow::Result<()> {
    for args in [
        &["doctor", "--no-such-flag"][..],
        &["doctor", "explain", "no-such-finding"],
        &["doctor", "--from", "/no/file"],
    ] {
        let output = Command::new(program()).args(args).output()?;
        anyhow::ensure!(output.status.code() == Some(3) && !output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    Ok(())
}

/// Rules first, then modules in the printed order; it stays off; the undo brings rules and tracking back.
fn switch_off() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::rules(
        &init(),
        "table inet watched {
           chain out { type filter hook output priority 0; ct state new counter; meta l4proto tcp counter; }
         }
         table ip nat {
           chain postrouting { type nat hook postrouting priority 100; oifname \"none\" masquerade; }
         }",
    )?;
    let rules = || checked(Command::new("nft").args(["-s", "list", "ruleset"]));
    let before = rules()?;
    let answer = doctor(&["--all"], 0)?;
    let Ok(remedy) = answer.remedy("module-holders", "Switch") else {
        anyhow::bail!("nothing says how to switch it off: {}", answer.object);
    };
    if fs::metadata("/sys/module/nf_conntrack/initstate").is_err() {
        return Err(Skip("connection tracking is part of this kernel".into()).into());
    }
    shell(remedy, "commands")?;
    anyhow::ensure!(!modules::present(), "nf_conntrack is still there");
    let left = rules()?;
    anyhow::ensure!(
        left.contains("tcp") && !left.contains("ct state"),
        "other rules went, or stateful ones stayed: {left}"
    );
    doctor(&[], 0)?.expect(0, "ok")?;
    anyhow::ensure!(!modules::present(), "doctor loaded it again");
    shell(remedy, "persist")?;
    stays_off()?;
    shell(remedy, "undo")?;
    anyhow::ensure!(modules::present(), "undo did not bring tracking back");
    anyhow::ensure!(rules()? == before, "undo left other rules: {}", rules()?);
    no_files_left()?;
    modules::load()
}

/// A rule that needs tracking is refused, and loads nothing, with the modprobe that distributions have.
fn stays_off() -> anyhow::Result<()> {
    const HELPER: &str = "/proc/sys/kernel/modprobe";
    checked(Command::new("/opt/kmod/depmod").arg("-a"))?;
    let before = fs::read_to_string(HELPER)?;
    fs::write(HELPER, "/opt/kmod/modprobe")?;
    let words = ["add", "rule", "inet", "watched", "out", "ct", "state", "new"];
    let added = Command::new("nft").args(words).stderr(Stdio::null()).status();
    fs::write(HELPER, before.trim())?;
    anyhow::ensure!(!added?.success() && !modules::present(), "a rule brought connection tracking back");
    Ok(())
}

/// The same with rules of the older interface.
fn switch_off_legacy() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::rules(&init(), "")?;
    let add = |rule: &str| {
        let words = ["-t"].into_iter().chain(rule.split_whitespace());
        checked(Command::new("iptables-legacy").args(words))
    };
    if let Err(error) = add("filter -A OUTPUT -m conntrack --ctstate INVALID -j DROP") {
        return Err(Skip(format!("no rules of the older interface here: {error:#}")).into());
    }
    add("nat -A POSTROUTING -o none -j MASQUERADE")?;
    let rules = || -> anyhow::Result<Vec<String>> {
        let saved = checked(&mut Command::new("iptables-legacy-save"))?;
        Ok(saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect())
    };
    let before = rules()?;
    let answer = doctor(&["--all"], 0)?;
    if fs::metadata("/sys/module/nf_conntrack/initstate").is_err() {
        return Err(Skip("connection tracking is part of this kernel".into()).into());
    }
    let remedy = answer.remedy("module-holders", "Switch")?;
    shell(remedy, "commands")?;
    anyhow::ensure!(!modules::present(), "nf_conntrack is still there");
    doctor(&["--all"], 0)?.expect(0, "ok")?;
    anyhow::ensure!(!modules::present(), "doctor loaded it again");
    shell(remedy, "persist")?;
    shell(remedy, "undo")?;
    anyhow::ensure!(modules::present(), "undo did not bring tracking back");
    let after = rules()?;
    anyhow::ensure!(before.iter().all(|rule| after.contains(rule)), "undo left {after:?}, not {before:?}");
    add("filter -F")?;
    add("nat -F")?;
    no_files_left()?;
    modules::load()
}
