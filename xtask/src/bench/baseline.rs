//! The committed figures that `bench --check` compares with.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::{Measured, table};
use crate::paths;
use crate::step::say;

/// By how much a figure may grow.
const GROWTH: f64 = 0.05;
/// What two runs of the same code may differ by, as a part of the whole flow: timers fall differently.
const NOISE: f64 = 0.001;

/// What ctwatch promises to add at most to a new flow, in instructions, on every kernel that is measured.
fn promised(name: &str) -> Option<f64> {
    let (observer, workload) = name.split_once(' ')?;
    let (_, state) = workload.rsplit_once('-')?;
    match (observer, state) {
        ("ctwatch-fexit", "steady") => Some(670.0),
        ("ctwatch-fexit", "ports") => Some(600.0),
        ("ctwatch-fexit", "full") => Some(700.0),
        ("ctwatch-fexit", "half") => Some(800.0),
        ("ctwatch-fexit" | "ctwatch-kprobe", "refused") => Some(900.0),
        ("ctwatch-kprobe", "ports") => Some(1600.0),
        ("ctwatch-kprobe", "half") => Some(1700.0),
        ("ctwatch-kprobe", "steady" | "full") => Some(1800.0),
        _ => None,
    }
}

/// The most instructions of its own that ctwatch promises to take from its start until it is attached, in millions, by
/// each source that attaches programs.
fn promised_start(kernel: &str) -> Option<u64> {
    match kernel {
        "6.1" => Some(350),
        "7.3" => Some(900),
        _ => None,
    }
}

/// By kernel.
type Baseline = BTreeMap<String, OfKernel>;

/// What one kernel's figures were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OfKernel {
    /// Its build: another one is other code, and has other figures.
    release: String,
    /// By observer and scenario.
    figures: BTreeMap<String, Entry>,
}

/// Instructions per flow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// With nobody watching.
    base: f64,
    /// By watching.
    added: f64,
}

impl Entry {
    fn bound(self) -> f64 {
        self.added * (1.0 + GROWTH) + (self.base + self.added) * NOISE
    }
}

fn file() -> PathBuf {
    paths::root().join("docs/bench-baseline.json")
}

fn of(all: &[Measured]) -> Baseline {
    let figures = |measured: &Measured| {
        let added =
            table::added(measured).into_iter().filter(|(_, observer, ..)| observer.starts_with("ctwatch-"));
        added
            .map(|(scenario, observer, base, added)| {
                (format!("{observer} {scenario}"), Entry { base: base.round(), added: added.round() })
            })
            .collect()
    };
    let kernel =
        |measured: &Measured| OfKernel { release: measured.release.clone(), figures: figures(measured) };
    all.iter().map(|measured| (measured.kernel.clone(), kernel(measured))).collect()
}

/// Replaces the figures of the kernels that were measured.
pub(super) fn write(all: &[Measured]) -> Result<()> {
    let file = file();
    let mut baseline: Baseline = match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?,
        Err(_) => Baseline::new(),
    };
    let now = of(all);
    if let Some((kernel, _)) = now.iter().find(|(_, now)| now.figures.is_empty()) {
        bail!("ctwatch was not measured on {kernel}: no baseline");
    }
    baseline.extend(now);
    fs::write(&file, serde_json::to_string_pretty(&baseline)? + "\n")
        .with_context(|| format!("writing {}", file.display()))?;
    say(format!("{} is the new baseline", file.display()));
    Ok(())
}

/// Fails where a figure is above what is promised, grew by more than its bound, or is missing.
pub(super) fn check(all: &[Measured]) -> Result<()> {
    let file = file();
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let baseline: Baseline =
        serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
    let now = of(all);
    for (kernel, now) in &now {
        if let Some(then) = baseline.get(kernel).filter(|then| then.release != now.release) {
            say(format!(
                "{} is held against the promised bounds only: the baseline is of {}",
                now.release, then.release
            ));
        }
    }
    let mut problems = compare(&baseline, &now);
    problems.extend(all.iter().flat_map(starts));
    if problems.is_empty() {
        say(
            "every figure is within its promised bound, and none that can be compared has grown by more than 5 %",
        );
        return Ok(());
    }
    bail!("cost has grown:\n  {}\n`cargo xtask bench --write-baseline` accepts it", problems.join("\n  "))
}

fn compare(baseline: &Baseline, now: &Baseline) -> Vec<String> {
    let mut problems = Vec::new();
    for (kernel, now) in now {
        for (name, Entry { added, .. }) in &now.figures {
            if let Some(bound) = promised(name).filter(|bound| added > bound) {
                problems.push(format!(
                    "{kernel} {name}: {added} added instructions a flow; at most {bound} are promised"
                ));
            }
        }
        let Some(then) = baseline.get(kernel) else {
            problems.push(format!("{kernel} has no baseline"));
            continue;
        };
        let same = then.release == now.release;
        for (name, expected) in &then.figures {
            match now.figures.get(name) {
                None => problems.push(format!("{kernel} {name} was not measured")),
                Some(now) if same && now.added > expected.bound() => {
                    problems.push(format!(
                        "{kernel} {name}: {} added instructions a flow; the baseline has {}, its bound is {:.0}",
                        now.added,
                        expected.added,
                        expected.bound()
                    ));
                }
                Some(_) => {}
            }
        }
    }
    problems
}

