//! Takes addresses and names out of captured facts, so that they can be shown to strangers.
//!
//! Each structure is taken apart field by field: a new field does not compile until it is decided here what becomes of it.

mod names;
mod recorded;
mod text;
mod words;

use std::collections::BTreeMap;

use self::names::Masks;
pub use self::recorded::Recorded;
use super::early::DroppedPort;
use super::facts::{
    Configured, Facts, Group, Listing, ListingState, Live, LiveFlow, Module, Namespace, Program, Rule,
    RuleKind, Stale, TableView, Translated, Waiting,
};
use super::gather::system::{FILTERS, PROGRAMS};
use super::kube_proxy::KubeProxy;
use super::latency::Latency;
use super::way::Way;

/// Stands for a text that could not be taken apart.
const LEFT_OUT: &str = "(left out: names or comments have characters that the program does not quote)";

/// Prefixes of the kernel's modules that use tracking, beside [`FILTERS`].
const TRACKERS: [&str; 2] = ["act_ct", "openvswitch"];
const FAMILIES: [&str; 6] = ["ip", "ip6", "inet", "arp", "bridge", "netdev"];

/// Where files of sysctls lie.
const KNOWN_FOLDERS: [&str; 6] = [
    "/etc",
    "/etc/sysctl.d",
    "/run/sysctl.d",
    "/usr/local/lib/sysctl.d",
    "/usr/lib/sysctl.d",
    "/lib/sysctl.d",
];
/// Names that distributions and ctwatch give them.
const KNOWN_FILES: [&str; 4] =
    ["sysctl.conf", "99-sysctl.conf", "zz-ctwatch-limit.conf", "zz-ctwatch-buckets.conf"];

/// Masks what may say who the machine is or whom it talks to.
pub fn mask(facts: &mut Facts) {
    let mut masks = Masks::beside(&serde_json::to_string(facts).unwrap_or_default());
    let Facts {
        format: _,
        release: _,
        uptime_s: _,
        cpus: _,
        memory: _,
        conntrack: _,
        root: _,
        namespaces,
        namespaces_left_out: _,
        modules,
        programs,
        modprobe,
        configured,
        configured_left_out: _,
        loaded_early: _,
        firewalld_unloads: _,
        kube_proxy,
        slab: _,
        log: _,
        written_ms,
        since_ms: _,
        tools: _,
        live,
        latency,
    } = facts;
    for namespace in namespaces.iter_mut() {
        mask_namespace(namespace, &mut masks);
    }
    for Module { name, refs: _, used_by } in modules {
        for name in std::iter::once(name).chain(used_by) {
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || b"0123456789_".contains(&byte));
            if !plain || !FILTERS.iter().chain(&TRACKERS).any(|prefix| name.starts_with(prefix)) {
                *name = masks.name(name);
            }
        }
    }
    for Program { name, uses } in programs {
        if !PROGRAMS.contains(&(name, uses)) {
            (*name, *uses) = (masks.name(name), LEFT_OUT.into());
        }
    }
    for line in modprobe {
        *line = text::mask(line, false, &mut masks);
    }
    keep_sysctls(written_ms);
    configured.retain(|setting| is_sysctl(&setting.sysctl));
    for Configured { sysctl: _, value: _, file, changed_s: _ } in configured {
        // The folder says in which order it is applied, the number in front of the name too.
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        let digits = name.len() - name.trim_start_matches(|char: char| char.is_ascii_digit()).len();
        let known = KNOWN_FOLDERS.contains(&folder);
        if !KNOWN_FILES.contains(&name) || !known {
            let folder = if known { folder } else { "(a folder)" };
            *file = format!("{folder}/{}{}", &name[..digits], masks.name(&name[digits..]));
        }
    }
    if let Some(KubeProxy { file, unread: _, told }) = kube_proxy {
        told.retain(|key, _| KubeProxy::has_key(key));
        if let Some(file) = file {
            *file = masks.name(file);
        }
    }
    mask_live(live, &mut masks);
    if let Some(Latency {
        refused,
        why,
        source: _,
        seconds: _,
        tracking: _,
        confirm: _,
        floor: _,
        receive: _,
    }) = latency
    {
        for told in [refused, why].into_iter().flatten() {
            *told = prose(told, &mut masks);
        }
    }
    // Last, when all names are known.
    for Namespace { table: TableView { unseen, from, .. }, .. } in namespaces {
        for told in unseen.iter_mut().chain([from]) {
            *told = prose(told, &mut masks);
        }
    }
}

