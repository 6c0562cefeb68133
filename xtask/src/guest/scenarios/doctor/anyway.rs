//! A full table that refuses what the rules would drop anyway.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::super::super::space::checked;
use super::super::super::state;
use super::super::super::traffic::crafted::{ACK, Crafted, SYN, Segment, host};
use super::super::super::traffic::tcp::{self, Held};
use super::super::super::traffic::{Family, Flows};
use super::super::super::trial::equal;
use super::super::invalid::router::Router;
use super::{Answer, doctor_while, shell};

const RULES: &str = "table inet filter {
  chain input {
    type filter hook input priority 0; ct state established accept; udp dport 9999 counter drop; tcp dport 2323 drop;
  }
}
";
const NAT: &str = "table ip nat {
  chain post { type nat hook postrouting priority 100; masquerade; }
}
";
/// Addresses that `Router` gives the router and everybody else on its first side.
const ROUTER: &str = "10.77.1.1";
const MAX: u32 = 200;
const PACKETS: u16 = 1000;
/// Sent at once while doctor looks.
const LOT: u16 = 20;
const PORT: u16 = 9999;
const TCP_PORT: u16 = 2323;

/// The remedy that is printed keeps the same packets from asking for a place, and drops each of them and no other.
pub(super) fn refused_before_the_rules() -> anyhow::Result<()> {
    let router = Router::new()?;
    router.rules(RULES)?;
    state::set("nf_conntrack_max", MAX)?;
    let mut held = Held::default();
    let opened = router.enter(|| tcp::hold(Flows::new(Family::V4, MAX), &mut held))?;
    equal("entries that are ASSURED", assured(&router)?, opened.passed)?;
    let (own, other) = (ROUTER.parse()?, host(Family::V4, true, 1000));
    for to in [own, other] {
        equal("refused by the kernel's counter", refused_of(&router, to, &udp)?, PACKETS.into())?;
    }

    let (by_netlink, _) = full(&router, &["--source", "netlink"], &[own], &udp)?;
    let meaning = meaning(&by_netlink)?;
    anyhow::ensure!(meaning.contains("this source cannot tell"), "{meaning}");
    // What is for others goes to the same port, and no input chain would have dropped it.
    let (forwarding, told) = full(&router, &[], &[own, other], &udp)?;
    of_rules(&forwarding, told, "udp port 9999, which the rules may drop anyway", "this machine forwards")?;
    with_remedy(&router, &forwarding, "dport 9999", &|| {
        equal("refused with the remedy", refused_of(&router, own, &udp)?, 0)?;
        equal("dropped by the remedy's rule", counted(&router)?, PACKETS.into())?;
        equal("refused of what is for others", refused_of(&router, other, &udp)?, PACKETS.into())?;
        equal("dropped by the remedy's rule of these", counted(&router)?, PACKETS.into())
    })?;
    equal("refused after undo", refused_of(&router, own, &udp)?, PACKETS.into())?;

    stop_forwarding(&router)?;
    let (sick, told) = full(&router, &[], &[own], &udp)?;
    of_rules(&sick, told, "udp port 9999, which the rules drop anyway", "Nobody misses them")?;
    anyhow::ensure!(remedy(&sick)?["commands"].as_array().is_some_and(|commands| commands.len() == 3));
    answers_are_not_dropped(&router, own)?;
    // What opens a connection is no answer, also where source NAT gives ports.
    router.rules(&format!("{RULES}{NAT}"))?;
    let (sick, told) = full(&router, &[], &[own], &syn)?;
    of_rules(&sick, told, "tcp port 2323, which the rules may drop anyway", "NAT leads flows")?;
    with_remedy(&router, &sick, "dport 2323", &|| {
        equal("connections refused with the remedy", refused_of(&router, own, &syn)?, 0)?;
        equal("dropped by the remedy's rule", counted(&router)?, PACKETS.into())?;
        router.send(&(0..PACKETS).map(|number| segment(own, number, SYN | ACK)).collect::<Vec<_>>())?;
        equal("dropped by the remedy's rule of answers", counted(&router)?, PACKETS.into())
    })?;
    drop(held);
    Ok(())
}

/// Where answers to flows of this machine may come to the port, no command is given.
fn answers_are_not_dropped(router: &Router, own: IpAddr) -> anyhow::Result<()> {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let none = |why: &str| -> anyhow::Result<()> {
        let (sick, _) = full(router, &[], &[own], &udp)?;
        let remedy = remedy(&sick)?;
        let empty = ["commands", "persist", "undo"].iter().all(|list| remedy[list] == json!([]));
        anyhow::ensure!(empty && remedy["left_out"].to_string().contains(why), "{remedy}");
        Ok(())
    };
    let socket = router.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    none("a program may have it open")?;
    drop(socket);
    let range = router.enter(|| Ok(fs::read_to_string(RANGE)?))?;
    router.enter(|| Ok(fs::write(RANGE, "9000 9999")?))?;
    none("net.ipv4.ip_local_port_range")?;
    router.enter(|| Ok(fs::write(RANGE, &range)?))?;
    router.rules(&format!("{RULES}{NAT}"))?;
    none("source NAT may give it to flows")?;
    router.rules(RULES)
}

