//! Entries that packets hold: counted, and in no list.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::super::super::space::{Space, checked};
use super::super::super::trial::equal;
use super::super::super::{ctwatch, modules, state, wait, witness};
use super::super::init;
use super::{MAX, configuration_folders, doctor};

/// Half of the table.
const HELD: u16 = 1000;

/// Flows whose packets a queueing discipline keeps, flushed from the table.
pub(super) fn held() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    let far = Space::create("far")?;
    let ip = |words: &str| checked(Command::new("ip").args(words.split(' '))).map(drop);
    ip("link add held0 type veth peer name held1 netns far")?;
    let result = with_the_link(&ip);
    ip("link del held0")?;
    result?;
    // Without the link its packets are gone, and with them what they held.
    witness::wait_count(&init(), 0, Duration::from_secs(20))?;
    far.delete()
}

fn with_the_link(ip: &dyn Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    ip("addr add 10.77.0.1/24 dev held0")?;
    ip("link set held0 up")?;
    // A neighbour that nobody has to ask for.
    ip("neigh replace 10.77.0.2 lladdr 02:00:00:00:00:02 dev held0 nud permanent")?;
    ip("route add 10.78.0.0/16 via 10.77.0.2")?;
    checked(Command::new("ip").args(["netns", "exec", "far", "ip", "link", "set", "held1", "up"]))?;
    let netem = ["qdisc", "add", "dev", "held0", "root", "netem", "delay", "200s", "limit", "100000"];
    checked(Command::new("tc").args(netem))?;
    send(0, HELD)?;
    let before = witness::listed_total(&init())?;
    anyhow::ensure!(before >= u64::from(HELD), "only {before} entries listed");
    checked(Command::new("conntrack").arg("-F"))?;
    wait::until("an empty list", Duration::from_secs(20), || {
        let listed = witness::listed_total(&init())?;
        Ok(if listed == 0 { Ok(()) } else { Err(format!("{listed} entries")) })
    })?;
    let counted = witness::count(&init())?;
    anyhow::ensure!(counted >= u64::from(HELD), "the kernel counts {counted}: nothing is held");

    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    let evidence = &sick.finding("held-entries")?["evidence"];
    let figure = |name: &str| evidence[name]["value"].as_u64().with_context(|| format!("{name}: {evidence}"));
    equal("counted by doctor", figure("counted")?, counted)?;
    equal("listed by doctor", figure("listed")?, 0)?;
    equal("held by doctor", figure("held")?, counted)?;
    let waiting = evidence["waiting"]["value"].as_str().unwrap_or_default();
    anyhow::ensure!(waiting.contains("netem on held0: 1,0"), "what holds them is not named: {evidence}");

    let table = ctwatch::run(&["table", "--json", "--netns", "self"])?;
    let table: serde_json::Value = serde_json::from_slice(&table.stdout).context("ctwatch table")?;
    equal("counted by table", table["counted"].as_u64(), Some(counted))?;
    equal("listed by table", table["listed"].as_u64(), Some(0))?;
    equal("held by table", table["held"].as_u64(), Some(counted))?;
    let lines = ctwatch::run(&["table", "--netns", "self"])?;
    let lines = String::from_utf8_lossy(&lines.stdout).into_owned();
    anyhow::ensure!(lines.contains("are in no list"), "{lines}");

    // Full of them: a larger limit is not the first thing to do.
    send(HELD, HELD - 50)?;
    checked(Command::new("conntrack").arg("-F"))?;
    let full = doctor(&[], 0)?;
    full.expect(2, "critical")?;
    anyhow::ensure!(full.object["findings"][0]["id"] == "held-entries", "{}", full.object);
    Ok(())
}

/// Sends a packet to each of so many addresses behind the link.
fn send(first: u16, count: u16) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("10.77.0.1:0")?;
    // Packets that wait may hold the sender's buffer too.
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    for number in first..first + count {
        let [high, low] = number.to_be_bytes();
        let target = SocketAddr::from(([10, 78, high, low], 6881));
        socket.send_to(b"ctwatch", target).with_context(|| format!("send to {target}"))?;
    }
    Ok(())
}
