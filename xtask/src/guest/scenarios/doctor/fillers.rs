//! What fills a table, and what a remedy for it would really free.

use std::process::Command;

use anyhow::Context;

use super::super::super::space::checked;
use super::super::super::traffic::{Family, Flows, raw};
use super::super::super::trial::equal;
use super::super::super::{modules, state, witness};
use super::super::init;
use super::{MAX, configuration_folders, doctor, shell};

/// Segments of unknown connections, picked up in their middle: ESTABLISHED, and without any answer.
pub(super) fn picked_up() -> anyhow::Result<()> {
    const ACKS: u32 = 1500;
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    state::set("nf_conntrack_tcp_loose", 1)?;
    // As a machine has it, so that a shorter one would seem to help.
    state::set("nf_conntrack_tcp_timeout_established", 432_000)?;
    // The stack's resets would end them.
    let quiet =
        "table inet quiet { chain out { type filter hook output priority -300; tcp flags rst drop; }\n}\n";
    state::rules(&init(), &format!("{}{quiet}", state::RULES))?;
    let sent = raw::ack(Flows::new(Family::V4, ACKS), 6881)?;
    let entries = checked(Command::new("conntrack").args(["-L", "-p", "tcp", "--state", "ESTABLISHED"]))?;
    equal("established entries", u64::try_from(entries.lines().count())?, sent.passed)?;
    let soon = entries.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    anyhow::ensure!(
        soon.max().is_some_and(|left| left <= 300),
        "they live longer than unanswered ones: {entries}"
    );
    let answer = doctor(&["--all"], 0)?;
    anyhow::ensure!(
        !answer.object.to_string().contains("tcp_timeout_established="),
        "a shorter timeout frees none of them: {}",
        answer.object
    );
    state::fresh(&init())
}

/// A protocol without ports.
pub(super) fn echoes() -> anyhow::Result<()> {
    // Below 95 %, where the collector begins to evict for a while after any refusal (5.10: `gc_worker` took entries away
    // before doctor looked, because the scenario before this one had been refused).
    const ECHOES: u32 = MAX / 100 * 94;
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    raw::echo(Flows::new(Family::V6, ECHOES))?;
    let listed = witness::listed(&init(), "ipv6")?;
    equal("entries of icmpv6", listed.get(&58).copied(), Some(u64::from(ECHOES)))?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    let what = sick.finding("table-near-full")?["what"].as_str().context("no text")?;
    anyhow::ensure!(what.contains("filled by icmpv6"), "what fills the table is not named: {what}");
    let remedy = sick.remedy("table-near-full", "with nft")?.clone();
    shell(&remedy, "commands")?;
    checked(Command::new("conntrack").arg("-F"))?;
    raw::echo(Flows::new(Family::V6, 100))?;
    equal("entries in spite of notrack", witness::listed_total(&init())?, 0)?;
    shell(&remedy, "undo")?;
    raw::echo(Flows::new(Family::V6, 50))?;
    equal("entries once tracking is back", witness::listed_total(&init())?, 50)
}
