//! Whether anything is tracked, what makes it so, and what would have to go.

use ctwatch_ebpf::Event;

use super::{COUNT, MAX};
use crate::doctor::facts::{Facts, ListingState, Namespace, RuleKind};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::remedies::switch_off;
use crate::kernel::facts::Presence;

/// As many rules are named, the rest counted.
const NAMED: usize = 8;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    if facts.conntrack == Presence::Absent {
        return vec![absent(facts)];
    }
    let mut findings: Vec<Finding> = facts.namespaces.first().into_iter().filter_map(unreadable).collect();
    findings.extend(facts.namespaces.is_empty().then(no_namespace));
    findings.push(tracked_by(facts));
    findings.extend(holders(facts));
    findings.extend(container(facts));
    findings
}

fn absent(facts: &Facts) -> Finding {
    Finding::new(
        "not-loaded",
        Status::Ok,
        "connection tracking is not loaded",
        "No packet is tracked, so none can be lost to it. It comes when a rule with state or NAT is loaded, and with \
         commands such as `conntrack -L`; ctwatch loads nothing.",
    )
    .seen("nf_conntrack", "absent", "/sys/module and /proc/sys/net/netfilter")
    .seen("modprobe", facts.modprobe.clone(), "modprobe.d and the kernel's command line")
}

fn unreadable(own: &Namespace) -> Option<Finding> {
    own.count.is_none().then(|| {
        Finding::new(
            "table-unreadable",
            Status::Unknown,
            "the table's count could not be read",
            "Connection tracking is there, but this process may not see it; a container hides /proc/sys/net. Run doctor on \
             the host.",
        )
        .seen("missing", COUNT, "reading it")
    })
}

fn no_namespace() -> Finding {
    Finding::new(
        "table-unreadable",
        Status::Unknown,
        "the network namespace could not be entered",
        "Reading another namespace needs CAP_SYS_ADMIN. Run doctor as root, or inside the namespace.",
    )
}

/// Entries or inserts prove tracking; their lack proves nothing.
fn tracks(facts: &Facts, namespace: &Namespace) -> bool {
    namespace.peak().is_some_and(|count| count > 0)
        || facts.live.sum(namespace.netns, &[Event::Insert]).is_some_and(|insert| insert > 0)
}

