//! A full table that refuses what the rules would drop anyway.

use std::net::IpAddr;

use anyhow::Context as _;

use super::super::super::space::checked;
use super::super::super::state;
use super::super::super::traffic::crafted::{Crafted, host};
use super::super::super::traffic::tcp::{self, Held};
use super::super::super::traffic::{Family, Flows};
use super::super::super::trial::equal;
use super::super::invalid::router::Router;
use super::{Answer, doctor_while, shell};

const RULES: &str = "table inet filter {
  chain input { type filter hook input priority 0; ct state established accept; udp dport 9999 counter drop; }
}
";
/// Addresses that `Router` gives the router and everybody else on its first side.
const ROUTER: &str = "10.77.1.1";
const MAX: u32 = 200;
const PACKETS: u16 = 1000;
/// Sent at once while doctor looks.
const LOT: u16 = 20;

/// The remedy that is printed keeps the same packets from asking for a place, and drops each of them.
pub(super) fn refused_before_the_rules() -> anyhow::Result<()> {
    let router = Router::new()?;
    router.rules(RULES)?;
    state::set("nf_conntrack_max", MAX)?;
    let mut held = Held::default();
    let opened = router.enter(|| tcp::hold(Flows::new(Family::V4, MAX), &mut held))?;
    equal("entries that are ASSURED", assured(&router)?, opened.passed)?;
    equal("refused by the kernel's counter", refused_of(&router, 0)?, u64::from(PACKETS))?;

    let full = |args: &[&str]| -> anyhow::Result<(Answer, u64)> {
        let (before, mut sent) = (router.stat("drop")?, 0_u16);
        let sick = doctor_while(&[&["--netns", "router"], args].concat(), || {
            if sent < 10 * PACKETS {
                send(&router, PACKETS + sent, LOT)?;
                sent += LOT;
            }
            Ok(())
        })?;
        equal("refused meanwhile", router.stat("drop")? - before, u64::from(sent))?;
        sick.expect(2, "critical")?;
        let evidence = &sick.finding("table-full")?["evidence"];
        equal("namespace", evidence["netns"]["value"].as_u64(), Some(router.inode()))?;
        equal("what rules drop", evidence["dropped_by_rules"]["value"].as_str(), Some("udp port 9999"))?;
        let told = evidence["refused"]["value"].as_u64().unwrap_or(0);
        anyhow::ensure!((1..=u64::from(sent)).contains(&told), "{told} refused, {sent} sent");
        Ok((sick, told))
    };
    let (by_netlink, _) = full(&["--source", "netlink"])?;
    let meaning = by_netlink.finding("table-full")?["meaning"].as_str().unwrap_or_default();
    anyhow::ensure!(meaning.contains("this source cannot tell"), "{meaning}");
    let (sick, told) = full(&[])?;
    let found = sick.finding("table-full")?;
    let of_rules = found["evidence"]["refused_that_rules_drop"]["value"].as_u64();
    equal("refused that rules drop", of_rules, Some(told))?;
    let meaning = found["meaning"].as_str().unwrap_or_default();
    anyhow::ensure!(meaning.contains("Nobody misses them"), "{meaning}");

    let rules = || checked(router.command("nft").args(["-s", "list", "ruleset"]));
    let old = rules()?;
    let remedy = sick.remedy("table-full", "before tracking")?;
    let price = remedy["price"].as_str().unwrap_or_default();
    anyhow::ensure!(price.contains("one rule comes before"), "{price}");
    shell(remedy, "commands")?;
    equal("refused with the remedy", refused_of(&router, 0)?, 0)?;
    equal("dropped by the remedy's rule", counted(&router)?, u64::from(PACKETS))?;
    shell(remedy, "undo")?;
    anyhow::ensure!(rules()? == old, "undo left other rules: {}", rules()?);
    equal("refused after undo", refused_of(&router, 0)?, u64::from(PACKETS))?;
    drop(held);
    Ok(())
}

/// One packet of each of so many flows.
fn send(router: &Router, first: u16, flows: u16) -> anyhow::Result<()> {
    let to: IpAddr = ROUTER.parse()?;
    let packet = |number| Crafted::udp(host(Family::V4, false, 1000), to, (2000 + number, 9999), 16);
    router.send(&(first..first + flows).map(packet).collect::<Vec<_>>())
}

/// How many of 1,000 packets the kernel refused.
fn refused_of(router: &Router, first: u16) -> anyhow::Result<u64> {
    let before = router.stat("drop")?;
    send(router, first, PACKETS)?;
    Ok(router.stat("drop")? - before)
}

fn assured(router: &Router) -> anyhow::Result<u64> {
    let list = checked(router.command("conntrack").args(["-L", "-p", "tcp"]))?;
    Ok(list.lines().filter(|line| line.contains("[ASSURED]")).count() as u64)
}

/// Packets that the rule before tracking dropped.
fn counted(router: &Router) -> anyhow::Result<u64> {
    let text = checked(router.command("nft").args(["list", "table", "inet", "ctwatch_early"]))?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|word| word.parse().ok()).with_context(|| format!("nft counter: {text}"))
}
