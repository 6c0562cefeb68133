//! `ctwatch table`: the same as `conntrack -L`, counted by hand.

mod directions;
mod listed;
mod saved;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::super::ctwatch::{self, program, signal};
use super::super::space::{Space, checked};
use super::super::traffic::{Family, Flows, PORT, raw, tcp, udp};
use super::super::trial::equal;
use super::super::{modules, state};
use super::{Scenario, init, scenario};
use listed::{Line, compare, group_of, listed};

/// These need a kernel without conntrack.
pub(super) const SCENARIOS_BEFORE: &[Scenario] = &[scenario("table::loads_nothing", loads_nothing)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("table::equals_conntrack", equals_conntrack),
    scenario("table::namespaces", namespaces),
    scenario("table::filters", filters),
    scenario("table::shown_and_left_out", shown_and_left_out),
    scenario("table::more_groups_than_room", more_groups_than_room),
    scenario("table::at_a_terminal", at_a_terminal),
    scenario("table::unprivileged", unprivileged),
    scenario("table::both_directions", directions::both_directions),
    scenario("table::saved", saved::saved),
];

fn run(args: &[&str]) -> anyhow::Result<Output> {
    ctwatch::run(&[&["table"], args].concat())
}

/// The objects it printed, and what it said beside them.
fn objects(args: &[&str]) -> anyhow::Result<(Vec<Value>, String)> {
    let output = run(&[&["--json"], args].concat())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "ctwatch table {args:?}: {}: {said}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    let objects = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok((objects, said))
}

fn of_space(objects: &[Value], space: &Space) -> anyhow::Result<Value> {
    let object = objects.iter().find(|object| object["netns"] == space.inode);
    object.cloned().with_context(|| format!("nothing of {}: {objects:?}", space.label()))
}

/// Each protocol and state that ctnetlink writes in a way of its own, in both families.
fn mixture() -> anyhow::Result<tcp::Held> {
    let mut held = tcp::Held::default();
    for (family, more) in [(Family::V4, 3), (Family::V6, 1)] {
        tcp::hold(Flows::new(family, 4 * more), &mut held)?;
        tcp::connections(Flows::new(family, 5 * more).from(100), tcp::End::Close)?;
        udp::send(Flows::new(family, 40 * more))?;
        udp::ask_and_answer(Flows::new(family, 7 * more))?;
        raw::echo(Flows::new(family, 6 * more))?;
        raw::protocol(Flows::new(family, 2 * more), raw::EXPERIMENT)?;
        raw::protocol(Flows::new(family, 3 * more), raw::GRE)?;
        raw::protocol(Flows::new(family, 2 * more), raw::SCTP)?;
    }
    Ok(held)
}

/// Reads both sides; where the table changed meanwhile (a TCP timer, the collector), once more.
fn both<T>(
    spaces: &[&Space],
    mut ctwatch: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Vec<Vec<Line>>)> {
    const READINGS: usize = 5;
    let witness = || spaces.iter().map(|space| listed(space)).collect::<anyhow::Result<Vec<_>>>();
    let sorted = |mut all: Vec<Vec<Line>>| {
        for lines in &mut all {
            lines.sort_by_key(|line| format!("{line:?}"));
        }
        all
    };
    let mut before = sorted(witness()?);
    for _ in 0..READINGS {
        let told = ctwatch()?;
        let after = sorted(witness()?);
        if before == after {
            return Ok((told, after));
        }
        before = after;
    }
    anyhow::bail!("the table did not stay the same for one reading of it")
}

fn fresh(spaces: &[&Space]) -> anyhow::Result<()> {
    modules::load()?;
    spaces.iter().try_for_each(|space| state::fresh(space))
}

