//! `trace` by ctnetlink: what it announces, and evictions by the kernel's statistics.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use nix::libc;
use nix::sys::signal::{Signal, kill};

use super::super::super::ctwatch::{PATIENCE, program};
use super::super::super::space::{Space, checked};
use super::super::super::traffic::{Family, Flows, raw, spread, udp};
use super::super::super::trial::equal;
use super::super::super::witness::{self, Stats};
use super::super::super::{modules, processes, state, wait};
use super::super::events::Setting;
use super::super::init;
use super::run::{MARKER, Trace, begin, key};

const BY_NETLINK: [&str; 6] = ["--source", "netlink", "--events", "all", "--max-events", "1000000"];

/// Each entry that came or went, with the cause that ctnetlink tells, and evictions as far as they can be told apart.
pub(super) fn everything() -> anyhow::Result<()> {
    const EXPIRED: u32 = 60;
    // The collector may still evict after a refusal of an earlier scenario (see `events::evictions`).
    if modules::present() {
        modules::unload()?;
    }
    let (space, mut trace, _) = begin(&BY_NETLINK, 400, 512)?;
    state::set("nf_conntrack_icmp_timeout", 1)?;
    let before = Stats::read(&space)?;
    let expired = raw::echo(Flows::new(Family::V4, EXPIRED))?.passed;
    witness::wait_count(&space, 0, PATIENCE)?;
    // What expires while others are evicted could be one of these, for all that the kernel tells. Before 5.12 nothing
    // tells it from them, and later not in its last second.
    trace.wait_for("delete", expired)?;
    let sent = udp::send(Flows::new(Family::V4, 3000))?.passed;
    let left = checked(space.command("conntrack").arg("-L"))?;
    let flushed = left.lines().count() as u64;
    checked(space.command("conntrack").arg("-F"))?;
    let kernel = Stats::read(&space)?.since(&before);
    let told = trace.stop()?;
    let evicted = kernel.get("early_drop").unwrap_or(0);
    anyhow::ensure!(evicted > 1000, "few evictions: {evicted}");
    equal("entries gone", evicted + flushed, sent)?;
    equal("suppressed", told.suppressed, 0)?;
    told.covers("insert", expired + sent)?;
    told.covers("early_drop", evicted)?;
    anyhow::ensure!(told.count("early_drop") * 2 > evicted, "{} evictions told", told.count("early_drop"));
    let listed: BTreeSet<&str> =
        left.split_whitespace().filter_map(|word| word.strip_prefix("dst=127.64.")).collect();
    for event in &told.events {
        let evicted = event["event"] == "early_drop";
        equal(&format!("inferred: {event}"), event["inferred"].as_bool(), evicted.then_some(true))?;
        anyhow::ensure!(
            event["cpu"].is_null() && event["newcomer"].is_null(),
            "nobody announced that: {event}"
        );
        let address = key(event)?;
        let is_left = address.strip_prefix("127.64.").is_some_and(|rest| listed.contains(rest));
        anyhow::ensure!(!(evicted && is_left), "it was in the table after that: {event}");
    }
    let deletes = |cause: &str| told.of("delete").filter(|event| event["cause"] == cause).count() as u64;
    equal("deletes by netlink", deletes("netlink"), flushed)?;
    let icmp: Vec<_> = told.of("delete").filter(|event| event["proto"] == "icmp").collect();
    let causes: BTreeSet<&str> = icmp.iter().filter_map(|event| event["cause"].as_str()).collect();
    equal("expired", icmp.len() as u64, expired)?;
    // Before 5.12 ctnetlink does not say whether time was left.
    anyhow::ensure!(
        causes.len() == 1 && (causes.contains("timeout") || causes.contains("other")),
        "{causes:?}"
    );
    for name in ["drop", "insert_failed", "invalid"] {
        let said = format!("{name} is unknown here");
        anyhow::ensure!(told.stderr.contains(&said), "not said: {said}: {}", told.stderr);
    }
    Ok(())
}

/// Programs are refused to who may not load them: `auto` then listens.
pub(super) fn fallback() -> anyhow::Result<()> {
    modules::load()?;
    let space = init();
    state::fresh(&space)?;
    let mut command = Command::new(program());
    // SAFETY: the child only makes system calls, which allocate nothing.
    unsafe { command.pre_exec(give_up_programs) };
    let trace = Trace::start_as(&mut command, &["--events", "all"], false, |number| {
        udp::send(Flows::new(Family::V4, 1).from(MARKER + number)).map(drop)
    })?;
    checked(space.command("conntrack").arg("-F"))?;
    let sent = udp::send(Flows::new(Family::V4, 200))?.passed;
    let listed = witness::listed_total(&space)?;
    checked(space.command("conntrack").arg("-F"))?;
    let told = trace.stop()?;
    equal("entries and flows", listed, sent)?;
    told.covers("insert", sent)?;
    told.covers("delete", sent)?;
    anyhow::ensure!(told.stderr.contains("drop is unknown here"), "it said {:?}", told.stderr);
    Ok(())
}