/// What doctor says of a full table, while packets are refused; and how many it says were refused.
fn full(
    router: &Router,
    args: &[&str],
    to: &[IpAddr],
    packet: &dyn Fn(IpAddr, u16) -> Crafted,
) -> anyhow::Result<(Answer, u64)> {
    let (before, mut sent, mut lots) = (router.stat("drop")?, 0, 0);
    let sick = doctor_while(&[&["--netns", "router"], args].concat(), || {
        if lots < 500 {
            let first = PACKETS + LOT * lots;
            for to in to {
                router.send(&(first..first + LOT).map(|number| packet(*to, number)).collect::<Vec<_>>())?;
                sent += u64::from(LOT);
            }
            lots += 1;
        }
        Ok(())
    })?;
    equal("refused meanwhile", router.stat("drop")? - before, sent)?;
    sick.expect(2, "critical")?;
    let evidence = &sick.finding("table-full")?["evidence"];
    equal("namespace", evidence["netns"]["value"].as_u64(), Some(router.inode()))?;
    let told = evidence["refused"]["value"].as_u64().unwrap_or(0);
    anyhow::ensure!((1..=sent).contains(&told), "{told} refused, {sent} sent");
    Ok((sick, told))
}

fn meaning(sick: &Answer) -> anyhow::Result<&str> {
    Ok(sick.finding("table-full")?["meaning"].as_str().unwrap_or_default())
}

/// All refused flows were for a port that rules drop, which is said in these words.
fn of_rules(sick: &Answer, refused: u64, what: &str, why: &str) -> anyhow::Result<()> {
    let found = sick.finding("table-full")?;
    let of_rules = found["evidence"]["refused_that_rules_drop"]["value"].as_u64().unwrap_or(0);
    // Ports are read a moment before or after flow types, at both ends of the sample, and lots come meanwhile.
    let apart = of_rules.abs_diff(refused);
    let moment = 2 * 2 * u64::from(LOT);
    anyhow::ensure!(of_rules > 0 && apart <= moment, "{of_rules} of {refused} refused that rules drop");
    let (told, meaning) = (found["what"].as_str().unwrap_or_default(), meaning(sick)?);
    anyhow::ensure!(told.contains(what), "{told}");
    let certain = why.contains("Nobody misses");
    anyhow::ensure!(meaning.contains(why) && meaning.contains("Nobody misses") == certain, "{meaning}");
    Ok(())
}

/// The remedy; it comes after more room.
fn remedy(sick: &Answer) -> anyhow::Result<&Value> {
    let remedies = sick.finding("table-full")?["remedies"].as_array().context("no remedies")?;
    let ids: Vec<_> = remedies.iter().map(|remedy| remedy["id"].as_str().unwrap_or_default()).collect();
    anyhow::ensure!(ids.starts_with(&["raise-limit", "drop-early"]), "{ids:?}");
    Ok(&remedies[1])
}

/// Runs the remedy, does something, and undoes it.
fn with_remedy(
    router: &Router,
    sick: &Answer,
    matched: &str,
    work: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let rules = || checked(router.command("nft").args(["-s", "list", "ruleset"]));
    let (old, remedy) = (rules()?, remedy(sick)?);
    anyhow::ensure!(remedy["commands"].to_string().contains(matched), "{remedy}");
    shell(remedy, "commands")?;
    work()?;
    shell(remedy, "undo")?;
    anyhow::ensure!(rules()? == old, "undo left other rules: {}", rules()?);
    Ok(())
}

fn stop_forwarding(router: &Router) -> anyhow::Result<()> {
    router.enter(|| {
        fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
        Ok(fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0")?)
    })
}

/// The packet of this number, of a flow of its own.
fn udp(to: IpAddr, number: u16) -> Crafted {
    Crafted::udp(host(Family::V4, false, 1000), to, (2000 + number, PORT), 16)
}

fn syn(to: IpAddr, number: u16) -> Crafted {
    segment(to, number, SYN)
}

fn segment(to: IpAddr, number: u16, flags: u8) -> Crafted {
    let segment = Segment { seq: 1000, flags, ..Segment::default() };
    Crafted::tcp(host(Family::V4, false, 1000), to, (2000 + number, TCP_PORT), segment)
}

/// How many of 1,000 packets the kernel refused.
fn refused_of(router: &Router, to: IpAddr, packet: &dyn Fn(IpAddr, u16) -> Crafted) -> anyhow::Result<u64> {
    let before = router.stat("drop")?;
    router.send(&(0..PACKETS).map(|number| packet(to, number)).collect::<Vec<_>>())?;
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
