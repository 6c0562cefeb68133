use std::collections::BTreeMap;

use proptest::prelude::*;

use ctwatch_ebpf::{AF_INET, AF_INET6};

use super::*;
use crate::model::filter::tuple;

const SEEN: u32 = status::CONFIRMED | status::SEEN_REPLY;
const KEPT: u32 = SEEN | status::ASSURED;

fn entry(proto: u8, src: &str, dst: &str, ports: Option<(u16, u16)>, status: u32) -> Entry {
    let tuple = tuple(proto, src.parse().unwrap(), dst.parse().unwrap(), ports);
    Entry { netns: 7, tuple, status, ..Entry::default() }
}

fn udp(sport: u16, dport: u16, status: u32) -> Entry {
    entry(17, "10.0.0.1", "10.0.0.2", Some((sport, dport)), status)
}

fn count(by: &[GroupBy], entries: &[Entry]) -> Grouping {
    let mut grouping = Grouping::new(Dimensions::of(by), MOST_GROUPS);
    for entry in entries {
        grouping.add(entry);
    }
    grouping
}

/// Each group's key with its count, as ranked.
fn keys(by: &[GroupBy], entries: &[Entry]) -> Vec<(String, u64)> {
    let by_set = Dimensions::of(by);
    let shown = |group: &Group| {
        let parts: Vec<String> =
            by_set.keys().map(|by| group.key(by).unwrap_or_else(|| "-".into())).collect();
        (parts.join(","), group.count)
    };
    count(by, entries).ranked(None).groups.iter().map(shown).collect()
}

#[test]
fn ports_and_addresses_are_those_of_the_original_direction() {
    let entries = [
        udp(1, 53, SEEN),
        udp(2, 53, SEEN),
        udp(2, 443, SEEN),
        entry(6, "10.0.0.9", "10.0.0.2", Some((5, 443)), SEEN),
        entry(1, "10.0.0.1", "10.0.0.2", None, SEEN),
        entry(17, "fd00::1", "fd00::2", Some((1, 0)), SEEN),
    ];
    let expected = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
        list.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect()
    };
    // Among groups of one size, what has no port comes first.
    assert_eq!(keys(&[GroupBy::Dport], &entries), expected(&[("53", 2), ("443", 2), ("-", 1), ("0", 1)]));
    assert_eq!(
        keys(&[GroupBy::Src, GroupBy::Dst], &entries),
        expected(&[("10.0.0.1,10.0.0.2", 4), ("10.0.0.9,10.0.0.2", 1), ("fd00::1,fd00::2", 1)])
    );
    assert_eq!(keys(&[GroupBy::Sport], &entries), expected(&[("1", 2), ("2", 2), ("-", 1), ("5", 1)]));
}

#[test]
fn flow_types_have_a_family_and_other_groups_none() {
    let entries = [udp(1, 1, SEEN), entry(17, "fd00::1", "fd00::2", Some((1, 1)), SEEN)];
    let families = |by| -> Vec<Option<u8>> {
        count(&[by], &entries).ranked(None).groups.iter().map(|group| group.family).collect()
    };
    assert_eq!(families(GroupBy::Proto), [Some(AF_INET), Some(AF_INET6)]);
    assert_eq!(families(GroupBy::Src), [Some(AF_INET), Some(AF_INET6)]);
    assert_eq!(families(GroupBy::Dport), [None]);
    assert_eq!(families(GroupBy::Netns), [None]);
}

#[test]
fn states_are_the_trackers_or_what_the_answers_say() {
    let tcp = |number, status| Entry {
        state: Some(number),
        ..entry(6, "10.0.0.1", "10.0.0.2", Some((1, 2)), status)
    };
    let sctp = Entry { state: Some(4), ..entry(132, "10.0.0.1", "10.0.0.2", Some((1, 2)), KEPT) };
    let entries = [
        tcp(3, KEPT),
        sctp,
        tcp(7, KEPT),
        tcp(99, KEPT),
        udp(1, 1, status::CONFIRMED),
        udp(1, 2, SEEN),
        udp(1, 3, KEPT),
    ];
    let groups = count(&[GroupBy::State], &entries).ranked(None).groups;
    let found: BTreeMap<&str, u64> =
        groups.iter().map(|group| (group.state.unwrap().name(), group.count)).collect();
    let expected = [
        ("ESTABLISHED", 2),
        ("TIME_WAIT", 1),
        ("UNKNOWN", 1),
        ("unreplied", 1),
        ("replied", 1),
        ("assured", 1),
    ];
    assert_eq!(found, BTreeMap::from(expected));
}

