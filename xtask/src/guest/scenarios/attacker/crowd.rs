//! More network namespaces than ctwatch looks at, made by a user without privileges.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::super::super::attacker::Attacker;
use super::super::super::ctwatch::{Watch, run};
use super::super::super::space::Space;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::{modules, processes, state, witness};
use super::super::doctor::doctor;
use super::super::init;

/// How many ctwatch looks at, as its documentation says.
const LOOKED_AT: usize = 1024;
const CROWD: u32 = 1100;
/// Kibibytes that ctwatch may take.
const MEMORY: u64 = 64 << 10;
/// Entries in one that it does not look at.
const ENTRIES: u32 = 500;

/// What is left out is counted by every command, and doctor does not say OK.
pub(super) fn many_namespaces() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let mut attacker = Attacker::start()?;
    let last = attacker.crowd(CROWD)?;
    // A name for as long as the entries are made: the process keeps the namespace.
    let unseen = Space::attach("unseen", last)?;
    state::fresh(&unseen)?;
    let sent = unseen.enter(|| udp::send(Flows::new(Family::V4, ENTRIES)))?;
    let inode = unseen.inode;
    witness::wait_count(&unseen, sent.passed, Duration::from_secs(10))?;
    unseen.delete()?;
    let there = namespaces_of_processes()?;
    let left_out = (there - LOOKED_AT) as u64;

    let answer = doctor(&["--all", "--since", "1s"], 0)?;
    answer.expect(3, "unknown")?;
    let told = &answer.finding("namespaces-left-out")?["evidence"]["left_out"]["value"];
    anyhow::ensure!(*told == left_out, "doctor left out {told}, not {left_out} of {there}");
    let named = doctor(&["--all", "--netns", &inode.to_string()], 0)?;
    anyhow::ensure!(named.finding("namespaces-left-out").is_err(), "one that is named is looked at");

    let mut watch = Watch::start(&[])?;
    let says = |object: &Value| object["source"]["namespaces_left_out"] == left_out;
    watch.wait_object("live's number of those left out", says)?;
    let mut peak = watch.memory_kib("VmHWM")?;
    for child in processes::children(watch.pid()?)? {
        peak += processes::memory_kib(child, "VmHWM")?;
    }
    watch.stop()?;
    anyhow::ensure!(peak < MEMORY, "live and its second process took {peak} KiB");
    let table = run(&["table", "--json", "--by", "netns"])?;
    let table: Value = serde_json::from_slice(&table.stdout).context("table")?;
    anyhow::ensure!(table["namespaces_left_out"] == left_out, "table: {}", table["namespaces_left_out"]);
    Ok(())
}

fn namespaces_of_processes() -> anyhow::Result<usize> {
    let links = fs::read_dir("/proc")?.flatten().map(|entry| entry.path().join("ns/net"));
    let found: BTreeSet<PathBuf> = links.filter_map(|link| fs::read_link(link).ok()).collect();
    Ok(found.len())
}
