//! More sources to give: the same rule once more, ahead of the first, with all ports. Addresses only a person can choose.

use std::net::IpAddr;

use super::notrack::{LASTING, NFT_FILE};
use super::with_ports;
use crate::doctor::command::{Arg, Call, Command, Place, Refused};
use crate::doctor::facts::{Namespace, Rule, RuleKind, Translated};
use crate::doctor::finding::Remedy;
use crate::doctor::nat::{Sources, USUAL, ports};
use crate::doctor::text::thousands;

const TABLE: &str = "ctwatch_snat";
/// Flags of a translation that stay.
const FLAGS: [&str; 3] = ["random", "fully-random", "persistent"];

/// A wider range, then more addresses. The rule is the one that gave the sources, where it is known.
pub fn remedies(namespace: &Namespace, full: &Translated, rule: Option<&(&Rule, Sources)>) -> Vec<Remedy> {
    let mut remedies = Vec::new();
    if ports(full.ports) < ports(USUAL) {
        remedies.push(wider(namespace, full, rule));
    }
    remedies.push(Remedy {
        id: "more-addresses",
        what: format!(
            "Give the rule more addresses than {}, as FIRST-LAST: for each destination, each address has all ports of the range \
             again",
            full.src
        ),
        left_out: vec![
            "the rule: nobody but you knows which addresses are free and routed to this machine; change it where your rules are \
             kept, and load them again"
                .into(),
        ],
        price: "addresses; one client may leave from several of them, unless the rule says `persistent`".into(),
        ..Remedy::default()
    });
    remedies
}

fn wider(namespace: &Namespace, full: &Translated, rule: Option<&(&Rule, Sources)>) -> Remedy {
    let (first, last) = full.ports;
    let remedy = Remedy {
        id: "wider-range",
        what: format!(
            "Give these flows more ports than {first}-{last}: {}-{} are {}",
            USUAL.0,
            USUAL.1,
            thousands(ports(USUAL))
        ),
        price: "where another router gives ports of the same address, or a firewall along the way lets only these through, the \
                other ports are not free; flows that are there keep their ports; the rule itself stays, so change it where \
                your rules are kept"
            .into(),
        ..Remedy::default()
    };
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let lines = match rule {
        Some((rule, sources)) if rule.number.is_some() => iptables(rule, *sources, place.as_ref()),
        Some((rule, sources)) => nft(namespace, (rule, *sources), full, place.as_ref()),
        None => Err(Refused("none was seen that gives these")),
    };
    match lines {
        Ok(Lines { commands, persist, undo, left_out }) => {
            Remedy { commands, persist, undo, left_out, ..remedy }
        }
        Err(why) => {
            let left_out = vec![format!("the rule: {why}; change it where your rules are kept")];
            Remedy { left_out, ..remedy }
        }
    }
}

struct Lines {
    commands: Vec<Command>,
    persist: Vec<Command>,
    undo: Vec<Command>,
    left_out: Vec<String>,
}

