//! Dropping before tracking what the rules drop after it.

use super::notrack::NFT_FILE;
use crate::doctor::checks::early::Early;
use crate::doctor::command::{Arg, Call, Command, Refused};
use crate::doctor::early::DroppedPort;
use crate::doctor::facts::{Namespace, Tools};
use crate::doctor::finding::Remedy;
use crate::doctor::nat;
use crate::model::protocol;

const TABLE: &str = "ctwatch_early";
const CHAIN: &str = "prerouting";
/// Rules written at once.
const MOST: usize = 16;
const TCP: u8 = 6;
/// What opens a connection of TCP and nothing else does: an answer has ACK.
const OPENS: &str = "& (fin|syn|rst|ack) == syn";

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
    let (mut rules, mut left_out): (Vec<Command>, Vec<String>) = (Vec::new(), Vec::new());
    for port in early.ports.iter().take(MOST) {
        match matched(namespace, port) {
            Ok(words) => {
                let rule = nft().args(["add", "rule", "inet", TABLE, CHAIN]).args(words);
                rules.push(rule.args(["counter", "drop"]).into());
            }
            Err(why) => left_out.push(format!("{}: {why}", port.name())),
        }
    }
    let more = early.ports.len().saturating_sub(MOST);
    if more > 0 {
        left_out.push(format!("{more} more ports: ctwatch writes {MOST} rules at once"));
    }
    if rules.is_empty() {
        return Some(Remedy { left_out, ..remedy });
    }
    // 300 before filter: ahead of tracking, which is at -200.
    let hook = "{ type filter hook prerouting priority -300; }";
    let mut commands: Vec<Command> = vec![
        nft().args(["add", "table", "inet", TABLE]).into(),
        nft().args(["add", "chain", "inet", TABLE, CHAIN, hook]).into(),
    ];
    commands.append(&mut rules);
    let mut persist = Vec::new();
    let mut undo: Vec<Command> = vec![nft().args(["delete", "table", "inet", TABLE]).into()];
    if namespace.own {
        persist.push(nft().args(["list", "table", "inet", TABLE]).onto_file(NFT_FILE).into());
        let drop = Arg::joined(["/^table inet ".into(), TABLE.into(), " {/,/^}/d".into()]);
        undo.push(Call::new("sed").arg("-i").arg(drop).arg(NFT_FILE).into());
    }
    Some(Remedy { commands, persist, undo, left_out, ..remedy })
}

/// What is for this machine alone: an input chain sees nothing that is forwarded. Refused where the rule could drop what the
/// input chain lets in, or what never was for this port.
fn matched(namespace: &Namespace, port: &DroppedPort) -> Result<Vec<Arg>, Refused> {
    let name = protocol::name(port.proto);
    let known = ["udp", "tcp", "sctp", "udplite"].into_iter().find(|known| name == *known);
    let proto = known.ok_or(Refused("a protocol that ctwatch writes no rule for"))?;
    let mut words: Vec<Arg> = match port.family.as_str() {
        "ip" => vec!["meta".into(), "nfproto".into(), "ipv4".into()],
        "ip6" => vec!["meta".into(), "nfproto".into(), "ipv6".into()],
        "inet" => Vec::new(),
        _ => return Err(Refused("a family that ctwatch writes no rule for")),
    };
    nat::leaves_alone(namespace, port.port, port.proto == TCP)?;
    // Where no rule comes before, answers that come to this port are dropped by the input chain as well.
    if port.proto != TCP && port.before > 0 {
        let opened_from = |(first, last)| (first..=last).contains(&port.port);
        if namespace.local_ports.is_none_or(opened_from) {
            return Err(Refused(
                "this machine may open flows from it (net.ipv4.ip_local_port_range), whose answers then come to this port",
            ));
        }
        if port.bound != Some(false) {
            return Err(Refused("a program may have it open, and answers then come to this port"));
        }
    }
    words.extend(["fib", "daddr", "type", "local"].map(Arg::from));
    words.extend([proto.into(), "dport".into(), u64::from(port.port).into()]);
    if port.proto == TCP {
        words.extend(["tcp", "flags", OPENS].map(Arg::from));
    }
    Ok(words)
}

fn price(namespace: &Namespace, early: &Early<'_>, names: &str) -> String {
    let most = |of: fn(&DroppedPort) -> u64| early.ports.iter().map(|port| of(port)).max().unwrap_or(0);
    let before = most(|port| port.before.saturating_sub(port.answers));
    let mut price = Vec::new();
    if before > 0 {
        let come = if before == 1 { "one rule comes".to_owned() } else { format!("{before} rules come") };
        price.push(format!(
            "{come} before the one that drops it: look at these first, since what they accept of {names} (certain senders) is then \
             dropped too"
        ));
    }
    if most(|port| if port.proto == TCP { 0 } else { port.answers }) > 0 {
        price.push(format!("a program that opens flows from {names} later gets no answers"));
    }
    if nat::is_there(namespace) {
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
