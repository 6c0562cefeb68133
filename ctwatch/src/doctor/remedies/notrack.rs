//! Leaving one flow type out of tracking.

use crate::doctor::command::{Arg, Call, Command};
use crate::doctor::facts::{Filler, Namespace, Tools};
use crate::doctor::finding::Remedy;
use crate::doctor::nat;
use crate::model::protocol;

const TABLE: &str = "ctwatch_notrack";
/// A saved ruleset would hold what docker, kube-proxy or fail2ban added since, and lose what its file says beside rules.
pub(super) const LASTING: &str = "a file that makes it last: add these rules to what loads yours at boot (as /etc/iptables/rules.v4). \
                                  Saving all rules that are there now would keep those that programs added, too";
const STAY: &str = "entries already in the table stay until they run out";
pub(super) const NFT_FILE: &str = "/etc/nftables.conf";

/// What is left out of tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Port(&'static str, u16),
    /// Echo requests and their answers, of ICMPv6 or ICMP; errors and neighbours stay as they are.
    Echo(bool),
    Protocol(u8),
}

impl What {
    /// `None` for all of TCP or UDP, which is more than anybody wants to leave out.
    fn of(filler: &Filler) -> Option<Self> {
        let name = protocol::name(filler.proto);
        match (["tcp", "udp", "sctp"].into_iter().find(|known| name == *known), filler.port, filler.proto) {
            (Some(name), Some(port), _) => Some(Self::Port(name, port)),
            (None, None, 1) => Some(Self::Echo(false)),
            (None, None, 58) => Some(Self::Echo(true)),
            (None, None, other) => Some(Self::Protocol(other)),
            _ => None,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Port(proto, port) => format!("{proto} port {port}"),
            Self::Echo(v6) => format!("echo requests of {}", if v6 { "icmpv6" } else { "icmp" }),
            Self::Protocol(number) => format!("protocol {}", protocol::name(number)),
        }
    }

    /// What matches it in nft, a rule each.
    fn nft(self) -> Vec<Vec<Arg>> {
        match self {
            Self::Port(proto, port) => {
                ["dport", "sport"].map(|end| vec![proto.into(), end.into(), u64::from(port).into()]).to_vec()
            }
            Self::Echo(v6) => {
                let proto = if v6 { "icmpv6" } else { "icmp" };
                vec![vec![proto.into(), "type".into(), "{ echo-request, echo-reply }".into()]]
            }
            Self::Protocol(number) => vec![vec!["meta".into(), "l4proto".into(), u64::from(number).into()]],
        }
    }

    /// The same for iptables: program, chain and match.
    fn xtables(self) -> Vec<(&'static str, &'static str, Vec<Arg>)> {
        const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];
        const CHAINS: [&str; 2] = ["PREROUTING", "OUTPUT"];
        let mut rules = Vec::new();
        match self {
            Self::Port(proto, port) => {
                for program in PROGRAMS {
                    for (chain, end) in [
                        ("PREROUTING", "--dport"),
                        ("PREROUTING", "--sport"),
                        ("OUTPUT", "--sport"),
                        ("OUTPUT", "--dport"),
                    ] {
                        rules.push((
                            program,
                            chain,
                            vec!["-p".into(), proto.into(), end.into(), u64::from(port).into()],
                        ));
                    }
                }
            }
            Self::Echo(v6) => {
                let (program, proto, flag) = if v6 {
                    ("ip6tables", "ipv6-icmp", "--icmpv6-type")
                } else {
                    ("iptables", "icmp", "--icmp-type")
                };
                for chain in CHAINS {
                    for kind in ["echo-request", "echo-reply"] {
                        rules.push((
                            program,
                            chain,
                            vec!["-p".into(), proto.into(), flag.into(), kind.into()],
                        ));
                    }
                }
            }
            Self::Protocol(number) => {
                for program in PROGRAMS {
                    for chain in CHAINS {
                        rules.push((program, chain, vec!["-p".into(), u64::from(number).into()]));
                    }
                }
            }
        }
        rules
    }
}