/// In a table of its own, so that it can be taken away whole: a rule that is replaced gets another handle. The first chain
/// of a hook that translates a flow decides (`nf_nat_inet_fn`, 5.10 to 7.3), and chains run in the order of their priorities.
fn nft(
    namespace: &Namespace,
    (rule, sources): (&Rule, Sources),
    full: &Translated,
    place: Option<&Place>,
) -> Result<Lines, Refused> {
    let of = |rule: &Rule| (rule.family.clone(), rule.table.clone(), rule.chain.clone());
    let base = namespace.nft.rules.iter().filter(|other| other.kind == RuleKind::NatChain);
    if !base.clone().any(|chain| of(chain) == of(rule)) {
        return Err(Refused("other rules lead to its chain, so it is not known for which flows it is"));
    }
    let mut words = rule.text.split_whitespace().peekable();
    let mut matched = Vec::new();
    while let Some(word) = words.next_if(|word| !["snat", "masquerade"].contains(word)) {
        // `counter packets 1 bytes 2` matches nothing.
        match word {
            "counter" => {}
            "packets" | "bytes" => drop(words.next()),
            _ => matched.push(Arg::match_word(word)?),
        }
    }
    let (family, action): (&str, &[&str]) = match (full.dst, sources.addresses) {
        (IpAddr::V4(_), None) => ("ip", &["masquerade", "to"]),
        (IpAddr::V6(_), None) => ("ip6", &["masquerade", "to"]),
        (IpAddr::V4(_), Some(_)) => ("ip", &["snat", "ip", "to"]),
        (IpAddr::V6(_), Some(_)) => ("ip6", &["snat", "ip6", "to"]),
    };
    let proto = with_ports(full.proto).ok_or(Refused("its protocol has no ports"))?;
    let nft = || Call::new("nft").at(place);
    let chain = "{ type nat hook postrouting priority -150; }";
    let commands = vec![
        nft().args(["add", "table", "inet", TABLE]).into(),
        nft().args(["add", "chain", "inet", TABLE, "postrouting", chain]).into(),
        nft()
            .args(["add", "rule", "inet", TABLE, "postrouting"])
            .args(matched)
            .args([family.into(), "daddr".into(), Arg::from(full.dst)])
            .args([proto.into(), "dport".into(), Arg::from(u64::from(full.dport))])
            .args(action.iter().copied())
            .arg(to(sources, ":"))
            .args(flags(words, ""))
            .into(),
    ];
    let mut undo: Vec<Command> = vec![nft().args(["delete", "table", "inet", TABLE]).into()];
    let mut persist = Vec::new();
    if namespace.own {
        persist.push(nft().args(["list", "table", "inet", TABLE]).onto_file(NFT_FILE).into());
        let cut = Arg::joined(["/^table inet ".into(), TABLE.into(), " {/,/^}/d".into()]);
        undo.push(Call::new("sed").arg("-i").arg(cut).arg(NFT_FILE).into());
    }
    Ok(Lines { commands, persist, undo, left_out: Vec::new() })
}

/// Ahead of the rule in its chain.
fn iptables(rule: &Rule, sources: Sources, place: Option<&Place>) -> Result<Lines, Refused> {
    let program = match rule.family.as_str() {
        "ip" => "iptables-legacy",
        "ip6" => "ip6tables-legacy",
        _ => return Err(Refused("its family is unknown")),
    };
    let mut words = rule.text.split_whitespace().skip(1).peekable();
    let mut spec = Vec::new();
    while let Some(word) = words.next_if(|word| *word != "-j") {
        spec.push(Arg::match_word(word)?);
        if ["-o", "-i"].contains(&word) {
            spec.push(Arg::nft_name(words.next().unwrap_or_default())?);
        }
    }
    let (target, to_what, before) = match sources.addresses {
        Some(_) => ("SNAT", "--to-source", ":"),
        None => ("MASQUERADE", "--to-ports", ""),
    };
    spec.extend(["-j".into(), target.into(), to_what.into(), to(sources, before)]);
    spec.extend(flags(words, "--"));
    let chain = Arg::xt_chain(&rule.chain)?;
    let on =
        |action: &'static str| Call::new(program).at(place).args(["-t", "nat", action]).arg(chain.clone());
    let insert = on("-I").arg(rule.number.unwrap_or(1)).args(spec.clone());
    Ok(Lines {
        commands: vec![insert.into()],
        persist: Vec::new(),
        undo: vec![on("-D").args(spec).into()],
        left_out: vec![LASTING.to_owned()],
    })
}

/// `192.0.2.1-192.0.2.9:1024-65535`.
fn to(sources: Sources, before_ports: &'static str) -> Arg {
    let bracketed = |address: IpAddr| match address {
        IpAddr::V4(_) => Arg::from(address),
        IpAddr::V6(_) => Arg::joined(["[".into(), address.into(), "]".into()]),
    };
    let mut parts = Vec::new();
    if let Some((first, last)) = sources.addresses {
        parts.push(bracketed(first));
        if first != last {
            parts.extend(["-".into(), bracketed(last)]);
        }
    }
    parts.extend([before_ports.into(), u64::from(USUAL.0).into(), "-".into(), u64::from(USUAL.1).into()]);
    Arg::joined(parts)
}

fn flags<'a>(words: impl Iterator<Item = &'a str>, dashes: &'static str) -> Vec<Arg> {
    let known = |word: &str| {
        let bare = word.trim_end_matches(',').strip_prefix(dashes)?;
        FLAGS.into_iter().find(|flag| bare == *flag)
    };
    let mut flags: Vec<Arg> = Vec::new();
    for flag in words.take_while(|word| *word != "comment").filter_map(known) {
        if dashes.is_empty() && !flags.is_empty() {
            flags.push(",".into());
        }
        flags.push(Arg::joined([dashes.into(), flag.into()]));
    }
    flags
}

#[cfg(test)]
#[path = "snat_tests.rs"]
mod tests;
