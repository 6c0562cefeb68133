//! `bench --burst`: who keeps up with ctnetlink's events, and for how much.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::figure::{Burst, Figure};
use crate::guest_protocol::Line;
use crate::step::say;
use crate::vm;
use crate::vm::kernels;
use crate::{build, paths};

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Place {
    /// In guests.
    Guest,
    /// On this machine.
    Native,
}

/// In guests whose clock counts instructions.
pub(super) fn guests(names: &[String]) -> Result<()> {
    let kernels = names.iter().map(|name| kernels::ensure(name)).collect::<Result<Vec<_>>>()?;
    let initramfs = vm::prepare()?;
    for kernel in &kernels {
        let measured = super::one(&super::counting(kernel, &initramfs, vec!["burst".to_owned()]))?;
        show(&kernel.release, "instructions", &measured.figures)?;
    }
    Ok(())
}

/// On this machine, in a network namespace of its own that is deleted at the end.
pub(super) fn native() -> Result<()> {
    const ENTRIES: u64 = 100_000;
    if !nix::unistd::geteuid().is_root() {
        say("skipped: only root may make a network namespace and listen in it");
        return Ok(());
    }
    let max = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let max: u64 = max.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if max < ENTRIES {
        say(format!(
            "skipped: nf_conntrack_max is {max} (0: not loaded), and this changes nothing on this machine"
        ));
        return Ok(());
    }
    if let Some(missing) = ["ip", "nft", "conntrack"].into_iter().find(|name| paths::program(name).is_none())
    {
        say(format!("skipped: the program {missing} is missing"));
        return Ok(());
    }
    let ctwatch = build::dist()?;
    let results = paths::target("native-burst.jsonl");
    // The same code as in a guest; left from the last time it would be read again.
    let _ = fs::remove_file(&results);
    let status = Command::new(std::env::current_exe()?)
        .args(["guest", "burst", "--native", "--results"])
        .arg(&results)
        .env("CTWATCH", ctwatch)
        .status()?;
    if !status.success() {
        bail!("the measurement failed: {status}");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    show(release.trim(), "ns", &figures(&results)?)
}

fn figures(results: &Path) -> Result<Vec<Figure>> {
    let text = fs::read_to_string(results).context("reading what was measured")?;
    let mut figures = Vec::new();
    for line in text.lines() {
        if let Line::Figure { figure } = serde_json::from_str(line)? {
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// Prints the figures, and fails where ctwatch missed something in silence or cost more than `conntrack -E`.
fn show(release: &str, unit: &str, figures: &[Figure]) -> Result<()> {
    let bursts: Vec<&Burst> = figures
        .iter()
        .filter_map(|figure| if let Figure::Burst(burst) = figure { Some(burst) } else { None })
        .collect();
    println!("{release}: a burst of new UDP flows from one core");
    for burst in &bursts {
        println!("{}", line(burst, unit));
    }
    let by = |name: &str| bursts.iter().find(|burst| burst.observer == name);
    let (Some(ctwatch), Some(other)) = (by("ctwatch-netlink"), by("conntrack-E")) else {
        bail!("{release}: not everybody was measured");
    };
    match problem(ctwatch, other) {
        None => Ok(()),
        Some(problem) => bail!("{release}: {problem}"),
    }
}

fn line(burst: &Burst, unit: &str) -> String {
    let flow = |total: u64| total as f64 / burst.sent as f64;
    let making = format!("  {:16} {:6.0} {unit} a flow", burst.observer, flow(burst.elapsed_ns));
    if burst.observer == "nothing" {
        return making;
    }
    format!(
        "{making}; heard {} of {}, missed {}{}; its own work {:.0} {unit} a flow",
        burst.heard,
        burst.sent,
        burst.sent.saturating_sub(burst.heard),
        burst.lost.map_or_else(|| " without their number".to_owned(), |lost| format!(", says {lost}")),
        flow(burst.process_ns)
    )
}

fn problem(ctwatch: &Burst, other: &Burst) -> Option<String> {
    let told = ctwatch.heard + ctwatch.lost.unwrap_or(0);
    if told != ctwatch.sent {
        return Some(format!("ctwatch accounts for {told} of {} flows", ctwatch.sent));
    }
    // For what it heard, since what is not heard costs nothing.
    let each = |burst: &Burst| burst.process_ns as f64 / burst.heard.max(1) as f64;
    (each(ctwatch) >= each(other))
        .then(|| format!("an event costs ctwatch {:.0}, and conntrack -E {:.0}", each(ctwatch), each(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(observer: &str, heard: u64, lost: Option<u64>, process_ns: u64) -> Burst {
        Burst { observer: observer.to_owned(), sent: 100, heard, lost, process_ns, elapsed_ns: 100_000 }
    }

    #[test]
    fn what_is_missed_must_be_told_and_the_cheaper_one_is_ctwatch() {
        let other = burst("conntrack-E", 40, None, 8000);
        assert_eq!(problem(&burst("ctwatch-netlink", 100, Some(0), 9000), &other), None);
        assert_eq!(problem(&burst("ctwatch-netlink", 90, Some(10), 9000), &other), None);
        assert!(problem(&burst("ctwatch-netlink", 90, Some(9), 9000), &other).is_some());
        assert!(problem(&burst("ctwatch-netlink", 100, Some(0), 20_000), &other).is_some());
    }

    #[test]
    fn a_line_says_who_knows_what_was_missed() {
        let text = line(&burst("conntrack-E", 40, None, 8000), "ns");
        assert!(
            text.contains("heard 40 of 100, missed 60 without their number; its own work 80 ns"),
            "{text}"
        );
        let text = line(&burst("ctwatch-netlink", 90, Some(10), 8000), "ns");
        assert!(text.contains("missed 10, says 10"), "{text}");
    }
}
