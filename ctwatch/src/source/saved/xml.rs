//! One flow of `conntrack -L -o xml`: a line of its own, of elements that hold either elements or a value.
//!
//! `<flow><meta direction="original"><layer3 protonum="2" …><src>…</src>…</layer3><layer4 protonum="6" …>…</layer4></meta>
//! <meta direction="reply">…</meta><meta direction="independent"><state>…</state>…<assured/></meta></flow>`
//! (`__snprintf_conntrack_xml` of libnetfilter_conntrack 1.1). All values are numbers, addresses and the kernel's words, so
//! that no entity stands for a character.

use super::parts::{Broken, Parts, number};
use crate::model::table::{Entry, status};

const END: &str = "</flow>";

/// The entry of a line.
pub(super) fn parse(line: &str) -> Result<Entry, Broken> {
    let mut rest = line.trim().strip_suffix(END).ok_or(Broken::Cut)?;
    let proto = rest.split_once("<layer4 protonum=\"").and_then(|(_, behind)| behind.split_once('"'));
    let proto = proto.and_then(|(proto, _)| number(proto)).ok_or(Broken::Protocol)?;
    let mut parts = Parts::of(proto);
    parts.status = status::SEEN_REPLY;
    // The element that was begun last, and so the one whose value comes next.
    let mut open = "";
    while !rest.is_empty() {
        let (value, behind) = rest.split_once('<').ok_or(Broken::Element)?;
        let (tag, behind) = behind.split_once('>').ok_or(Broken::Element)?;
        rest = behind;
        if tag.contains('<') {
            return Err(Broken::Element);
        }
        if let Some(name) = tag.strip_prefix('/') {
            if name == open {
                set(&mut parts, name, value)?;
            }
            open = "";
            continue;
        }
        open = "";
        match tag {
            "meta direction=\"original\"" | "meta direction=\"reply\"" => parts.next_direction()?,
            "meta direction=\"independent\"" => parts.end_directions(),
            "assured/" => parts.status |= status::ASSURED,
            "unreplied/" => parts.status &= !status::SEEN_REPLY,
            _ => open = tag,
        }
    }
    parts.entry()
}

fn set(parts: &mut Parts, name: &str, value: &str) -> Result<(), Broken> {
    if name == "state" {
        parts.state(value);
        return Ok(());
    }
    parts.set(name, value)
}

/// Whether a line stands around the flows.
pub(super) fn is_frame(line: &str) -> bool {
    line.starts_with("<?xml") || matches!(line, "<conntrack>" | "</conntrack>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::Nat;
    use crate::model::table::Traffic;

    const FLOW: &str = "<flow><meta direction=\"original\"><layer3 protonum=\"2\" protoname=\"ipv4\"><src>192.0.2.8</src>\
        <dst>198.51.100.1</dst></layer3><layer4 protonum=\"6\" protoname=\"tcp\"><sport>4000</sport><dport>443</dport></layer4>\
        <counters><packets>5</packets><bytes>271</bytes></counters></meta><meta direction=\"reply\"><layer3 protonum=\"2\" \
        protoname=\"ipv4\"><src>10.9.0.77</src><dst>192.0.2.8</dst></layer3><layer4 protonum=\"6\" protoname=\"tcp\">\
        <sport>443</sport><dport>4000</dport></layer4><counters><packets>4</packets><bytes>216</bytes></counters></meta>\
        <meta direction=\"independent\"><state>TIME_WAIT</state><timeout>897</timeout><mark>16385</mark><zone>9</zone>\
        <use>1</use><id>7</id><assured/></meta></flow>";

    #[test]
    fn a_flow_is_the_entry_of_the_plain_form() {
        let entry = parse(FLOW).unwrap();
        let plain = "tcp 6 897 TIME_WAIT src=192.0.2.8 dst=198.51.100.1 sport=4000 dport=443 packets=5 bytes=271 src=10.9.0.77 \
                     dst=192.0.2.8 sport=443 dport=4000 packets=4 bytes=216 [ASSURED] mark=16385 zone=9 use=1 id=7";
        assert_eq!(Ok(entry), super::super::line::parse(plain));
        assert_eq!((entry.nat(), entry.tuple.zone), (Nat::Dnat, 9));
        assert_eq!(entry.traffic, Some(Traffic { packets: 9, bytes: 487 }));
    }

    #[test]
    fn what_is_no_flow_says_why() {
        for (cut, why) in [(FLOW.len() - 3, Broken::Cut), (40, Broken::Cut)] {
            assert_eq!(parse(&FLOW[..cut]), Err(why));
        }
        assert_eq!(parse("<flow></flow>"), Err(Broken::Protocol));
        assert_eq!(parse(&FLOW.replace("<src>192.0.2.8</src>", "")), Err(Broken::Addresses));
        assert_eq!(parse(&FLOW.replace("<sport>4000", "<sport>many")), Err(Broken::Number));
        assert_eq!(parse(&FLOW.replace("<use>1</use>", "<use")), Err(Broken::Element));
        assert_eq!(parse(&FLOW.replace("independent", "reply")), Err(Broken::Directions));
    }
}
