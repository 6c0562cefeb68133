//! Expectations: connections that helpers (FTP, SIP, TFTP) have announced and that have not come yet.

use super::{LOG, after_loss, of_namespace};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::expectations;
use crate::doctor::text::{duration, thousands};

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_expect_max";
const COUNT: &str = "the kernel's list of expectations, as conntrack -L expect shows it";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let limit = |namespace: &Namespace| namespace.sysctl("expect_max").filter(|max| *max > 0);
    let full = |namespace: &&Namespace| {
        namespace.expectations.zip(limit(namespace)).is_some_and(|(count, max)| count >= max)
    };
    if let Some(namespace) = facts.namespaces.iter().find(full) {
        return vec![finding(facts, namespace, None)];
    }
    let logged = facts.log.as_ref().and_then(|log| log.expectations_ms);
    let dealt = |ago: u64| {
        after_loss(facts.written_ms.get("nf_conntrack_expect_max").copied(), ago)
            || facts.since_ms.is_some_and(|since| since < ago)
    };
    match (logged, facts.namespaces.first()) {
        (Some(ago), Some(first)) if !dealt(ago) => vec![finding(facts, first, Some(ago))],
        _ => Vec::new(),
    }
}

fn finding(facts: &Facts, namespace: &Namespace, ago_ms: Option<u64>) -> Finding {
    let max = namespace.sysctl("expect_max");
    let of_limit = max.map_or_else(String::new, |max| format!(" of {}", thousands(max)));
    let what = match (ago_ms, namespace.expectations) {
        (None, count) => format!(
            "helpers may expect no more connections: {}{of_limit} expectations{}",
            thousands(count.unwrap_or(0)),
            of_namespace(facts, namespace)
        ),
        (Some(ago), Some(count)) => format!(
            "helpers were refused expectations {} ago; now {}{of_limit}",
            duration(ago / 1000),
            thousands(count)
        ),
        (Some(ago), None) => format!("helpers were refused expectations {} ago", duration(ago / 1000)),
    };
    Finding::new(
        "expectations-full",
        Status::Warning,
        what,
        "A helper reads in a control connection (FTP, SIP, TFTP) that another one will come, and has the kernel expect it. \
         Beyond the limit of expectations the kernel drops the packet that asked for one more: a transfer or call does not \
         start. The table of connections itself has room, and its limit changes nothing here.",
    )
    .seen_if("expectations", namespace.expectations, COUNT)
    .seen_if("expect_max", max, MAX)
    .seen_if("logged_seconds_ago", ago_ms.map(|ago| ago / 1000), LOG)
    .seen_if("helpers", Some(helpers(facts)).filter(|names| !names.is_empty()), "/proc/modules")
    .cure(expectations::raise(facts, namespace))
}

/// Helpers that are loaded.
fn helpers(facts: &Facts) -> String {
    const HELPERS: [&str; 11] = [
        "nf_conntrack_amanda",
        "nf_conntrack_ftp",
        "nf_conntrack_h323",
        "nf_conntrack_irc",
        "nf_conntrack_netbios_ns",
        "nf_conntrack_pptp",
        "nf_conntrack_sane",
        "nf_conntrack_sip",
        "nf_conntrack_snmp",
        "nf_conntrack_tftp",
        "nfnetlink_cthelper",
    ];
    let names: Vec<&str> = facts.modules.iter().map(|module| module.name.as_str()).collect();
    HELPERS.into_iter().filter(|helper| names.contains(helper)).collect::<Vec<_>>().join(", ")
}
