//! `cargo xtask test`: unit tests, then every scenario on every kernel of the matrix.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build;
use crate::guest;
use crate::guest_protocol::{Line, Outcome};
use crate::step::{self, Step, say};
use crate::vm;
use crate::vm::boot::{Guest, Terminal};
use crate::vm::initramfs::Initramfs;
use crate::vm::kernels::{self, Kernel};

/// How long all scenarios on one kernel may take, on a slow machine.
const GUEST_LIMIT: Duration = Duration::from_mins(25);

/// What to test.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only tests whose names contain this.
    pub filter: Option<String>,
    /// Only these kernels; none means the matrix.
    pub kernels: Vec<String>,
    /// Only by this source.
    pub source: Option<String>,
    /// Guests at once.
    pub jobs: Option<usize>,
}

/// How many tests ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed, dead guests included.
    pub failed: usize,
    /// Could not run.
    pub skipped: usize,
    /// Which failed, and the beginning of why.
    failures: Vec<String>,
}

/// How much of a failure is told again at the end, in characters.
const TOLD_AGAIN: usize = 600;

/// One boot: a kernel, and the source that ctwatch counts by.
#[derive(Debug)]
struct Run<'a> {
    kernel: &'a Kernel,
    source: &'static str,
    filters: Vec<String>,
}

/// What is counted the same way whatever the source. The rest of the scenarios is about other things, or waits long.
const COUNTING: [&str; 11] = [
    "traffic::",
    "full::unassured",
    "full::assured",
    "full::mixed",
    "delete::",
    "netlink::",
    "clash::",
    "netns::",
    "attacker::",
    "nat::",
    "filter::",
];

/// Beside it, by kprobes.
const BY_KPROBE: [&str; 2] = ["generators::", "hidden_code::"];

/// Beside it, by netlink: how it behaves.
const BY_NETLINK: [&str; 2] = ["manners::waits_for_conntrack", "manners::sigint"];

/// Every kernel by the source that ctwatch chooses there; what it counts once more by kprobes, which is what remains
/// where trampolines are refused (on 5.10 kprobes are what it chooses); and by netlink, which remains where probes are.
fn runs<'a>(kernels: &'a [Kernel], selection: &Selection) -> VecDeque<Run<'a>> {
    let asked: Vec<String> = selection.filter.iter().cloned().collect();
    let counting = || COUNTING.into_iter().chain(BY_KPROBE).map(str::to_owned).collect();
    let again = if asked.is_empty() { counting() } else { asked.clone() };
    // Names, because a scenario about probes means nothing by netlink even where it was asked for.
    let heard = |name: &&'static str| {
        let mut parts = COUNTING.into_iter().chain(BY_NETLINK);
        parts.any(|part| name.contains(part)) && asked.iter().all(|part| name.contains(part))
    };
    let heard: Vec<&str> = guest::scenario_names().filter(heard).collect();
    let heard = |kernel: &Kernel| -> Vec<String> {
        // Two minutes between the collector's rounds, which the first run of this kernel waits for.
        let slow = |name: &str| is_5_10(kernel) && name == "clash::udp_reply_only";
        heard.iter().filter(|name| !slow(name)).map(|name| (*name).to_owned()).collect()
    };
    let run = |kernel, source, filters: &[String]| Run { kernel, source, filters: filters.to_vec() };
    let auto = kernels.iter().map(|kernel| run(kernel, "auto", &asked));
    let others = kernels.iter().filter(|kernel| !is_5_10(kernel));
    let kprobe = others.map(|kernel| run(kernel, "kprobe", &again));
    let netlink = kernels.iter().map(|kernel| run(kernel, "netlink", &heard(kernel)));
    let netlink = netlink.filter(|run| !run.filters.is_empty());
    let wanted = |run: &Run<'_>| selection.source.as_deref().is_none_or(|source| source == run.source);
    auto.chain(kprobe).chain(netlink).filter(wanted).collect()
}

fn is_5_10(kernel: &Kernel) -> bool {
    kernel.release.starts_with("5.10.")
}

/// Unit tests and the guest matrix; fails unless everything passed.
pub fn run(selection: &Selection) -> Result<()> {
    build::ebpf()?;
    unit(selection.filter.as_deref())?;
    if selection.filter.is_none() && selection.kernels.is_empty() {
        crate::prototypes::run()?;
    }
    guests(selection)
}

/// The tests that need no guest.
pub fn unit(filter: Option<&str>) -> Result<()> {
    let step = Step::begin("unit tests");
    step::run_shown(build::cargo().args(["test", "--quiet", "--workspace", "--all-targets"]).args(filter))?;
    step.end();
    Ok(())
}

/// The guest matrix alone. Its last line is the tally.
pub fn guests(selection: &Selection) -> Result<()> {
    let names: Vec<String> = if selection.kernels.is_empty() {
        kernels::MATRIX.iter().map(|entry| entry.name.to_owned()).collect()
    } else {
        selection.kernels.clone()
    };
    let kernels = names.iter().map(|name| kernels::ensure(name)).collect::<Result<Vec<_>>>()?;
    let initramfs = vm::prepare()?;
    let runs = runs(&kernels, selection);
    let jobs = selection.jobs.unwrap_or_else(default_jobs).clamp(1, runs.len().max(1));
    let waiting = Mutex::new(runs);
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(run) = next(&waiting) {
                    add(&tally, one_run(&run, &initramfs));
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    println!("{} passed, {} failed{skipped}", tally.passed, tally.failed);
    if !tally.failures.is_empty() {
        // Again at the end: a log that was cut still names them.
        bail!("{} guest tests failed:\n  {}", tally.failed, tally.failures.join("\n  "));
    }
    if tally.passed == 0 {
        bail!(
            "no guest test was run: nothing is called like {:?}",
            selection.filter.as_deref().unwrap_or_default()
        );
    }
    Ok(())
}

/// One guest a CPU: two on two CPUs took 34 s where one after the other took 57 s, since a guest often waits.
fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn next<'a>(waiting: &Mutex<VecDeque<Run<'a>>>) -> Option<Run<'a>> {
    waiting.lock().ok()?.pop_front()
}