#[test]
fn the_census_tells_what_could_be_evicted_and_what_was_never_answered() {
    let mut grouping = count(
        &[GroupBy::Assured],
        &[
            udp(1, 1, status::CONFIRMED),
            udp(1, 2, SEEN),
            udp(1, 3, KEPT),
            udp(1, 4, SEEN | status::OFFLOAD),
            // Not in the table yet: `early_drop` cannot find it.
            udp(1, 5, 0),
        ],
    );
    assert_eq!(grouping.take_census(), Census { total: 5, evictable: 2, unreplied: 2 });
    assert_eq!(grouping.take_census(), Census::default(), "taken");
    let groups = grouping.ranked(None).groups;
    assert_eq!(
        groups.iter().map(|group| (group.assured, group.count)).collect::<Vec<_>>(),
        [(Some(false), 4), (Some(true), 1)]
    );
}

#[test]
fn the_largest_come_first_and_the_rest_is_counted() {
    let entries: Vec<Entry> =
        [(1, 5), (2, 3), (3, 3), (4, 1)].iter().flat_map(|(port, n)| vec![udp(9, *port, SEEN); *n]).collect();
    let ranked = count(&[GroupBy::Dport], &entries).ranked(Some(2));
    assert_eq!(
        ranked.groups.iter().map(|group| (group.dport, group.count)).collect::<Vec<_>>(),
        [(Some(1), 5), (Some(2), 3)]
    );
    assert_eq!((ranked.more_groups, ranked.more_entries, ranked.ungrouped), (2, 4, 0));
}

#[test]
fn a_million_sources_take_no_more_room_than_there_is() {
    let mut grouping = Grouping::new(Dimensions::of(&[GroupBy::Src]), 1000);
    for number in 0..1_000_000_u32 {
        let source = if number % 10 == 0 { 0 } else { number };
        let src = IpAddr::from((0x0a00_0000 + source).to_be_bytes());
        let tuple = tuple(17, src, "192.0.2.1".parse().unwrap(), Some((1, 53)));
        grouping.add(&Entry { netns: 7, tuple, status: SEEN, ..Entry::default() });
    }
    let ranked = grouping.ranked(Some(1));
    assert_eq!(ranked.groups[0].src, Some("10.0.0.0".parse().unwrap()));
    assert_eq!(ranked.groups[0].count, 100_000, "exact, whatever else there is");
    assert_eq!((ranked.more_groups, ranked.more_entries, ranked.ungrouped), (999, 999, 899_001));
    assert!(grouping.groups.capacity() < 4000);
}

#[test]
fn one_namespace_leaves_room_for_the_next() {
    let mut grouping = Grouping::new(Dimensions::of(&[GroupBy::Netns, GroupBy::Dport]), 10);
    for port in 0..20 {
        for _ in 0..=port {
            grouping.add(&udp(1, port, SEEN));
        }
    }
    assert_eq!(grouping.take_census().total, 210);
    assert_eq!(grouping.groups.len(), 10);
    grouping.make_room();
    for _ in 0..4 {
        grouping.add(&Entry { netns: 8, ..udp(1, 53, SEEN) });
    }
    assert_eq!(grouping.take_census().total, 4);
    let ranked = grouping.ranked(None);
    assert!(ranked.groups.iter().any(|group| (group.netns, group.count) == (Some(8), 4)), "{ranked:?}");
    assert_eq!(ranked.groups.iter().map(|group| group.count).sum::<u64>() + ranked.ungrouped, 214);
}

proptest! {
    #[test]
    fn nothing_is_lost_or_counted_twice(
        entries in prop::collection::vec((0_u16..8, 0_u16..8, prop::sample::select(vec![6_u8, 17, 1]), any::<u32>()), 0..200),
        by in prop::collection::vec(prop::sample::select(GroupBy::ALL.to_vec()), 0..4),
        most in 1_usize..20,
        shown in 0_usize..20,
    ) {
        let mut grouping = Grouping::new(Dimensions::of(&by), most);
        for (sport, dport, proto, status) in &entries {
            grouping.add(&entry(*proto, "10.0.0.1", "10.0.0.2", Some((*sport, *dport)), *status));
        }
        let ranked = grouping.ranked(Some(shown));
        let counted: u64 = ranked.groups.iter().map(|group| group.count).sum();
        prop_assert_eq!(counted + ranked.more_entries + ranked.ungrouped, entries.len() as u64);
        prop_assert!(ranked.groups.len() + ranked.more_groups <= most);
        prop_assert!(ranked.groups.is_sorted_by(|a, b| a.count >= b.count));
        prop_assert_eq!(grouping.take_census().total, entries.len() as u64);
    }
}
