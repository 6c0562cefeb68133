//! A full table: evictions and refusals equal the kernel's counters and what the senders were told.

use std::time::{Duration, Instant};

use super::super::bench::floor::Floor;
use super::super::ctwatch::{self, PATIENCE};
use super::super::traffic::tcp::{self, End, Held};
use super::super::traffic::{Family, Flows, spread, udp};
use super::super::trial::Trial;
use super::super::witness;
use super::super::{modules, state};
use super::{Scenario, Skip, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("full::unassured", || unassured(1000, 20_000)),
    scenario("full::unassured_few_buckets", few_buckets),
    scenario("full::assured", assured),
    scenario("full::mixed", mixed),
    scenario("full::pressure", pressure),
    scenario("full::beside_another", beside_another),
];

/// Nothing in the table is ASSURED. An entry is hashed into two of 65,536 buckets and early_drop looks at eight, so
/// most newcomers find nobody to evict: both outcomes are many.
pub(super) fn unassured(max: u32, flows: u32) -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || state::set("nf_conntrack_max", max))?;
    let mut sent = spread(Flows::new(Family::V4, flows), 2, udp::send)?;
    sent += spread(Flows::new(Family::V6, flows / 2), 2, udp::send)?;
    let finding = trial.finish()?;
    finding.equal("inserts", finding.totals.sum("insert"), sent.passed)?;
    finding.equal("drop.table_full and refusals", finding.totals.sum("drop.table_full"), sent.refused)?;
    finding.equal(
        "drop.table_full and the kernel's drop",
        finding.totals.sum("drop.table_full"),
        finding.kernel("drop"),
    )?;
    if finding.totals.silence.tells("ipv4", "drop.table_full") {
        let v4 = finding.get(Family::V4, 17, "insert") + finding.get(Family::V4, 17, "drop.table_full");
        finding.equal("IPv4 newcomers", v4, u64::from(flows))?;
    }
    anyhow::ensure!(sent.refused > 0, "nothing was refused: the table was never full");
    anyhow::ensure!(finding.kernel("early_drop") > 0, "nothing was evicted: {}", finding.sides(0));
    Ok(())
}

/// With few buckets early_drop always finds victims, often several at once.
pub(super) fn few_buckets() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || {
        state::buckets(512)?;
        state::set("nf_conntrack_max", 2000)
    })?;
    let sent = spread(Flows::new(Family::V4, 20_000), 2, udp::send)?;
    let finding = trial.finish()?;
    finding.equal("inserts", finding.totals.sum("insert"), sent.passed)?;
    finding.equal("drop.table_full and refusals", finding.totals.sum("drop.table_full"), sent.refused)?;
    anyhow::ensure!(finding.kernel("early_drop") > 10_000, "few evictions: {}", finding.sides(0));
    Ok(())
}

/// Somebody else's program comes to the function where removals are seen, and goes again: the stack that tells who
/// asked for a removal is laid out differently meanwhile (BPF trampolines, 5.5 to 7.3).
fn beside_another() -> anyhow::Result<()> {
    const REMOVAL: &str = "__nf_ct_delete_from_lists";
    const EACH: u32 = 4000;
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source looks at no stack".to_owned()).into());
    }
    modules::load()?;
    // Shown by running, since no kernel says that it can: a trampoline on a module's function (5.11).
    if let Err(why) = Floor::on(&[(REMOVAL, true)]) {
        return Err(Skip(format!("no trampoline on {REMOVAL}: {why:#}")).into());
    }
    let space = init();
    let trial = Trial::start(&[&space], &[], || {
        state::buckets(512)?;
        state::set("nf_conntrack_max", 1000)
    })?;
    let flood = |lot| spread(Flows::new(Family::V4, EACH).from(lot * EACH), 2, udp::send);
    let mut sent = flood(0)?;
    let mut seen = 0;
    for (lot, hooks) in
        (1..).zip([&[(REMOVAL, true)][..], &[(REMOVAL, false)], &[(REMOVAL, true), (REMOVAL, false)]])
    {
        let other = Floor::on(hooks)?;
        sent += flood(lot)?;
        seen += other.counts()?.iter().sum::<u64>();
    }
    sent += flood(4)?;
    let finding = trial.finish()?;
    anyhow::ensure!(seen > u64::from(EACH), "the other programs saw only {seen} removals");
    finding.equal("inserts", finding.totals.sum("insert"), sent.passed)?;
    finding.equal("evicted", finding.totals.sum("delete.early_drop"), finding.kernel("early_drop"))?;
    finding.equal("for no known reason", finding.totals.sum("delete.other"), 0)
}

