//! Source NAT with fewer ports than flows, and destination NAT to where nobody is.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;

use super::super::super::space::checked;
use super::super::super::traffic::Family;
use super::super::super::traffic::crafted::{Crafted, SYN, Segment, host};
use super::super::super::trial::equal;
use super::super::super::wait;
use super::super::invalid::router::Router;
use super::{doctor, shell};

const RULES: &str = "table ip nat {
  chain post { type nat hook postrouting priority 100; tcp dport 80 snat to 10.77.2.1:1024-1031; }
}
";
const CLIENTS: u16 = 20;
const PORTS: u64 = 8;
const ADDRESS: &str = "10.77.2.1";

/// Of twenty clients of one server eight get through; the kernel counts the others as failed inserts.
pub(super) fn exhausted() -> anyhow::Result<()> {
    let router = Router::new()?;
    router.rules(RULES)?;
    let failed = send(&router, 1)?;
    equal("failed by the kernel's counter", failed, u64::from(CLIENTS) - PORTS)?;
    equal("entries by ctnetlink's list", listed(&router, "--reply-dst", ADDRESS)?, PORTS)?;
    let sick = doctor(&["--netns", "router"], 0)?;
    sick.expect(1, "warning")?;
    let evidence = &sick.finding("snat-exhausted")?["evidence"];
    equal("netns", evidence["netns"]["value"].as_u64(), Some(router.inode()))?;
    equal("used", evidence["used"]["value"].as_u64(), Some(PORTS))?;
    equal("of", evidence["of"]["value"].as_u64(), Some(PORTS))?;
    equal("failed", evidence["failed_since_boot"]["value"].as_u64(), Some(router.failed()?))?;
    equal("address", evidence["address"]["value"].as_str(), Some(ADDRESS))?;
    let to = format!("tcp {}:80", server());
    equal("destination", evidence["destination"]["value"].as_str(), Some(to.as_str()))?;
    let rule = evidence["rule"]["value"].as_str().context("no rule is named")?;
    anyhow::ensure!(rule.contains("10.77.2.1:1024-1031"), "another rule: {rule}");
    sick.remedy("snat-exhausted", "more addresses")?;
    anyhow::ensure!(sick.finding("insert-failed").is_err(), "flows without a port are reported as races");

    // With the remedy's rule all get through; without it the old one decides again.
    let remedy = sick.remedy("snat-exhausted", "more ports")?;
    shell(remedy, "commands")?;
    equal("failed with more ports", send(&router, 100)?, 0)?;
    equal("entries with more ports", listed(&router, "--reply-dst", ADDRESS)?, PORTS + u64::from(CLIENTS))?;
    shell(remedy, "undo")?;
    checked(router.command("conntrack").arg("-F"))?;
    equal("failed after undo", send(&router, 200)?, u64::from(CLIENTS) - PORTS)
}

fn server() -> IpAddr {
    host(Family::V4, true, 1000)
}

/// The first packet of each client; how many inserts failed.
fn send(router: &Router, first: u16) -> anyhow::Result<u64> {
    let before = router.failed()?;
    let packet = |number: u16| {
        let segment = Segment { seq: 1000, ack: 0, flags: SYN, length: 0 };
        Crafted::tcp(host(Family::V4, false, 1000 + number), server(), (40_000, 80), segment)
    };
    router.send(&(first..first + CLIENTS).map(packet).collect::<Vec<_>>())?;
    Ok(router.failed()? - before)
}

/// Entries that one end of the answers' direction selects, by `conntrack -L`.
fn listed(router: &Router, end: &str, address: &str) -> anyhow::Result<u64> {
    let list = checked(router.command("conntrack").args(["-L", end, address]))?;
    Ok(list.lines().filter(|line| line.starts_with("tcp") || line.starts_with("udp")).count() as u64)
}

const FLOWS: u16 = 500;
const OLD: &str = "10.98.0.77";
const NEW: &str = "10.98.0.78";
/// On the link, and nobody has it.
const NOBODY: &str = "10.77.2.9";

fn forward_to(router: &Router, backend: &str) -> anyhow::Result<()> {
    router.rules(&format!(
        "table ip nat {{
  chain pre {{ type nat hook prerouting priority -100; udp dport 5353 dnat to {backend}; }}
}}
"
    ))
}

/// One packet of each flow, each from a port of its own.
fn ask(router: &Router, flows: u16) -> anyhow::Result<()> {
    let packet =
        |number: u16| Crafted::udp(host(Family::V4, false, 1000), server(), (2000 + number, 5353), 16);
    router.send(&(0..flows).map(packet).collect::<Vec<_>>())
}

/// The backend goes, and the rules name another; flows that are known go on to the old one.
pub(super) fn stale() -> anyhow::Result<()> {
    let router = Router::new()?;
    forward_to(&router, OLD)?;
    ask(&router, FLOWS)?;
    equal("entries by ctnetlink's list", listed(&router, "--reply-src", OLD)?, u64::from(FLOWS))?;
    let args = ["--netns", "router"];
    let well = doctor(&args, 0)?;
    anyhow::ensure!(well.finding("stale-nat").is_err(), "the rule still leads there: {}", well.object);

    forward_to(&router, NEW)?;
    ask(&router, FLOWS)?;
    equal("entries to the old backend", listed(&router, "--reply-src", OLD)?, u64::from(FLOWS))?;
    let sick = doctor(&args, 0)?;
    sick.expect(1, "warning")?;
    let evidence = &sick.finding("stale-nat")?["evidence"];
    equal("netns", evidence["netns"]["value"].as_u64(), Some(router.inode()))?;
    equal("entries", evidence["entries"]["value"].as_u64(), Some(FLOWS.into()))?;
    equal("unanswered", evidence["unanswered"]["value"].as_u64(), Some(FLOWS.into()))?;
    equal("sent to", evidence["sent_to"]["value"].as_str(), Some(format!("{OLD}:5353").as_str()))?;
    shell(sick.remedy("stale-nat", OLD)?, "commands")?;
    equal("entries after the remedy", listed(&router, "--reply-src", OLD)?, 0)?;
    ask(&router, FLOWS)?;
    equal("entries to the new backend", listed(&router, "--reply-src", NEW)?, u64::from(FLOWS))
}

/// The rule stays, and its backend answers no more.
pub(super) fn stale_neighbour() -> anyhow::Result<()> {
    const FEW: u16 = 20;
    let router = Router::new()?;
    forward_to(&router, NOBODY)?;
    ask(&router, FEW)?;
    equal("entries by ctnetlink's list", listed(&router, "--reply-src", NOBODY)?, u64::from(FEW))?;
    wait::until("the neighbour to fail", Duration::from_secs(30), || {
        let shown = checked(router.command("ip").args(["neigh", "show", NOBODY]))?;
        Ok(if shown.contains("FAILED") { Ok(()) } else { Err(shown) })
    })?;
    let sick = doctor(&["--netns", "router"], 0)?;
    sick.expect(1, "warning")?;
    let finding = sick.finding("stale-nat")?;
    equal("entries", finding["evidence"]["entries"]["value"].as_u64(), Some(FEW.into()))?;
    equal("a rule leads there", finding["evidence"]["a_rule_leads_there"]["value"].as_bool(), Some(true))?;
    let remedy = sick.remedy("stale-nat", NOBODY)?;
    anyhow::ensure!(remedy["left_out"][0].as_str().is_some_and(|left| left.contains("the rule")), "{remedy}");
    shell(remedy, "commands")?;
    equal("entries after the remedy", listed(&router, "--reply-src", NOBODY)?, 0)
}
