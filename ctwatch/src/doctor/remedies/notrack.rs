//! Leaving one flow type out of tracking.

use crate::doctor::command::{Arg, Call, Command};
use crate::doctor::facts::{Namespace, Port, RuleKind, Tools};
use crate::doctor::finding::Remedy;
use crate::model::protocol;

const TABLE: &str = "ctwatch_notrack";
const NFT_FILE: &str = "/etc/nftables.conf";

/// Both rule pairs, that of the tool in use first; none for protocols without ports in both tools.
pub fn remedies(tools: Tools, namespace: &Namespace, port: &Port) -> Vec<Remedy> {
    let name = protocol::name(port.proto);
    let Some(name) = ["tcp", "udp", "sctp"].into_iter().find(|known| name == *known) else {
        return Vec::new();
    };
    let by_nft = nft(namespace, name, port.port);
    let by_iptables = iptables(namespace, name, port.port);
    let legacy_alone = namespace.nft.rules.is_empty() && !namespace.iptables.rules.is_empty();
    match (tools.nft, tools.iptables) {
        (true, true) if legacy_alone => vec![by_iptables, alternative(by_nft)],
        (true, true) => vec![by_nft, alternative(by_iptables)],
        (false, true) => vec![by_iptables],
        _ => vec![by_nft],
    }
}

fn alternative(remedy: Remedy) -> Remedy {
    Remedy { alternative: true, ..remedy }
}

fn nft(namespace: &Namespace, proto: &'static str, port: u16) -> Remedy {
    let remedy = Remedy {
        id: "notrack-nft",
        what: format!("Stop tracking {proto} port {port}, both directions, with nft"),
        price: price(namespace, proto, port),
        ..Remedy::default()
    };
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let nft = || Call::new("nft").at(place.as_ref());
    let mut commands: Vec<Command> = vec![nft().args(["add", "table", "inet", TABLE]).into()];
    // 300 before filter: ahead of tracking, which is at -200.
    for (hook, at) in [
        ("prerouting", "{ type filter hook prerouting priority -300; }"),
        ("output", "{ type filter hook output priority -300; }"),
    ] {
        commands.push(nft().args(["add", "chain", "inet", TABLE, hook, at]).into());
        for end in ["dport", "sport"] {
            let rule = nft().args(["add", "rule", "inet", TABLE, hook, proto, end]);
            commands.push(rule.arg(u64::from(port)).arg("notrack").into());
        }
    }
    let mut persist = Vec::new();
    let mut undo: Vec<Command> = vec![nft().args(["delete", "table", "inet", TABLE]).into()];
    if namespace.own {
        persist.push(nft().args(["list", "table", "inet", TABLE]).onto_file(NFT_FILE).into());
        let drop = Arg::joined(["/^table inet ".into(), TABLE.into(), " {/,/^}/d".into()]);
        undo.push(Call::new("sed").arg("-i").arg(drop).arg(NFT_FILE).into());
    }
    Remedy { commands, persist, undo, ..remedy }
}

fn iptables(namespace: &Namespace, proto: &'static str, port: u16) -> Remedy {
    let remedy = Remedy {
        id: "notrack-iptables",
        what: format!("Stop tracking {proto} port {port}, both directions, with iptables"),
        price: price(namespace, proto, port),
        ..Remedy::default()
    };
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let rules = |action: &'static str| {
        let mut commands: Vec<Command> = Vec::new();
        for program in ["iptables", "ip6tables"] {
            for (chain, end) in [
                ("PREROUTING", "--dport"),
                ("PREROUTING", "--sport"),
                ("OUTPUT", "--sport"),
                ("OUTPUT", "--dport"),
            ] {
                let rule =
                    Call::new(program).at(place.as_ref()).args(["-t", "raw", action, chain, "-p", proto]);
                commands.push(rule.arg(end).arg(u64::from(port)).args(["-j", "CT", "--notrack"]).into());
            }
        }
        commands
    };
    let mut persist: Vec<Command> = Vec::new();
    if namespace.own {
        persist.push(Call::new("iptables-save").into_file("/etc/iptables/rules.v4").into());
        persist.push(Call::new("ip6tables-save").into_file("/etc/iptables/rules.v6").into());
    }
    let mut undo = rules("-D");
    // Saved files hold the whole ruleset: written again, they hold it without these rules.
    undo.extend(persist.clone());
    Remedy { commands: rules("-A"), persist, undo, ..remedy }
}

fn price(namespace: &Namespace, proto: &str, port: u16) -> String {
    let nat = namespace.rules().any(|rule| {
        rule.kind == RuleKind::NatChain
            || rule.needs.iter().any(|need| {
                ["masquerade", "snat", "dnat", "redirect", "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "NETMAP"]
                    .contains(&need.as_str())
            })
    });
    let stateful = namespace.rules().any(|rule| {
        rule.needs.iter().any(|need| ["ct state", "conntrack", "state"].contains(&need.as_str()))
    });
    let drops = namespace.listings().iter().any(|listing| listing.drops_by_default);
    let mut price = Vec::new();
    if nat {
        price.push(format!("the NAT rules of this namespace no longer apply to {proto} port {port}"));
    }
    if drops {
        price.push(format!(
            "this ruleset drops what no rule accepts, so accept {proto} port {port} by a rule without state, for both directions"
        ));
    } else if stateful {
        price.push("stateful rules see these packets as untracked, neither new nor established".into());
    }
    if price.is_empty() {
        price.push("no rule seen here depends on it; NAT, stateful accept and network policies would not apply to it".into());
    }
    price.push("entries already in the table stay until they run out".into());
    // The limit stays as it was, so that doctor cannot see that this was done about earlier losses.
    let lost = |counter| namespace.since_boot(counter).is_some();
    if lost("drop") || lost("early_drop") {
        price.push(
            "the limit stays, so doctor goes on to warn of what was lost before; `ctwatch doctor --since 10min` leaves it out"
                .into(),
        );
    }
    price.join("; ")
}
