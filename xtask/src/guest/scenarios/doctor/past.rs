//! What the kernel remembers of losses that are over, and expectations, whose table is another one.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::super::super::space::checked;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::trial::equal;
use super::super::super::{modules, state, wait, witness};
use super::super::init;
use super::{Answer, MAX, configuration_folders, doctor, full_table, shell, sysctl};

/// A burst of refusals and evictions, then calm with the limit unchanged.
pub(super) fn overflowed() -> anyhow::Result<()> {
    const CALM: Duration = Duration::from_secs(10);
    let before = witness::Stats::read(&init())?;
    full_table()?;
    let lost = witness::Stats::read(&init())?.since(&before);
    let lost = lost.get("drop").unwrap_or(0) + lost.get("early_drop").unwrap_or(0);
    anyhow::ensure!(lost >= u64::from(MAX), "the kernel counted only {lost} losses: no burst");
    checked(Command::new("conntrack").arg("-F"))?;
    let over = Instant::now();
    wait::passed("the calm after a burst", over, CALM)?;
    let answer = doctor(&[], 0)?;
    answer.expect(1, "warning")?;
    let evidence = &answer.finding("table-overflowed")?["evidence"];
    let figure = |name: &str| {
        evidence[name]["value"].as_u64().with_context(|| format!("{name} is no number: {evidence}"))
    };
    let kernel = witness::Stats::read(&init())?;
    let counter = |name: &str| kernel.get(name).unwrap_or(0);
    equal("evictions", figure("early_drop_since_boot")?, counter("early_drop"))?;
    equal("refusals", figure("refused_since_boot")?, counter("drop") - counter("insert_failed"))?;
    let limit = figure("recommended_limit")?;
    anyhow::ensure!(
        limit > u64::from(MAX) + lost / 2,
        "{limit} is no limit for a table of {MAX} that overflowed"
    );
    anyhow::ensure!(
        (CALM.as_secs()..120).contains(&figure("logged_seconds_ago")?),
        "the time of the last loss is wrong: {evidence}"
    );
    // A longer time takes the burst in, a shorter one leaves it out.
    doctor(&["--since", "1h"], 0)?.expect(1, "warning")?;
    doctor(&["--since", "2s"], 0)?.expect(0, "ok")?;
    let remedy = answer.remedy("table-overflowed", "Raise the limit")?.clone();
    shell(&remedy, "commands")?;
    equal("the limit in force", sysctl("max")?, limit)?;
    doctor(&[], 0)?.expect(0, "ok")?;
    shell(&remedy, "undo")
}

/// Only what the kernel logs, beside a table of connections that has room.
pub(super) fn expectations_logged() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::set("nf_conntrack_expect_max", 1024)?;
    state::fresh(&init())?;
    state::set("nf_conntrack_max", MAX)?;
    udp::send(Flows::new(Family::V4, MAX * 6 / 10))?;
    fs::write("/dev/kmsg", "<4>nf_conntrack: nf_conntrack: expectation table full\n")?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    no_word_of_a_full_table(&sick)?;
    let remedy = sick.remedy("expectations-full", "Let helpers expect")?.clone();
    shell(&remedy, "commands")?;
    doctor(&[], 0)?.expect(0, "ok")?;
    shell(&remedy, "undo")
}

fn no_word_of_a_full_table(answer: &Answer) -> anyhow::Result<()> {
    let findings = answer.object["findings"].as_array().context("no findings")?;
    let others: Vec<&str> = findings
        .iter()
        .filter_map(|finding| finding["id"].as_str())
        .filter(|id| *id != "expectations-full")
        .collect();
    anyhow::ensure!(others.is_empty(), "more than full expectations: {}", answer.object);
    answer.finding("expectations-full").map(drop)
}

/// The real thing: a helper whose control connections ask for more than the limit of one.
pub(super) fn expectations() -> anyhow::Result<()> {
    const RULES: &str = "table inet watched {
  ct helper ftp { type \"ftp\" protocol tcp; }
  chain out { type filter hook output priority 0; ct state new tcp dport 21 ct helper set \"ftp\"; }
}
";
    // More than doctor needs to tell the order of a loss and of a new limit.
    const QUIET: Duration = Duration::from_millis(500);
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    checked(Command::new("modprobe").arg("nf_conntrack_ftp"))?;
    state::rules(&init(), RULES)?;
    let before = sysctl("expect_max")?;
    state::set("nf_conntrack_expect_max", 1)?;
    let server = TcpListener::bind("127.0.0.1:21")?;
    // All stay open: an expectation goes with its control connection.
    let mut open = Vec::new();
    for port in 1..=3 {
        let mut client = TcpStream::connect(server.local_addr()?)?;
        let (mut accepted, _) = server.accept()?;
        client.set_nodelay(true)?;
        // Closed, it sends nothing again.
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        // The helper reads only what begins a line, and knows where lines begin once it has seen one end.
        client.write_all(b"NOOP\r\n")?;
        accepted.read_exact(&mut [0; 6])?;
        // Beyond the limit the kernel drops this packet, so nobody waits for it.
        client.write_all(format!("PORT 127,0,0,1,40,{port}\r\n").as_bytes())?;
        open.push((client, accepted));
    }
    let expected =
        || checked(Command::new("conntrack").args(["-L", "expect"])).map(|text| text.lines().count());
    equal("expectations that the kernel lists", u64::try_from(expected()?)?, 1)?;
    let sick = doctor(&[], 0)?;
    sick.expect(1, "warning")?;
    no_word_of_a_full_table(&sick)?;
    let evidence = &sick.finding("expectations-full")?["evidence"];
    anyhow::ensure!(
        evidence["expect_max"]["value"] == 1 && evidence["expectations"]["value"] == 1,
        "limit and count are wrong: {evidence}"
    );
    anyhow::ensure!(
        evidence["helpers"]["value"].to_string().contains("ftp"),
        "the helper is not named: {evidence}"
    );
    let remedy = sick.remedy("expectations-full", "Let helpers expect")?.clone();
    // The clients send again what the kernel dropped, and lose it again. A loss so shortly before the new limit has no
    // certain order with it, and doctor goes on to warn.
    drop(open);
    let quiet = Instant::now();
    wait::until("the last loss to be older than the limit", QUIET * 4, || {
        Ok(if quiet.elapsed() > QUIET { Ok(()) } else { Err("not yet".to_owned()) })
    })?;
    shell(&remedy, "commands")?;
    doctor(&[], 0)?.expect(0, "ok")?;
    shell(&remedy, "undo")?;
    state::set("nf_conntrack_expect_max", u32::try_from(before)?)?;
    state::fresh(&init())
}