fn tracked_by(facts: &Facts) -> Finding {
    let mut rules = Vec::new();
    let mut namespaces = Vec::new();
    let mut unlisted = Vec::new();
    for namespace in &facts.namespaces {
        let causes =
            namespace.rules().filter(|rule| !matches!(rule.kind, RuleKind::Notrack | RuleKind::NatChain));
        let before = rules.len();
        rules.extend(causes.map(|rule| {
            format!(
                "{}: {} {} {}: {} [{}]",
                namespace.name,
                rule.family,
                rule.table,
                rule.chain,
                rule.text,
                rule.needs.join(", ")
            )
        }));
        if rules.len() > before || tracks(facts, namespace) {
            namespaces.push(namespace.name.clone());
        }
        for (tool, listing) in ["nft", "iptables", "ip6tables"].iter().zip(namespace.listings()) {
            if let ListingState::Unreadable(why) = &listing.state {
                unlisted.push(format!("{}: {tool}: {why}", namespace.name));
            }
        }
    }
    let mut users: Vec<String> =
        facts.programs.iter().map(|program| format!("{}: {}", program.name, program.uses)).collect();
    let of = |is: &dyn Fn(&Namespace) -> bool| {
        let names: Vec<&str> = facts
            .namespaces
            .iter()
            .filter(|namespace| is(namespace))
            .map(|found| found.name.as_str())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = of(&|namespace| namespace.ipvs_conntrack) {
        users.push(format!("IPVS: hands its connections to tracking in {names} (net.ipv4.vs.conntrack = 1)"));
    }
    for rules in ["iptables", "ip6tables"] {
        if let Some(names) = of(&|namespace| namespace.bridged.iter().any(|on| on == rules)) {
            users.push(format!(
                "br_netfilter: what bridges of {names} forward is tracked where IP is (net.bridge.bridge-nf-call-{rules} = 1)"
            ));
        }
    }
    if let Some(names) = of(&|namespace| namespace.sysctl("helper") == Some(1)) {
        users.push(format!(
            "helpers: assigned to flows by their port in {names} (nf_conntrack_helper = 1, until 5.19)"
        ));
    }
    let others: Vec<&str> = ["openvswitch", "ip_vs", "act_ct", "nf_conntrack_bridge"]
        .into_iter()
        .filter(|name| facts.modules.iter().any(|module| module.name == *name))
        .collect();
    let what = match (namespaces.len(), rules.len()) {
        (0, _) => "connection tracking is loaded, but nothing is tracked".to_owned(),
        (_, 0) => {
            format!("tracking is on in {}, and no rule that was seen makes it so", namespaces.join(", "))
        }
        (_, 1) => format!("tracking is on in {}, because of one rule", namespaces.join(", ")),
        (_, many) => format!("tracking is on in {}, because of {many} rules", namespaces.join(", ")),
    };
    let more = rules.len().saturating_sub(NAMED);
    rules.truncate(NAMED);
    if more > 0 {
        rules.push(format!("and {more} more"));
    }
    Finding::new(
        "tracked-by",
        Status::Ok,
        what,
        "A loaded module tracks nothing by itself: each namespace tracks once a rule with state or NAT, IPVS, Open vSwitch or \
         tc asks for it. Taking rules away stops it only until whatever wrote them writes them again.",
    )
    .seen("rules", rules, "nft -j list ruleset, iptables-save")
    .seen("programs", users, "/proc/*/comm, /proc/sys/net")
    .seen("modules_that_may_track", others, "/proc/modules")
    .seen("not_listed", unlisted, "listing the rules")
}

fn holders(facts: &Facts) -> Option<Finding> {
    let module = facts.modules.iter().find(|module| module.name == "nf_conntrack");
    let Some(module) = module else {
        return (facts.conntrack == Presence::BuiltIn).then(|| {
            Finding::new(
                "module-holders",
                Status::Ok,
                "connection tracking is part of this kernel and cannot be unloaded",
                "Without rules that need it, it costs nothing but its memory. Taking those rules away is all there is to do.",
            )
            .seen("nf_conntrack", "built in", "/sys/module/nf_conntrack has no initstate")
            .cure(switch_off::remedy(facts))
        });
    };
    let what = if module.used_by.is_empty() {
        "the command rmmod nf_conntrack would work now: no module uses it".to_owned()
    } else {
        format!(
            "the command rmmod nf_conntrack would refuse: “Module nf_conntrack is in use by: {}”",
            module.used_by.join(" ")
        )
    };
    Some(
        Finding::new(
            "module-holders",
            Status::Ok,
            what,
            "Rules hold the modules of their words, and those hold nf_conntrack; all must go first, and a ctwatch that counts \
             by trampolines too. A `blacklist` line only stops loading by alias: what asks for the module by name, or depends \
             on it, loads it all the same.",
        )
        .seen("used_by", module.used_by.clone(), "/proc/modules")
        .seen("references", module.refs, "/proc/modules")
        .seen("unload_order", switch_off::unload_order(&facts.modules), "/proc/modules, users first")
        .seen("modprobe", facts.modprobe.clone(), "modprobe.d and the kernel's command line")
        .cure(switch_off::remedy(facts)),
    )
}

fn container(facts: &Facts) -> Option<Finding> {
    let own = facts.namespaces.first().filter(|own| !own.limit_writable && own.max().is_some())?;
    Some(
        Finding::new(
            "container",
            Status::Ok,
            format!("limit and buckets cannot be set from here ({}), only from the first namespace", own.name),
            "The limit is one number, set on the host, but each namespace counts its own entries against it. Timeouts are \
             each namespace's own and can be set here.",
        )
        .seen_if("max", own.max(), MAX)
        .seen("writable", false, format!("permissions of {MAX}")),
    )
}
