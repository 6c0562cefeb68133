//! Deletes by other parts of the kernel that use conntrack: tc, Open vSwitch, IPVS.
//!
//! `act_ct` (tcf_ct_skb_nfct_cached, 5.10 to 7.3) and Open vSwitch (skb_nfct_cached) remove the entry of a packet of the
//! reply direction where they are told to commit it by force, and the packet then makes an entry of its own. IPVS (ip_vs_conn_drop_conntrack) removes the entry of a
//! connection of its own that has ended.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::super::ctwatch::PATIENCE;
use super::super::space::{Space, checked};
use super::super::traffic::Family;
use super::super::trial::{Finding, Trial};
use super::super::{ipvs, openvswitch, witness};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("delete::tc", tc),
    scenario("delete::ipvs", ipvs),
    scenario("delete::openvswitch", openvswitch),
];

/// The first namespace's end of the veth pair, and its address.
const NEAR: (&str, &str) = ("others0", "10.88.0.1");
/// The peer's address.
const FAR: &str = "10.88.0.2";
const PORT: u16 = 7000;
const FLOWS: u16 = 200;
/// A datagram that is lost fails the scenario instead of holding it up.
const LOST_AFTER: Duration = Duration::from_secs(20);

/// A namespace behind a veth pair, whose end here has an address.
fn peer(name: &str) -> anyhow::Result<Space> {
    let peer = Space::create(name)?;
    let ip = |space: &Space, line: &str| checked(space.command("ip").args(line.split_whitespace())).map(drop);
    let (near, address) = NEAR;
    ip(&init(), &format!("link add {near} type veth peer name eth0 netns {name}"))?;
    for (space, device, address) in [(&init(), near, address), (&peer, "eth0", FAR)] {
        ip(space, &format!("addr add {address}/24 dev {device}"))?;
        ip(space, &format!("link set dev {device} up"))?;
    }
    Ok(peer)
}

/// Each packet of a reply removes the entry that the request has made, and makes one for its own direction.
fn tc() -> anyhow::Result<()> {
    let space = init();
    let peer = peer("tc-peer")?;
    let trial = Trial::start(&[&space], &[], || {
        checked(Command::new("modprobe").arg("act_ct"))?;
        let (near, _) = NEAR;
        let run = |line: String| checked(Command::new("tc").args(line.split_whitespace())).map(drop);
        run(format!("qdisc add dev {near} clsact"))?;
        for side in ["ingress", "egress"] {
            run(format!(
                "filter add dev {near} {side} protocol ip flower ip_proto udp \
                 action ct zone 5 pipe action ct commit force zone 5"
            ))?;
        }
        Ok(())
    })?;
    ask((&peer, FAR), (&space, NEAR.1))?;
    let answered = u64::from(FLOWS);
    let committed = in_zone(&space)?;
    // act_ct's flow table keeps removed entries counted until its next round, a second later.
    witness::wait_count(&space, 2 * answered, PATIENCE)?;
    let finding = trial.finish()?;
    drop(peer);
    finding.equal("entries in zone 5", answered, committed)?;
    // For each exchange two by act_ct, and one in the zone of the stack itself.
    finding.equal("inserts", finding.get(Family::V4, 17, "insert"), 3 * answered)?;
    by(&finding, "delete.tc", answered)
}

