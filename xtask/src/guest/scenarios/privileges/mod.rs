//! What ctwatch may still do once it has started, of each of its processes and threads, and that it works with no more.
//!
//! The witness is the kernel: `/proc/PID/task/TID/status` of each.

mod file;
mod inject;
mod threads;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::super::ctwatch::{PATIENCE, Running, Watch, program, run, source};
use super::super::exporter::Exporter;
use super::super::traffic::{Family, Flows, udp};
use super::super::trial::equal;
use super::super::{modules, processes, state, wait};
use super::{Scenario, init, scenario};
use threads::{check, of_names};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("privileges::live", live),
    scenario("privileges::trace", trace),
    scenario("privileges::export", export),
    scenario("privileges::short_commands", short_commands),
    scenario("privileges::children_of_doctor", children_of_doctor),
    scenario("privileges::after_the_module_came_back", after_the_module_came_back),
    scenario("privileges::refused_calls", inject::refused_calls),
    scenario("privileges::ending_calls", inject::ending_calls),
    scenario("privileges::one_group", file::one_group),
];

/// As docs/security.md lists them.
const NOTHING: &[&str] = &[];
const PROBES: &[&str] = &["CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"];
const SCREEN: &[&str] =
    &["CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"];
const EXPORT_TO_FILES: &[&str] = &["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"];
const NAMESPACES: &[&str] = &["CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"];
const DOCTOR: &[&str] = &[
    "CAP_DAC_READ_SEARCH",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_PTRACE",
    "CAP_SYS_ADMIN",
    "CAP_SYSLOG",
    "CAP_PERFMON",
    "CAP_BPF",
];
/// Those of doctor's children.
const NFT: &[&str] = &["CAP_NET_ADMIN"];

/// What counting by this source takes.
fn of(source: &str) -> &'static [&'static str] {
    if source == "netlink" { NOTHING } else { PROBES }
}

/// Compares all threads of ctwatch with what it shall keep, and those of its second process.
fn check_both(pid: Pid, kept: &[&str]) -> anyhow::Result<()> {
    let keeper = processes::children(pid)?;
    anyhow::ensure!(keeper.len() == 1, "its children: {keeper:?}");
    let kept = of_names(kept)?;
    check(pid, kept, kept).context("ctwatch")?;
    let kept = of_names(NAMESPACES)?;
    check(keeper[0], kept, kept).context("ctwatch-netns")
}

fn live() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let mut watch = Watch::start(&["--source", source()])?;
    check_both(watch.pid()?, of(source()))?;
    // It works with them.
    let sent = udp::send(Flows::new(Family::V4, 500))?.passed;
    watch.wait_sum("insert", sent)?;
    check_both(watch.pid()?, of(source())).context("later")?;
    let totals = watch.stop()?;
    equal("inserts", totals.sum("insert"), sent)
}

fn trace() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let mut trace = Running::spawn(Command::new(program()).args(["trace", "--json", "--events", "insert"]))?;
    wait::until("an event of the trace", PATIENCE, || {
        udp::send(Flows::new(Family::V4, 10))?;
        Ok(trace.next(Duration::from_millis(200))?.map(drop).ok_or_else(|| "none".to_owned()))
    })?;
    check_both(trace.pid()?, PROBES)?;
    trace.signal(Signal::SIGINT)?;
    let ended = trace.end()?;
    anyhow::ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

fn export() -> anyhow::Result<()> {
    const USER: u32 = 65_534;
    modules::load()?;
    state::fresh(&init())?;
    let exporter = Exporter::start(&[])?;
    check_both(exporter.pid()?, of(source())).context("over TCP")?;
    exporter.stop()?;
    // A directory of another user, in which root alone may write by a capability.
    let directory = "/tmp/of-another-user";
    fs::create_dir_all(directory)?;
    std::os::unix::fs::chown(directory, Some(USER), Some(USER))?;
    let textfile = format!("{directory}/ctwatch.prom");
    let args = ["export", "--interval", "0.2", "--textfile", &textfile];
    let mut running = Running::spawn(Command::new(program()).args(args).args(["--source", source()]))?;
    let written = wait::until("the file", PATIENCE, || {
        Ok(fs::read_to_string(&textfile).map(drop).map_err(|error| error.to_string()))
    });
    let kept = if source() == "netlink" { &EXPORT_TO_FILES[..1] } else { EXPORT_TO_FILES };
    let checked = written.and_then(|()| check_both(running.pid()?, kept).context("to a file"));
    running.signal(Signal::SIGTERM)?;
    let ended = running.end()?;
    fs::remove_dir_all(directory)?;
    checked.with_context(|| ended.stderr.clone())?;
    anyhow::ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

/// Those that end by themselves are looked at while they wait for a reader.
fn short_commands() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    udp::send(Flows::new(Family::V4, 10))?;
    let commands = [
        (&["table", "--json"][..], NAMESPACES),
        (&["doctor", "--sample", "0.2"], DOCTOR),
        (&["doctor", "explain"], NOTHING),
        (&["facts"], NOTHING),
        (&["man"], NOTHING),
        (&["completions", "bash"], NOTHING),
    ];
    for (args, kept) in commands {
        let (child, reader) = start_unread(args)?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let waits = || Ok(if threads::writes(pid)? { Ok(()) } else { Err("it does not write".to_owned()) });
        let kept = of_names(kept)?;
        let seen = wait::until("a command that waits for its reader", PATIENCE, waits)
            .and_then(|()| check(pid, kept, kept))
            .and_then(
                |()| if args == ["doctor", "--sample", "0.2"] { inject::of_doctor(pid) } else { Ok(()) },
            );
        let text = finish(child, reader)?;
        seen.with_context(|| format!("{args:?}: {text}"))?;
    }
    what_facts_says()
}