/// Starts that took more than is promised, or were not measured.
fn starts(measured: &Measured) -> Vec<String> {
    let Some(bound) = promised_start(&measured.kernel) else { return Vec::new() };
    let took = |observer: &str| {
        measured.figures.iter().find_map(|figure| match figure {
            Figure::Process(process) if process.observer == observer => Some(process.attach),
            _ => None,
        })
    };
    let problem = |observer: &str| match took(observer) {
        None => Some(format!("{} {observer}: its start was not measured", measured.kernel)),
        Some(attach) if attach > bound * 1_000_000 => Some(format!(
            "{} {observer}: {} million instructions until attached; at most {bound} are promised",
            measured.kernel,
            attach / 1_000_000
        )),
        Some(_) => None,
    };
    ["ctwatch-fexit", "ctwatch-kprobe"].into_iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figure::Process;
    use super::*;

    fn of_kernel(release: &str, figures: &[(&str, f64)]) -> Baseline {
        let entry =
            |(name, added): &(&str, f64)| ((*name).to_owned(), Entry { base: 12_300.0, added: *added });
        let figures = figures.iter().map(entry).collect();
        BTreeMap::from([("6.1".to_owned(), OfKernel { release: release.to_owned(), figures })])
    }

    fn one(added: f64) -> Baseline {
        of_kernel("6.1.0-56", &[("ctwatch-fexit udp-full", added)])
    }

    #[test]
    fn the_promised_bounds_hold_for_any_build() {
        for (name, bound) in [
            ("ctwatch-fexit udp-full", 700.0),
            ("ctwatch-fexit tcp-steady", 670.0),
            ("ctwatch-fexit udp-ports", 600.0),
            ("ctwatch-fexit tcp-half", 800.0),
            ("ctwatch-fexit udp-refused", 900.0),
            ("ctwatch-kprobe tcp-full", 1800.0),
            ("ctwatch-kprobe tcp-half", 1700.0),
            ("ctwatch-kprobe tcp-refused", 900.0),
        ] {
            for release in ["6.1.0-56", "6.1.0-57"] {
                let problems = |added| {
                    let then = of_kernel("6.1.0-56", &[(name, bound)]);
                    compare(&then, &of_kernel(release, &[(name, added)])).len()
                };
                assert_eq!((problems(bound), problems(bound + 1.0)), (0, 1), "{name} {release}");
            }
        }
    }

    #[test]
    fn a_start_within_its_bound_is_none() {
        let of = |kernel: &str, attach: &[u64]| {
            let process = |(observer, attach): (&str, &u64)| {
                let observer = observer.to_owned();
                Figure::Process(Process { observer, attach: *attach, elapsed: 0, report: 0, resident: 0 })
            };
            let figures = ["ctwatch-fexit", "ctwatch-kprobe"].into_iter().zip(attach).map(process).collect();
            starts(&Measured { kernel: kernel.to_owned(), release: String::new(), figures }).len()
        };
        for kernel in super::super::KERNELS {
            let most = promised_start(kernel).unwrap() * 1_000_000;
            assert_eq!(of(kernel, &[most, most]), 0, "{kernel}");
            assert_eq!(of(kernel, &[most + 1, most]), 1, "{kernel}");
            assert_eq!(of(kernel, &[most]), 1, "{kernel}: one was not measured");
        }
        assert_eq!(of("6.12", &[]), 0, "nothing is promised");
    }

    #[test]
    fn growth_beyond_the_bound_is_a_problem() {
        assert!(compare(&one(600.0), &one(600.0)).is_empty());
        assert!(compare(&one(600.0), &one(642.0)).is_empty());
        assert_eq!(compare(&one(600.0), &one(644.0)).len(), 1);
        assert!(compare(&one(600.0), &one(500.0)).is_empty());
    }

    #[test]
    fn what_was_not_measured_is_a_problem() {
        assert_eq!(compare(&one(700.0), &of_kernel("6.1.0-56", &[])).len(), 1);
        assert_eq!(compare(&one(700.0), &of_kernel("6.1.0-57", &[])).len(), 1);
        assert_eq!(compare(&BTreeMap::new(), &one(700.0)).len(), 1);
    }

    #[test]
    fn another_build_of_a_kernel_is_not_compared() {
        let other = of_kernel("6.1.0-57", &[("ctwatch-fexit udp-full", 699.0)]);
        assert!(compare(&one(600.0), &other).is_empty());
    }
}