/// Gives up the capabilities that loading programs takes, for good.
fn give_up_programs() -> io::Result<()> {
    // CAP_SYS_ADMIN, which was all of them before 5.8, CAP_PERFMON and CAP_BPF.
    for capability in [21_u64, 38, 39] {
        // SAFETY: the call takes numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends flows while ctwatch's second process, which has the sockets, is stopped. Gives how many passed.
fn send_unread(trace: &Trace, flows: Flows) -> anyhow::Result<u64> {
    let children = processes::children(trace.running.pid()?)?;
    let listener = children.first().copied().context("ctwatch has no second process")?;
    kill(listener, Signal::SIGSTOP)?;
    let sent = spread(flows, 2, udp::send)?.passed;
    kill(listener, Signal::SIGCONT)?;
    Ok(sent)
}

/// More happens than its queue holds while it is stopped: what is not shown is counted.
pub(super) fn overrun() -> anyhow::Result<()> {
    const FLOWS: u32 = 60_000;
    modules::load()?;
    let (_, trace, _) = begin(&BY_NETLINK, 262_144, 65_536)?;
    let sent = send_unread(&trace, Flows::new(Family::V6, FLOWS))?;
    let told = trace.stop()?;
    anyhow::ensure!(told.lost > 0, "{FLOWS} flows found room in the queue: the scenario shows nothing");
    anyhow::ensure!(told.count("insert") > 0, "nothing was told");
    told.explains(sent)
}

/// The same while the table is full: the evictions that are missing are counted.
pub(super) fn overrun_by_evictions() -> anyhow::Result<()> {
    const FLOWS: u32 = 60_000;
    modules::load()?;
    let (space, trace, before) = begin(&BY_NETLINK, 400, 512)?;
    send_unread(&trace, Flows::new(Family::V4, FLOWS))?;
    let evicted = evictions_since(&space, &before)?;
    let told = trace.stop()?;
    anyhow::ensure!(evicted > u64::from(FLOWS / 2), "few evictions: {evicted}");
    anyhow::ensure!(told.lost > 0, "{FLOWS} flows found room in the queue: the scenario shows nothing");
    told.covers("early_drop", evicted)
}

/// Entries that were there before anybody listened: since 5.19 the kernel does not announce their end.
pub(super) fn older() -> anyhow::Result<()> {
    const OLDER: u32 = 250;
    modules::load()?;
    let space = init();
    state::fresh(&space)?;
    state::buckets(512)?;
    let setting = Setting::save()?;
    let older = udp::send(Flows::new(Family::V4, OLDER))?.passed;
    let trace = Trace::start(&BY_NETLINK)?;
    state::set("nf_conntrack_max", OLDER)?;
    let before = Stats::read(&space)?;
    udp::send(Flows::new(Family::V4, 1500).from(OLDER))?;
    let evicted = evictions_since(&space, &before)?;
    let listed = checked(space.command("conntrack").arg("-L"))?;
    let first = u32::from(Ipv4Addr::new(127, 64, 0, 0));
    let is_older = |word: &str| {
        let address: Option<Ipv4Addr> = word.strip_prefix("dst=").and_then(|address| address.parse().ok());
        address.is_some_and(|address| (first..first + OLDER).contains(&u32::from(address)))
    };
    let left = listed.split_whitespace().filter(|word| is_older(word)).count() as u64;
    let told = trace.stop()?;
    told.covers("early_drop", evicted)?;
    let gone = older - left;
    anyhow::ensure!(gone > u64::from(OLDER / 2), "{left} of {older} are still there");
    if setting.is("2") {
        anyhow::ensure!(told.lost >= gone, "{} lost, {gone} went unannounced", told.lost);
    }
    anyhow::ensure!(told.lost <= evicted, "{} lost, {evicted} evicted", told.lost);
    Ok(())
}

/// The kernel counts evictions, and is told to announce nothing: each of them is missing. So are the inserts that the count
/// of entries shows, which are no more than what is still there.
pub(super) fn silent() -> anyhow::Result<()> {
    modules::load()?;
    let _setting = Setting::save()?;
    let (space, trace, _) = begin(&BY_NETLINK, 200, 512)?;
    Setting::set("0")?;
    let before = Stats::read(&space)?;
    udp::send(Flows::new(Family::V4, 1500))?;
    let evicted = evictions_since(&space, &before)?;
    let left = witness::listed_total(&space)?;
    let told = trace.stop()?;
    anyhow::ensure!(evicted > 500, "few evictions: {evicted}");
    equal("early_drop", told.count("early_drop"), 0)?;
    anyhow::ensure!(
        (evicted..=evicted + left).contains(&told.lost),
        "{} lost, {evicted} evicted, {left} still there",
        told.lost
    );
    Ok(())
}

/// It is stopped while evictions go on: those that still wait to be told are counted.
pub(super) fn stopped() -> anyhow::Result<()> {
    const PART: u32 = 500;
    modules::load()?;
    let args = ["--source", "netlink", "--events", "insert,early_drop", "--max-events", "1000000"];
    let (space, trace, before) = begin(&args, 400, 512)?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| -> anyhow::Result<()> {
            for part in (0..MARKER / PART).take_while(|_| !ended.load(Ordering::Relaxed)) {
                udp::send(Flows::new(Family::V4, PART).from(part * PART))?;
            }
            Ok(())
        });
        let told = wait::until("evictions", PATIENCE, || {
            let evicted = evictions_since(&space, &before)?;
            Ok(if evicted > 1000 { Ok(()) } else { Err(format!("{evicted} evictions")) })
        })
        .and_then(|()| Ok((evictions_since(&space, &before)?, trace.stop()?)));
        ended.store(true, Ordering::Relaxed);
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        let (evicted, told) = told?;
        let shown = told.count("early_drop");
        anyhow::ensure!(shown + told.lost >= evicted, "{shown} told, {} lost, {evicted} evicted", told.lost);
        anyhow::ensure!(shown <= evictions_since(&space, &before)?, "{shown} told");
        Ok(())
    })
}

fn evictions_since(space: &Space, before: &Stats) -> anyhow::Result<u64> {
    Stats::read(space)?.since(before).get("early_drop").context("no early_drop")
}
