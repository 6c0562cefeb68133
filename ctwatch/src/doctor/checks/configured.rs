//! What files configure against what is in force.

use super::after_loss;
use crate::doctor::facts::{Configured, Facts, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::kube_proxy::{KubeProxy, Unread};
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
/// One number for the whole machine, which the kernel lets only the first network namespace set.
const OF_MACHINE: [&str; 3] = ["max", "buckets", "expect_max"];

/// Where options of modules stand.
const MODPROBE: &str = "modprobe.d";
const FIREWALLD: &str = "/etc/firewalld/firewalld.conf";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    // Files set the first namespace, and only it has the limit that counts.
    if let Some(first) = facts.namespaces.iter().find(|namespace| namespace.limit_writable) {
        let mut findings: Vec<Finding> =
            WATCHED.iter().filter_map(|(name, harm)| one(facts, first, name, *harm)).collect();
        one_number_of_buckets(&mut findings);
        return findings;
    }
    let Some(own) = facts.namespaces.iter().find(|namespace| namespace.own) else { return Vec::new() };
    OF_MACHINE.iter().filter_map(|name| elsewhere(facts, own, name)).collect()
}

/// A larger limit comes with buckets for it. A remedy that then sets fewer of them would undo that.
fn one_number_of_buckets(findings: &mut [Finding]) {
    let of = |sysctl| {
        move |finding: &Finding| finding.evidence.get("sysctl").is_some_and(|figure| figure.value == sysctl)
    };
    let configured = |finding: &Finding| finding.evidence.get("configured")?.value.as_u64();
    let limit =
        findings.iter().find(|finding| of("nf_conntrack_max")(finding) && !finding.remedies.is_empty());
    let Some(with_it) = limit.and_then(configured).and_then(u64::checked_next_power_of_two) else { return };
    let buckets = findings
        .iter_mut()
        .find(|finding| of("nf_conntrack_buckets")(finding) && !finding.remedies.is_empty());
    if let Some(finding) =
        buckets.filter(|finding| configured(finding).is_some_and(|buckets| with_it >= buckets))
    {
        finding.remedies.clear();
        finding.meaning.push_str(" The remedy for nf_conntrack_max brings at least as many buckets.");
    }
}

/// A note that kube-proxy sets this sysctl again when it starts; `None` where it does not.
pub fn left_to_kube_proxy(facts: &Facts, sysctl: &str, in_force: u64) -> Option<String> {
    let name = sysctl.strip_prefix("nf_conntrack_").unwrap_or(sysctl);
    Proxy::of(facts, name, in_force, &Why::Unknown).left_out(name)
}

/// Why a value is not in force.
enum Why<'a> {
    /// A file that is applied later says less.
    Later(&'a Configured),
    /// kube-proxy sets this.
    Proxy(&'a Configured),
    /// kube-proxy sets what was asked for, but something else is there.
    NotProxy(Option<u64>),
    /// The file was changed after all were applied.
    Changed(u64),
    /// It was written so many seconds ago.
    Written(u64),
    /// Files are applied before the module is there.
    Early,
    /// It is an option of the module, which counts when the module is loaded.
    Option,
    /// The file stands where the kernel lets nobody set it.
    Elsewhere,
    /// Nothing says why.
    Unknown,
}

fn one(facts: &Facts, first: &Namespace, name: &'static str, harm: Harm) -> Option<Finding> {
    let in_force = first.sysctl(name)?;
    let full = format!("nf_conntrack_{name}");
    let files: Vec<Configured> = settings(facts, &full);
    let by_proxy = by_proxy(facts, name, in_force);
    let does_harm = |wanted: u64| match harm {
        Harm::Less => in_force < wanted,
        Harm::More => in_force > wanted,
        Harm::Any => in_force != wanted,
    };
    let told = |wanted, why: &Why<'_>| {
        let settings: Vec<&Configured> = files.iter().chain(by_proxy.as_ref()).collect();
        Some(finding(facts, first, (name, in_force), wanted, why, &settings))
    };
    let proxy_wins = by_proxy.as_ref().filter(|setting| setting.value == in_force);
    if let Some(proxy) = by_proxy.as_ref().filter(|setting| does_harm(setting.value))
        && facts.kube_proxy.as_ref().is_some_and(|proxy| proxy.is_told(name))
    {
        let written = facts.written_ms.get(&full).map(|written| written / 1000);
        return told(proxy, &Why::NotProxy(written));
    }
    let winner = files.last()?;
    if does_harm(as_applied(name, winner.value)) {
        let why = proxy_wins.map_or_else(|| why(facts, first, &full, winner), Why::Proxy);
        return told(winner, &why);
    }
    // A file of the administrator that another one overrules. That a distribution's is overruled is their order's purpose.
    let overruled = |setting: &&Configured| {
        setting.file.starts_with("/etc/") && does_harm(as_applied(name, setting.value))
    };
    let limits = harm == Harm::Less && winner.value <= in_force && name != "tcp_be_liberal";
    told(files.iter().rev().find(overruled).filter(|_| limits)?, &Why::Later(winner))
}

