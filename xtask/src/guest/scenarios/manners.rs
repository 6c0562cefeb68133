//! How ctwatch starts, ends and behaves where it cannot work.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

use super::super::ctwatch::{PATIENCE, Watch, bears_a_closed_pipe, program, run, signal};
use super::super::space::checked;
use super::super::traffic::{Family, Flows, udp};
use super::super::{modules, state, wait};
use super::{Scenario, init, scenario};

/// These need a kernel without conntrack.
pub(super) const SCENARIOS_BEFORE: &[Scenario] =
    &[scenario("manners::loads_nothing", loads_nothing), scenario("manners::waits_for_conntrack", waits)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("manners::sigint", || ends_exactly(Signal::SIGINT)),
    scenario("manners::sigterm", || ends_exactly(Signal::SIGTERM)),
    scenario("manners::count", count),
    scenario("manners::closed_pipe", closed_pipe),
    scenario("manners::sigkill", sigkill),
    scenario("manners::unprivileged", unprivileged),
    scenario("manners::without_btf", without_btf),
    scenario("manners::wrong_usage", wrong_usage),
];

/// No command makes the kernel load conntrack, and `live` says what it waits for.
fn loads_nothing() -> anyhow::Result<()> {
    if modules::present() {
        modules::unload()?;
    }
    for args in [&["--help"][..], &["facts"], &["man"], &["completions", "bash"], &["live", "--help"]] {
        let output = run(args)?;
        anyhow::ensure!(output.status.success(), "ctwatch {args:?}: {output:?}");
        anyhow::ensure!(!modules::present(), "ctwatch {args:?} loaded conntrack");
    }
    for args in [&["live", "--json"][..], &["live", "--plain"]] {
        let mut child = Command::new(program())
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start")?;
        let mut lines = BufReader::new(child.stderr.take().context("its stderr")?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        anyhow::ensure!(!modules::present(), "ctwatch {args:?} loaded conntrack");
        signal(&child, Signal::SIGINT)?;
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let status = child.wait()?;
        anyhow::ensure!(
            first.contains("track"),
            "ctwatch {args:?} did not say that it waits: {first:?} {rest:?}"
        );
        anyhow::ensure!(status.success(), "ctwatch {args:?}, interrupted while waiting: {status}");
        anyhow::ensure!(!modules::present(), "ctwatch {args:?} loaded conntrack at its end");
    }
    Ok(())
}

/// Started before conntrack, it attaches once that is there, and counts exactly from then on.
fn waits() -> anyhow::Result<()> {
    if modules::present() {
        modules::unload()?;
    }
    let mut watch = Watch::spawn(&[])?;
    // The modules come one after the other: a source that opens between them rightly refuses to run.
    watch.wait_said()?;
    modules::load()?;
    let space = init();
    // Nothing is tracked yet, so nothing can be missed before the first object says that it watches.
    watch.wait_object("the first object after conntrack came", |_| true)?;
    state::fresh(&space)?;
    let sent = udp::send(Flows::new(Family::V4, 1000))?;
    let totals = watch.stop()?;
    totals.check()?;
    super::super::trial::equal("inserts", totals.sum("insert"), sent.passed)
        .with_context(|| totals.stderr.clone())
}

/// The last object holds the partial interval: what was sent just before the signal is in it.
fn ends_exactly(signal: Signal) -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let mut watch = Watch::start(&[])?;
    let mut sent = 0;
    for lot in 0..3 {
        sent += udp::send(Flows::new(Family::V4, 700).from(lot * 700))?.passed;
        watch.wait_object("the next object", |_| true)?;
    }
    sent += udp::send(Flows::new(Family::V4, 900).from(5000))?.passed;
    let totals = watch.stop_with(signal)?;
    anyhow::ensure!(totals.status.success(), "{signal}: {}: {}", totals.status, totals.stderr);
    totals.check()?;
    super::super::trial::equal("inserts", totals.sum("insert"), sent)
}

/// `--count` ends it by itself.
fn count() -> anyhow::Result<()> {
    let output = run(&["live", "--json", "-i", "0.2", "-n", "3"])?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout)?.lines().count();
    super::super::trial::equal("objects", lines, 3)
}

