//! Source NAT with fewer ports than flows.

use std::net::IpAddr;

use anyhow::Context as _;

use super::super::super::space::checked;
use super::super::super::traffic::Family;
use super::super::super::traffic::crafted::{Crafted, SYN, Segment, host};
use super::super::super::trial::equal;
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
    equal("entries by ctnetlink's list", listed(&router)?, PORTS)?;
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
    equal("entries with more ports", listed(&router)?, PORTS + u64::from(CLIENTS))?;
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

/// Entries whose answers go to the address, by `conntrack -L`.
fn listed(router: &Router) -> anyhow::Result<u64> {
    let list = checked(router.command("conntrack").args(["-L", "--reply-dst", ADDRESS]))?;
    Ok(list.lines().filter(|line| line.starts_with("tcp")).count() as u64)
}