fn add(tally: &Mutex<Tally>, one: Tally) {
    let mut all = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.passed += one.passed;
    all.failed += one.failed;
    all.skipped += one.skipped;
    all.failures.extend(one.failures);
}

fn one_run(run: &Run<'_>, initramfs: &Initramfs) -> Tally {
    let kernel = run.kernel;
    let place = format!("{} {}", kernel.name, run.source);
    let guest = |filters: &[String]| {
        let mut args: Vec<String> = ["test", "--source", run.source].map(str::to_owned).to_vec();
        args.extend(filters.iter().cloned());
        Guest { limit: GUEST_LIMIT, ..Guest::new(kernel, initramfs, args) }
    };
    let mut tally = Tally::default();
    let mut told = BTreeSet::new();
    let began = Instant::now();
    say(format!("booting {} for the tests by source {}", kernel.release, run.source));
    let mut boot = |filters: &[String]| {
        let end = guest(filters).boot(Terminal::None, |line| match line {
            Line::Test { test, result, detail, seconds } => {
                report(&mut tally, &place, &test, result, &detail, seconds);
                told.insert(test);
            }
            Line::Figure { .. } | Line::End { .. } => {}
        });
        let died = match end {
            Ok(end) if end.complete => None,
            Ok(end) => Some((end.crashed(), end.explain())),
            Err(error) => Some((false, format!("{error:#}"))),
        };
        let left = guest::scenarios_wanted(filters).filter(|name| !told.contains(*name));
        (died, left.map(|name| format!("={name}")).collect::<Vec<String>>())
    };
    let (mut died, left) = boot(&run.filters);
    // A kernel that crashed is a finding. An emulated machine on a busy one does not always live: that is told, and
    // what it did not come to is run once more.
    if let Some((false, why)) = &died
        && !left.is_empty()
    {
        say(format!("{place}: the guest died and is booted again for {} tests: {why}", left.len()));
        (died, _) = boot(&left);
    }
    if let Some((_, why)) = died {
        let detail = format!("the guest died: {why}");
        report(&mut tally, &place, "guest", Outcome::Failed, &detail, began.elapsed().as_secs_f64());
    } else {
        say(format!(
            "{} by {} is done after {:.0} s",
            kernel.release,
            run.source,
            began.elapsed().as_secs_f64()
        ));
    }
    tally
}

/// The first line of a failure, and of a long one the end, which a guest's console is.
fn told_again(detail: &str) -> String {
    let first: String = detail.lines().next().unwrap_or_default().chars().take(TOLD_AGAIN / 2).collect();
    let rest: Vec<char> = detail.lines().skip(1).collect::<Vec<_>>().join("\n    ").chars().collect();
    if rest.is_empty() {
        return first;
    }
    let end: String = rest[rest.len().saturating_sub(TOLD_AGAIN / 2)..].iter().collect();
    format!("{first}\n    […] {}", end.trim_start())
}

fn report(tally: &mut Tally, place: &str, test: &str, result: Outcome, detail: &str, seconds: f64) {
    let (count, word) = match result {
        Outcome::Ok => (&mut tally.passed, "ok"),
        Outcome::Failed => (&mut tally.failed, "FAILED"),
        Outcome::Skipped => (&mut tally.skipped, "skipped"),
    };
    *count += 1;
    if result == Outcome::Failed {
        tally.failures.push(format!("{place} {test}: {}", told_again(detail)));
    }
    let mut lines = vec![format!("test guest {place} {test} ... {word} ({seconds:.1} s)")];
    match (result, detail) {
        (_, "") => {}
        (Outcome::Skipped, _) => lines[0] = format!("test guest {place} {test} ... skipped: {detail}"),
        _ => lines.extend(detail.lines().map(|line| format!("    {line}"))),
    }
    lines.push(String::new());
    // One write, so that guests side by side do not mix their lines; a closed pipe shows in the exit status.
    let _ = std::io::stdout().lock().write_all(lines.join("\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_told_again_has_its_first_line_and_its_end() {
        assert_eq!(told_again("inserts: ctwatch 1, witness 2"), "inserts: ctwatch 1, witness 2");
        let console: Vec<String> = (0..200).map(|line| format!("line {line}")).collect();
        let told = told_again(&format!("the guest died\n{}", console.join("\n")));
        assert!(told.starts_with("the guest died\n") && told.ends_with("line 199"), "{told}");
        assert!(told.chars().count() < TOLD_AGAIN + 20, "{told}");
    }

    #[test]
    fn a_whole_name_is_asked_for_without_those_that_begin_alike() {
        let names = |filter: &str| -> Vec<&str> { guest::scenarios_wanted(&[filter.to_owned()]).collect() };
        assert_eq!(names("=traffic::udp"), ["traffic::udp"]);
        assert!(names("traffic::udp").len() > 1);
        assert_eq!(guest::scenarios_wanted(&[]).count(), guest::scenario_names().count());
    }
}
