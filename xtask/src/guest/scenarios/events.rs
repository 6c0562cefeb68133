//! Counting by ctnetlink where that differs from the rest: queues that overflow, events that are switched off,
//! many namespaces, modules that must not be loaded.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::super::ctwatch::{PATIENCE, Watch, program, signal};
use super::super::space::{Space, checked};
use super::super::traffic::tcp::{self, End};
use super::super::traffic::{Family, Flows, raw, spread, udp};
use super::super::trial::{Trial, equal};
use super::super::{modules, processes, state, witness};
use super::{Scenario, init, scenario, traffic};

/// This needs a kernel that has never had conntrack.
pub(super) const SCENARIOS_BEFORE: &[Scenario] = &[scenario("events::loads_nothing", loads_nothing)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("events::evictions", evictions),
    scenario("events::overrun", overrun),
    scenario("events::switched_off", switched_off),
    scenario("events::many_namespaces", many_namespaces),
    scenario("events::port", port),
    scenario("events::net", net),
];

const BY_NETLINK: [&str; 2] = ["--source", "netlink"];

/// Names of the loaded modules.
fn loaded() -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/modules")?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// Runs one command to its end; one that waits for conntrack is interrupted once it has said so.
fn run_once(args: &[&str]) -> anyhow::Result<String> {
    let mut child = Command::new(program())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start ctwatch {args:?}"))?;
    let mut lines = BufReader::new(child.stderr.take().context("its stderr")?).lines();
    let mut said = String::new();
    if let Some(first) = lines.next().transpose()? {
        said += &first;
        // Ended already where there was nothing to wait for.
        let _ = signal(&child, Signal::SIGINT);
    }
    said.extend(lines.map_while(Result::ok));
    child.wait()?;
    Ok(said)
}

/// No command loads a module by looking: not conntrack, and not its netlink half where conntrack is there.
fn loads_nothing() -> anyhow::Result<()> {
    const COMMANDS: [&[&str]; 6] = [
        &["live", "--json", "--source", "netlink"],
        &["live", "--plain"],
        &["trace", "--json"],
        &["table", "--json"],
        &["doctor"],
        &["facts"],
    ];
    anyhow::ensure!(!modules::present(), "conntrack is loaded already");
    let unloaded = loaded()?;
    for args in COMMANDS {
        let said = run_once(args)?;
        equal(&format!("modules after ctwatch {args:?}, which said {said:?}"), loaded()?, unloaded.clone())?;
    }
    checked(Command::new("modprobe").arg("nf_conntrack"))?;
    let without_netlink = loaded()?;
    anyhow::ensure!(!without_netlink.contains("nf_conntrack_netlink"), "{without_netlink:?}");
    // With conntrack there `trace` waits for events, without a word.
    for args in COMMANDS.into_iter().filter(|args| args[0] != "trace") {
        let watches = args[0] == "live" && !args.contains(&"netlink");
        let said = run_once(&if watches { [args, &["-n", "1"]].concat() } else { args.to_vec() })?;
        let what = format!("modules after ctwatch {args:?}, which said {said:?}");
        equal(&what, loaded()?, without_netlink.clone())?;
        if args.contains(&"netlink") {
            anyhow::ensure!(said.contains("modprobe nf_conntrack_netlink"), "ctwatch {args:?} said {said:?}");
        }
    }
    Ok(())
}

