//! Which scenarios run where: shared out by what can differ.

use std::collections::VecDeque;

use super::Selection;
use crate::guest;
use crate::vm::kernels::{self, Kernel};

/// The scenario that runs the unit tests which need root, and where their program is in its guest.
const AS_ROOT: &str = "units::as_root";
/// See [`AS_ROOT`].
pub(super) const UNIT_TESTS: &str = "bin/ctwatch-tests";

/// Scenarios that need Debian's Prometheus in their guest.
const WITH_PROMETHEUS: &str = "prometheus::";

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

/// What is counted the same way whatever the source. The rest of the scenarios is about other things, or waits long.
const COUNTING: [&str; 15] = [
    "traffic::",
    "full::unassured",
    "full::assured",
    "full::mixed",
    "delete::",
    "netlink::",
    "clash::",
    "netns::",
    "attacker::netlink",
    "nat::",
    "filter::",
    "export::counts",
    "export::full_table",
    "invalid::datagrams",
    "invalid::unsaid",
];

/// Beside it, by kprobes.
const BY_KPROBE: [&str; 2] = ["hidden_code::", "misread::"];

/// Beside it, by netlink: how it behaves.
const BY_NETLINK: [&str; 5] =
    ["manners::waits_for_conntrack", "manners::sigint", "alive::", "privileges::live", "privileges::export"];

/// What no kernel can change: how the program takes its arguments, draws, ends and quotes. One kernel is enough.
const ANYWHERE: [&str; 36] = [
    AS_ROOT,
    WITH_PROMETHEUS,
    "export::namespaces",
    "export::textfile",
    "export::clients",
    "screen::",
    "manners::count",
    "manners::closed_pipe",
    "manners::wrong_usage",
    "manners::unprivileged",
    "manners::without_btf",
    "table::at_a_terminal",
    "table::shown_and_left_out",
    "table::unprivileged",
    "table::filters",
    "doctor::wrong_usage",
    "doctor::resolver",
    "doctor::every_command",
    "doctor::notrack_iptables",
    "trace::sigterm_and_closed_pipe",
    "privileges::short_commands",
    "privileges::one_group",
    "privileges::children_of_doctor",
    "attacker::nft_names",
    "attacker::xt_comment",
    "attacker::another_namespace",
    "attacker::child_path",
    "attacker::child_reaches_rules",
    "attacker::capture_",
    "attacker::counting",
    "attacker::characters",
    "attacker::many_rules",
    "attacker::many_namespaces",
    "invalid::filters",
    "doctor::no_alarm",
    "doctor::stale_nat_neighbour",
];

/// Of these, what the source can change: once by netlink too.
const ANYWHERE_BY_NETLINK: [&str; 2] = ["attacker::counting", "attacker::many_namespaces"];

/// Where these run, if it is among the kernels.
const ONE: &str = "6.12";

/// Every kind of event, and what ctwatch reads from the kernel's memory. Another build of a kernel can change these, by the
/// source that ctwatch chooses there.
const OTHER_BUILDS: [&str; 14] = [
    "traffic::mixed_100000",
    "full::unassured",
    "full::assured",
    "full::mixed",
    "delete::timeout",
    "delete::tcp_refused",
    "delete::netlink",
    "delete::flush",
    "clash::udp_merged",
    "clash::chaintoolong",
    "netns::exit",
    "trace::burst_auto",
    "invalid::unsaid",
    "doctor::raise_limit",
];

/// What needs a module that cloud kernels do not have, and where it runs.
const ON_FULL_KERNEL: [&str; 1] = ["delete::openvswitch"];
const FULL_KERNEL: &str = "6.12-amd64";

/// What differs by kernel, but hardly by source: by the sources that ctwatch does not choose on one kernel.
const HARDLY_BY_SOURCE: [&str; 2] = ["delete::tc", "delete::ipvs"];

/// A kernel between others, whose functions and messages are those of one of them: by the sources that ctwatch does not
/// choose there it counts each kind of event once.
const BETWEEN: &str = "6.1";

/// What finds most in little time, on each kernel.
const QUICK: [&str; 17] = [
    "traffic::udp",
    "traffic::tcp_close",
    "traffic::icmp_echo",
    "full::unassured",
    "full::assured",
    "delete::timeout",
    "delete::tcp_refused",
    "delete::flush",
    "netlink::insert",
    "clash::udp_merged",
    "clash::chaintoolong",
    "nat::dnat",
    "ranking::evicted_and_refused",
    "trace::burst_auto",
    "table::equals_conntrack",
    "doctor::raise_limit",
    "invalid::unsaid",
];

