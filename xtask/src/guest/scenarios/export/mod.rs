//! What a monitoring system gets: the same counts, whoever asks and however.
//!
//! All of them watch a namespace that they made, so that they also run outside a guest, in a namespace of their own.

mod clients;
mod prometheus;

use std::path::Path;

use anyhow::Context;

use super::super::exporter::{Exporter, Scrape};
use super::super::space::{Space, checked};
use super::super::traffic::{Family, Flows, Sent, tcp, udp};
use super::super::{modules, state, wait, witness};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("export::counts", counts),
    scenario("export::full_table", full_table),
    scenario("export::namespaces", namespaces),
    scenario("export::textfile", textfile),
    scenario("export::clients", clients::run),
    scenario(prometheus::NAME, prometheus::run),
];

/// A namespace to be watched, in the fresh state.
fn watched(name: &str) -> anyhow::Result<Space> {
    modules::load()?;
    let space = Space::create(name)?;
    state::fresh(&space)?;
    Ok(space)
}

fn netns(space: &Space) -> String {
    format!("netns=\"{}\"", space.inode)
}

/// Three types of flows, by each way to the counts.
fn counts() -> anyhow::Result<()> {
    let space = watched("exported")?;
    let socket = Path::new("/tmp/ctwatch-metrics.sock");
    let exporter =
        Exporter::start(&["--netns", "exported", "--listen", &format!("unix:{}", socket.display())])?;
    let made: [(&str, &str, Sent); 3] = space.enter(|| {
        Ok([
            ("ipv4", "udp", udp::send(Flows::new(Family::V4, 2000))?),
            ("ipv6", "udp", udp::send(Flows::new(Family::V6, 1000))?),
            ("ipv4", "tcp", tcp::connections(Flows::new(Family::V4, 100), tcp::End::Close)?),
        ])
    })?;
    let all = made.iter().map(|(.., sent)| sent.passed).sum();
    for (family, proto, sent) in made {
        let labels = [netns(&space), format!("family=\"{family}\""), format!("proto=\"{proto}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        exporter.wait_sum("ctwatch_inserts_total", &labels, sent.passed)?;
    }
    let scrape = exporter.wait_sum("ctwatch_inserts_total", &[], all)?;
    anyhow::ensure!(
        witness::new_packets(&space)? == all,
        "nft counted {} new packets, the generators {all}",
        witness::new_packets(&space)?
    );
    let entries = witness::count(&space)?;
    let told = scrape.sum("ctwatch_table_entries", &[&netns(&space)]);
    anyhow::ensure!(told == entries, "entries: ctwatch {told}, conntrack -C {entries}");
    let name = scrape.sum("ctwatch_netns_info", &[&netns(&space), "name=\"exported\""]);
    anyhow::ensure!(name == 1, "the namespace has no name");
    let over_unix = Scrape::over_unix(socket)?.sum("ctwatch_inserts_total", &[]);
    anyhow::ensure!(over_unix == scrape.sum("ctwatch_inserts_total", &[]), "the socket says {over_unix}");
    let openmetrics = exporter.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n")?;
    anyhow::ensure!(openmetrics.ends_with("\n# EOF\n"), "no OpenMetrics: {openmetrics}");
    exporter.stop()?;
    anyhow::ensure!(!socket.exists(), "the socket was left behind");
    Ok(())
}

/// Refusals and evictions, against the kernel's own counters.
fn full_table() -> anyhow::Result<()> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let before = witness::Stats::read(&space)?;
    let exporter = Exporter::start(&[])?;
    state::set("nf_conntrack_max", 1000)?;
    let sent = udp::send(Flows::new(Family::V4, 4000))?;
    state::set("nf_conntrack_max", 262_144)?;
    let kernel = witness::Stats::read(&space)?.since(&before);
    let (drop, evicted) = (kernel.get("drop").unwrap_or(0), kernel.get("early_drop").unwrap_or(0));
    anyhow::ensure!(drop == sent.refused && drop > 0 && evicted > 0, "the table was not full: {kernel}");
    exporter.wait_sum("ctwatch_drops_total", &["reason=\"table_full\""], drop)?;
    exporter.wait_sum("ctwatch_early_drops_total", &[], evicted)?;
    exporter.wait_sum("ctwatch_deletes_total", &["cause=\"early_drop\""], evicted)?;
    exporter.stop()
}

/// Namespaces that come and go: counts stay exact, the number of series stays bounded.
fn namespaces() -> anyhow::Result<()> {
    const ROUNDS: u32 = 4;
    const AT_ONCE: u32 = 10;
    modules::load()?;
    // Nothing is tracked there: the scrapes themselves are no flows then.
    state::rules(&init(), "")?;
    let exact = Exporter::start(&["--max-series", "5000"])?;
    let (mut all, mut most) = (0, 0);
    for round in 0..ROUNDS {
        let spaces: Vec<Space> =
            (0..AT_ONCE).map(|n| watched(&format!("come{round}-{n}"))).collect::<anyhow::Result<_>>()?;
        for (space, n) in spaces.iter().zip(1..) {
            all += space.enter(|| udp::send(Flows::new(Family::V4, 10 * n)))?.passed;
        }
        let scrape = exact.wait_sum("ctwatch_inserts_total", &[], all)?;
        most = most.max(scrape.len());
        for space in spaces {
            space.delete()?;
        }
    }
    anyhow::ensure!(most <= 5000, "{most} series");
    wait::until("the ended namespaces to have no table", super::super::ctwatch::PATIENCE, || {
        let tables = exact.scrape()?.named("ctwatch_table_entries");
        Ok(if tables <= 2 { Ok(()) } else { Err(format!("{tables} tables")) })
    })?;
    exact.wait_sum("ctwatch_inserts_total", &[], all)?;
    exact.stop()
}

/// The file that node_exporter reads is whole at each moment.
fn textfile() -> anyhow::Result<()> {
    let space = watched("exported")?;
    let directory = Path::new("/tmp/ctwatch-textfile");
    std::fs::create_dir_all(directory)?;
    let file = directory.join("ctwatch.prom");
    let path = file.to_str().context("its path")?;
    let mut command = Space::init().command(&super::super::ctwatch::program());
    command.args(["export", "--textfile", path, "-i", "0.1", "--netns", "exported"]);
    command.args(["--source", super::super::ctwatch::source()]);
    let mut running = super::super::ctwatch::Running::spawn(&mut command)?;
    wait::until("the file", super::super::ctwatch::PATIENCE, || {
        Ok(if file.exists() { Ok(()) } else { Err("none".to_owned()) })
    })?;
    let sent = space.enter(|| udp::send(Flows::new(Family::V4, 500)))?;
    // Each reading is whole, from its first line to its last metric, while it is replaced ten times a second.
    let mut last = String::new();
    wait::until("500 inserts in the file", super::super::ctwatch::PATIENCE, || {
        last = std::fs::read_to_string(&file)?;
        anyhow::ensure!(last.ends_with('\n') && last.contains("ctwatch_build_info{"), "half a file: {last}");
        let wanted = format!("proto=\"udp\"}} {}\n", sent.passed);
        let told =
            last.lines().any(|line| line.starts_with("ctwatch_inserts_total{")) && last.contains(&wanted);
        Ok(if told { Ok(()) } else { Err("fewer".to_owned()) })
    })?;
    running.signal(nix::sys::signal::Signal::SIGTERM)?;
    let ended = running.end()?;
    anyhow::ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    let left: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    anyhow::ensure!(left.len() == 1, "left beside the file: {left:?}");
    checked(std::process::Command::new("rm").args(["-r", "/tmp/ctwatch-textfile"])).map(drop)
}
