//! Filters by what only an entry has: what they let through is what `conntrack -L` lists by filters of its own.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Context;

use super::super::super::space::{Space, checked};
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::trial::equal;
use super::super::super::{modules, state};
use super::super::init;
use super::run::{Trace, send_held};

/// What happens to a flow is told by the third byte of its destination, in 127.64.0.0/16 and for markers in
/// 127.127.0.0/16: 1 gets another destination, 2 another source, 3 both, 8 a mark, 9 a zone, and all others nothing.
const RULES: &str = "table ip translate {
  chain zoned {
    type filter hook output priority -300;
    ip daddr { 127.64.9.0/24, 127.127.9.0/24 } ct zone set 9
  }
  chain targets {
    type nat hook output priority -100;
    ip daddr { 127.64.1.0/24, 127.127.1.0/24, 127.64.3.0/24, 127.127.3.0/24 } udp dport 6881 dnat to 127.64.7.7:53
  }
  chain marked {
    type filter hook output priority 0;
    ip daddr { 127.64.8.0/24, 127.127.8.0/24 } ct mark set 0x4001
  }
  chain sources {
    type nat hook postrouting priority 100;
    ip daddr { 127.64.2.0/24, 127.127.2.0/24 } snat to 127.64.8.8
    ip daddr 127.64.7.7 ct original ip daddr { 127.64.3.0/24, 127.127.3.0/24 } snat to 127.64.8.9
  }
}
";

/// How many flows have this third byte.
const FLOWS: [(u8, u8); 6] = [(1, 12), (2, 7), (3, 4), (4, 6), (8, 3), (9, 5)];
/// The first port that they are sent from.
const FROM: u16 = 20_000;

/// Filters of ctwatch, the same of `conntrack -L`, and the third byte of a marker that passes.
const CASES: [(&[&str], &[&str], u8); 8] = [
    (&["--rsrc", "127.64.7.0/24"], &["-r", "127.64.7.7"], 1),
    (&["--rsport", "1,53"], &["-p", "udp", "--reply-port-src", "53"], 1),
    (&["--rdst", "127.64.8.8"], &["-q", "127.64.8.8"], 2),
    (&["--rdport", "20003"], &["-p", "udp", "--reply-port-dst", "20003"], 4),
    (&["--nat", "dnat,both"], &["-g"], 1),
    (&["--nat", "snat,both"], &["-n"], 2),
    (&["--zone", "9"], &["-w", "9"], 9),
    (&["--mark", "0x4000/0x4000"], &["-m", "0x4001"], 8),
];

