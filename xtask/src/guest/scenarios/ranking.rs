//! Rankings: who fills the table is on top, whatever else happens.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::super::ctwatch::Totals;
use super::super::state;
use super::super::traffic::Family;
use super::super::traffic::spoofed::{self, Ends};
use super::super::trial::{Trial, equal};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("ranking::port_of_a_flood", port_of_a_flood),
    scenario("ranking::evicted_and_refused", evicted_and_refused),
    scenario("ranking::address", address),
];

/// The port that a flood goes to, and the service that it hides among others.
pub(in super::super) const CULPRIT: u16 = 6881;
/// How much ctwatch's memory may grow after a third of the flood, KiB.
const GROWTH: u64 = 64;
/// How many packets of each kind.
const FLOOD: u32 = 30_000;

/// The same sequence each time: all addresses differ, and they look like any.
fn stranger(number: u32) -> Ipv4Addr {
    // An odd factor permutes the 24 bits.
    Ipv4Addr::from(0x0a00_0000 | number.wrapping_mul(0x9e_3779) & 0xff_ffff)
}

pub(in super::super) fn flood(number: u32) -> Ends {
    Ends { src: stranger(number), sport: 1024 + (number % 60_000) as u16, dport: CULPRIT }
}

/// One that comes to a port where nobody else does, or few.
fn noise(number: u32) -> Ends {
    Ends { dport: 10_000 + (number % 50_000) as u16, ..flood(number) }
}

/// The lines of one ranking, added up over all reports.
pub(in super::super) fn ranked(totals: &Totals, by: &str, key: &str, field: &str) -> u64 {
    let lines = totals.objects.iter().flat_map(|object| object["top"].as_array().into_iter().flatten());
    lines.filter(|line| line["by"] == by && line["key"] == key).filter_map(|line| line[field].as_u64()).sum()
}

/// Each packet from another address, half of them to a port of their own: the port that the other half goes to is
/// counted to the last one, and ctwatch does not grow.
fn port_of_a_flood() -> anyhow::Result<()> {
    let space = init();
    let mut trial = Trial::start(&[&space], &[], || state::set("nf_conntrack_max", 262_144))?;
    let mut watch_memory = 0;
    let mut sent = 0;
    for lot in 0..3 {
        let numbers = lot * FLOOD / 3..(lot + 1) * FLOOD / 3;
        sent += spoofed::send(numbers.flat_map(|number| [flood(number), noise(number + FLOOD)]))?.passed;
        trial.watch.wait_sum("insert", sent)?;
        let now = trial.watch.memory_kib("RssAnon")?;
        if lot == 0 {
            watch_memory = now;
        }
        anyhow::ensure!(
            now <= watch_memory + GROWTH,
            "{now} KiB after {sent} flows, {watch_memory} after a third"
        );
    }
    let finding = trial.finish_filtered()?;
    finding.equal("inserts", finding.totals.sum("insert"), sent)?;
    let port = CULPRIT.to_string();
    finding.equal("to the port", ranked(&finding.totals, "dport", &port, "insert"), u64::from(FLOOD))?;
    for object in
        finding.totals.objects.iter().filter(|object| !object["top"].as_array().is_none_or(Vec::is_empty))
    {
        equal("the first line", object["top"][0]["key"].as_str(), Some(port.as_str()))?;
        accounted(object)?;
    }
    Ok(())
}

/// What a report ranks, and what it says that it does not, is all there was.
fn accounted(object: &Value) -> anyhow::Result<()> {
    let count = |value: &Value| value["insert"].as_u64().unwrap_or(0);
    let list = |name: &str| object[name].as_array().cloned().unwrap_or_default();
    let lines: u64 = list("top").iter().filter(|line| line["by"] == "dport").map(count).sum();
    let flows: u64 = list("flows").iter().filter(|flow| flow["proto"] == "udp").map(count).sum();
    equal("ranked and not ranked", lines + count(&object["top_rest"]["dport"]), flows)
}

/// Evictions and refusals have their port too.
fn evicted_and_refused() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || {
        state::buckets(1024)?;
        state::set("nf_conntrack_max", 1000)
    })?;
    let sent = spoofed::send((0..10_000).map(flood))?;
    let finding = trial.finish()?;
    let port = CULPRIT.to_string();
    let of_port = |field| ranked(&finding.totals, "dport", &port, field);
    finding.equal("inserted", of_port("insert"), sent.passed)?;
    finding.equal("refused", of_port("drop"), sent.refused)?;
    finding.equal("evicted", of_port("early_drop"), finding.kernel("early_drop"))?;
    finding.equal("row", finding.get(Family::V4, 17, "insert"), sent.passed)
}

/// One address among many, by `--by src,dst`.
fn address() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &["--by", "dport,src,dst"], || Ok(()))?;
    let culprit = Ipv4Addr::new(192, 0, 2, 7);
    let all = (0..6_000).flat_map(|number| {
        [flood(number), Ends { src: culprit, sport: 1024 + (number % 60_000) as u16, dport: 53 }]
    });
    let sent = spoofed::send(all)?;
    let finding = trial.finish()?;
    finding.equal("inserted", finding.get(Family::V4, 17, "insert"), sent.passed)?;
    let from = ranked(&finding.totals, "src", &culprit.to_string(), "insert");
    finding.equal("from one address", from, 6_000)?;
    let to = ranked(&finding.totals, "dst", &Ipv4Addr::LOCALHOST.to_string(), "insert");
    finding.equal("to one address", to, sent.passed)
}
