//! `ctwatch trace` as a child process, and what its lines must have in common.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::super::super::ctwatch::{Ended, PATIENCE, Running, program};
use super::super::super::space::{Space, checked};
use super::super::super::traffic::{Family, Flows, PORT, udp};
use super::super::super::trial::equal;
use super::super::super::witness::Stats;
use super::super::super::{modules, state};
use super::super::init;

/// Flows sent to see whether tracing has begun go to destinations from here on.
pub(super) const MARKER: u32 = 0x3f_0000;

/// `ctwatch trace --json`, running and attached.
pub(super) struct Trace {
    pub(super) running: Running,
    /// Whether it has nothing to say on stderr.
    quiet: bool,
    seen: Vec<Value>,
}

/// What one run said.
pub(super) struct Told {
    /// Events, markers left out.
    pub(super) events: Vec<Value>,
    pub(super) suppressed: u64,
    pub(super) lost: u64,
    pub(super) stderr: String,
}

impl Trace {
    /// Starts it and sends flows, one at a time, until one is told of: from then on nothing may be missing. The flows
    /// are out of the table at the end.
    pub(super) fn start(args: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(args, |number| udp::send(Flows::new(Family::V4, 1).from(MARKER + number)).map(drop))
    }

    /// The same where `send` makes the flow of this number, to a destination from [`MARKER`] on.
    pub(super) fn start_with(
        args: &[&str],
        send: impl FnMut(u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        // Netlink cannot tell everything, and says so.
        let quiet = !args.contains(&"netlink");
        Self::start_as(&mut Command::new(program()), args, quiet, send)
    }

    /// The same by this command, which has nothing to say on stderr where it is `quiet`.
    pub(super) fn start_as(
        command: &mut Command,
        args: &[&str],
        quiet: bool,
        mut send: impl FnMut(u32) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let running = Running::spawn(
            command
                .args(["trace", "--json"])
                .args(if args.contains(&"--events") { &[][..] } else { &["--events", "insert"] })
                .args(args),
        )?;
        let mut trace = Self { running, quiet, seen: Vec::new() };
        let start = Instant::now();
        for number in 0.. {
            anyhow::ensure!(start.elapsed() < PATIENCE, "ctwatch traced nothing in {PATIENCE:?}");
            send(number)?;
            if let Some(object) = trace.running.next(Duration::from_secs(1))? {
                trace.seen.push(object);
                break;
            }
        }
        Ok(trace)
    }

    /// Waits until so many events of this name were told of, markers left out.
    pub(super) fn wait_for(&mut self, name: &str, count: u64) -> anyhow::Result<()> {
        let is_one = |object: &Value| object["event"] == name && !is_marker(object).unwrap_or(false);
        let mut told: u64 = self.seen.iter().filter(|object| is_one(object)).map(|_| 1).sum();
        let start = Instant::now();
        while told < count {
            anyhow::ensure!(start.elapsed() < PATIENCE, "{told} of {count} {name} told");
            if let Some(object) = self.running.next(Duration::from_secs(1))? {
                told += u64::from(is_one(&object));
                self.seen.push(object);
            }
        }
        Ok(())
    }

    pub(super) fn stop(self) -> anyhow::Result<Told> {
        self.stop_with(Signal::SIGINT)
    }

    pub(super) fn stop_with(mut self, signal: Signal) -> anyhow::Result<Told> {
        self.running.signal(signal)?;
        let Ended { objects, stderr, status } = self.running.end()?;
        self.seen.extend(objects);
        anyhow::ensure!(status.success(), "{status}: {stderr}");
        anyhow::ensure!(!self.quiet || stderr.is_empty(), "it wrote to stderr: {stderr}");
        let mut told = Told { events: Vec::new(), suppressed: 0, lost: 0, stderr };
        for object in self.seen {
            let count = || object["count"].as_u64().with_context(|| format!("no count in {object}"));
            match object["event"].as_str().with_context(|| format!("no event in {object}"))? {
                "suppressed" => told.suppressed += count()?,
                "lost" => told.lost += count()?,
                "insert" | "delete" if is_marker(&object)? => {}
                _ => told.events.push(object),
            }
        }
        Ok(told)
    }
}

fn is_marker(event: &Value) -> anyhow::Result<bool> {
    let text = event["dst"].as_str().with_context(|| format!("no dst in {event}"))?;
    let address: IpAddr = text.parse().with_context(|| format!("dst {text}"))?;
    Ok((Family::V4.target(MARKER)..Family::V4.target(MARKER + 0x1_0000)).contains(&address))
}

impl Told {
    pub(super) fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.of(name).map(|_| 1).sum()
    }