/// Both directions, NAT, zone and mark, of what comes and of what goes.
pub(super) fn directions(source: &str) -> anyhow::Result<()> {
    modules::load()?;
    for (args, witness, marker) in CASES {
        directions_by(&[args, &["--source", source]].concat(), witness, marker)
            .with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

fn directions_by(args: &[&str], witness: &[&str], marker: u8) -> anyhow::Result<()> {
    let (space, trace) = begin(&[args, &["--events", "insert,delete,-drop"]].concat(), marker)?;
    let sockets = send()?;
    let listed = listed(&space, witness)?;
    anyhow::ensure!(listed > 0 && listed < sockets.len() as u64, "{witness:?} tells nothing apart");
    checked(space.command("conntrack").arg("-F"))?;
    let told = trace.stop()?;
    equal("suppressed", told.suppressed, 0)?;
    told.covers("insert", listed)?;
    told.covers("delete", listed)?;
    for event in &told.events {
        let third = third_byte(event)?;
        let expected = match third {
            1 => ("dnat", "127.64.7.7", "127.0.0.1"),
            2 => ("snat", event["dst"].as_str().unwrap_or_default(), "127.64.8.8"),
            3 => ("both", "127.64.7.7", "127.64.8.9"),
            _ => ("none", event["dst"].as_str().unwrap_or_default(), "127.0.0.1"),
        };
        let text = |field: &'static str| event["reply"][field].as_str().unwrap_or_default();
        let shown = (event["nat"].as_str().unwrap_or_default(), text("src"), text("dst"));
        equal(&format!("NAT and answers of {event}"), shown, expected)?;
        let mark = if third == 8 { 0x4001 } else { 0 };
        equal(&format!("mark of {event}"), event["mark"].as_u64(), Some(mark))?;
    }
    Ok(())
}

/// A refused flow has a zone, and nothing else that a filter of entries could look at.
pub(super) fn refused() -> anyhow::Result<()> {
    const OTHERS: u32 = 150;
    const ZONED: u32 = 220;
    modules::load()?;
    let (space, trace) = begin(&["--zone", "9", "--events", "all", "--max-events", "100000"], 9)?;
    state::set("nf_conntrack_max", 100)?;
    udp::send(Flows::new(Family::V4, OTHERS).from(0x1000))?;
    let sent = udp::send(Flows::new(Family::V4, ZONED).from(0x900))?;
    let left = listed(&space, &["-w", "9"])?;
    let told = trace.stop()?;
    anyhow::ensure!(sent.refused > 0, "the table was never full");
    told.covers("insert", sent.passed)?;
    told.covers("drop", sent.refused)?;
    told.covers("early_drop", sent.passed - left)?;
    for event in &told.events {
        equal("zone", event["zone"].as_u64(), Some(9)).with_context(|| event.to_string())?;
        equal("an entry's answers", event["reply"].is_null(), event["event"] == "drop")?;
    }
    Ok(())
}

/// Of an eviction the evicted flow counts.
pub(super) fn evicted() -> anyhow::Result<()> {
    const MARKED: u32 = 60;
    modules::load()?;
    let (space, trace) = begin(&["--mark", "0x4001", "--events", "insert,-drop"], 8)?;
    state::set("nf_conntrack_max", 100)?;
    let marked = udp::send(Flows::new(Family::V4, MARKED).from(0x800))?;
    udp::send(Flows::new(Family::V4, 3000).from(0x1000))?;
    let left = listed(&space, &["-m", "0x4001"])?;
    let told = trace.stop()?;
    equal("marked flows that came in", marked.passed, u64::from(MARKED))?;
    told.covers("insert", marked.passed)?;
    anyhow::ensure!(left < marked.passed, "none of them was evicted");
    told.covers("early_drop", marked.passed - left)?;
    for event in told.of("early_drop") {
        equal("mark", event["mark"].as_u64(), Some(0x4001)).with_context(|| event.to_string())?;
    }
    Ok(())
}

/// Rules, an empty table and tracing begun, which markers with this third byte have shown.
fn begin(args: &[&str], marker: u8) -> anyhow::Result<(Space, Trace)> {
    let space = init();
    state::fresh(&space)?;
    state::rules(&space, &(state::RULES.to_owned() + RULES))?;
    let trace = Trace::start_with(args, |number| {
        let last = u8::try_from(number).context("too many markers")?;
        send_held(Ipv4Addr::new(127, 127, marker, last), FROM + 3).map(drop)
    })?;
    checked(space.command("conntrack").arg("-F"))?;
    Ok((space, trace))
}

/// Sends the flows, each from a port of its own.
fn send() -> anyhow::Result<Vec<UdpSocket>> {
    let targets = FLOWS.iter().flat_map(|(third, count)| (0..*count).map(|last| (*third, last)));
    (FROM..)
        .zip(targets)
        .map(|(from, (third, last))| send_held(Ipv4Addr::new(127, 64, third, last), from))
        .collect()
}

/// How many entries `conntrack -L` lists by its own filters.
fn listed(space: &Space, filters: &[&str]) -> anyhow::Result<u64> {
    Ok(checked(space.command("conntrack").arg("-L").args(filters))?.lines().count() as u64)
}

fn third_byte(event: &serde_json::Value) -> anyhow::Result<u8> {
    let address: Ipv4Addr = event["dst"].as_str().context("no dst")?.parse()?;
    Ok(address.octets()[2])
}
