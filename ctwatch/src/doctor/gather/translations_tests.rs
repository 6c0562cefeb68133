use super::*;
use crate::source::netlink::message::build::attribute;

fn tuple(src: &str, dst: &str, ports: (u16, u16)) -> Tuple {
    Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        proto: 17,
        l4: L4::Ports { src: ports.0, dst: ports.1 },
    }
}

fn led_to(backend: &str, bits: u32) -> Entry {
    let original = tuple("10.0.0.1", "192.0.2.1", (4000, 53));
    Entry { reply: Some(tuple(backend, "10.0.0.1", (5353, 4000))), status: bits, ..Entry::of(2, original) }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn entries_that_lead_to_nobody_are_counted_and_no_others() {
    let mut translations = Translations {
        targets: Some(vec![
            (address("10.9.0.1"), address("10.9.0.9")),
            (address("10.9.0.20"), address("10.9.0.20")),
        ]),
        silent: vec![address("10.9.0.20")],
        ..Translations::default()
    };
    for (backend, bits) in [
        ("10.9.0.5", status::DST_NAT),
        ("10.9.0.77", 0),
        ("10.9.0.77", status::DST_NAT | status::EXPECTED),
        ("10.9.0.77", status::DST_NAT),
        ("10.9.0.77", status::DST_NAT | status::SEEN_REPLY),
        ("10.9.0.77", status::DST_NAT),
        ("10.9.0.20", status::DST_NAT | status::SEEN_REPLY),
    ] {
        translations.add(&led_to(backend, bits));
    }
    let found: Vec<(IpAddr, u64, u64, bool, bool)> = translations
        .stale()
        .iter()
        .map(|stale| (stale.to, stale.count, stale.unanswered, stale.ruled, stale.silent))
        .collect();
    assert_eq!(found, [(address("10.9.0.77"), 3, 2, false, false), (address("10.9.0.20"), 1, 0, true, true)]);
    // Where rules could not be read, nothing is said of them.
    let mut unknown = Translations::default();
    unknown.add(&led_to("10.9.0.77", status::DST_NAT));
    assert!(unknown.stale().is_empty());
}

#[test]
fn only_neighbours_that_failed_are_silent() {
    let message = |state: u16, address: &[u8]| {
        let mut payload = vec![2, 0, 0, 0, 3, 0, 0, 0];
        payload.extend(state.to_ne_bytes());
        payload.extend([0, 1]);
        payload.extend(attribute(1, address));
        payload
    };
    assert_eq!(silent_neighbour(&message(0x20, &[10, 9, 0, 77])), Some(address("10.9.0.77")));
    let six: Ipv6Addr = "fd00::77".parse().unwrap();
    assert_eq!(silent_neighbour(&message(0x20, &six.octets())), Some(six.into()));
    assert_eq!(silent_neighbour(&message(0x02, &[10, 9, 0, 77])), None, "reachable");
    assert_eq!(silent_neighbour(&message(0x01, &[10, 9, 0, 77])), None, "still asked");
    assert_eq!(silent_neighbour(&message(0x20, &[10, 9])), None);
    assert_eq!(silent_neighbour(&[2, 0, 0]), None);
}

#[test]
fn the_heaviest_are_kept_in_order() {
    let mut counts = BTreeMap::new();
    for number in [3_u16, 14, 1, 9, 12, 7, 2, 11, 5, 8, 13, 4] {
        let end = |port| SocketAddr::new(address("10.0.0.1"), port);
        counts.insert((17, end(number), end(53), (0, 0)), (u64::from(number), 0));
    }
    let kept: Vec<u64> = most(&counts, |_, &count| count).iter().map(|(_, (count, _))| *count).collect();
    assert_eq!(kept, [14, 13, 12, 11, 9, 8, 7, 5, 4, 3]);
}
