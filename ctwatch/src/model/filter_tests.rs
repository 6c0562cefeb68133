use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn udp(src: &str, dst: &str, sport: u16, dport: u16) -> Tuple {
    tuple(17, src.parse().unwrap(), dst.parse().unwrap(), Some((sport, dport)))
}

#[test]
fn the_set_holds_exactly_what_was_put_in() {
    let mut set = Protocols::default();
    for proto in [0, 6, 63, 64, 132, 255] {
        set.insert(proto);
    }
    let held: Vec<u8> = (0..=u8::MAX).filter(|proto| set.contains(*proto)).collect();
    assert_eq!(held, [0, 6, 63, 64, 132, 255]);
}

#[test]
fn each_part_of_the_filter_must_agree() {
    let mut protos = Protocols::default();
    protos.insert(17);
    let filter = Filter { protos: Some(protos), family: Some(AF_INET), netns: Some(7), ends: None };
    let wanted = FlowType { netns: 7, family: AF_INET, proto: 17 };
    assert!(filter.wants(wanted));
    assert!(filter.wants(FlowType::OVERFLOW));
    assert!(!filter.wants(FlowType { proto: 6, ..wanted }));
    assert!(!filter.wants(FlowType { family: AF_INET6, ..wanted }));
    assert!(!filter.wants(FlowType { netns: 8, ..wanted }));
    assert!(Filter::default().wants(wanted));

    let flow = udp("10.0.0.1", "10.0.0.2", 4000, 53);
    assert!(filter.passes(7, &flow) && !filter.passes(8, &flow));
    let by_port = Filter { ends: ends(&[53], &[]), ..filter };
    assert!(by_port.passes(7, &flow));
    assert!(!by_port.passes(7, &Tuple { proto: 6, ..flow }), "the port fits and the protocol does not");
    assert!(!by_port.passes(7, &udp("10.0.0.1", "10.0.0.2", 4000, 54)));
}

#[test]
fn a_filter_asks_for_ports_and_networks() {
    let flow = udp("10.0.0.1", "10.0.0.2", 4000, 53);
    let passes = |ports: &[u16], nets: &[Net]| ends(ports, nets).unwrap().passes(&flow);
    let near = parse_net("10.0.0.2").unwrap();
    assert_eq!(ends(&[], &[]), None);
    assert!(passes(&[80, 53], &[near]) && passes(&[4000], &[]) && passes(&[], &[near]));
    assert!(!passes(&[80], &[near]));
    assert!(!passes(&[53], &[parse_net("10.0.0.3").unwrap()]));
    let icmp = tuple(1, "10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), None);
    assert!(!ends(&[0], &[]).unwrap().passes(&icmp), "ICMP has no ports");
}

#[test]
fn networks_are_read_with_and_without_a_prefix() {
    for text in ["10.0.0.1", "10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32", "fd00::1/128"] {
        parse_net(text).unwrap();
    }
    assert_eq!(parse_net("10.1.2.3/8").unwrap(), parse_net("10.0.0.0/8").unwrap());
    for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "self", "10.0.0.0/8/8"]
    {
        parse_net(text).expect_err(text);
    }
    let flow = udp("10.200.0.1", "192.168.0.1", 0, 0);
    assert!(parse_net("10.0.0.0/8").unwrap().holds(&flow));
    assert!(parse_net("192.168.0.1").unwrap().holds(&flow));
    assert!(!parse_net("10.201.0.0/16").unwrap().holds(&flow));
    assert!(!parse_net("::/0").unwrap().holds(&flow));
    let far = udp("2001:db8::7", "2001:db9::1", 0, 0);
    assert!(parse_net("2001:db8::/32").unwrap().holds(&far));
    assert!(!parse_net("2001:dba::/32").unwrap().holds(&far));
}

proptest! {
    #[test]
    fn a_network_holds_exactly_the_addresses_with_its_prefix(
        network: u32, length in 0_u32..=32, address: u32,
    ) {
        let text = format!("{}/{length}", Ipv4Addr::from(network));
        let inside = |at: u32| (u64::from(at) >> (32 - length)) == (u64::from(network) >> (32 - length));
        let flow = udp(&Ipv4Addr::from(address).to_string(), "255.255.255.255", 0, 0);
        let expected = inside(address) || inside(u32::MAX);
        prop_assert_eq!(parse_net(&text).unwrap().holds(&flow), expected);
    }
}