    /// Compares all events, those not shown among them, with what happened; where they differ, says what there was.
    pub(super) fn explains(&self, happened: u64) -> anyhow::Result<()> {
        let Self { events, suppressed, lost, stderr: _ } = self;
        let mut names: BTreeMap<&str, u64> = BTreeMap::new();
        for name in events.iter().filter_map(|event| event["event"].as_str()) {
            *names.entry(name).or_default() += 1;
        }
        anyhow::ensure!(
            events.len() as u64 + suppressed + lost == happened,
            "{happened} happened; {suppressed} suppressed, {lost} lost, and shown {names:?}"
        );
        Ok(())
    }

    /// Compares the number of events of this name with what happened: equal, or less by no more than what is lost,
    /// which may be events of any name.
    pub(super) fn covers(&self, name: &str, happened: u64) -> anyhow::Result<()> {
        let (told, lost) = (self.count(name), self.lost);
        anyhow::ensure!(
            (told..=told + lost).contains(&happened),
            "{name}: {told} told and {lost} lost, {happened} happened"
        );
        Ok(())
    }
}

/// A fresh table with these bounds, tracing begun, and the markers gone again.
pub(super) fn begin(args: &[&str], max: u32, buckets: u32) -> anyhow::Result<(Space, Trace, Stats)> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let trace = Trace::start(args)?;
    state::buckets(buckets)?;
    checked(space.command("conntrack").arg("-F"))?;
    state::set("nf_conntrack_max", max)?;
    let before = Stats::read(&space)?;
    Ok((space, trace, before))
}

/// Sends a flow to this address and port from that port, and keeps the socket, so that nobody else gets the port.
pub(super) fn send_held(to: Ipv4Addr, from: u16) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, from)).context("bind a sender")?;
    socket.send_to(b"ctwatch", (to, PORT)).with_context(|| format!("send to {to}"))?;
    Ok(socket)
}

/// What makes one generated flow different from the next: its destination.
pub(super) fn key(event: &Value) -> anyhow::Result<String> {
    Ok(event["dst"].as_str().with_context(|| format!("no dst in {event}"))?.to_owned())
}

/// The fields of a tuple that all of a generator's flows have in common.
pub(super) fn check_udp(tuple: &Value) -> anyhow::Result<()> {
    let v6 = tuple["dst"].as_str().is_some_and(|dst| dst.contains(':'));
    let family = if v6 { Family::V6 } else { Family::V4 };
    equal("family", tuple["family"].as_str(), Some(family.name()))?;
    equal("proto", tuple["proto"].as_str(), Some("udp"))?;
    equal("src", tuple["src"].as_str(), Some(family.home().to_string().as_str()))?;
    equal("dport", tuple["dport"].as_u64(), Some(u64::from(PORT)))?;
    anyhow::ensure!(tuple["sport"].as_u64().is_some_and(|port| port > 0), "sport of {tuple}");
    Ok(())
}

/// By destination; each may be told of once.
pub(super) fn by_key<'a>(
    events: impl Iterator<Item = &'a Value>,
) -> anyhow::Result<BTreeMap<String, &'a Value>> {
    let mut all = BTreeMap::new();
    for event in events {
        let other = all.insert(key(event)?, event);
        anyhow::ensure!(other.is_none(), "told twice: {event} and {other:?}");
    }
    Ok(all)
}
