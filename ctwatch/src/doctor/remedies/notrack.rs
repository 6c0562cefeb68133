//! Leaving one flow type out of tracking.

use crate::doctor::facts::{Namespace, Port, RuleKind, Tools};
use crate::doctor::finding::Remedy;
use crate::model::protocol;

const TABLE: &str = "ctwatch_notrack";

/// Both rule pairs, that of the tool in use first; none for protocols without ports in both tools.
pub fn remedies(tools: Tools, namespace: &Namespace, port: &Port) -> Vec<Remedy> {
    let name = protocol::name(port.proto);
    if !["tcp", "udp", "sctp"].contains(&name.as_ref()) {
        return Vec::new();
    }
    let by_nft = nft(namespace, &name, port.port);
    let by_iptables = iptables(namespace, &name, port.port);
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

fn nft(namespace: &Namespace, proto: &str, port: u16) -> Remedy {
    let nft = format!("{}nft", namespace.enter);
    let mut commands = vec![format!("{nft} add table inet {TABLE}")];
    for hook in ["prerouting", "output"] {
        // 300 before filter: ahead of tracking, which is at -200.
        commands.push(format!(
            "{nft} 'add chain inet {TABLE} {hook} {{ type filter hook {hook} priority -300; }}'"
        ));
        for end in ["dport", "sport"] {
            commands.push(format!("{nft} add rule inet {TABLE} {hook} {proto} {end} {port} notrack"));
        }
    }
    let persist = if namespace.own {
        vec![format!("nft list table inet {TABLE} >> /etc/nftables.conf")]
    } else {
        Vec::new()
    };
    let mut undo = vec![format!("{nft} delete table inet {TABLE}")];
    if namespace.own {
        undo.push(format!("sed -i '/^table inet {TABLE} {{/,/^}}/d' /etc/nftables.conf"));
    }
    Remedy {
        id: "notrack-nft",
        what: format!("Stop tracking {proto} port {port}, both directions, with nft"),
        commands,
        persist,
        undo,
        price: price(namespace, proto, port),
        alternative: false,
    }
}

fn iptables(namespace: &Namespace, proto: &str, port: u16) -> Remedy {
    let rules = |action: &str| {
        let mut commands = Vec::new();
        for program in ["iptables", "ip6tables"] {
            for (chain, end) in
                [("PREROUTING", "dport"), ("PREROUTING", "sport"), ("OUTPUT", "sport"), ("OUTPUT", "dport")]
            {
                commands.push(format!(
                    "{}{program} -t raw -{action} {chain} -p {proto} --{end} {port} -j CT --notrack",
                    namespace.enter
                ));
            }
        }
        commands
    };
    let persist = if namespace.own {
        vec![
            "iptables-save > /etc/iptables/rules.v4".into(),
            "ip6tables-save > /etc/iptables/rules.v6".into(),
        ]
    } else {
        Vec::new()
    };
    let mut undo = rules("D");
    // Saved files hold the whole ruleset: written again, they hold it without these rules.
    undo.extend(persist.clone());
    Remedy {
        id: "notrack-iptables",
        what: format!("Stop tracking {proto} port {port}, both directions, with iptables"),
        commands: rules("A"),
        persist,
        undo,
        price: price(namespace, proto, port),
        alternative: false,
    }
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
    price.join("; ")
}