fn mask_namespace(namespace: &mut Namespace, masks: &mut Masks) {
    let Namespace {
        netns,
        name,
        own: _,
        enter,
        count: _,
        count_after: _,
        expectations: _,
        limit_writable: _,
        sysctls,
        stats,
        stats_after,
        ipvs_conntrack: _,
        bridged,
        nft,
        iptables,
        ip6tables,
        table,
        waiting,
        forwards: _,
        local_ports: _,
    } = namespace;
    bridged.retain(|of| ["iptables", "ip6tables"].contains(&of.as_str()));
    for Waiting { queue, device, packets: _ } in waiting {
        // The kind of a queueing discipline, or `nfqueue 7`.
        if !queue
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_ ".contains(&byte))
        {
            *queue = masks.name(queue);
        }
        if let Some(device) = device {
            *device = masks.name(device);
        }
    }
    if *name != netns.to_string() {
        *name = masks.name(name);
    }
    if let Way::Named(name) = enter {
        let masked = masks.name(name);
        *enter = if masked.is_ascii() { Way::Named(masked) } else { Way::Unknown };
    }
    keep_sysctls(sysctls);
    for counters in [stats, stats_after] {
        counters.retain(|name, _| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    }
    mask_listing(nft, false, masks);
    mask_listing(iptables, true, masks);
    mask_listing(ip6tables, true, masks);
    let TableView { unseen: _, from: _, total: _, counted: _, held: _, groups, ports: _, translated, stale } =
        table;
    for Stale { proto: _, dst, dport: _, to, port: _, count: _, unanswered: _, ruled: _, silent: _ } in stale
    {
        for address in [dst, to] {
            *address = masks.address(*address);
        }
    }
    for Translated { proto: _, src, ports: _, dst, dport: _, used: _ } in translated {
        for address in [src, dst] {
            *address = masks.address(*address);
        }
    }
    for Group { state, proto: _, count: _, unreplied: _, assured: _, left: _ } in groups {
        let tracked = state.bytes().all(|byte| byte.is_ascii_uppercase() || b"_0123456789".contains(&byte));
        if !tracked && !["unreplied", "replied", "assured"].contains(&state.as_str()) {
            *state = masks.name(state);
        }
    }
}

/// The kernel gives no sysctl of connection tracking another name.
fn keep_sysctls<T>(sysctls: &mut BTreeMap<String, T>) {
    sysctls.retain(|name, _| is_sysctl(name));
}

fn is_sysctl(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.starts_with("nf_conntrack_") && name.bytes().all(plain)
}

fn mask_listing(listing: &mut Listing, chain_first: bool, masks: &mut Masks) {
    let Listing {
        state,
        rules,
        left_out: _,
        cut: _,
        drops_by_default: _,
        drops_all,
        dropped,
        dropped_left_out: _,
        policies: _,
        unquotable,
    } = listing;
    for chain in drops_all {
        *chain = masks.name(chain);
    }
    for DroppedPort { family, proto: _, port: _, before: _, answers: _, bound: _ } in dropped {
        if !FAMILIES.contains(&family.as_str()) {
            *family = masks.name(family);
        }
    }
    if let ListingState::Unreadable(why) = state {
        *why = text::mask(why, false, masks);
    }
    for Rule { kind, family, table, chain, handle: _, number: _, text, needs } in rules {
        if !FAMILIES.contains(&family.as_str()) {
            *family = masks.name(family);
        }
        *table = masks.name(table);
        let named_alone = text == chain;
        *chain = masks.name(chain);
        if let RuleKind::Object(kind) = kind
            && !["ct helper", "ct timeout", "ct expectation", "synproxy"].contains(&kind.as_str())
        {
            *kind = masks.name(kind);
        }
        // What nft prints can be taken apart only while no name or comment breaks out of its place.
        *text = match (*unquotable, named_alone) {
            (_, true) => chain.clone(),
            (0, false) => text::mask(text, chain_first, masks),
            _ => LEFT_OUT.into(),
        };
        for need in needs {
            *need = text::mask(need, false, masks);
        }
    }
}

fn mask_live(live: &mut Live, masks: &mut Masks) {
    let Live {
        seconds: _,
        around_s: _,
        source: _,
        why,
        unknown,
        flows,
        refused: _,
        ranks_ports: _,
        refused_left_out: _,
        lost: _,
        run_ns: _,
        runs: _,
    } = live;
    for told in why.iter_mut().chain(unknown.values_mut()) {
        *told = prose(told, masks);
    }
    for LiveFlow { netns: _, family, proto: _, counts: _ } in flows {
        if !["ipv4", "ipv6", "any", "other"].contains(&family.as_str()) {
            *family = masks.name(family);
        }
    }
}

/// Sentences of ctwatch's own, in which names that were met elsewhere and addresses may stand.
fn prose(told: &str, masks: &mut Masks) -> String {
    let mut told = told.to_owned();
    for (name, mask) in masks.known_names() {
        // A short or plain name is a word, and looked up as one below.
        if name.len() >= 4 && name.contains(|char: char| !char.is_ascii_alphanumeric()) {
            told = told.replace(name, mask);
        }
    }
    let mut masked = String::new();
    let parts = told.split_inclusive(|char: char| char.is_whitespace() || "()\",;".contains(char));
    for part in parts {
        let word = part.trim_end_matches(|char: char| char.is_whitespace() || "()\",;".contains(char));
        let (body, end) =
            (word.trim_end_matches(['.', ':']), &part[word.trim_end_matches(['.', ':']).len()..]);
        match masks.known(body) {
            Some(mask) => masked.push_str(mask),
            None if is_kernel_address(body) => masked.push_str("(an address of the kernel)"),
            None => masked.push_str(&text::address(body, masks).unwrap_or_else(|| body.to_owned())),
        }
        masked.push_str(end);
    }
    masked
}

fn is_kernel_address(word: &str) -> bool {
    let digits = word.strip_prefix("0x").unwrap_or(word);
    digits.len() >= 15 && digits.starts_with("ff") && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
