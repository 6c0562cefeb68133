//! What files configure against what is in force.

use std::fmt::Write as _;

use super::after_loss;
use crate::doctor::facts::{Configured, Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::limit;
use crate::doctor::text::{duration, thousands};
use crate::kernel::facts::Presence;

/// Sysctls that a file may set in vain, without `nf_conntrack_`, and which difference does harm.
const WATCHED: [(&str, Harm); 22] = [
    ("max", Harm::Less),
    ("buckets", Harm::Less),
    ("expect_max", Harm::Less),
    ("generic_timeout", Harm::More),
    ("icmp_timeout", Harm::More),
    ("icmpv6_timeout", Harm::More),
    ("udp_timeout", Harm::More),
    ("udp_timeout_stream", Harm::More),
    ("gre_timeout", Harm::More),
    ("gre_timeout_stream", Harm::More),
    ("sctp_timeout_established", Harm::More),
    ("tcp_timeout_syn_sent", Harm::More),
    ("tcp_timeout_syn_recv", Harm::More),
    ("tcp_timeout_established", Harm::More),
    ("tcp_timeout_fin_wait", Harm::More),
    ("tcp_timeout_close_wait", Harm::More),
    ("tcp_timeout_last_ack", Harm::More),
    ("tcp_timeout_time_wait", Harm::More),
    ("tcp_timeout_close", Harm::More),
    ("tcp_be_liberal", Harm::Less),
    ("tcp_loose", Harm::Any),
    ("checksum", Harm::Any),
];

/// The difference that does harm: less than was configured, or more (entries live longer), or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Less,
    More,
    Any,
}

/// Programs that set the limit and the first two timeouts of TCP when they start.
const KUBE_PROXY: [&str; 3] = ["kube-proxy", "k3s-server", "k3s-agent"];
const OF_KUBE_PROXY: [&str; 3] = ["max", "tcp_timeout_established", "tcp_timeout_close_wait"];
/// What it sets by default: so many for each CPU, and this at least.
const KUBE_PER_CPU: u64 = 32_768;
const KUBE_LEAST: u64 = 131_072;

/// Where options of modules stand.
const MODPROBE: &str = "modprobe.d";

pub fn check(facts: &Facts) -> Vec<Finding> {
    // Files set the first namespace, and only it has the limit that counts.
    let Some(first) = facts.namespaces.iter().find(|namespace| namespace.limit_writable) else {
        return Vec::new();
    };
    WATCHED.iter().filter_map(|(name, harm)| one(facts, first, name, *harm)).collect()
}

/// Why a value is not in force.
enum Why<'a> {
    /// A file that is applied later says less.
    Later(&'a Configured),
    /// The file was changed after all were applied.
    Changed(u64),
    /// It was written so many seconds ago.
    Written(u64),
    /// Files are applied before the module is there.
    Early,
    /// It is an option of the module, which counts when the module is loaded.
    Option,
    /// Nothing says why.
    Unknown,
}

fn one(facts: &Facts, first: &Namespace, name: &'static str, harm: Harm) -> Option<Finding> {
    let in_force = first.sysctl(name)?;
    let full = format!("nf_conntrack_{name}");
    let settings: Vec<Configured> = settings(facts, &full);
    let winner = settings.last()?;
    let does_harm = |wanted: u64| match harm {
        Harm::Less => in_force < wanted,
        Harm::More => in_force > wanted,
        Harm::Any => in_force != wanted,
    };
    let (wanted, why) = if does_harm(as_applied(name, winner.value)) {
        (winner, why(facts, first, &full, winner))
    } else {
        // A file of the administrator that another one overrules. That a distribution's is overruled is their order's purpose.
        let overruled = |setting: &&Configured| {
            setting.file.starts_with("/etc/") && does_harm(as_applied(name, setting.value))
        };
        let limits = harm == Harm::Less && winner.value <= in_force && name != "tcp_be_liberal";
        (settings.iter().rev().find(overruled).filter(|_| limits)?, Why::Later(winner))
    };
    Some(finding(facts, first, (name, in_force), wanted, &why, &settings))
}

/// What files say of a sysctl, in the order in which it is applied.
fn settings(facts: &Facts, full: &str) -> Vec<Configured> {
    let mut found = Vec::new();
    if full == "nf_conntrack_buckets" {
        // Given as the module is loaded, so that a sysctl comes later.
        found.extend(facts.modprobe.iter().filter_map(|line| hashsize(line)));
    }
    found.extend(facts.configured.iter().filter(|setting| setting.sysctl == full).cloned());
    found
}

