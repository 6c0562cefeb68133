//! Timeouts and buckets that fit badly.

use std::process::Command;

use anyhow::Context as _;

use super::super::super::space::checked;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::trial::equal;
use super::super::super::{modules, state, witness};
use super::super::{Skip, init};
use super::{MAX, configuration_folders, doctor, no_files_left, shell, sysctl};

/// The name under which Debian links /etc/sysctl.conf; all files are applied in the order of their names.
const OTHER_FILE: &str = "/etc/sysctl.d/99-sysctl.conf";

pub(super) fn shorter_timeout() -> anyhow::Result<()> {
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
    std::fs::write(OTHER_FILE, "net.netfilter.nf_conntrack_udp_timeout = 20\n")?;
    let in_order = r#"set -e; for file in /etc/sysctl.d/*.conf; do sysctl -p "$file"; done"#;
    checked(Command::new("sh").args(["-c", in_order]))?;
    std::fs::remove_file(OTHER_FILE)?;
    anyhow::ensure!(sysctl("udp_timeout")? == 10, "another file won, or this one sets something else");
    shell(&remedy, "undo")?;
    anyhow::ensure!(sysctl("udp_timeout")? == 30, "undo left another timeout");
    no_files_left()?;
    Ok(())
}

/// So few buckets that chains, and not the limit, end the table. The kernel counts what it refuses.
pub(super) fn chains() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    let kernel = || -> anyhow::Result<Option<u64>> { Ok(witness::Stats::read(&init())?.get("chaintoolong")) };
    if kernel()?.is_none() {
        return Err(Skip("this kernel has no limit on chains (it came with 5.15)".into()).into());
    }
    state::buckets(512)?;
    let sent = udp::send(Flows::new(Family::V4, 30_000))?;
    anyhow::ensure!(sent.refused > 0, "no chain got too long");
    let before = kernel()?.unwrap_or(0);
    let sick = doctor(&["--all"], 100_000)?;
    let grown = kernel()?.unwrap_or(0) - before;
    sick.expect(1, "warning")?;
    let finding = sick.finding("chain-too-long")?;
    let told = finding["evidence"]["chaintoolong"]["value"].as_u64().unwrap_or(0);
    anyhow::ensure!(told > 0 && told <= grown, "{told} told, {grown} counted by the kernel: {finding}");
    let what = finding["what"].as_str().unwrap_or_default();
    anyhow::ensure!(what.contains("the table ends at about"), "where the table ends is not told: {what}");
    // Other scenarios had races.
    if let Ok(races) = sick.finding("insert-failed") {
        anyhow::ensure!(races["evidence"]["live"]["value"] == 0, "long chains are told as races: {races}");
    }
    let remedy = sick.remedy("chain-too-long", "bucket")?.clone();
    shell(&remedy, "commands")?;
    let before = kernel()?;
    doctor(&[], 160_000)?.expect(0, "ok")?;
    anyhow::ensure!(kernel()? == before, "chains are still too long");
    shell(&remedy, "undo")?;
    state::fresh(&init())
}

/// Few buckets for many entries, as old advice has it.
pub(super) fn more_buckets() -> anyhow::Result<()> {
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

/// A file asks for a larger table than the kernel has; then another file is applied after it.
pub(super) fn limit_not_applied() -> anyhow::Result<()> {
    const FILE: &str = "/etc/sysctl.d/90-x.conf";
    const LATER: &str = "/etc/sysctl.d/95-y.conf";
    const WANTED: u64 = 524_288;
    let set = |file: &str, value: u64| {
        std::fs::write(file, format!("net.netfilter.nf_conntrack_max = {value}\n")).context(file.to_owned())
    };
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    let before = sysctl("max")?;
    set(FILE, WANTED)?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    let evidence = &sick.finding("limit-not-applied")?["evidence"];
    equal("configured", evidence["configured"]["value"].as_u64(), Some(WANTED))?;
    equal("in force", evidence["in_force"]["value"].as_u64(), Some(before))?;
    equal("its file", evidence["configured"]["from"].as_str(), Some(FILE))?;
    let remedy = sick.remedy("limit-not-applied", "nf_conntrack_max")?.clone();
    shell(&remedy, "commands")?;
    equal("in force after the remedy", sysctl("max")?, WANTED)?;
    doctor(&[], 0)?.expect(0, "ok")?;

    set(LATER, before)?;
    checked(Command::new("sysctl").args(["-p", LATER]))?;
    let overruled = doctor(&[], 0)?;
    overruled.expect(1, "warning")?;
    let meaning = overruled.finding("limit-not-applied")?["meaning"].as_str().unwrap_or_default();
    anyhow::ensure!(meaning.contains("95-y.conf is applied after it"), "{meaning}");
    let remedy = overruled.remedy("limit-not-applied", "nf_conntrack_max")?.clone();
    shell(&remedy, "persist")?;
    let in_order = r#"set -e; for file in /etc/sysctl.d/*.conf; do sysctl -p "$file"; done"#;
    checked(Command::new("sh").args(["-c", in_order]))?;
    equal("in force after all files", sysctl("max")?, WANTED)?;
    doctor(&[], 0)?.expect(0, "ok")?;
    shell(&remedy, "undo")?;
    equal("in force after undo", sysctl("max")?, before)?;
    std::fs::remove_file(FILE)?;
    std::fs::remove_file(LATER)?;
    no_files_left()
}

/// A bridge that hands its packets to netfilter, where no rule waits for them, is no trouble.
pub(super) fn bridge() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    checked(Command::new("modprobe").arg("br_netfilter"))?;
    std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")?;
    checked(Command::new("ip").args(["link", "add", "name", "quiet", "up", "type", "bridge"]))?;
    state::rules(&init(), "")?;
    let answers = (doctor(&[], 0), doctor(&["--all"], 0));
    checked(Command::new("ip").args(["link", "del", "quiet"]))?;
    let (answer, all) = (answers.0?, answers.1?);
    let told = all.finding("tracked-by")?.to_string();
    anyhow::ensure!(told.contains("bridge-nf-call-iptables"), "{told}");
    answer.expect(0, "ok")?;
    anyhow::ensure!(answer.object["findings"].as_array().is_some_and(Vec::is_empty), "{}", answer.object);
    state::fresh(&init())
}
