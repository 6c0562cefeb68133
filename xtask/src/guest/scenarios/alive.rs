//! ctwatch keeps nothing alive: a namespace that is deleted while it is stopped, blocked or killed goes away.
//!
//! The witness is one end of a veth pair in the first namespace: the kernel takes it away when it destroys the namespace
//! that holds the other end, and not before.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;

use super::super::ctwatch::{PATIENCE, program, signal, source};
use super::super::space::{Space, checked};
use super::super::traffic::{Family, Flows, udp};
use super::super::{modules, state, wait};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("alive::killed", || held_up(|child| signal(child, Signal::SIGKILL))),
    scenario("alive::ctrl_z", || held_up(|child| stopped(child, Signal::SIGTSTP))),
    scenario("alive::sigstop", || held_up(|child| stopped(child, Signal::SIGSTOP))),
    scenario("alive::blocked_pipe", || held_up(blocked)),
];

const WITNESS: &str = "witness0";
/// How long a namespace may outlive its deletion.
const SOON: Duration = Duration::from_secs(2);

/// Deletes a namespace that ctwatch watches, once `hold` has held ctwatch up.
fn held_up(hold: impl FnOnce(&Child) -> anyhow::Result<()>) -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    // How long it takes without ctwatch is the kernel's own share.
    let alone = takes_down(space()?, PATIENCE)?;
    let space = space()?;
    let mut child = Command::new(program())
        .args(["live", "--json", "--interval", "0.1", "--source", source()])
        // A group of its own, as a shell makes it: the kernel does not stop a group that has no such parent.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("start ctwatch")?;
    let done = watches(&mut child, &space)
        .and_then(|()| hold(&child))
        .and_then(|()| takes_down(space, SOON + alone));
    // Gone already in one case.
    let _ = signal(&child, Signal::SIGKILL);
    child.wait()?;
    done.map(|took| eprintln!("{:.2} s, {:.2} s without ctwatch", took.as_secs_f64(), alone.as_secs_f64()))
}

/// One whose end can be seen from here.
fn space() -> anyhow::Result<Space> {
    let space = Space::create("mortal")?;
    let link = ["link", "add", WITNESS, "type", "veth", "peer", "name", "eth0", "netns", "mortal"];
    checked(Command::new("ip").args(link))?;
    state::fresh(&space)?;
    Ok(space)
}

fn takes_down(space: Space, limit: Duration) -> anyhow::Result<Duration> {
    let start = Instant::now();
    space.delete()?;
    let link = format!("/sys/class/net/{WITNESS}");
    wait::until("the end of the namespace", limit, || {
        Ok(if Path::new(&link).exists() { Err("its interface is still there".to_owned()) } else { Ok(()) })
    })?;
    Ok(start.elapsed())
}

/// Waits until it has counted flows of the namespace, from a pipe that nobody reads any further.
fn watches(child: &mut Child, space: &Space) -> anyhow::Result<()> {
    use std::io::{BufRead, BufReader};
    let stdout = child.stdout.as_mut().context("its stdout")?;
    let start = Instant::now();
    let mut lines = BufReader::new(stdout).lines();
    let mut next = 0;
    loop {
        space.enter(|| udp::send(Flows::new(Family::V4, 10).from(next)))?;
        next += 10;
        let line = lines.next().context("ctwatch ended")??;
        let object: serde_json::Value = serde_json::from_str(&line)?;
        let mut flows = object["flows"].as_array().into_iter().flatten();
        if flows.any(|flow| flow["netns"] == space.inode) {
            return Ok(());
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "ctwatch does not see {}: {line}", space.label());
    }
}

fn stopped(child: &Child, which: Signal) -> anyhow::Result<()> {
    signal(child, which)?;
    wait::until("a stopped ctwatch", PATIENCE, || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default().to_owned();
        Ok(if state.contains("T (stopped)") { Ok(()) } else { Err(state) })
    })
}

/// Its pipe fills, since nobody reads it, until a thread waits for room.
fn blocked(child: &Child) -> anyhow::Result<()> {
    // The system call in which a thread sleeps, and its first argument; one that runs shows `running`.
    let writing = format!("{} 0x1 ", nix::libc::SYS_write);
    wait::until("a full pipe", PATIENCE, || {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id()))?;
        let waits = |task: fs::DirEntry| fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        let all: Vec<String> = tasks.flatten().map(waits).collect();
        Ok(if all.iter().any(|place| place.starts_with(&writing)) { Ok(()) } else { Err(all.join(" ")) })
    })
}