/// Every grouping of one namespace, with its totals.
fn equals_conntrack() -> anyhow::Result<()> {
    const GROUPINGS: [&[&str]; 10] = [
        &["proto"],
        &["state"],
        &["assured"],
        &["src"],
        &["sport"],
        &["dst"],
        &["dport"],
        &["proto", "state", "dport"],
        &["assured", "src", "dport"],
        &["proto", "state", "assured", "src", "sport", "dst", "dport"],
    ];
    let space = init();
    fresh(&[&space])?;
    let _held = mixture()?;
    let mut kinds = 0;
    for by in GROUPINGS {
        let ((objects, _), lines) = both(&[&space], || objects(&["--by", &by.join(","), "--netns", "init"]))?;
        equal("objects", objects.len(), 1)?;
        compare(&of_space(&objects, &space)?, &lines[0], by)?;
        let mut seen: Vec<(u8, &str)> = lines[0].iter().map(|line| (line.proto, line.family)).collect();
        seen.sort_unstable();
        seen.dedup();
        kinds = seen.len();
    }
    anyhow::ensure!(kinds >= 11, "only {kinds} flow types were in the table");
    // Without --by, and as text.
    let (output, lines) = both(&[&space], || run(&["--netns", "init", "--no-color"]))?;
    let text = String::from_utf8(output.stdout)?;
    let unreplied = lines[0].iter().filter(|line| !line.replied).count();
    let head = format!("init: {} entries, ", lines[0].len());
    anyhow::ensure!(text.contains(&head), "no `{head}` in {text}");
    anyhow::ensure!(text.contains(&format!(", {unreplied} never answered")), "{unreplied} in {text}");
    let flood = lines[0]
        .iter()
        .filter(|line| group_of(line, &["proto", "state", "dport"]) == format!("ipv4 udp unreplied {PORT}"))
        .count()
        .to_string();
    let first = text.lines().find(|line| line.ends_with(&PORT.to_string())).unwrap_or_default();
    equal("the port's line", first.split_whitespace().next(), Some(flood.as_str()))
}

/// Each namespace by itself, one of them alone, and all in one ranking.
fn namespaces() -> anyhow::Result<()> {
    let (first, one) = (init(), Space::create("one")?);
    let spaces = [&first, &one];
    fresh(&spaces)?;
    let _held = mixture()?;
    udp::send(Flows::new(Family::V4, 50).from(5000))?;
    let _more = one.enter(mixture)?;
    let by = ["proto", "dport"];
    let ((all, _), lines) = both(&spaces, || objects(&["--by", "proto,dport"]))?;
    for (space, lines) in spaces.iter().zip(&lines) {
        let object = of_space(&all, space)?;
        compare(&object, lines, &by)?;
        equal("name", object["name"].as_str(), Some(space.label()))?;
    }
    anyhow::ensure!(lines[0].len() > lines[1].len(), "both namespaces have the same");

    let inode = one.inode.to_string();
    for asked in ["one", inode.as_str()] {
        let (objects, _) = objects(&["--by", "proto,dport", "--netns", asked])?;
        equal("objects", objects.len(), 1)?;
        compare(&of_space(&objects, &one)?, &lines[1], &by)?;
    }

    let ((joint, _), lines) = both(&spaces, || objects(&["--by", "netns,proto"]))?;
    equal("objects", joint.len(), 1)?;
    compare(&joint[0], &lines.concat(), &["netns", "proto"])?;
    for (space, lines) in spaces.iter().zip(&lines) {
        let spaces = joint[0]["namespaces"].as_array().context("no namespaces")?;
        let told = spaces.iter().find(|told| told["netns"] == space.inode).context("not told of")?;
        equal("its total", &told["total"], &Value::from(lines.len()))?;
    }
    Ok(())
}

