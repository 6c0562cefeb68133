//! What ctwatch itself takes of the machine.

use std::ops::RangeInclusive;

use super::super::bench::programs::{Statistics, runs};
use super::super::ctwatch::{PATIENCE, Watch, times_programs};
use super::super::space::Space;
use super::super::traffic::{Family, Flows, raw, udp};
use super::super::trial::{Trial, equal};
use super::super::{modules, state, wait, witness};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] =
    &[scenario("footprint::every_row", every_row), scenario("footprint::program_time", program_time)];

/// What is promised, in KiB.
const RESIDENT: u64 = 16 << 10;

/// Protocols that have no tracker of their own (IANA: unassigned), so that each is a flow type.
const UNASSIGNED: RangeInclusive<u8> = 144..=252;

/// More flow types than ctwatch has rows for: memory stays below its bound, and each flow is counted still.
fn every_row() -> anyhow::Result<()> {
    let spaces = [init(), Space::create("a")?, Space::create("b")?, Space::create("c")?, Space::create("d")?];
    let mut trial = Trial::start(&spaces.each_ref(), &[], || Ok(()))?;
    let (mut sent, mut entries) = (0, 0);
    for space in &spaces {
        sent += space.enter(one_of_each)?;
        entries += witness::count(space)?;
    }
    trial.watch.wait_sum("insert", sent)?;
    let peak = trial.watch.memory_kib("VmHWM")?;
    // A huge page would make untouched heap resident, whenever khugepaged comes by: too seldom to wait for.
    equal("huge pages allowed", trial.watch.status("THP_enabled")?.as_str(), "0")?;
    let finding = trial.finish_filtered()?;
    finding.equal("flows sent and entries", entries, sent)?;
    finding.equal("inserts", finding.totals.sum("insert"), sent)?;
    let rows = finding.totals.rows.len();
    let overflow: u64 = finding.totals.sum_in(0, "insert");
    anyhow::ensure!(overflow > 0, "{sent} flow types had room in {rows} rows");
    anyhow::ensure!(peak < RESIDENT, "{peak} KiB resident at most, with {rows} rows");
    Ok(())
}

/// One flow of each protocol number and family.
fn one_of_each() -> anyhow::Result<u64> {
    let mut passed = 0;
    for family in Family::BOTH {
        for proto in UNASSIGNED {
            passed += raw::protocol(Flows::new(family, 1), proto)?.passed;
        }
    }
    Ok(passed)
}

/// The kernel times all BPF programs only for short samples, and what happens between them is estimated from these.
fn program_time() -> anyhow::Result<()> {
    const LOT: u32 = 200;
    const FLOWS: u32 = 5000;
    modules::load()?;
    state::fresh(&init())?;
    let mut watch = Watch::start(&[])?;
    let pid = watch.pid()?.as_raw().cast_unsigned();
    let sampling = |wanted: bool| {
        let now = times_programs(pid)?;
        anyhow::Ok(if now == wanted { Ok(()) } else { Err(format!("programs are timed: {now}")) })
    };
    let mut next = 0;
    let mut more = |count: u32| {
        let flows = Flows::new(Family::V4, count).from(next);
        next += count;
        udp::send(flows)
    };
    wait::until("the end of the first sample, in which nothing happens", PATIENCE, || sampling(false))?;
    let mut sent = more(LOT)?.passed;
    wait::until("the sample that the first flows begin", PATIENCE, || sampling(true))?;
    wait::until("its end", PATIENCE, || {
        sent += more(LOT)?.passed;
        sampling(false)
    })?;
    watch.wait_sum("insert", sent)?;
    let told_before = watch.program_runs();
    let witness = Statistics::switch_on()?;
    let before = runs()?;
    sent += more(FLOWS)?.passed;
    watch.wait_sum("insert", sent)?;
    let counted = runs()? - before;
    drop(witness);
    let told = watch.program_runs() - told_before;
    anyhow::ensure!(counted >= u64::from(FLOWS), "the kernel counted only {counted} runs");
    // The sample held other flows, and their number and the runs are not read at the same moment.
    anyhow::ensure!(
        told.abs_diff(counted) <= counted / 10,
        "ctwatch estimates {told} runs, the kernel counted {counted}"
    );
    watch.stop()?;
    Ok(())
}
