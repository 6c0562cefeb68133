//! Where a scenario runs: where a kernel, or the source that ctwatch counts by, can change what comes out.

use super::{Extent, Selection};
use crate::vm::kernels::{self, Kernel};

/// The scenario that runs the unit tests which need root.
pub(super) const AS_ROOT: &str = "units::as_root";

/// Scenarios that need Debian's Prometheus in their guest.
pub(super) const WITH_PROMETHEUS: &str = "prometheus::";

/// The kernel on which every scenario runs, if it is among the kernels.
const ONE: &str = "6.12";

/// A kernel between others, whose functions and messages are those of one of them.
const BETWEEN: &str = "6.1";

/// The oldest kernel and the newest one: what differs by kernel runs on both.
const ENDS: [&str; 2] = ["5.10", "7.3"];

/// Every kind of event, and what ctwatch reads from the kernel's memory. These run on every kernel, and by every source that
/// can count them; by kprobes on all but [`BETWEEN`], where they are those of its neighbours.
pub(super) const EVENTS: [&str; 15] = [
    "traffic::all_types",
    "full::unassured",
    "full::unassured_few_buckets",
    "full::assured",
    "full::mixed",
    "delete::timeout",
    "delete::timeout_by_traffic",
    "delete::tcp_refused",
    "delete::netlink",
    "delete::flush",
    "clash::udp_merged",
    "clash::chaintoolong",
    "netns::exit",
    "trace::burst_auto",
    "invalid::unsaid",
];

/// What a kernel can change beside these: its functions and their callers, its privileges, its messages and its files.
const BY_KERNEL: [&str; 42] = [
    "traffic::gre",
    "traffic::sctp",
    "nat::masquerade_routed",
    "full::beside_another",
    "delete::",
    "clash::",
    "netns::",
    "invalid::datagrams",
    "invalid::out_of_window",
    "invalid::states",
    "invalid::traced",
    "hidden_code::",
    "misread::",
    "modules::",
    "source::",
    "privileges::",
    "attacker::facts",
    "attacker::child_rights",
    "footprint::program_time",
    "manners::loads_nothing",
    "manners::sigkill",
    "manners::waits_for_conntrack",
    "events::evictions",
    "ranking::evicted_and_refused",
    "table::equals_conntrack",
    "table::loads_nothing",
    "trace::age",
    "trace::burst_",
    "trace::chaintoolong",
    "trace::clash_resolve",
    "trace::evicted",
    "trace::icmp",
    "trace::netlink_events",
    "trace::netlink_fallback",
    "trace::refused",
    "trace::zone",
    "doctor::chains",
    "doctor::held",
    "doctor::latency",
    "doctor::loads_nothing",
    "doctor::overflowed",
    "doctor::raise_limit",
];

/// What is counted the same way whatever the source. The rest of the scenarios is about other things, or waits long.
const COUNTING: [&str; 16] = [
    "traffic::",
    "full::unassured",
    "full::unassured_few_buckets",
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

/// What needs a module that cloud kernels do not have, and where it runs.
const ON_FULL_KERNEL: [&str; 1] = ["delete::openvswitch"];
pub(super) const FULL_KERNEL: &str = "6.12-amd64";
/// What else runs there: it differs from [`ONE`] by its drivers.
const ON_PLAIN_BUILD: [&str; 4] =
    ["traffic::all_types", "full::mixed", "delete::timeout", "trace::burst_auto"];

/// What finds most in little time, on each kernel.
pub(super) const QUICK: [&str; 17] = [
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

/// Which of the kernels runs everything.
pub(super) fn of_everything(kernels: &[Kernel]) -> usize {
    kernels.iter().position(|kernel| kernel.name == ONE).unwrap_or(kernels.len().saturating_sub(1))
}

/// Whether the selection runs a scenario, asked for or not, on this kernel by this source.
pub(super) fn runs_here(
    selection: &Selection,
    name: &str,
    source: &str,
    kernel: &Kernel,
    is_one: bool,
) -> bool {
    if ON_FULL_KERNEL.contains(&name) {
        return kernel.name == FULL_KERNEL && source == "auto";
    }
    let other_build = kernels::OTHER_BUILDS.contains(&kernel.name.as_str());
    if selection.kernels.is_empty() && other_build {
        let list = if kernel.name == FULL_KERNEL { &ON_PLAIN_BUILD[..] } else { &EVENTS };
        return source == "auto" && is_in(list, name);
    }
    let by_name = selection.filter.is_some();
    by_source(by_name, source, kernel, name, is_one)
        && match selection.extent() {
            Extent::Quick => is_in(&QUICK, name) && (is_one || source == "auto"),
            Extent::Full => differs(source, kernel, name, is_one),
            Extent::Everywhere => true,
        }
}

/// Whether this kernel or this source can show what [`ONE`] by the source chosen there does not.
fn differs(source: &str, kernel: &Kernel, name: &str, is_one: bool) -> bool {
    let (is_event, by_kernel) = (is_in(&EVENTS, name), is_in(&BY_KERNEL, name));
    match source {
        "kprobe" => {
            (is_event && kernel.name != BETWEEN) || (is_one && (by_kernel || is_in(&BY_KPROBE, name)))
        }
        "auto" => is_one || is_event || (ENDS.contains(&kernel.name.as_str()) && by_kernel),
        _ => is_one || is_event,
    }
}

/// Whether this source can change a scenario on this kernel. What was asked for by name is asked for by kprobes too.
fn by_source(by_name: bool, source: &str, kernel: &Kernel, name: &str, is_one: bool) -> bool {
    let is_5_10 = kernel.release.starts_with("5.10.");
    match source {
        "auto" => is_one || !is_in(&ANYWHERE, name),
        // Kprobes are what ctwatch chooses on 5.10.
        "kprobe" if is_5_10 || is_in(&[AS_ROOT, WITH_PROMETHEUS], name) => false,
        "kprobe" => by_name || is_in(&COUNTING, name) || is_in(&BY_KPROBE, name),
        // A scenario about probes means nothing by netlink, even where it was asked for. On 5.10 two minutes pass between the collector's rounds, which the first run of this kernel waits for.
        _ if is_5_10 && name == "clash::udp_reply_only" => false,
        _ => {
            is_in(&COUNTING, name)
                || is_in(&BY_NETLINK, name)
                || (is_one && is_in(&ANYWHERE_BY_NETLINK, name))
        }
    }
}

/// Whether a list has this name: whole, or as one that begins with a group (`traffic::`) or a part (`trace::burst_`).
fn is_in(list: &[&str], name: &str) -> bool {
    list.iter().any(|item| name == *item || (item.ends_with([':', '_']) && name.starts_with(item)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest;

    #[test]
    fn each_list_names_scenarios_that_exist() {
        let lists: [&[&str]; 10] = [
            &ON_PLAIN_BUILD,
            &EVENTS,
            &BY_KERNEL,
            &COUNTING,
            &BY_KPROBE,
            &BY_NETLINK,
            &ANYWHERE,
            &ANYWHERE_BY_NETLINK,
            &ON_FULL_KERNEL,
            &QUICK,
        ];
        for item in lists.concat() {
            assert!(guest::scenario_names().any(|name| is_in(&[item], name)), "no scenario is called {item}");
        }
    }
}
