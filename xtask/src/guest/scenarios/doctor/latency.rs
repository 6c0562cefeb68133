//! `doctor --latency`: every packet is in the histogram, and none twice.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use serde_json::Value;

use super::super::super::ctwatch::program;
use super::super::super::space::checked;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::{modules, state};
use super::super::init;
use super::answer;

/// Packets counted where tracking meets them, just before it does (its priority is -200).
const RULES: &str = "table inet watched {
  chain out { type filter hook output priority -201; counter; }
  chain in { type filter hook prerouting priority -201; counter; }
  chain new { type filter hook output priority 0; ct state new counter; }
}
";
/// A machine too slow for this is too slow for all the rest.
const LONGEST: u32 = 64;

pub(super) fn counts_every_packet() -> anyhow::Result<()> {
    modules::load()?;
    for source in ["auto", "kprobe"] {
        count_by(source).with_context(|| format!("by source {source}"))?;
    }
    Ok(())
}

fn count_by(source: &str) -> anyhow::Result<()> {
    let mut seconds = 4;
    let (told, sent, passed) = loop {
        state::fresh(&init())?;
        state::rules(&init(), RULES)?;
        let before = hooked()?;
        let mut child = Command::new(program())
            .args([
                "doctor",
                "--json",
                "--sample",
                "0.1",
                "--source",
                source,
                "--latency",
                &seconds.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start doctor")?;
        let stderr = wait_for_timing(&mut child)?;
        let sent = udp::send(Flows::new(Family::V4, 1500))?.passed
            + udp::send(Flows::new(Family::V6, 500))?.passed
            + udp::ask_and_answer(Flows::new(Family::V4, 50))?.passed;
        // It reads only after its programs have gone, so what was sent while they are there is in its sums.
        let in_time = has_programs(child.id())?;
        let output = child.wait_with_output()?;
        let told = answer(&output).with_context(|| rest(stderr))?;
        if in_time {
            break (told, sent, hooked()? - before);
        }
        seconds *= 2;
        anyhow::ensure!(seconds <= LONGEST, "sending {sent} flows took more than {} s", seconds / 2);
    };
    anyhow::ensure!(passed >= 2 * sent, "{sent} flows, but only {passed} packets at the hooks");
    let finding = told.finding("latency")?;
    let number = |name: &str| -> anyhow::Result<u64> {
        finding["evidence"][name]["value"].as_u64().with_context(|| format!("no {name}: {finding}"))
    };
    let (packets, flows, lost) = (number("packets")?, number("new_flows")?, number("lost")?);
    anyhow::ensure!(
        packets + flows + lost == passed + sent && packets <= passed && flows <= sent && lost * 100 <= passed,
        "timed {packets} packets and {flows} flows and lost {lost} of {passed} and {sent}: {finding}"
    );
    for (count, histogram) in [(packets, "histogram"), (flows, "confirm_histogram")] {
        let buckets = finding["evidence"][histogram]["value"].as_array().context("no histogram")?;
        let sum: u64 = buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum();
        anyhow::ensure!(sum == count, "{histogram} holds {sum}, not {count}: {finding}");
    }
    anyhow::ensure!(number("shortest_ns")? > 0 && number("measuring_ns")? > 0, "{finding}");
    anyhow::ensure!(number("shortest_ns")? <= number("mean_ns")?, "{finding}");
    // Loopback receives in the softirq, so there is a share to tell.
    anyhow::ensure!(finding["evidence"]["share_of_receiving"].is_object(), "{finding}");
    Ok(())
}

/// Packets that came to the two hooks.
fn hooked() -> anyhow::Result<u64> {
    let mut sum = 0;
    for chain in ["out", "in"] {
        let text = checked(Command::new("nft").args(["list", "chain", "inet", "watched", chain]))?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        let count: u64 = words.next().and_then(|word| word.parse().ok()).context("nft counter")?;
        sum += count;
    }
    Ok(sum)
}

type Stderr = BufReader<std::process::ChildStderr>;

/// Until doctor says that its programs are attached.
fn wait_for_timing(child: &mut Child) -> anyhow::Result<Stderr> {
    let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut line = String::new();
    while stderr.read_line(&mut line)? > 0 {
        if line.contains("timing packets") {
            return Ok(stderr);
        }
    }
    anyhow::bail!("doctor did not begin to time: {line}")
}

fn rest(mut stderr: Stderr) -> String {
    let mut text = String::new();
    let _ = stderr.read_to_string(&mut text);
    text
}

/// Whether the process holds BPF programs, as the kernel says.
fn has_programs(pid: u32) -> anyhow::Result<bool> {
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that was closed between the two reads is no program any more.
        if fs::read_to_string(file?.path()).is_ok_and(|info| info.contains("prog_type:")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Without rights it says which are missing, and everything else all the same.
pub(super) fn says_what_is_missing() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let output = Command::new(program())
        // Without rights the kernel's log has no times, so that nobody could say whether what other scenarios lost was
        // before the limit of now.
        .args(["doctor", "--json", "--sample", "0.1", "--latency", "0.1", "--since", "1s"])
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::null())
        .output()
        .context("start doctor")?;
    let told = answer(&output)?;
    told.expect(3, "unknown")?;
    let finding = told.finding("latency")?;
    let why = finding["evidence"]["why"]["value"].as_str().unwrap_or_default();
    anyhow::ensure!(finding["status"] == "unknown" && why.contains("CAP_BPF"), "{finding}");
    let others: Vec<&Value> = told.object["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|other| other["id"] != "latency" && other["status"] != "ok")
        .collect();
    anyhow::ensure!(others.is_empty(), "{others:?}");
    Ok(())
}