/// What counts as evicted, without a probe: entries that leave with time left and at nobody's request, as many as the
/// kernel's early_drop rose. A flush, whose entries have time left too, and timeouts are told from them.
fn evictions() -> anyhow::Result<()> {
    const EXPIRED: u32 = 60;
    let space = init();
    // A refusal of an earlier scenario has the collector evict from any table above 95 % until it has gone round
    // (`gc_worker`, 5.10 to 7.3), and no kernel counter has these. A module loaded anew has forgotten it.
    if modules::present() {
        modules::unload()?;
    }
    let trial = Trial::start(&[&space], &BY_NETLINK, || {
        state::buckets(512)?;
        state::set("nf_conntrack_max", 400)?;
        state::set("nf_conntrack_icmp_timeout", 1)
    })?;
    let expired = raw::echo(Flows::new(Family::V4, EXPIRED))?.passed;
    witness::wait_count(&space, 0, PATIENCE)?;
    let sent = udp::send(Flows::new(Family::V4, 3000))?.passed;
    let flushed = witness::listed_total(&space)?;
    checked(space.command("conntrack").arg("-F"))?;
    let finding = trial.finish()?;
    let evicted = finding.kernel("early_drop");
    anyhow::ensure!(evicted > 1000, "few evictions: {}", finding.sides(0));
    finding.equal("entries gone", evicted + flushed, sent)?;
    finding.row(Family::V4, 1, "delete.timeout", expired)?;
    finding.row(Family::V4, 17, "delete.netlink", flushed)?;
    finding.equal("deletes by eviction", finding.totals.sum("delete.early_drop"), evicted)?;
    let of_udp = finding.get(Family::V4, 17, "early_drop");
    // On 5.10 an expired entry leaves as an evicted one does, but not in the same interval here, unless it was slow:
    // then as many evictions are doubtful, and again as many where the removals wait for the next settlement.
    let told_apart = finding.totals.silence.tells_somewhere("delete.timeout");
    let certain = if told_apart { evicted } else { evicted.saturating_sub(2 * expired) };
    anyhow::ensure!((certain..=evicted).contains(&of_udp), "{of_udp} of UDP: {}", finding.sides(0));
    finding.equal("deletes", finding.totals.sum("delete"), expired + evicted + flushed)
}

/// Stopped while more happens than its queues hold: totals are exact all the same, and what was missed is told.
fn overrun() -> anyhow::Result<()> {
    const FLOWS: u32 = 60_000;
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let watch = Watch::start(&BY_NETLINK)?;
    let heard = udp::send(Flows::new(Family::V4, 1000))?.passed;
    // The second process has the sockets: stopped, it reads none.
    let listener = second(&watch)?;
    kill(listener, Signal::SIGSTOP)?;
    let unheard = spread(Flows::new(Family::V6, FLOWS), 2, udp::send)?.passed;
    let entries = witness::count(&space)?;
    checked(space.command("conntrack").arg("-F"))?;
    kill(listener, Signal::SIGCONT)?;
    let totals = watch.stop()?;
    let compare = |what: &str, ctwatch, witness| {
        equal(what, ctwatch, witness).map_err(|error| anyhow::anyhow!("{error:#}\nctwatch: {totals}"))
    };
    compare("inserts and conntrack -C", totals.sum("insert"), entries)?;
    compare("inserts", totals.sum("insert"), heard + unheard)?;
    compare("deletes", totals.sum("delete"), entries)?;
    let lost = totals.lost()?;
    anyhow::ensure!(lost > 0, "{FLOWS} flows found room in the queues: the scenario shows nothing: {totals}");
    let untyped = |field| totals.sum_of_family("any", field);
    compare("lost, and what has no flow type", lost, untyped("insert") + untyped("delete"))
}

/// The process in which ctwatch listens.
fn second(watch: &Watch) -> anyhow::Result<Pid> {
    let children = processes::children(watch.pid()?)?;
    children.first().copied().context("ctwatch has no second process")
}

/// The notes on what is unknown.
fn unknown(object: &Value, field: &str) -> bool {
    object["source"]["unknown"].get(field).is_some()
}

/// The setting of the kernel's events, brought back when dropped.
pub(super) struct Setting(String);

impl Setting {
    const FILE: &'static str = "/proc/sys/net/netfilter/nf_conntrack_events";

    pub(super) fn save() -> anyhow::Result<Self> {
        Ok(Self(fs::read_to_string(Self::FILE)?))
    }

    /// Whether it was this.
    pub(super) fn is(&self, value: &str) -> bool {
        self.0.trim() == value
    }

    pub(super) fn set(value: &str) -> anyhow::Result<()> {
        fs::write(Self::FILE, value).with_context(|| format!("set nf_conntrack_events to {value}"))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = Self::set(self.0.trim()) {
            eprintln!("{error:#}");
        }
    }
}

