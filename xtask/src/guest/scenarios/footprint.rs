//! What ctwatch itself takes of the machine.

use std::ops::RangeInclusive;

use super::super::space::Space;
use super::super::traffic::{Family, Flows, raw};
use super::super::trial::{Trial, equal};
use super::super::witness;
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario("footprint::every_row", every_row)];

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
