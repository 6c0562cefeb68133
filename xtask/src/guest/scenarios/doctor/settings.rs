//! Timeouts and buckets that fit badly.

use std::process::Command;

use super::super::super::space::checked;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::{modules, state};
use super::super::{Skip, init};
use super::{MAX, configuration_folders, doctor, no_files_left, shell, sysctl};

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
    checked(Command::new("sysctl").args(["-p", "/etc/sysctl.d/90-ctwatch-udp_timeout.conf"]))?;
    anyhow::ensure!(sysctl("udp_timeout")? == 10, "the file does not set what the command set");
    shell(&remedy, "undo")?;
    anyhow::ensure!(sysctl("udp_timeout")? == 30, "undo left another timeout");
    no_files_left()?;
    Ok(())
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
