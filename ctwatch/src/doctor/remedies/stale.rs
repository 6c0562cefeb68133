//! Deletes entries that send flows where nobody is.

use std::net::IpAddr;

use super::with_ports;
use crate::doctor::command::{Arg, Call};
use crate::doctor::facts::{Namespace, Stale, Tools};
use crate::doctor::finding::Remedy;
use crate::doctor::text::thousands;

/// Deletes all entries to this destination that are sent there. It cannot be undone, and need not be.
pub fn remedy(tools: Tools, namespace: &Namespace, stale: &Stale) -> Remedy {
    let answered = stale.count.saturating_sub(stale.unanswered);
    let cut = match answered {
        0 => String::new(),
        _ => format!("; {} of them were answered once and go, too", thousands(answered)),
    };
    let price = format!(
        "entries cannot be put back: the next packet of each flow makes a new one, by the rules of that time{cut}"
    );
    let mut remedy = Remedy {
        id: "delete-entries",
        what: format!("Delete the entries that send packets to {}", stale.to),
        price,
        ..Remedy::default()
    };
    if stale.silent && stale.ruled {
        remedy.left_out.push(
            "the rule that leads there: first take the address out of it, or bring the machine back; else new entries are the \
             same"
                .into(),
        );
    }
    if !tools.conntrack {
        remedy.left_out.push("the program: conntrack is not installed here".into());
    }
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let family = if matches!(stale.to, IpAddr::V4(_)) { "ipv4" } else { "ipv6" };
    let call = Call::new("conntrack")
        .at(place.as_ref())
        .args(["-D", "-f", family, "-p"])
        .arg(with_ports(stale.proto).map_or_else(|| Arg::from(u64::from(stale.proto)), Arg::from))
        .args(["--orig-dst".into(), Arg::from(stale.dst)])
        .args(["--orig-port-dst".into(), Arg::from(u64::from(stale.dport))])
        .args(["--reply-src".into(), Arg::from(stale.to)])
        .args(["--reply-port-src".into(), Arg::from(u64::from(stale.port))]);
    remedy.commands.push(call.into());
    remedy
}