/// What an administrator's file asks for in a container, or in any namespace but the first.
fn elsewhere(facts: &Facts, own: &Namespace, name: &'static str) -> Option<Finding> {
    let in_force = own.sysctl(name)?;
    let files = settings(facts, &format!("nf_conntrack_{name}"));
    let wanted = files
        .last()
        .filter(|setting| setting.file.starts_with("/etc/") && in_force < as_applied(name, setting.value))?;
    let settings: Vec<&Configured> = files.iter().collect();
    Some(finding(facts, own, (name, in_force), wanted, &Why::Elsewhere, &settings))
}

/// What kube-proxy sets, if it runs and what it was told is known.
fn by_proxy(facts: &Facts, name: &str, in_force: u64) -> Option<Configured> {
    let proxy = facts.kube_proxy.as_ref()?;
    let value = proxy.sets(name, facts.cpus, in_force)?;
    let file = match (proxy.told_file(), proxy.is_told(name)) {
        (Some(file), true) => format!("kube-proxy's configuration {file}"),
        (None, true) => "kube-proxy's command line".to_owned(),
        (_, false) => "kube-proxy's default".to_owned(),
    };
    Some(Configured { sysctl: format!("nf_conntrack_{name}"), value, file, changed_s: None })
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
        // The time of other sysctls is not read.
        None if OF_MACHINE.iter().all(|name| !full.ends_with(name)) => Why::Unknown,
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
    settings: &[&Configured],
) -> Finding {
    let full = format!("nf_conntrack_{name}");
    let what = format!(
        "{} sets {full} to {}, but {} is in force",
        wanted.file,
        thousands(wanted.value),
        thousands(in_force)
    );
    let proxy = Proxy::of(facts, name, in_force, why);
    let mut meaning = in_words(facts, &full, why);
    meaning.push_str(&proxy.words(facts, name, in_force));
    let others: Vec<String> =
        settings.iter().map(|setting| format!("{} {}", setting.file, thousands(setting.value))).collect();
    let folders = match &proxy {
        Proxy::Known(..) | Proxy::Own => "sysctl.d, modprobe.d and kube-proxy",
        _ => "sysctl.d and modprobe.d",
    };
    let mut remedy = limit::apply(facts, first, name, wanted.value);
    if let Some(remedy) = &mut remedy {
        remedy.left_out.extend(proxy.left_out(name));
        if facts.firewalld_unloads && matches!(why, Why::Early) {
            remedy.left_out.push(format!(
                "{FIREWALLD}: `CleanupModulesOnExit=no` keeps the module, and what was set, when firewalld stops"
            ));
        }
    }
    Finding::new("limit-not-applied", Status::Warning, what, meaning)
        .seen("sysctl", full.clone(), wanted.file.clone())
        .seen("configured", wanted.value, wanted.file.clone())
        .seen("in_force", in_force, format!("/proc/sys/net/netfilter/{full}"))
        .seen("files", others.join(", "), format!("{folders}, in the order in which they are applied"))
        .seen_if(
            "files_left_out",
            Some(facts.configured_left_out).filter(|more| *more > 0),
            "settings that come before these, and files of sysctls, beyond what ctwatch keeps",
        )
        .seen_if(
            "set_seconds_ago",
            facts.written_ms.get(&full).map(|written| written / 1000),
            format!("/proc/sys/net/netfilter/{full}: the time of its contents"),
        )
        .cure(remedy)
}