/// `--proto`, `--family`, `--port`, `--net`: exactly what fits, and by the kernel's own selection where it has one.
fn filters() -> anyhow::Result<()> {
    type Fits = fn(&Line) -> bool;
    // What is asked for, what fits it, and what of that the kernel selects.
    let cases: [(&[&str], Fits, Fits); 8] = [
        (&["--proto", "udp"], |line| line.proto == 17, |line| line.proto == 17),
        (&["--proto", "253"], |line| line.proto == 253, |line| line.proto == 253),
        (&["--proto", "icmp"], |line| line.proto == 1, |line| line.proto == 1),
        (&["--family", "ipv6"], |line| line.family == "ipv6", |line| line.family == "ipv6"),
        (
            &["--proto", "tcp", "--family", "ipv6"],
            |line| line.proto == 6 && line.family == "ipv6",
            |line| line.proto == 6 && line.family == "ipv6",
        ),
        (&["--proto", "udp,icmpv6"], |line| matches!(line.proto, 17 | 58), |_| true),
        (
            &["--port", "6881", "--family", "ipv4"],
            |line| line.family == "ipv4" && line.has(["sport", "dport"], |port| port == "6881"),
            |line| line.family == "ipv4",
        ),
        (
            &["--net", "127.64.0.0/30", "--proto", "udp,tcp"],
            |line| {
                let first = ["127.64.0.0", "127.64.0.1", "127.64.0.2", "127.64.0.3"];
                matches!(line.proto, 6 | 17) && line.has(["src", "dst"], |address| first.contains(&address))
            },
            |_| true,
        ),
    ];
    let space = init();
    fresh(&[&space])?;
    let _held = mixture()?;
    for (asked, fits, selected) in cases {
        let args = [asked, &["--by", "proto,src,dport", "--netns", "init", "--verbose"]].concat();
        let ((objects, said), lines) = both(&[&space], || objects(&args))?;
        let wanted: Vec<Line> = lines[0].iter().filter(|line| fits(line)).cloned().collect();
        anyhow::ensure!(!wanted.is_empty() && wanted.len() < lines[0].len(), "{asked:?} tells nothing apart");
        compare(&of_space(&objects, &space)?, &wanted, &["proto", "src", "dport"])
            .with_context(|| format!("{asked:?}"))?;
        let sent = lines[0].iter().filter(|line| selected(line)).count();
        let told = format!("the kernel sent {sent} entries");
        anyhow::ensure!(said.contains(&told), "{asked:?}: no `{told}` in {said}");
    }
    Ok(())
}

/// `--count`: the largest groups, and what is left out of them is counted.
fn shown_and_left_out() -> anyhow::Result<()> {
    let space = init();
    fresh(&[&space])?;
    let _held = mixture()?;
    let sum = |object: &Value| -> u64 {
        object["groups"].as_array().into_iter().flatten().filter_map(|group| group["count"].as_u64()).sum()
    };
    let ((whole, part, text), _) = both(&[&space], || {
        let by = ["--by", "proto,state,dport", "--netns", "init"];
        let whole = of_space(&objects(&by)?.0, &space)?;
        let part = of_space(&objects(&[&by[..], &["-n", "3"]].concat())?.0, &space)?;
        let text = String::from_utf8(run(&[&by[..], &["-n", "3"]].concat())?.stdout)?;
        Ok((whole, part, text))
    })?;
    let groups = |object: &Value| object["groups"].as_array().cloned().unwrap_or_default();
    equal("the whole", Some(sum(&whole)), whole["total"].as_u64())?;
    equal("the three largest", &groups(&part)[..], &groups(&whole)[..3])?;
    let (more, entries) = (groups(&whole).len() - 3, sum(&whole) - sum(&part));
    equal("more", &part["more"], &serde_json::json!({"groups": more, "entries": entries}))?;
    let line = format!("and {more} more groups with {entries} entries");
    anyhow::ensure!(text.contains(&line), "no `{line}` in {text}");
    let output = run(&["--source", "kprobe"])?;
    equal("exit code of a source that has no table", output.status.code(), Some(1))
}

/// More destinations than groups are kept: the one that matters stays exact, the others are counted together.
fn more_groups_than_room() -> anyhow::Result<()> {
    const FLOWS: u32 = 70_000;
    const SAME: u32 = 2000;
    const ROOM: u64 = 65_536;
    let space = init();
    fresh(&[&space])?;
    udp::send_from_ports(Flows::new(Family::V4, SAME))?;
    udp::send(Flows::new(Family::V4, FLOWS))?;
    let (objects, _) = objects(&["--by", "dst", "-n", "1", "--netns", "init"])?;
    let object = of_space(&objects, &space)?;
    let total = u64::from(FLOWS + SAME);
    equal("total", object["total"].as_u64(), Some(total))?;
    equal("the largest", object["groups"][0]["key"].as_str(), Some("127.0.0.1"))?;
    equal("its entries", object["groups"][0]["count"].as_u64(), Some(u64::from(SAME)))?;
    equal("groups kept", object["more"]["groups"].as_u64(), Some(ROOM - 1))?;
    equal("in no group", object["ungrouped"].as_u64(), Some(u64::from(FLOWS) + 1 - ROOM))
}

