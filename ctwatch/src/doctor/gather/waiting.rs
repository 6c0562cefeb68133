//! Where packets wait in a namespace: each of them may hold an entry. Asking loads no module.

use std::fs;
use std::ops::ControlFlow;

use crate::doctor::facts::Waiting;
use crate::source::netlink::message::{Attributes, Message};
use crate::source::netlink::socket::Requests;

/// How many places are kept, those with the most packets.
const PLACES: usize = 8;
/// Packets that any busy interface has for a moment.
const WORTH_TELLING: u64 = 16;
/// `RTM_GETQDISC`.
const QDISC_GET: u16 = 38;
/// `struct tcmsg` has this much behind its family; the kernel lists all interfaces where it is 0.
const REST_OF_TCMSG: usize = 16;

/// The places of the calling thread's namespace, the fullest first.
pub fn read() -> Vec<Waiting> {
    let mut all = queueing_disciplines().unwrap_or_default();
    if let Ok(text) = fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue") {
        all.extend(queues(&text));
    }
    all.retain(|waiting| waiting.packets >= WORTH_TELLING);
    all.sort_by_key(|waiting| std::cmp::Reverse(waiting.packets));
    all.truncate(PLACES);
    all
}

/// A line has queue number, port of the reader, packets that wait, and more (`seq_show` of nfnetlink_queue.c, 5.10 to 7.3).
fn queues(text: &str) -> impl Iterator<Item = Waiting> {
    text.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let number = numbers.next()?.ok()?;
        let packets = numbers.nth(1)?.ok()?;
        Some(Waiting { queue: format!("nfqueue {number}"), device: None, packets })
    })
}

fn queueing_disciplines() -> Option<Vec<Waiting>> {
    let mut found = Vec::new();
    let receive = |message: &Message<'_>| {
        found.extend(queueing_discipline(message.payload));
        // As many interfaces as a machine has: sorted out before there are too many.
        if found.len() > 64 * PLACES {
            found.sort_by_key(|(_, waiting)| std::cmp::Reverse(waiting.packets));
            found.truncate(PLACES);
        }
        ControlFlow::Continue(())
    };
    Requests::open_to_routes().ok()?.dump_where(QDISC_GET, 0, &[0; REST_OF_TCMSG], receive).ok()?;
    let named = found.into_iter().map(|(index, waiting)| Waiting { device: name(index), ..waiting });
    Some(named.collect())
}

/// An answer's interface and queue; classful ones count what their children hold, so only roots (parent 0xffffffff) and
/// those without a parent here are taken.
fn queueing_discipline(payload: &[u8]) -> Option<(u32, Waiting)> {
    /// `TCA_KIND`, `TCA_STATS2`, and in it `TCA_STATS_QUEUE`, which begins with the number of packets.
    const KIND: u16 = 1;
    const STATS2: u16 = 7;
    const STATS_QUEUE: u16 = 3;
    const ROOT: u32 = u32::MAX;
    let word = |at: usize| {
        payload.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|bytes| u32::from_ne_bytes(*bytes))
    };
    let (index, parent) = (word(4)?, word(12)?);
    let attributes = Attributes::new(payload.get(4 + REST_OF_TCMSG..)?);
    let kind = attributes.clone().find(KIND)?.value;
    let kind = std::str::from_utf8(kind.split(|byte| *byte == 0).next()?).ok()?;
    // Names of kinds are the kernel's (`Qdisc_ops.id`).
    let plain = kind.len() < 16 && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let queue = attributes.find(STATS2)?.nested().find(STATS_QUEUE)?.value;
    let packets = queue.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
    (plain && parent == ROOT && packets > 0)
        .then(|| (index, Waiting { queue: kind.to_owned(), device: None, packets: packets.into() }))
}

fn name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::netlink::message::build::{attribute, nest};

    #[test]
    fn queues_of_programs_are_read() {
        let text = "    7   4242   20 2 65531     0     0       20  1\n    0 -1 x\n\n";
        let expected = Waiting { queue: "nfqueue 7".into(), device: None, packets: 20 };
        assert_eq!(queues(text).collect::<Vec<_>>(), [expected]);
    }

    fn answer(kind: &[u8], parent: u32, packets: u32) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        for word in [3, 0, parent, 0] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(attribute(1, kind));
        bytes.extend(nest(7, &[attribute(3, &[&packets.to_ne_bytes()[..], &[0; 16]].concat())]));
        bytes
    }

    #[test]
    fn a_queueing_discipline_has_kind_and_packets() {
        let netem = Waiting { queue: "netem".into(), device: None, packets: 1000 };
        assert_eq!(queueing_discipline(&answer(b"netem\0", u32::MAX, 1000)), Some((3, netem)));
        assert_eq!(queueing_discipline(&answer(b"netem\0", 0x10001, 1000)), None, "part of another");
        assert_eq!(queueing_discipline(&answer(b"a\x1bb\0", u32::MAX, 1000)), None);
        assert_eq!(queueing_discipline(&answer(b"netem\0", u32::MAX, 0)), None);
        let whole = answer(b"netem\0", u32::MAX, 1000);
        for length in 0..whole.len() {
            let _ = queueing_discipline(&whole[..length]);
        }
    }
}