/// A reader that went away is no error, and no reason to go on.
fn closed_pipe() -> anyhow::Result<()> {
    modules::load()?;
    for format in ["--json", "--plain"] {
        bears_a_closed_pipe(&["live", format, "--interval", "0.2"], true)?;
    }
    Ok(())
}

/// Everything that can stay behind in a kernel: programs, links, maps, kprobes.
fn attached() -> anyhow::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for kind in ["prog", "link", "map"] {
        let text = checked(Command::new("bpftool").args([kind, "show"]))?;
        all.extend(
            text.lines()
                .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
                .map(|line| format!("{kind} {line}")),
        );
    }
    for file in ["/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/kprobes/list"] {
        // Kernels without kprobes have neither.
        let text = fs::read_to_string(file).unwrap_or_default();
        all.extend(text.lines().map(|line| format!("{file}: {line}")));
    }
    let pinned = fs::read_dir("/sys/fs/bpf")
        .map(|entries| entries.flatten().map(|entry| entry.path()))
        .into_iter()
        .flatten();
    all.extend(pinned.map(|path| format!("pinned {}", path.display())));
    Ok(all)
}

/// kill -9 in the middle of traffic leaves nothing attached.
fn sigkill() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let before = attached()?;
    let watch = Watch::start(&[])?;
    let during = attached()?;
    anyhow::ensure!(during.len() > before.len(), "ctwatch runs, and nothing is attached: {during:?}");
    udp::send(Flows::new(Family::V4, 500))?;
    let totals = watch.stop_with(Signal::SIGKILL)?;
    anyhow::ensure!(!totals.status.success(), "kill -9 ended well: {}", totals.status);
    // The kernel frees programs and probes after a grace period.
    wait::until("nothing to stay attached", PATIENCE, || {
        let left: Vec<String> = attached()?.difference(&before).cloned().collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join("; ")) })
    })
}

/// Without privileges: one message that names what is missing, exit code 1.
fn unprivileged() -> anyhow::Result<()> {
    modules::load()?;
    let output =
        Command::new(program()).args(["live", "--json", "-n", "1"]).uid(65_534).gid(65_534).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    anyhow::ensure!(output.stdout.is_empty(), "it printed {}", String::from_utf8_lossy(&output.stdout));
    for word in ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"] {
        anyhow::ensure!(said.contains(word), "the message does not name {word}: {said}");
    }
    anyhow::ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

/// Without type information: one message with the way out, and by `auto` the next source, which says why.
fn without_btf() -> anyhow::Result<()> {
    const BTF: &str = "/sys/kernel/btf";
    modules::load()?;
    mount(Some("none"), BTF, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("hide the BTF")?;
    let probes = run(&["live", "--json", "-n", "1", "--source", "kprobe"]);
    let auto = run(&["live", "--json", "-n", "1", "-i", "0.2"]);
    umount(BTF).context("show the BTF again")?;
    let (probes, auto) = (probes?, auto?);
    let said = String::from_utf8_lossy(&probes.stderr).into_owned();
    anyhow::ensure!(probes.status.code() == Some(1), "{}: {said}", probes.status);
    anyhow::ensure!(said.contains("CONFIG_DEBUG_INFO_BTF") && said.contains("way out"), "{said}");
    anyhow::ensure!(auto.status.success(), "{auto:?}");
    let object: serde_json::Value = serde_json::from_slice(&auto.stdout).context("its only object")?;
    anyhow::ensure!(object["source"]["kind"] == "netlink", "{object}");
    let why = object["source"]["why"].as_str().unwrap_or_default();
    anyhow::ensure!(why.contains("CONFIG_DEBUG_INFO_BTF"), "why: {why}");
    Ok(())
}

/// Wrong usage is told from failure.
fn wrong_usage() -> anyhow::Result<()> {
    for args in [&["live", "--interval", "0"][..], &["live", "--proto", "nonsense"], &["--no-such-flag"]] {
        let output = run(args)?;
        anyhow::ensure!(output.status.code() == Some(2), "ctwatch {args:?}: {output:?}");
        anyhow::ensure!(!output.stderr.is_empty(), "ctwatch {args:?} said nothing");
    }
    Ok(())
}