/// The same by a switch.
fn openvswitch() -> anyhow::Result<()> {
    let switch = Space::create("switch")?;
    let sides = [Space::create("ovs-client")?, Space::create("ovs-server")?];
    let ip = |space: &Space, line: &str| checked(space.command("ip").args(line.split_whitespace())).map(drop);
    for (number, side) in (1..).zip(&sides) {
        let lladdr = |number: u8| format!("02:88:00:00:00:0{number}");
        let (own, other) = (lladdr(number), lladdr(3 - number));
        ip(
            &switch,
            &format!("link add port{number} type veth peer name eth0 address {own} netns {}", side.label()),
        )?;
        ip(&switch, &format!("link set dev port{number} up"))?;
        ip(side, &format!("addr add 10.88.0.{number}/24 dev eth0"))?;
        ip(side, "link set dev eth0 up")?;
        // The switch has no flow for ARP.
        ip(side, &format!("neigh replace 10.88.0.{} lladdr {other} nud permanent dev eth0", 3 - number))?;
    }
    let trial = Trial::start(&[&switch], &[], || {
        checked(Command::new("modprobe").arg("openvswitch"))?;
        openvswitch::between(&switch, ["port1", "port2"], 5)
    })?;
    let [client, server] = &sides;
    ask((client, NEAR.1), (server, FAR))?;
    let answered = u64::from(FLOWS);
    let committed = in_zone(&switch)?;
    let finding = trial.finish()?;
    drop((switch, sides));
    finding.equal("entries in zone 5", answered, committed)?;
    finding.equal("inserts", finding.get(Family::V4, 17, "insert"), 2 * answered)?;
    by(&finding, "delete.openvswitch", answered)
}

/// Entries of zone 5 in the kernel's list.
fn in_zone(space: &Space) -> anyhow::Result<u64> {
    let list = checked(space.command("conntrack").args(["-L", "-w", "5"]))?;
    Ok(u64::try_from(list.lines().count())?)
}

/// An exchange for each flow, all of which are answered.
fn ask(client: (&Space, &str), server: (&Space, &str)) -> anyhow::Result<()> {
    let socket = server.0.enter(|| UdpSocket::bind((server.1, PORT)).context("bind the server"))?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    let answers = thread::spawn(move || -> anyhow::Result<()> {
        for _ in 0..FLOWS {
            let (_, from) = socket.recv_from(&mut [0; 16]).context("no request")?;
            socket.send_to(b"answer", from)?;
        }
        Ok(())
    });
    client.0.enter(|| {
        for number in 0..FLOWS {
            let socket = UdpSocket::bind((client.1, 20_000 + number)).context("bind a client")?;
            socket.set_read_timeout(Some(LOST_AFTER))?;
            socket.send_to(b"request", (server.1, PORT))?;
            socket.recv(&mut [0; 16]).with_context(|| format!("no answer to flow {number}"))?;
        }
        Ok(())
    })?;
    answers.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}

/// Connections whose time in IPVS runs out long before conntrack's.
fn ipvs() -> anyhow::Result<()> {
    let space = init();
    let peer = peer("ipvs-peer")?;
    let trial = Trial::start(&[&space], &[], || {
        checked(Command::new("modprobe").args(["-a", "ip_vs", "ip_vs_rr"]))?;
        fs::write("/proc/sys/net/ipv4/vs/conntrack", "1").context("net.ipv4.vs.conntrack")?;
        ipvs::forward_udp((NEAR.1, PORT), (NEAR.1, PORT + 1), Duration::from_secs(1))
    })?;
    let server = UdpSocket::bind((NEAR.1, PORT + 1)).context("bind the server")?;
    server.set_read_timeout(Some(LOST_AFTER))?;
    peer.enter(|| {
        for number in 0..FLOWS {
            let client = UdpSocket::bind((FAR, 20_000 + number)).context("bind a client")?;
            client.send_to(b"request", (NEAR.1, PORT))?;
        }
        Ok(())
    })?;
    for _ in 0..FLOWS {
        server.recv(&mut [0; 16]).context("IPVS did not forward")?;
    }
    witness::wait_count(&space, 0, PATIENCE)?;
    let finding = trial.finish()?;
    ipvs::flush()?;
    drop(peer);
    finding.equal("inserts", finding.get(Family::V4, 17, "insert"), u64::from(FLOWS))?;
    by(&finding, "delete.ipvs", u64::from(FLOWS))
}

/// So many deletes, all by this cause; without a cause where the source cannot tell it.
fn by(finding: &Finding, cause: &str, flows: u64) -> anyhow::Result<()> {
    finding.row(Family::V4, 17, cause, flows)?;
    if !finding.totals.silence.tells(Family::V4.name(), cause) {
        finding.row(Family::V4, 17, "delete.other", flows)?;
    }
    finding.equal("deletes of any type and cause", finding.totals.sum("delete"), flows)
}