/// `FILE: options nf_conntrack hashsize=65536`.
fn hashsize(line: &str) -> Option<Configured> {
    let (file, rest) = line.split_once(": options nf_conntrack ")?;
    let value = rest.split_whitespace().find_map(|word| word.strip_prefix("hashsize="))?.parse().ok()?;
    let (sysctl, file) = ("nf_conntrack_buckets".to_owned(), format!("the file {file} of {MODPROBE}"));
    Some(Configured { sysctl, value, file, changed_s: None })
}

/// The kernel fills whole pages with buckets (`nf_ct_alloc_hashtable`, 5.10 to 7.3).
fn as_applied(name: &str, value: u64) -> u64 {
    const IN_PAGE: u64 = 512;
    if name == "buckets" { value.checked_next_multiple_of(IN_PAGE).unwrap_or(value) } else { value }
}

fn why<'a>(facts: &Facts, first: &Namespace, full: &str, winner: &Configured) -> Why<'a> {
    let written_ms = facts.written_ms.get(full).copied();
    if winner.file.ends_with(MODPROBE) && written_ms.is_none() {
        return Why::Option;
    }
    if let Some(changed) = winner.changed_s.filter(|changed| *changed < facts.uptime_s)
        && !written_ms.is_some_and(|written| after_loss(Some(written), changed.saturating_mul(1000)))
    {
        return Why::Changed(changed);
    }
    match written_ms {
        Some(written) => Why::Written(written / 1000),
        None if facts.conntrack == Presence::Module && !facts.loaded_early && first.own => Why::Early,
        None => Why::Unknown,
    }
}

fn finding(
    facts: &Facts,
    first: &Namespace,
    (name, in_force): (&'static str, u64),
    wanted: &Configured,
    why: &Why<'_>,
    settings: &[Configured],
) -> Finding {
    let full = format!("nf_conntrack_{name}");
    let proxy = facts
        .programs
        .iter()
        .find(|program| KUBE_PROXY.contains(&program.name.as_str()) && OF_KUBE_PROXY.contains(&name));
    let what = format!(
        "{} sets {full} to {}, but {} is in force",
        wanted.file,
        thousands(wanted.value),
        thousands(in_force)
    );
    let mut meaning = match why {
        Why::Later(winner) => format!(
            "{} is applied after it and sets {}: files are applied in the order of their names, whatever their folder, and the \
             last one stays.",
            winner.file,
            thousands(winner.value)
        ),
        Why::Changed(changed) => format!(
            "The file was changed {} ago, and nobody has applied it since: files are read once, as the machine starts.",
            duration(*changed)
        ),
        Why::Written(written) => format!(
            "Something set another value {} ago, after the files were applied: a program or a person.",
            duration(*written)
        ),
        Why::Early => format!(
            "Nothing has set {full} since the module was loaded. Files are applied once, early as the machine starts, and the \
             module came later: its sysctls did not exist then, and each module starts with the kernel's defaults."
        ),
        Why::Option => "An option counts when the module is loaded: the file was written after that, or the sysctl was set since."
            .to_owned(),
        Why::Unknown => "Nothing says why: the file may have been refused, or applied before another program set the value."
            .to_owned(),
    };
    if let Some(proxy) = proxy {
        let default = KUBE_LEAST.max(KUBE_PER_CPU.saturating_mul(u64::from(facts.cpus)));
        let by_default = if name == "max" && in_force == default {
            format!(
                ", and {} is its default for {} CPUs (32,768 for each, at least 131,072)",
                thousands(in_force),
                facts.cpus
            )
        } else {
            String::new()
        };
        let _ = write!(
            meaning,
            " {} sets it whenever it starts{by_default}: it wins over each file.",
            proxy.name
        );
    }
    let others: Vec<String> =
        settings.iter().map(|setting| format!("{} {}", setting.file, thousands(setting.value))).collect();
    let mut remedy = limit::apply(facts, first, name, wanted.value);
    if let Some(remedy) = &mut remedy
        && let Some(proxy) = proxy
    {
        remedy.left_out.push(format!(
            "{}: its own settings (conntrack.min and conntrack.maxPerCore, or tcpEstablishedTimeout and tcpCloseWaitTimeout, in \
             its configuration) decide from its next start on",
            proxy.name
        ));
    }
    Finding::new("limit-not-applied", Status::Warning, what, meaning)
        .seen("sysctl", full.clone(), wanted.file.clone())
        .seen("configured", wanted.value, wanted.file.clone())
        .seen("in_force", in_force, format!("/proc/sys/net/netfilter/{full}"))
        .seen("files", others.join(", "), "sysctl.d and modprobe.d, in the order in which they are applied")
        .seen_if(
            "set_seconds_ago",
            facts.written_ms.get(&full).map(|written| written / 1000),
            format!("/proc/sys/net/netfilter/{full}: the time of its contents"),
        )
        .cure(remedy)
}