/// At a terminal a long reading shows how far it is, and leaves nothing of that behind; Ctrl-C ends it well.
fn at_a_terminal() -> anyhow::Result<()> {
    const FLOWS: u32 = 70_000;
    let space = init();
    fresh(&[&space])?;
    udp::send(Flows::new(Family::V4, FLOWS))?;
    let terminal = nix::pty::openpty(None, None).context("make a terminal")?;
    let output = Command::new(program())
        .args(["table", "--no-color"])
        .stdin(Stdio::null())
        .stderr(terminal.slave)
        .output()
        .context("run ctwatch table")?;
    equal("exit code", output.status.code(), Some(0))?;
    let text = String::from_utf8(output.stdout)?;
    anyhow::ensure!(text.contains(&format!("init: {FLOWS} entries")), "{text}");
    // How long the reading takes is the machine's affair: whatever was shown must be gone. It ends with EIO, since nobody
    // has the other side open any more.
    let mut said = Vec::new();
    let _ = std::fs::File::from(terminal.master).read_to_end(&mut said);
    let said = String::from_utf8(said)?;
    if let Some(shown) = said.strip_suffix("\r\x1b[K") {
        let end = format!(" of about {FLOWS} entries\x1b[K");
        let mut lines = shown.split('\r').filter(|line| !line.is_empty());
        let foreign = lines.find(|line| !line.starts_with("init: ") || !line.ends_with(&end));
        anyhow::ensure!(foreign.is_none(), "{foreign:?} in {said:?}");
    } else {
        anyhow::ensure!(said.is_empty(), "not taken away: {said:?}");
    }

    let mut child = Command::new(program())
        .args(["table", "--no-color"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start ctwatch table")?;
    let mut output = child.stdout.take().context("its stdout")?;
    // Its first line comes before it reads, and after it can be stopped.
    output.read_exact(&mut [0; 8])?;
    signal(&child, Signal::SIGINT)?;
    std::io::copy(&mut output, &mut std::io::sink())?;
    equal("exit code after Ctrl-C", child.wait()?.code(), Some(0))
}

/// Without the right to ask, nothing is told that could be taken for a table, and the reason is.
fn unprivileged() -> anyhow::Result<()> {
    const NOBODY: u32 = 65_534;
    let space = init();
    fresh(&[&space])?;
    udp::send(Flows::new(Family::V4, 10))?;
    let output = Command::new(program())
        .args(["table", "--json"])
        .uid(NOBODY)
        .stdin(Stdio::null())
        .output()
        .context("run ctwatch table as nobody")?;
    equal("exit code", output.status.code(), Some(1))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(said.contains("cap_net_admin"), "it does not say what is missing: {said}");
    for line in String::from_utf8(output.stdout)?.lines() {
        let object: Value = serde_json::from_str(line)?;
        equal("total", &object["total"], &Value::Null)?;
        anyhow::ensure!(object["error"].is_string(), "no error in {line}");
    }
    Ok(())
}

/// Neither conntrack nor its netlink half gets loaded by asking; what would load it is told.
fn loads_nothing() -> anyhow::Result<()> {
    if modules::present() {
        modules::unload()?;
    }
    let refused = |args: &[&str], told: &str| -> anyhow::Result<()> {
        let output = run(args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        equal(&format!("exit code of {args:?}"), output.status.code(), Some(1))?;
        anyhow::ensure!(output.stdout.is_empty(), "{args:?} printed {:?}", output.stdout);
        anyhow::ensure!(said.contains(told), "{args:?}: no `{told}` in {said}");
        Ok(())
    };
    for args in [&[][..], &["--json"], &["--source", "netlink"]] {
        refused(args, "nf_conntrack) is not loaded")?;
        anyhow::ensure!(!modules::present(), "ctwatch table {args:?} loaded conntrack");
    }
    checked(Command::new("modprobe").arg("nf_conntrack"))?;
    refused(&[], "sudo modprobe nf_conntrack_netlink")?;
    let loaded = std::path::Path::new("/sys/module/nf_conntrack_netlink").exists();
    anyhow::ensure!(!loaded, "ctwatch table loaded nf_conntrack_netlink");
    modules::unload()
}
