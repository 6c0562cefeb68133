//! More rules than anybody needs, in a namespace of a user without privileges.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::unistd::Pid;
use serde_json::Value;

use super::super::super::attacker::Attacker;
use super::super::super::ctwatch::program;
use super::super::super::space::{Space, checked};
use super::super::super::{modules, processes, state};
use super::super::init;

const RULES: u32 = 30_000;
const SCRIPT: &str = "/tmp/many.nft";
/// Kibibytes that doctor may take.
const MEMORY: u64 = 64 << 10;
/// All bounds of doctor's together, and what an emulated machine takes to attach and detach.
const TIME: Duration = Duration::from_mins(1);

/// Doctor ends in time and within its memory, and says what it left out.
pub(super) fn many_rules() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let attacker = Attacker::start()?;
    let space = Space::attach("ruler", attacker.pid())?;
    let mut script =
        String::from("add table ip t\nadd chain ip t c { type filter hook input priority 0; }\n");
    for port in 1..=RULES {
        writeln!(script, "add rule ip t c ct state new udp dport {port} counter accept")?;
    }
    fs::write(SCRIPT, script)?;
    checked(space.command("nft").args(["-f", SCRIPT]))?;
    fs::remove_file(SCRIPT)?;

    let start = Instant::now();
    let mut child = Command::new(program())
        .args(["doctor", "--json", "--all", "--sample", "1", "--since", "1s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start doctor")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let mut peak = 0;
    // It prints at its very end, less than a pipe holds.
    while child.try_wait()?.is_none() {
        // The kernel wakes us before the new process has memory of its own (`exec_mmap`, 5.10 to 7.3): until it has its
        // new name, what it shows is ours. It may have ended since.
        if processes::status(pid, "Name").is_ok_and(|name| name == "ctwatch") {
            peak = peak.max(processes::memory_kib(pid, "VmHWM").unwrap_or(0));
        }
        if start.elapsed() > TIME {
            child.kill()?;
            anyhow::bail!("doctor was still at work after {} s", TIME.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    eprintln!("doctor: {:.1} s, {peak} KiB", start.elapsed().as_secs_f64());
    let own = processes::memory_kib(Pid::this(), "VmHWM")?;
    anyhow::ensure!(peak > 0 && peak < MEMORY, "doctor took {peak} KiB, this test {own} KiB");
    let answer: Value = serde_json::from_slice(&output.stdout).context("doctor's answer")?;
    let mut findings = answer["findings"].as_array().into_iter().flatten();
    let finding = findings
        .find(|finding| finding["id"] == "rules-left-out")
        .with_context(|| format!("nothing says that rules are left out: {answer}"))?;
    let told = finding["evidence"].to_string();
    anyhow::ensure!(told.contains("ruler") && told.contains("nft"), "{told}");
    let cut = told.contains("nft: it ");
    anyhow::ensure!(cut || told.contains(&format!("{} counted only", RULES - 1000)), "{told}");
    anyhow::ensure!(!cut || output.status.code() == Some(3), "{:?}: {told}", output.status);
    space.delete()
}