fn what_facts_says() -> anyhow::Result<()> {
    let output = run(&["facts"])?;
    let facts: Value = serde_json::from_slice(&output.stdout).context("facts")?;
    let privileges = &facts["privileges"];
    let commands = [
        ("live", PROBES),
        ("live --source netlink", NOTHING),
        ("live on the screen", SCREEN),
        ("trace", PROBES),
        ("export", PROBES),
        ("export to a file or Unix socket", EXPORT_TO_FILES),
        ("table", NAMESPACES),
        ("doctor", DOCTOR),
        ("facts", NOTHING),
        ("ctwatch-netns", NAMESPACES),
    ];
    for (command, kept) in commands {
        let shown = privileges["kept"][command].as_object();
        let shown = shown.with_context(|| format!("nothing of {command}: {privileges}"))?;
        let names: Vec<&str> = shown.keys().map(String::as_str).collect();
        equal(&format!("what facts says of {command}"), of_names(&names)?, of_names(kept)?)?;
        anyhow::ensure!(
            shown.values().all(|why| why.as_str().is_some_and(|why| !why.is_empty())),
            "{command}"
        );
    }
    let done = [
        ("no_new_privs", Value::Bool(true)),
        ("bounding_set_refused", Value::Null),
        ("capabilities_refused", Value::Null),
        ("seccomp_refused", Value::Null),
    ];
    for (name, value) in done {
        equal(name, &privileges[name], &value)?;
    }
    Ok(())
}

/// Looks at nft while doctor has it list rules.
fn children_of_doctor() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let bounding = of_names(DOCTOR)?;
    wait::until("nft as a child of doctor", PATIENCE, || {
        let mut doctor = Command::new(program())
            .args(["doctor", "--sample", "0.2"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let pid = Pid::from_raw(i32::try_from(doctor.id())?);
        let mut seen = None;
        while doctor.try_wait()?.is_none() {
            if let Some(nft) = threads::child_called(pid, "nft") {
                // It may end before it is looked at.
                let running = threads::Status::read(nft).filter(|status| !status.has_ended());
                if let Some(status) = running {
                    seen = Some(status.check(of_names(NFT)?, bounding, of_names(NFT)?));
                }
            }
        }
        match seen {
            Some(checked) => checked.map(Ok),
            None => Ok(Err("it was not seen".to_owned())),
        }
    })
}

/// Attaching again takes no right that was given up.
fn after_the_module_came_back() -> anyhow::Result<()> {
    let first = init();
    modules::load()?;
    state::fresh(&first)?;
    let mut watch = Watch::start(&["--source", "kprobe"])?;
    let before = udp::send(Flows::new(Family::V4, 100))?.passed;
    watch.wait_sum("insert", before)?;
    modules::unload()?;
    // The report of what was counted until then: what comes later is of the time after.
    watch.wait_sum("delete", before)?;
    watch.wait_said()?;
    modules::load()?;
    watch.wait_object("the first object after conntrack came back", |object| {
        object["table"].as_array().is_some_and(|tables| !tables.is_empty())
    })?;
    state::fresh(&first)?;
    check_both(watch.pid()?, PROBES)?;
    let sent = udp::send(Flows::new(Family::V6, 300))?.passed;
    let totals = watch.stop()?;
    equal("inserts", totals.sum("insert"), before + sent)
}

/// Starts a command whose output nobody takes: the pipe is full beforehand.
fn start_unread(args: &[&str]) -> anyhow::Result<(Child, File)> {
    let (reader, writer) = nix::unistd::pipe()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut full = File::from(writer);
    // A byte at a time at the end: what is left of a page would take a short answer.
    for size in [4096, 1] {
        while full.write(&vec![b' '; size]).is_ok() {}
    }
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty()))?;
    let child = Command::new(program())
        .args(args)
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(full))
        .stderr(Stdio::piped())
        .spawn()
        .context("start ctwatch")?;
    Ok((child, File::from(reader)))
}

/// Takes all of its output and waits for its end.
fn finish(mut child: Child, mut reader: File) -> anyhow::Result<String> {
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    child.wait()?;
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut text)?;
    }
    Ok(text.trim().to_owned())
}
