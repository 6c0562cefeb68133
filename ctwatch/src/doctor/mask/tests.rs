use proptest::prelude::*;

use super::*;
use crate::doctor::diagnose;

fn masked(text: &str, chain_first: bool) -> String {
    text::mask(text, chain_first, &mut Masks::default())
}

#[test]
fn addresses_and_names_go_and_rules_stay_readable() {
    for (text, expected) in [
        ("ip saddr 10.1.2.3 ct state new accept", "ip saddr 0.0.0.1 ct state new accept"),
        ("ip6 daddr fe80::1/64 drop", "ip6 daddr 100::1/64 drop"),
        ("ip daddr { 10.0.0.1, 10.0.0.2-10.0.0.9 } accept", "ip daddr { 0.0.0.1, 0.0.0.2-0.0.0.3 } accept"),
        ("tcp dport 80 dnat to 10.0.0.1:8080", "tcp dport 80 dnat to 0.0.0.1:8080"),
        ("dnat ip6 to [2001:db8::7]:8080", "dnat ip6 to [100::1]:8080"),
        ("ether saddr 52:54:00:aa:bb:cc accept", "ether saddr mac_1 accept"),
        (
            "iifname \"eth0.17\" ct state established comment \"for Ada\"",
            "iifname \"name_1\" ct state established comment \"name_2…\"",
        ),
        ("ct state new comment \"a\\\" secret 5551234 10.0.0.1", "ct state new comment \"name_1…\""),
        ("ip saddr @office jump state", "ip saddr @name_1 jump name_2"),
        (
            "udp dport 6881 limit rate 10/second burst 5 packets",
            "udp dport 6881 limit rate 10/second burst 5 packets",
        ),
        ("meta mark set 0x1 secret", "meta mark set 0x1 name_1"),
        ("comment 5551234", "comment name_1…"),
    ] {
        assert_eq!(masked(text, false), expected);
    }
    for (text, expected) in [
        (
            "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "POSTROUTING -s 0.0.0.1/16 ! -o name_1 -j MASQUERADE",
        ),
        (
            "KUBE-A -m comment --comment \"a \\\" secret 10.0.0.1\" -j KUBE-B",
            "name_1 -m comment --comment \"name_2…\" -j name_3",
        ),
        ("INPUT -m mac --mac-source 52:54:00:AA:BB:CC -j state", "INPUT -m mac --mac-source mac_1 -j name_1"),
        (
            "INPUT -m conntrack --ctstate NEW,ESTABLISHED -m tcp --dport 22 -j ACCEPT",
            "INPUT -m conntrack --ctstate NEW,ESTABLISHED -m tcp --dport 22 -j ACCEPT",
        ),
    ] {
        assert_eq!(masked(text, true), expected);
    }
}

#[test]
fn interfaces_with_waiting_packets_have_no_names() {
    let waiting = |queue: &str, device: Option<&str>| Waiting {
        queue: queue.into(),
        device: device.map(str::to_owned),
        packets: 20,
    };
    let kept = [waiting("netem", Some("ada0")), waiting("nfqueue 7", None), waiting("Ada's", None)];
    let mut facts = Facts {
        namespaces: vec![Namespace { waiting: kept.to_vec(), ..Namespace::default() }],
        ..Facts::default()
    };
    mask(&mut facts);
    let [with_device, queue, strange] = &facts.namespaces[0].waiting[..] else { panic!("three") };
    assert_eq!((with_device.queue.as_str(), queue.queue.as_str()), ("netem", "nfqueue 7"));
    assert!(with_device.device.as_deref().is_some_and(|device| !device.contains("ada")));
    assert!(!strange.queue.contains("Ada"));
}

