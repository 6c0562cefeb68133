//! What `trace` tells of entries beyond their tuples: how a clash ended, their zone, their age.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::super::super::space::checked;
use super::super::super::traffic::{Family, Flows, clash, udp};
use super::super::super::trial::equal;
use super::super::super::witness::Stats;
use super::super::super::{modules, state};
use super::super::clash::{long_way, race};
use super::super::{Skip, init};
use super::run::{begin, by_key, check_udp};

/// Two packets of a flow that raced, and both lived: told once, with the flow.
pub(super) fn clash_resolve() -> anyhow::Result<()> {
    let (space, trace, before) = begin(&["--events", "all", "--max-events", "1000000"], 262_144, 65_536)?;
    state::rules(&space, &(state::RULES.to_owned() + &long_way("udp")))?;
    let flows = race("clash_resolve", |lot| clash::udp_pairs(lot).map(drop))?;
    let kernel = Stats::read(&space)?.since(&before);
    let told = trace.stop()?;
    equal("shown and lost", told.suppressed, 0)?;
    let resolved = by_key(told.of("clash_resolve"))?;
    let inserts = by_key(told.of("insert"))?;
    told.covers("insert", flows)?;
    if told.lost == 0 {
        equal("clash_resolve", Some(resolved.len() as u64), kernel.get("clash_resolve"))?;
    }
    for (target, event) in &resolved {
        check_udp(event)?;
        equal("reason", event["reason"].as_str(), Some("merged"))?;
        anyhow::ensure!(told.lost > 0 || inserts.contains_key(target), "nobody won: {event}");
    }
    Ok(())
}

/// A zone that a rule gives is told of victims, newcomers, the refused and what came in.
pub(super) fn zone() -> anyhow::Result<()> {
    const ZONE: u64 = 7;
    let (space, trace, _) = begin(&["--events", "all", "--max-events", "1000000"], 100, 4096)?;
    let rules = format!(
        "table ip zone {{\n chain out {{ type filter hook output priority -300; ct zone set {ZONE}; }}\n}}\n"
    );
    state::rules(&space, &(state::RULES.to_owned() + &rules))?;
    let sent = udp::send(Flows::new(Family::V4, 300))?;
    let listed = checked(space.command("conntrack").args(["-L", "-w", &ZONE.to_string()]))?;
    let told = trace.stop()?;
    told.covers("insert", sent.passed)?;
    if told.lost == 0 {
        let left = told.count("insert") - told.count("early_drop");
        equal("entries of the zone and conntrack -L", left, listed.lines().count() as u64)?;
        equal("drops", told.count("drop"), sent.refused)?;
    }
    anyhow::ensure!(told.count("early_drop") > 0 && told.count("drop") > 0, "the table was never full");
    for event in &told.events {
        equal("zone", event["zone"].as_u64(), Some(ZONE)).with_context(|| event.to_string())?;
        let newcomer = &event["newcomer"];
        if !newcomer.is_null() {
            equal("zone of the newcomer", newcomer["zone"].as_u64(), Some(ZONE))?;
        }
    }
    Ok(())
}

/// How long an entry was in the table, between what our own clock said before and after.
pub(super) fn age() -> anyhow::Result<()> {
    const FLOWS: u32 = 30;
    modules::load()?;
    let switch = |on| state::set("nf_conntrack_timestamp", on);
    let flush = || checked(init().command("conntrack").arg("-F"));
    let (_, trace, _) = begin(&["--events", "all"], 10_000, 4096)?;
    switch(1)?;
    let first = SystemTime::now();
    udp::send(Flows::new(Family::V4, FLOWS))?;
    let sent = SystemTime::now();
    // Old enough to be told from an age that was never read.
    thread::sleep(Duration::from_millis(300));
    let before = SystemTime::now();
    flush()?;
    let after = SystemTime::now();
    switch(0)?;
    udp::send(Flows::new(Family::V6, FLOWS))?;
    flush()?;
    let told = trace.stop()?;
    told.covers("delete", u64::from(2 * FLOWS))?;
    let ages: Vec<_> =
        told.of("delete").filter(|event| event["family"] == "ipv4").map(|event| &event["age_s"]).collect();
    if ages.iter().all(|age| age.is_null()) && !std::path::Path::new("/sys/kernel/btf/nf_conntrack").exists()
    {
        return Err(Skip("no type information of the module, which says where the time is".to_owned()).into());
    }
    let (least, most) = (before.duration_since(sent)?, after.duration_since(first)?);
    for age in ages {
        let age = Duration::from_secs_f64(age.as_f64().with_context(|| format!("age {age}"))?);
        anyhow::ensure!(
            least <= age && age <= most,
            "age {age:?}, but it was between {least:?} and {most:?}"
        );
    }
    for event in told.events.iter().filter(|event| event["family"] == "ipv6" || event["event"] == "insert") {
        anyhow::ensure!(event["age_s"].is_null(), "an age where the kernel keeps none: {event}");
    }
    Ok(())
}
