//! Dropping before tracking what the rules drop after it.

use super::notrack::NFT_FILE;
use crate::doctor::checks::early::Early;
use crate::doctor::command::{Arg, Call, Command};
use crate::doctor::early::DroppedPort;
use crate::doctor::facts::{Namespace, RuleKind, Tools};
use crate::doctor::finding::Remedy;
use crate::model::protocol;

const TABLE: &str = "ctwatch_early";
const CHAIN: &str = "prerouting";
/// Rules written at once.
const MOST: usize = 16;

/// Rules by nft; `None` where there is no nft or nothing to drop.
pub fn drop_early(tools: Tools, namespace: &Namespace, early: &Early<'_>) -> Option<Remedy> {
    let names = early.names().filter(|_| tools.nft)?;
    let remedy = Remedy {
        id: "drop-early",
        what: format!("Drop {names} before tracking instead of after it"),
        price: price(namespace, early, &names),
        ..Remedy::default()
    };
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return Some(remedy.without(namespace, why)),
    };
    let nft = || Call::new("nft").at(place.as_ref());
    // 300 before filter: ahead of tracking, which is at -200.
    let hook = "{ type filter hook prerouting priority -300; }";
    let mut commands: Vec<Command> = vec![
        nft().args(["add", "table", "inet", TABLE]).into(),
        nft().args(["add", "chain", "inet", TABLE, CHAIN, hook]).into(),
    ];
    for port in early.ports.iter().take(MOST) {
        let rule = nft().args(["add", "rule", "inet", TABLE, CHAIN]);
        commands.push(rule.args(matched(port)?).args(["counter", "drop"]).into());
    }
    let mut persist = Vec::new();
    let mut undo: Vec<Command> = vec![nft().args(["delete", "table", "inet", TABLE]).into()];
    if namespace.own {
        persist.push(nft().args(["list", "table", "inet", TABLE]).onto_file(NFT_FILE).into());
        let drop = Arg::joined(["/^table inet ".into(), TABLE.into(), " {/,/^}/d".into()]);
        undo.push(Call::new("sed").arg("-i").arg(drop).arg(NFT_FILE).into());
    }
    Some(Remedy { commands, persist, undo, ..remedy })
}

/// What is for this machine alone: an input chain sees nothing that is forwarded.
fn matched(port: &DroppedPort) -> Option<Vec<Arg>> {
    let name = protocol::name(port.proto);
    let proto = ["udp", "tcp", "sctp", "udplite"].into_iter().find(|known| name == *known)?;
    let mut words: Vec<Arg> = match port.family.as_str() {
        "ip" => vec!["meta".into(), "nfproto".into(), "ipv4".into()],
        "ip6" => vec!["meta".into(), "nfproto".into(), "ipv6".into()],
        "inet" => Vec::new(),
        _ => return None,
    };
    words.extend(["fib", "daddr", "type", "local"].map(Arg::from));
    words.extend([proto.into(), "dport".into(), u64::from(port.port).into()]);
    Some(words)
}

fn price(namespace: &Namespace, early: &Early<'_>, names: &str) -> String {
    let before = early.ports.iter().map(|port| port.before).max().unwrap_or(0);
    let nat = namespace.rules().any(|rule| rule.kind == RuleKind::NatChain || rule.table == "nat");
    let mut price = Vec::new();
    if before > 0 {
        let come = if before == 1 { "one rule comes".to_owned() } else { format!("{before} rules come") };
        price.push(format!(
            "{come} before the one that drops it: look at these first, since what they accept of {names} (certain senders, answers \
             to flows that this machine opens from there) is then dropped too"
        ));
    }
    if nat {
        price.push(format!("NAT rules of this namespace no longer see {names}"));
    }
    if price.is_empty() {
        price.push(
            "none seen: no program gets these packets today, and counters of the old rule stand still".into(),
        );
    }
    price.push("the table is as full as before for all other flows".into());
    price.join("; ")
}
