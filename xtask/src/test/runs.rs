//! The boots of a test: which scenarios each of them runs.

use std::collections::VecDeque;

use super::Selection;
use super::places::{self, AS_ROOT, WITH_PROMETHEUS};
use crate::guest;
use crate::vm::kernels::Kernel;

/// Where the program of the unit tests that need root is in the guest of [`AS_ROOT`].
pub(super) const UNIT_TESTS: &str = "bin/ctwatch-tests";

/// One boot: a kernel, and the source that ctwatch counts by.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) source: &'static str,
    pub(super) names: Vec<&'static str>,
}

impl Run<'_> {
    /// Whether its guest needs the program at [`UNIT_TESTS`].
    pub(super) fn needs_unit_tests(&self) -> bool {
        self.names.contains(&AS_ROOT)
    }

    /// Whether its guest needs Prometheus.
    pub(super) fn needs_prometheus(&self) -> bool {
        self.names.iter().any(|name| name.starts_with(WITH_PROMETHEUS))
    }
}

/// The most that one boot runs. Two long boots beside each other end sooner than one.
const AT_MOST: usize = 100;

/// Every kernel by the source that ctwatch chooses there; what it counts once more by kprobes, which is what remains
/// where trampolines are refused (on 5.10 kprobes are what it chooses); and by netlink, which remains where probes are.
/// The longest boots come first, so that no processor waits at the end.
pub(super) fn plan<'a>(kernels: &'a [Kernel], selection: &Selection) -> VecDeque<Run<'a>> {
    let one = places::of_everything(kernels);
    let mut runs = Vec::new();
    for source in ["auto", "kprobe", "netlink"] {
        for (index, kernel) in kernels.iter().enumerate() {
            let wanted = |name: &&'static str| {
                asked(selection, name) && places::runs_here(selection, name, source, kernel, index == one)
            };
            let names: Vec<&'static str> = guest::scenario_names().filter(wanted).collect();
            if selection.source.as_deref().is_none_or(|asked| asked == source) {
                let part = names.len().div_ceil(names.len().div_ceil(AT_MOST).max(1)).max(1);
                runs.extend(names.chunks(part).map(|names| Run { kernel, source, names: names.to_vec() }));
            }
        }
    }
    runs.sort_by_key(|run| std::cmp::Reverse(run.names.len()));
    runs.into()
}

fn asked(selection: &Selection, name: &str) -> bool {
    selection.filter.as_deref().is_none_or(|part| match part.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(part),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Extent;
    use super::super::places::{EVENTS, FULL_KERNEL, QUICK};
    use super::*;

    fn matrix() -> Vec<Kernel> {
        [
            ("5.10", "5.10.0-46-cloud-amd64"),
            ("6.1", "6.1.0-56-cloud-amd64"),
            ("6.12", "6.12.1+deb13-cloud-amd64"),
        ]
        .map(|(name, release)| Kernel::named(name, release))
        .to_vec()
    }

    #[test]
    fn the_full_plan_runs_every_scenario_and_the_quick_one_some_on_each_kernel() {
        let kernels = matrix();
        let mut whole = matrix();
        whole.push(Kernel::named(FULL_KERNEL, "6.12.1+deb13-amd64"));
        let full = plan(&whole, &Selection::full());
        let all: BTreeSet<&str> = guest::scenario_names().collect();
        let run: BTreeSet<&str> = full.iter().flat_map(|run| run.names.iter().copied()).collect();
        assert_eq!(run, all);
        let quick = plan(&kernels, &Selection::default());
        for kernel in &kernels {
            let here = quick.iter().find(|run| run.kernel == kernel && run.source == "auto").unwrap();
            assert_eq!(here.names.len(), QUICK.len(), "on {}", kernel.name);
        }
    }

    #[test]
    fn other_builds_count_every_kind_of_event_by_the_source_chosen_there() {
        let mut kernels = matrix();
        kernels.push(Kernel::named("6.12-rt", "6.12.1+deb13-rt-amd64"));
        let full = plan(&kernels, &Selection::full());
        let runs: Vec<&Run<'_>> = full.iter().filter(|run| run.kernel.name == "6.12-rt").collect();
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].source, runs[0].names.len()), ("auto", EVENTS.len()));
        // Asked for by name it runs everything.
        let asked = Selection { kernels: vec!["6.12-rt".to_owned()], ..Selection::full() };
        assert!(plan(&kernels[3..], &asked).len() > 1);
    }

    #[test]
    fn the_full_plan_leaves_out_what_another_run_shows() {
        let kernels = matrix();
        let everywhere = Selection { extent: Extent::Everywhere, ..Selection::default() };
        let (full, everywhere) = (plan(&kernels, &Selection::full()), plan(&kernels, &everywhere));
        let times = |runs: &VecDeque<Run<'_>>, name: &str| {
            runs.iter().filter(|run| run.names.contains(&name)).count()
        };
        for (name, shared, all) in [
            ("manners::wrong_usage", 1, 1),
            ("units::as_root", 1, 1),
            ("traffic::udp", 2, 8),
            ("delete::timeout", 7, 8),
            ("delete::tc", 4, 8),
            ("misread::no_caller", 3, 5),
            ("record::flood", 1, 3),
            ("doctor::overflowed", 2, 3),
            ("attacker::many_rules", 1, 1),
            ("attacker::many_namespaces", 2, 2),
        ] {
            assert_eq!((times(&full, name), times(&everywhere, name)), (shared, all), "{name}");
        }
        for run in &full {
            let there = |name| {
                everywhere.iter().any(|all| {
                    all.kernel == run.kernel && all.source == run.source && all.names.contains(name)
                })
            };
            assert!(run.names.iter().all(there));
        }
    }

    #[test]
    fn what_was_asked_for_runs_on_the_kernels_that_were_asked_for() {
        let kernels = matrix();
        let screen = Selection { filter: Some("screen::".to_owned()), ..Selection::default() };
        assert!(
            plan(&kernels[..2], &screen).iter().any(|run| run.kernel.name == "6.1" && run.source == "auto")
        );
    }

    #[test]
    fn the_longest_boots_come_first_and_none_is_too_long() {
        let kernels = matrix();
        let full = plan(&kernels, &Selection::full());
        let lengths: Vec<usize> = full.iter().map(|run| run.names.len()).collect();
        assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
        assert!(lengths.iter().all(|&length| (1..=AT_MOST).contains(&length)), "{lengths:?}");
    }

    #[test]
    fn a_whole_name_is_asked_for_without_those_that_begin_alike() {
        let kernels = matrix();
        let names = |filter: &str| {
            let selection = Selection { filter: Some(filter.to_owned()), ..Selection::default() };
            plan(&kernels, &selection)[0].names.clone()
        };
        assert_eq!(names("=traffic::udp"), ["traffic::udp"]);
        assert!(names("traffic::udp").len() > 1);
    }
}
