//! A table that is full: a larger limit, or less in the table.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::super::super::space::{Space, checked};
use super::super::super::traffic::{Family, Flows, PORT, udp};
use super::super::super::{modules, state, wait, witness};
use super::super::{Skip, init};
use super::{MAX, configuration_folders, doctor, full_table, no_files_left, shell, sysctl};

/// The clock of the log and that of files differ by tens of milliseconds, so doctor does not know which came first
/// where a limit is set within 200 ms of a loss. People take longer to paste a command.
const ORDER: Duration = Duration::from_millis(500);

pub(super) fn raise_limit() -> anyhow::Result<()> {
    full_table()?;
    let before = (sysctl("max")?, sysctl("buckets")?);
    let sick = doctor(&[], 10_000)?;
    let lost = Instant::now();
    sick.expect(2, "critical")?;
    let what = sick.finding("table-full")?["what"].to_string();
    anyhow::ensure!(what.contains(&format!("udp port {PORT}")), "the flow type is not named: {what}");
    anyhow::ensure!(what.contains("refused") || what.contains("thrown out"), "no loss is named: {what}");
    let remedy = sick.remedy("table-full", "Raise the limit")?.clone();
    wait::passed("the time that orders a loss and a remedy", lost, ORDER)?;
    shell(&remedy, "commands")?;
    doctor(&[], 60_000)?.expect(0, "ok")?;
    // What lasts over a reboot is what a boot would set.
    shell(&remedy, "persist")?;
    let raised = (sysctl("max")?, sysctl("buckets")?);
    state::set("nf_conntrack_max", MAX)?;
    checked(Command::new("sysctl").args(["-p", "/etc/sysctl.d/zz-ctwatch-limit.conf"]))?;
    anyhow::ensure!(
        (sysctl("max")?, sysctl("buckets")?) == raised,
        "the file does not set what the commands set"
    );
    shell(&remedy, "undo")?;
    anyhow::ensure!((sysctl("max")?, sysctl("buckets")?) == before, "undo left another state");
    no_files_left()?;
    doctor(&[], 110_000)?.expect(2, "critical")
}

pub(super) fn notrack(tool: &str) -> anyhow::Result<()> {
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
    let emptied = Instant::now();
    let sent =
        udp::send(Flows::new(Family::V4, 500))?.passed + udp::send(Flows::new(Family::V6, 500))?.passed;
    anyhow::ensure!(sent == 1000, "only {sent} of 1000 untracked flows passed");
    let count = witness::count(&init())?;
    anyhow::ensure!(count == 0, "{count} entries in spite of notrack");
    only_the_past(emptied)?;
    shell(&remedy, "undo")?;
    let tracked = udp::send(Flows::new(Family::V4, 50))?.passed;
    anyhow::ensure!(witness::count(&init())? == tracked, "undo did not bring tracking back");
    if tool.contains("nft") {
        anyhow::ensure!(rules()? == before, "undo left other rules: {}", rules()?);
        anyhow::ensure!(fs::read_to_string("/etc/nftables.conf")? == file, "undo left another file");
    }
    Ok(())
}

/// After a remedy that leaves the limit as it was: what was lost before stays a warning until the question leaves it out.
fn only_the_past(remedied: Instant) -> anyhow::Result<()> {
    let warned = doctor(&[], 60_000)?;
    warned.expect(1, "warning")?;
    warned.finding("table-overflowed")?;
    doctor(&["--since", &format!("{}s", remedied.elapsed().as_secs())], 60_000)?.expect(0, "ok")
}

/// What fills another namespace is cured from here, by commands that reach into it.
pub(super) fn other_namespace() -> anyhow::Result<()> {
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
    // Nothing comes any more, and the collector thins out a full table before doctor looks.
    anyhow::ensure!([1, 2].contains(&sick.code), "nothing is wrong: {}", sick.object);
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