/// Every kernel by the source that ctwatch chooses there; what it counts once more by kprobes, which is what remains
/// where trampolines are refused (on 5.10 kprobes are what it chooses); and by netlink, which remains where probes are.
pub(super) fn plan<'a>(kernels: &'a [Kernel], selection: &Selection) -> VecDeque<Run<'a>> {
    let one = kernels.iter().position(|kernel| kernel.name == ONE).unwrap_or(kernels.len().saturating_sub(1));
    let mut runs = VecDeque::new();
    for source in ["auto", "kprobe", "netlink"] {
        for (index, kernel) in kernels.iter().enumerate() {
            let wanted = |name: &&'static str| {
                asked(selection, name) && runs_here(selection, name, source, kernel, index == one)
            };
            let names: Vec<&'static str> = guest::scenario_names().filter(wanted).collect();
            let source_wanted = selection.source.as_deref().is_none_or(|asked| asked == source);
            if source_wanted && !names.is_empty() {
                runs.push_back(Run { kernel, source, names });
            }
        }
    }
    runs
}

fn asked(selection: &Selection, name: &str) -> bool {
    if selection.is_quick() {
        return QUICK.contains(&name);
    }
    selection.filter.as_deref().is_none_or(|part| match part.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(part),
    })
}

fn runs_here(selection: &Selection, name: &str, source: &str, kernel: &Kernel, is_one: bool) -> bool {
    let any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if ON_FULL_KERNEL.contains(&name) {
        return kernel.name == FULL_KERNEL && source == "auto";
    }
    if selection.kernels.is_empty() && kernels::OTHER_BUILDS.contains(&kernel.name.as_str()) {
        return source == "auto" && any(&OTHER_BUILDS);
    }
    if source != "auto" && selection.full && selection.filter.is_none() {
        let seldom = kernel.name == BETWEEN && !any(&OTHER_BUILDS) && !any(&BY_KPROBE) && !any(&BY_NETLINK);
        if seldom || (HARDLY_BY_SOURCE.contains(&name) && !is_one) {
            return false;
        }
    }
    match source {
        "auto" => is_one || !any(&ANYWHERE),
        // What was asked for by name is asked for by kprobes too.
        "kprobe" if is_5_10(kernel) || any(&[AS_ROOT, WITH_PROMETHEUS]) => false,
        "kprobe" if selection.is_quick() => is_one && any(&COUNTING),
        "kprobe" => selection.filter.is_some() || any(&COUNTING) || any(&BY_KPROBE),
        // A scenario about probes means nothing by netlink, even where it was asked for.
        _ if selection.is_quick() && !is_one => false,
        // On 5.10 two minutes pass between the collector's rounds, which the first run of this kernel waits for.
        _ if is_5_10(kernel) && name == "clash::udp_reply_only" => false,
        _ => any(&COUNTING) || any(&BY_NETLINK) || (is_one && any(&ANYWHERE_BY_NETLINK)),
    }
}

fn is_5_10(kernel: &Kernel) -> bool {
    kernel.release.starts_with("5.10.")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        assert_eq!(runs[0].source, "auto");
        for part in OTHER_BUILDS {
            assert!(runs[0].names.iter().any(|name| name.contains(part)), "no scenario is called {part}");
        }
        assert!(!runs[0].names.contains(&"screen::flood"));
        // Asked for by name it runs everything.
        let asked = Selection { kernels: vec!["6.12-rt".to_owned()], ..Selection::full() };
        assert!(plan(&kernels[3..], &asked).len() > 1);
    }

    #[test]
    fn what_no_kernel_can_change_runs_once() {
        let kernels = matrix();
        let full = plan(&kernels, &Selection::full());
        let times = |name: &str| full.iter().filter(|run| run.names.contains(&name)).count();
        assert_eq!(times("manners::wrong_usage"), 1);
        assert_eq!(times(AS_ROOT), 1);
        assert_eq!(times("traffic::udp"), 6, "three by auto, one by kprobes, two by netlink");
        assert_eq!(times("delete::timeout"), 8, "on the kernel between by all sources too");
        assert_eq!(times("misread::no_caller"), 2 + 3, "on the kernel between by kprobes too");
        assert_eq!(times("delete::tc"), 3 + 1 + 1, "by the other sources on one kernel");
        assert_eq!(times("attacker::many_rules"), 1);
        assert_eq!(times("attacker::many_namespaces"), 2, "by auto and by netlink");
        let parts = ANYWHERE.iter().chain(&ANYWHERE_BY_NETLINK).chain(&COUNTING).chain(&BY_KPROBE);
        for part in parts.chain(&BY_NETLINK) {
            assert!(guest::scenario_names().any(|name| name.contains(part)), "no scenario is called {part}");
        }
        // Where that kernel is not asked for, another one does it.
        let alone =
            plan(&kernels[..2], &Selection { filter: Some("screen::".to_owned()), ..Selection::default() });
        assert!(alone.iter().any(|run| run.kernel.name == "6.1" && run.source == "auto"));
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
