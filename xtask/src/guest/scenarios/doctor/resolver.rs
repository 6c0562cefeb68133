//! Two queries of one resolver that race for one entry.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::super::super::ctwatch::program;
use super::super::super::space::checked;
use super::super::super::traffic::Family;
use super::super::super::{modules, state, witness};
use super::super::init;
use super::{Answer, configuration_folders, judge, shell};

const DNS: u16 = 53;
const CONFIGURATION: &str = "/etc/resolv.conf";
/// Query types.
const A: u16 = 1;
const AAAA: u16 = 28;

/// A machine of which much goes to port 53, and whose packets lose races there. The races are written into the facts
/// that it gave: emulated CPUs lose none on demand. All else is as found.
fn racing() -> anyhow::Result<Answer> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    ask_many(0, 300)?;
    let captured = Command::new(program())
        .args(["doctor", "--sample", "0.5", "--capture", "-"])
        .stdin(Stdio::null())
        .output()
        .context("start doctor")?;
    let mut facts: Value = serde_json::from_slice(&captured.stdout)
        .with_context(|| format!("doctor: {}", String::from_utf8_lossy(&captured.stderr)))?;
    let races =
        json!({ "netns": init().inode, "family": "ipv4", "proto": 17, "counts": { "failed_clash": 100 } });
    let flows = facts["live"]["flows"].as_array_mut().context("no live sample")?;
    flows.push(races);
    let answer = judge(&facts.to_string())?;
    answer.expect(1, "warning")?;
    Ok(answer)
}

/// One datagram to port 53 of each of so many addresses.
fn ask_many(first: u32, count: u32) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Family::V4.home(), 0)).context("bind the sender")?;
    for number in first..first + count {
        socket.send_to(b"ctwatch", (Family::V4.target(number), DNS)).context("send to port 53")?;
    }
    Ok(())
}

/// With the option, both queries no longer share a socket, so that they are two flows that cannot race.
pub(super) fn one_query_at_a_time() -> anyhow::Result<()> {
    let answer = racing()?;
    let remedy = answer.remedy("insert-failed", "one after the other")?;
    fs::write(CONFIGURATION, "nameserver 127.0.0.1\n")?;
    let before = fs::read(CONFIGURATION)?;
    let shared = || -> anyhow::Result<bool> {
        let ports = source_ports()?;
        let port = |kind| ports.get(&kind).with_context(|| format!("no query of type {kind}: {ports:?}"));
        Ok(port(A)? == port(AAAA)?)
    };
    anyhow::ensure!(shared()?, "this resolver asks from two sockets even before");
    shell(remedy, "commands")?;
    anyhow::ensure!(!shared()?, "both queries still come from one socket");
    shell(remedy, "persist")?;
    shell(remedy, "undo")?;
    anyhow::ensure!(shared()?, "undo did not bring the old way back");
    anyhow::ensure!(fs::read(CONFIGURATION)? == before, "undo left another file");
    fs::remove_file(CONFIGURATION)?;
    Ok(())
}

/// Looks a name up with the C library's resolver; a server of our own sees which port each query comes from.
fn source_ports() -> anyhow::Result<BTreeMap<u16, u16>> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, DNS)).context("bind the name server")?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&server, &done));
        // The name does not exist, which getent tells by its exit code.
        let asked = Command::new("getent").args(["ahosts", "race.invalid."]).stdin(Stdio::null()).output();
        done.store(true, Ordering::Relaxed);
        let ports = serving.join().map_err(|_| anyhow::anyhow!("the name server panicked"))??;
        asked.context("start getent")?;
        Ok(ports)
    })
}

/// Says of every name that it has no address.
fn serve(server: &UdpSocket, done: &AtomicBool) -> anyhow::Result<BTreeMap<u16, u16>> {
    let mut ports = BTreeMap::new();
    let mut buffer = [0; 512];
    while !done.load(Ordering::Relaxed) {
        // Nothing came for a while: look whether anybody still asks.
        let Ok((length, from)) = server.recv_from(&mut buffer) else { continue };
        let message = &mut buffer[..length];
        // The header is 12 bytes long, then come labels up to an empty one, the type and the class.
        let name_end =
            message.iter().skip(12).position(|byte| *byte == 0).context("no name in a query")? + 12;
        let kind = message.get(name_end + 1..name_end + 3).context("no type in a query")?;
        ports.entry(u16::from_be_bytes([kind[0], kind[1]])).or_insert(from.port());
        // A response without an answer, from a server that recurses.
        (message[2], message[3]) = (0x81, 0x80);
        // No additional records either: the query's ends here.
        message[6..12].fill(0);
        server.send_to(&message[..name_end + 5], from).context("answer a query")?;
    }
    Ok(ports)
}

/// Queries that are not tracked have no entry to race for.
pub(super) fn untracked_queries() -> anyhow::Result<()> {
    let answer = racing()?;
    for tool in ["with nft", "with iptables"] {
        let remedy = answer.remedy("insert-failed", tool)?;
        let entries = || -> anyhow::Result<u64> {
            checked(Command::new("conntrack").arg("-F"))?;
            ask_many(1000, 100)?;
            witness::count(&init())
        };
        anyhow::ensure!(entries()? == 100, "queries are not tracked even before");
        shell(remedy, "commands")?;
        let tracked = entries()?;
        anyhow::ensure!(tracked == 0, "{tracked} queries are still tracked {tool}");
        shell(remedy, "persist")?;
        shell(remedy, "undo")?;
        anyhow::ensure!(entries()? == 100, "undo did not bring tracking back {tool}");
    }
    Ok(())
}
