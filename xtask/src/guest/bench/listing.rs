//! What it costs to see who fills the table: whole commands, as an operator types them, on a table of many entries.

use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use anyhow::Context;
use nix::fcntl::{FcntlArg, fcntl};

use super::super::report::Report;
use super::super::space::Space;
use super::super::state;
use super::super::traffic::{Family, PORT};
use super::super::witness;
use super::clock;
use crate::bench::figure::{Figure, Listing};

/// Entries in the table.
const ENTRIES: u32 = 200_000;
/// One flow in so many is to another port …
const OTHERS: u32 = 10;
/// … out of so many.
const PORTS: u16 = 500;
/// The kernel's work in the background only ever adds to a run, so the lowest counts.
const RUNS: usize = 2;

/// The original direction's port: conntrack writes both.
const PIPELINE: &str = "conntrack -L 2>/dev/null \
    | mawk '{for (i = 1; i <= NF; i++) if ($i ~ /^dport=/) {print $i; break}}' | sort | uniq -c | sort -rn";

/// What is measured, and what its output has in its line about [`PORT`].
const COMMANDS: [(&str, Option<&str>); 4] = [
    ("ctwatch table --by dport", Some(" 6881")),
    ("conntrack -L", None),
    (PIPELINE, Some("dport=6881")),
    // Another destination for each entry: more groups than are kept.
    ("ctwatch table --by dst", None),
];

/// Fills the table and runs the commands.
pub(super) fn run(report: &mut Report) -> anyhow::Result<()> {
    fill()?;
    for (command, line) in COMMANDS {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let began = clock()?;
            let output = Command::new("sh")
                .args(["-c", command])
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("start {command}"))?;
            runs.push(clock()? - began);
            let text = String::from_utf8(output.stdout)?;
            anyhow::ensure!(output.status.success(), "{command}: {}", output.status);
            if let Some(end) = line {
                verify(&text, end).with_context(|| command.to_owned())?;
            }
        }
        let resident = command.starts_with("ctwatch").then(|| resident(command)).transpose()?;
        let entries = witness::count(&Space::init())?;
        let listing = Listing { command: command.to_owned(), entries, runs, resident };
        report.figure(&Figure::Listing(listing))?;
    }
    Ok(())
}

fn fill() -> anyhow::Result<()> {
    let space = Space::init();
    state::fresh(&space)?;
    let bound = |port| UdpSocket::bind((Family::V4.any(), port)).context("bind a port");
    // Somebody listens, so that nobody answers "port unreachable".
    let _sinks = (0..PORTS).map(|n| bound(10_000 + n)).chain([bound(PORT)]).collect::<Result<Vec<_>, _>>()?;
    let socket = UdpSocket::bind((Family::V4.home(), 0)).context("bind the sender")?;
    for number in 0..ENTRIES {
        let port = if number % OTHERS == 0 {
            10_000 + u16::try_from(number / OTHERS % u32::from(PORTS))?
        } else {
            PORT
        };
        socket.send_to(b"", SocketAddr::new(Family::V4.target(number), port)).context("send")?;
    }
    let entries = witness::count(&space)?;
    anyhow::ensure!(entries == u64::from(ENTRIES), "{entries} entries, not {ENTRIES}");
    Ok(())
}

/// Both ways must have come to the number that was sent.
fn verify(text: &str, end: &str) -> anyhow::Result<()> {
    let sent = (ENTRIES - ENTRIES / OTHERS).to_string();
    let line = text.lines().find(|line| line.ends_with(end)).unwrap_or_default();
    let told = line.split_whitespace().next();
    anyhow::ensure!(told == Some(sent.as_str()), "not {sent} flows to port {PORT}: {line:?}");
    Ok(())
}

/// The most memory ctwatch had resident when its first bytes came out, in KiB: as JSON, which it has whole by then.
fn resident(command: &str) -> anyhow::Result<u64> {
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().context("no command")?)
        .args(words)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command}"))?;
    let mut output = child.stdout.take().context("its stdout")?;
    // It cannot end before its output has been read.
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(4096)).context("make the pipe small")?;
    output.read_exact(&mut [0])?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    std::io::copy(&mut output, &mut std::io::sink())?;
    anyhow::ensure!(child.wait()?.success(), "{command} --json failed");
    super::number(&status, "VmHWM:")
}