/// Without the kernel's events inserts and deletes are unknown, and losses are still counted. It follows the setting.
fn switched_off() -> anyhow::Result<()> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let _setting = Setting::save()?;
    Setting::set("0")?;
    let mut watch = Watch::spawn(&BY_NETLINK)?;
    watch.wait_object("an object without inserts", |object| {
        let why = object["source"]["why"].as_str().unwrap_or_default();
        unknown(object, "insert") && unknown(object, "delete.timeout") && why.contains("nf_conntrack_events")
    })?;
    state::set("nf_conntrack_max", 100)?;
    let sent = udp::send(Flows::new(Family::V4, 2000))?;
    anyhow::ensure!(sent.refused > 0, "nothing was refused");
    watch.wait_sum("drop.table_full", sent.refused)?;
    state::fresh(&space)?;
    Setting::set("1")?;
    watch.wait_object("an object with inserts", |object| !unknown(object, "insert"))?;
    let heard = udp::send(Flows::new(Family::V6, 500))?.passed;
    watch.wait_sum("insert", heard)?;
    Setting::set("0")?;
    watch.wait_object("an object without inserts again", |object| unknown(object, "insert"))?;
    let totals = watch.stop()?;
    equal("drops", totals.sum("drop.table_full"), sent.refused).with_context(|| totals.to_string())?;
    equal("inserts", totals.sum("insert"), heard).with_context(|| totals.to_string())?;
    let last = totals.objects.last().context("it printed nothing")?;
    let why = last["source"]["why"].as_str().unwrap_or_default();
    anyhow::ensure!(why.contains("for a while"), "it does not tell of the gap: {why}");
    Ok(())
}

/// Namespaces that a scenario needs many of; deleted when dropped.
struct Crowd(u32);

impl Crowd {
    fn create(count: u32) -> anyhow::Result<Self> {
        let crowd = Self(count);
        crowd.each("add")?;
        Ok(crowd)
    }

    fn each(&self, what: &str) -> anyhow::Result<()> {
        let lines: Vec<String> = (0..self.0).map(|n| format!("netns {what} crowd{n}\n")).collect();
        let file = "/tmp/crowd";
        fs::create_dir_all("/tmp")?;
        fs::write(file, lines.concat())?;
        checked(Command::new("ip").args(["-batch", file])).map(drop)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(error) = self.each("del") {
            eprintln!("{error:#}");
        }
    }
}

/// Each of many namespaces is followed. When they are gone, one that comes is found, and what happened in it before that
/// is counted as missed. More than can be followed: `attacker::many_namespaces`.
fn many_namespaces() -> anyhow::Result<()> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let crowd = Crowd::create(70)?;
    let last = Space::create("last")?;
    state::fresh(&last)?;
    let mut watch = Watch::start(&BY_NETLINK)?;
    let first = traffic::in_space(&space, 100)?;
    let in_last = traffic::in_space(&last, 200)?;
    watch.wait_sum("insert", first + in_last)?;
    drop(crowd);
    let late = Space::create("late")?;
    state::fresh(&late)?;
    let flows = traffic::in_space(&late, 300)?;
    watch.wait_sum("insert", first + in_last + flows)?;
    let totals = watch.stop()?;
    totals.check().with_context(|| totals.to_string())?;
    equal("inserts in last", totals.sum_in(last.inode, "insert"), in_last)
        .with_context(|| totals.to_string())?;
    // Found while flows come, it may tell of those twice that were on their way: one a CPU.
    let told = totals.sum_in(late.inode, "insert");
    let twice = if totals.lost()? > 0 { 2 } else { 0 };
    anyhow::ensure!((flows..=flows + twice).contains(&told), "{told} inserts in late of {flows}: {totals}");
    equal("inserts in init", totals.sum_in(space.inode, "insert"), first).with_context(|| totals.to_string())
}

fn filtered(args: &[&str], wanted: &[(Family, u64)]) -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[&BY_NETLINK, args].concat(), || Ok(()))?;
    udp::send(Flows::new(Family::V4, 300))?;
    udp::send(Flows::new(Family::V6, 200))?;
    raw::echo(Flows::new(Family::V4, 50))?;
    tcp::connections(Flows::new(Family::V4, 40), End::Close)?;
    let finding = trial.finish_filtered()?;
    for &(family, flows) in wanted {
        finding.row(family, 17, "insert", flows)?;
    }
    finding.equal("inserts", finding.totals.sum("insert"), wanted.iter().map(|(_, flows)| flows).sum::<u64>())
}

/// TCP and ICMP have other ports, or none.
fn port() -> anyhow::Result<()> {
    filtered(&["--port", "9,6881"], &[(Family::V4, 300), (Family::V6, 200)])
}

/// UDP and ICMP go to the same addresses.
fn net() -> anyhow::Result<()> {
    filtered(&["--net", "127.64.0.0/25", "--proto", "udp"], &[(Family::V4, 128)])
}