fn in_words(facts: &Facts, full: &str, why: &Why<'_>) -> String {
    match why {
        Why::Later(winner) => format!(
            "{} is applied after it and sets {}: files are applied in the order of their names, whatever their folder, and the \
             last one stays.",
            winner.file,
            thousands(winner.value)
        ),
        Why::Proxy(winner) => {
            let rule = facts.kube_proxy.as_ref().and_then(|proxy| proxy.rule(full, facts.cpus));
            format!(
                "{} says {}{}. kube-proxy sets this as it starts, after files are applied: it wins over each of them.",
                winner.file,
                thousands(winner.value),
                rule.map_or_else(String::new, |rule| format!(" ({rule})"))
            )
        }
        Why::NotProxy(written) => format!(
            "kube-proxy sets it only as it starts.{} Either this was set later, or kube-proxy was told so after its start, or it \
             was not allowed to, which its log says. Some releases only raise values.",
            written.map_or_else(String::new, |written| format!(
                " Something set what is in force {} ago.",
                duration(written)
            ))
        ),
        Why::Changed(changed) => format!(
            "The file was changed {} ago, and nobody has applied it since: files are read once, as the machine starts.",
            duration(*changed)
        ),
        Why::Written(written) => format!(
            "Something set another value {} ago, after the files were applied: a program or a person.",
            duration(*written)
        ),
        Why::Early => {
            let unloads = if facts.firewalld_unloads {
                format!(
                    " firewalld unloads it whenever it stops (CleanupModulesOnExit in {FIREWALLD}), and with it goes what was set."
                )
            } else {
                String::new()
            };
            format!(
                "As far as the kernel remembers, nothing has set {full} since the module was loaded. Files are applied once, early as \
                 the machine starts, and the \
                 module came later: its sysctls did not exist then, and each module starts with the kernel's defaults.{unloads}"
            )
        }
        Why::Option => "An option counts when the module is loaded: the file was written after that, or the sysctl was set since."
            .to_owned(),
        Why::Elsewhere => format!(
            "{full} is one number for the whole machine. The kernel lets only the first network namespace set it, and this is \
             another one, as a container has: the file does nothing here. The container's runtime cannot set it either \
             (lxc.sysctl, docker run --sysctl): with that the container does not start. The host decides."
        ),
        Why::Unknown => "Nothing says why: the file may have been applied before the module was loaded, or refused, or a program \
                         set another value since."
            .to_owned(),
    }
}

/// The kube-proxy that has a say in a sysctl.
enum Proxy<'a> {
    /// None runs, or it leaves this alone.
    None,
    /// This program, by its defaults as far as anybody knows, and why it is not known better.
    Perhaps(&'a str, Option<Unread>),
    /// What it was told is known.
    Known(&'a KubeProxy, u64),
    /// What is not in force is its own.
    Own,
}

impl<'a> Proxy<'a> {
    fn of(facts: &'a Facts, name: &str, in_force: u64, why: &Why<'_>) -> Self {
        let running = facts.programs.iter().find(|program| KUBE_PROXY.contains(&program.name.as_str()));
        match (&facts.kube_proxy, running) {
            _ if matches!(why, Why::NotProxy(_)) => Self::Own,
            _ if matches!(why, Why::Elsewhere) => Self::None,
            (Some(proxy), _) if proxy.unread.is_none() => {
                proxy.sets(name, facts.cpus, in_force).map_or(Self::None, |value| Self::Known(proxy, value))
            }
            (proxy, Some(running)) if OF_KUBE_PROXY.contains(&name) => {
                Self::Perhaps(&running.name, proxy.as_ref().and_then(|proxy| proxy.unread))
            }
            _ => Self::None,
        }
    }

    fn words(&self, facts: &Facts, name: &str, in_force: u64) -> String {
        match self {
            Self::None | Self::Own => String::new(),
            // Said already.
            Self::Known(_, value) if *value == in_force => String::new(),
            Self::Known(_, value) => {
                format!(" kube-proxy sets it to {} whenever it starts.", thousands(*value))
            }
            Self::Perhaps(program, unread) => {
                let default = KubeProxy::default().sets(name, facts.cpus, in_force);
                let by_default = if name == "max" && default == Some(in_force) {
                    format!(
                        ", and {} is its default for {} CPUs (32,768 for each, at least 131,072)",
                        thousands(in_force),
                        facts.cpus
                    )
                } else {
                    String::new()
                };
                let unread = unread.map_or_else(String::new, |why| {
                    let file = facts.kube_proxy.as_ref().and_then(KubeProxy::told_file);
                    let told = file.as_deref().unwrap_or("its command line");
                    format!(" What {told} says is not known: {}.", why.text())
                });
                format!(" {program} sets it whenever it starts{by_default}: it wins over each file.{unread}")
            }
        }
    }

    fn left_out(&self, name: &str) -> Option<String> {
        match self {
            Self::None | Self::Own => None,
            Self::Known(proxy, _) => Some(proxy.left_alone(name)),
            Self::Perhaps(program, _) => Some(format!(
                "{program}: its own settings (conntrack.min and conntrack.maxPerCore, or tcpEstablishedTimeout and \
                 tcpCloseWaitTimeout, in its configuration) decide from its next start on"
            )),
        }
    }
}
