//! `ctwatch doctor`: what it finds is there, its commands cure it, and their undo brings the old state back.

mod anyway;
mod commands;
mod fillers;
mod full;
mod held;
mod kube_proxy;
mod latency;
mod off;
mod past;
mod resolver;
mod settings;
mod snat;

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::Context;
use serde_json::Value;

use super::super::ctwatch::program;
use super::super::space::checked;
use super::super::traffic::{Family, Flows, udp};
use super::super::{modules, state};
use super::{Scenario, init, scenario};

/// These need a kernel without conntrack.
pub(super) const SCENARIOS_BEFORE: &[Scenario] = &[scenario("doctor::loads_nothing", loads_nothing)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("doctor::healthy", healthy),
    scenario("doctor::no_alarm", super::invalid::calm::no_alarm),
    scenario("doctor::raise_limit", full::raise_limit),
    scenario("doctor::notrack_nft", || full::notrack("with nft")),
    scenario("doctor::notrack_iptables", || full::notrack("with iptables")),
    scenario("doctor::refused_before_the_rules", anyway::refused_before_the_rules),
    scenario("doctor::other_namespace", full::other_namespace),
    scenario("doctor::picked_up", fillers::picked_up),
    scenario("doctor::echoes", fillers::echoes),
    scenario("doctor::held", held::held),
    scenario("doctor::overflowed", past::overflowed),
    scenario("doctor::expectations_logged", past::expectations_logged),
    scenario("doctor::expectations", past::expectations),
    scenario("doctor::shorter_timeout", settings::shorter_timeout),
    scenario("doctor::limit_not_applied", settings::limit_not_applied),
    scenario("doctor::kube_proxy", kube_proxy::wins),
    scenario("doctor::bridge", settings::bridge),
    scenario("doctor::snat_exhausted", snat::exhausted),
    scenario("doctor::stale_nat", snat::stale),
    scenario("doctor::stale_nat_neighbour", snat::stale_neighbour),
    scenario("doctor::chains", settings::chains),
    scenario("doctor::more_buckets", settings::more_buckets),
    scenario("doctor::resolver", resolver::one_query_at_a_time),
    scenario("doctor::notrack_dns", resolver::untracked_queries),
    scenario("doctor::latency", latency::counts_every_packet),
    scenario("doctor::latency_refused", latency::says_what_is_missing),
    scenario("doctor::every_command", commands::every_command),
    scenario("doctor::wrong_usage", wrong_usage),
    // Last: these take the rules and the module away.
    scenario("doctor::switch_off", off::switch_off),
    scenario("doctor::switch_off_objects", off::switch_off_objects),
    scenario("doctor::switch_off_legacy", off::switch_off_legacy),
];

/// The limit of the article's machine, scaled down.
const MAX: u32 = 2000;

/// What doctor answered.
pub(super) struct Answer {
    code: i32,
    object: Value,
}

impl Answer {
    pub(super) fn status(&self) -> &str {
        self.object["status"].as_str().unwrap_or_default()
    }

    pub(super) fn finding(&self, id: &str) -> anyhow::Result<&Value> {
        let mut findings = self.object["findings"].as_array().into_iter().flatten();
        findings
            .find(|finding| finding["id"] == id)
            .with_context(|| format!("no finding {id}: {}", self.object))
    }

    /// The remedy of a finding whose name holds `words`.
    pub(super) fn remedy(&self, id: &str, words: &str) -> anyhow::Result<&Value> {
        let mut remedies = self.finding(id)?["remedies"].as_array().into_iter().flatten();
        remedies
            .find(|remedy| remedy["what"].as_str().is_some_and(|what| what.contains(words)))
            .with_context(|| format!("{id} has no remedy that says “{words}”: {}", self.object))
    }

    pub(super) fn expect(&self, code: i32, status: &str) -> anyhow::Result<()> {
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
pub(super) fn doctor(args: &[&str], first: u32) -> anyhow::Result<Answer> {
    let mut next = first;
    doctor_while(args, || {
        if first > 0 && next < first + 50_000 {
            udp::send(Flows::new(Family::V4, 10).from(next))?;
            next += 10;
        }
        Ok(())
    })
}

/// Runs doctor, and `send` again and again while it looks.
pub(super) fn doctor_while(
    args: &[&str],
    mut send: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let mut child = Command::new(program())
        .args(["doctor", "--json", "--sample", "1"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start doctor")?;
    // It prints one line at its very end, so its pipe cannot fill before.
    while child.try_wait()?.is_none() {
        send()?;
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    answer(&child.wait_with_output()?)
}

/// What doctor answers to captured facts.
fn judge(facts: &str) -> anyhow::Result<Answer> {
    let mut child = Command::new(program())
        .args(["doctor", "--json", "--all", "--from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start doctor")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(facts.as_bytes())?;
    }
    answer(&child.wait_with_output()?)
}

fn answer(output: &Output) -> anyhow::Result<Answer> {
    let code = output.status.code().context("doctor was killed")?;
    let object = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("doctor: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))?;
    Ok(Answer { code, object })
}

/// Runs the commands of one list of a remedy by the shell, as they are printed.
pub(super) fn shell(remedy: &Value, list: &str) -> anyhow::Result<()> {
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
pub(super) fn configuration_folders() -> anyhow::Result<()> {
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
    let answer = doctor(&["--all", "--latency", "0.1"], 0)?;
    answer.expect(0, "ok")?;
    answer.finding("not-loaded")?;
    answer.finding("latency")?;
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