/// All entries are ASSURED and open: every newcomer is refused, nobody is evicted.
fn assured() -> anyhow::Result<()> {
    const MAX: u32 = 200;
    let space = init();
    let trial = Trial::start(&[&space], &[], || state::set("nf_conntrack_max", MAX))?;
    let mut held = Held::default();
    let opened = tcp::hold(Flows::new(Family::V4, MAX), &mut held)?;
    let mut sent = spread(Flows::new(Family::V4, 3000), 2, udp::send)?;
    sent += spread(Flows::new(Family::V6, 2000), 2, udp::send)?;
    let finding = trial.finish()?;
    finding.equal("TCP inserts", finding.get(Family::V4, 6, "insert"), opened.passed)?;
    finding.equal("refused by the full table", sent.refused, 5000)?;
    finding.row(Family::V4, 17, "drop.table_full", 3000)?;
    finding.row(Family::V6, 17, "drop.table_full", 2000)?;
    finding.equal("drops", finding.totals.sum("drop.table_full"), 5000)?;
    finding.equal("the kernel's drops", finding.kernel("drop"), 5000)?;
    finding.equal(
        "UDP inserts",
        finding.get(Family::V4, 17, "insert") + finding.get(Family::V6, 17, "insert"),
        0,
    )?;
    finding.equal("deletes", finding.totals.sum("delete"), 0)
}

/// Half of the table is ASSURED: the other half is evicted, the first half stays.
fn mixed() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || {
        state::buckets(512)?;
        state::set("nf_conntrack_max", 400)
    })?;
    let mut held = Held::default();
    let opened = tcp::hold(Flows::new(Family::V6, 200), &mut held)?;
    let sent = spread(Flows::new(Family::V4, 5000), 2, udp::send)?;
    let finding = trial.finish()?;
    finding.equal("TCP inserts", finding.get(Family::V6, 6, "insert"), opened.passed)?;
    finding.equal("TCP evictions", finding.get(Family::V6, 6, "early_drop"), 0)?;
    finding.row(Family::V4, 17, "insert", sent.passed)?;
    finding.equal("inserts", finding.totals.sum("insert"), opened.passed + sent.passed)?;
    finding.equal(
        "UDP evictions",
        finding.get(Family::V4, 17, "early_drop"),
        finding.kernel("early_drop"),
    )?;
    finding.row(Family::V4, 17, "drop.table_full", sent.refused)?;
    finding.equal("refusals", finding.totals.sum("drop.table_full"), sent.refused)
}

/// Closing connections fill the table. They are ASSURED, so early_drop leaves them alone and refuses the newcomer;
/// that tells the collector to evict while the table is at 95 % or more. No counter of the kernel's shows these.
fn pressure() -> anyhow::Result<()> {
    const MAX: u32 = 200;
    let space = init();
    let mut trial = Trial::start(&[&space], &[], || state::set("nf_conntrack_max", MAX))?;
    let closed = tcp::connections(Flows::new(Family::V4, MAX), End::Close)?;
    // Less, where a refusal of an earlier scenario still had the collector look for victims.
    let full = witness::count(&space)?;
    anyhow::ensure!(full <= u64::from(MAX), "{full} of {MAX} entries before the pressure");
    let mut sent = udp::send(Flows::new(Family::V4, 10))?;
    let mut next = 10;
    let start = Instant::now();
    // With timeouts this long the collector's rounds are up to a minute apart (since 5.16), and only a refusal
    // since its last round makes it look for victims.
    while witness::count(&space)? >= u64::from(MAX) {
        anyhow::ensure!(
            start.elapsed() < PATIENCE * 3,
            "the collector evicted nothing in {:?}",
            start.elapsed()
        );
        trial.watch.wait_object("the next object", |_| true)?;
        sent += udp::send(Flows::new(Family::V4, 1).from(next))?;
        next += 1;
    }
    // Ends once the collector has brought the table below 95 %, and then nothing moves.
    super::super::wait::until("the end of the collector's round", Duration::from_secs(30), || {
        let count = witness::count(&space)?;
        Ok(if count < u64::from(MAX) * 95 / 100 + sent.passed {
            Ok(())
        } else {
            Err(format!("{count} entries"))
        })
    })?;
    let finding = trial.finish()?;
    finding.equal("TCP inserts", finding.get(Family::V4, 6, "insert"), closed.passed)?;
    finding.equal("refusals", finding.totals.sum("drop.table_full"), sent.refused)?;
    let left = witness::listed(&space, "ipv4")?.get(&6).copied().unwrap_or(0);
    let evicted = closed.passed - left;
    anyhow::ensure!(evicted > 0, "the collector took no TCP entry: {}", finding.sides(0));
    finding.row(Family::V4, 6, "delete.pressure", evicted)?;
    finding.equal("TCP deletes", finding.get(Family::V4, 6, "delete"), evicted)?;
    finding.equal("early_drop", finding.totals.sum("early_drop"), 0)
}