/// Both sets of rules, that of the tool in use first; none where the match would be too wide, and no commands where what is
/// no longer tracked would be lost.
pub fn remedies(tools: Tools, namespace: &Namespace, filler: &Filler) -> Vec<Remedy> {
    let Some(what) = What::of(filler) else { return Vec::new() };
    if let Some(why) = refused(namespace, &what.name()) {
        return vec![Remedy {
            id: "notrack-nft",
            what: format!("Stop tracking {}, both directions, once the rules allow it", what.name()),
            price: STAY.into(),
            left_out: vec![why],
            ..Remedy::default()
        }];
    }
    let by_nft = nft(namespace, what);
    let by_iptables = iptables(namespace, what);
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

fn nft(namespace: &Namespace, what: What) -> Remedy {
    let remedy = Remedy {
        id: "notrack-nft",
        what: format!("Stop tracking {}, both directions, with nft", what.name()),
        price: price(namespace),
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
        for matched in what.nft() {
            let rule = nft().args(["add", "rule", "inet", TABLE, hook]);
            commands.push(rule.args(matched).arg("notrack").into());
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

fn iptables(namespace: &Namespace, what: What) -> Remedy {
    let remedy = Remedy {
        id: "notrack-iptables",
        what: format!("Stop tracking {}, both directions, with iptables", what.name()),
        price: price(namespace),
        ..Remedy::default()
    };
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let rules = |action: &'static str| -> Vec<Command> {
        let all = what.xtables().into_iter();
        all.map(|(program, chain, matched)| {
            let rule = Call::new(program).at(place.as_ref()).args(["-t", "raw", action, chain]);
            rule.args(matched).args(["-j", "CT", "--notrack"]).into()
        })
        .collect()
    };
    let left_out = vec![LASTING.to_owned()];
    Remedy { commands: rules("-A"), undo: rules("-D"), left_out, ..remedy }
}

/// Why the remedy has no commands: rules need these packets tracked. Without that they could end the operator's own connection.
fn refused(namespace: &Namespace, what: &str) -> Option<String> {
    if !nat::all_known(namespace) {
        return Some(
            "not all rules of this namespace were read, and one of them may need the tracking".into(),
        );
    }
    if nat::is_there(namespace) {
        return Some(format!(
            "NAT rules of this namespace may translate {what}, and what is not tracked is not translated. Where none does, a rule \
             with `notrack` (nft, priority raw) or `-t raw … -j CT --notrack` (iptables) in both directions stops the tracking"
        ));
    }
    let listings = namespace.listings();
    let drops_all = listings.iter().any(|listing| !listing.drops_all.is_empty());
    let drops =
        listings.iter().any(|listing| listing.drops_by_default) || (drops_all && is_stateful(namespace));
    drops.then(|| {
        format!(
            "the rules of this namespace drop what they do not accept, and for them packets without tracking are neither new nor \
             established: this could end the connection that you work by. First accept {what} by rules without state, in both \
             directions; then add rules with `notrack` (nft, priority raw) or `-t raw … -j CT --notrack` (iptables)"
        )
    })
}

fn is_stateful(namespace: &Namespace) -> bool {
    let states = ["ct state", "conntrack", "state"];
    namespace.rules().any(|rule| rule.needs.iter().any(|need| states.contains(&need.as_str())))
}

fn price(namespace: &Namespace) -> String {
    let mut price = if is_stateful(namespace) {
        "stateful rules see these packets as untracked, neither new nor established".to_owned()
    } else {
        "no rule seen here depends on it; NAT, stateful accept and network policies would not apply to it"
            .to_owned()
    };
    price.push_str("; ");
    price.push_str(STAY);
    // The limit stays as it was, so that doctor cannot see that this was done about earlier losses.
    let lost = |counter| namespace.since_boot(counter).is_some();
    if lost("drop") || lost("early_drop") {
        price.push_str(
            "; the limit stays, so doctor goes on to warn of what was lost before; `ctwatch doctor --since 10min` leaves it out",
        );
    }
    price
}