/// One machine, with a stranger's words wherever they may stand.
fn machine(names: &[String; 8]) -> Facts {
    let capture = include_str!("../../../tests/machines/container.json");
    let mut facts: Facts = serde_json::from_str(capture).unwrap();
    let [space, table, chain, interface, set, comment, module, address] = names;
    let namespace = &mut facts.namespaces[0];
    namespace.name.clone_from(space);
    namespace.enter = Way::Named(space.clone());
    let nft = format!(
        "iifname \"{interface}\" ip saddr @{set} ip saddr 10.77.88.99/24 ether saddr 52:54:00:12:34:56 ct state new jump {chain} comment \"{comment}\""
    );
    let escaped = comment.replace('\\', "\\\\").replace('"', "\\\"");
    let xt = format!(
        "{chain} -i {interface} -s 2001:db8:77::99/64 -m set --match-set {set} src -m comment --comment \"{escaped}\" -j {chain}"
    );
    let rule = namespace.nft.rules[0].clone();
    let rule = |text: String| Rule {
        kind: RuleKind::Rule,
        table: table.clone(),
        chain: chain.clone(),
        text,
        ..rule.clone()
    };
    namespace.nft.rules = vec![rule(nft)];
    let breaks = |name: &String| name.contains(|char: char| char.is_control() || "\"\u{fffd}".contains(char));
    let words = |name: &String| crate::doctor::command::Arg::nft_name(name).is_ok();
    let strange = names.iter().any(breaks) || ![table, chain, set].into_iter().all(words);
    namespace.nft.unquotable = strange.into();
    namespace.iptables.rules = vec![rule(xt)];
    namespace.iptables.state = ListingState::Listed;
    namespace.iptables.unquotable =
        (names.iter().any(breaks) || [chain, set, interface].into_iter().any(|name| !words(name))).into();
    namespace.ip6tables.state = ListingState::Unreadable(format!("nft: Error: {chain} {address}"));
    facts.modules.push(Module { name: module.clone(), refs: 1, used_by: vec![space.clone()] });
    facts.modprobe = vec![format!("{space}: options nf_conntrack {comment}")];
    facts.live.why = Some(format!("left out: {space} ({table})"));
    facts
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z][a-zA-Z0-9_-]{5,14}",
        "[a-z\"\\\\\n;$(){}' #@/.:é漢\u{202e}]{4,12}",
        "[0-9]{5,9}",
        // Masks are in 0.0.0.0/8.
        (1_u8.., any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| std::net::Ipv4Addr::new(a, b, c, d).to_string()),
        any::<[u8; 16]>().prop_map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        any::<[u8; 6]>().prop_map(|b| format!(
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            b[0], b[1], b[2], b[3], b[4], b[5]
        )),
    ]
}

/// Signs of a rule stand for themselves, so a name of nothing else is no name.
fn says_something(name: &str) -> bool {
    name.chars().filter(|char| char.is_alphanumeric()).count() >= 4
}

fn ids(facts: &Facts) -> Vec<&'static str> {
    diagnose(facts).findings.into_iter().map(|finding| finding.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_name_of_a_stranger_is_left(names in proptest::array::uniform8(name())) {
        let plain = serde_json::to_string(&machine(&std::array::from_fn(|at| format!("zz{at}")))).unwrap();
        let mut facts = machine(&names);
        let before = ids(&facts);
        mask(&mut facts);
        let once = serde_json::to_string(&facts).unwrap();
        for name in names.iter().filter(|name| says_something(name) && !plain.contains(name.as_str())) {
            let quoted = serde_json::to_string(name).unwrap();
            prop_assert!(!once.contains(name.as_str()), "{name} in {once}");
            prop_assert!(!once.contains(&quoted[1..quoted.len() - 1]), "{name} in {once}");
        }
        for known in ["10.77.88.99", "52:54:00", "2001:db8:77"] {
            prop_assert!(!once.contains(known), "{once}");
        }
        prop_assert_eq!(ids(&facts), before);
        let mut again: Facts = serde_json::from_str(&once).unwrap();
        mask(&mut again);
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), once);
    }
}

#[test]
fn the_same_name_has_the_same_mask_everywhere() {
    let names = ["blue", "fw", "office", "eth7", "allowed", "mine", "evil", "x"].map(str::to_owned);
    let mut facts = machine(&names);
    mask(&mut facts);
    let namespace = &facts.namespaces[0];
    let (nft, xt) = (&namespace.nft.rules[0], &namespace.iptables.rules[0]);
    assert!(nft.text.contains(&format!("jump {} ", nft.chain)), "{}", nft.text);
    assert!(xt.text.starts_with(&xt.chain) && xt.text.ends_with(&xt.chain), "{}", xt.text);
    assert_eq!(xt.chain, nft.chain);
    assert_ne!(nft.chain, nft.table);
    assert!(facts.live.why.unwrap().contains(&namespace.name));
}
