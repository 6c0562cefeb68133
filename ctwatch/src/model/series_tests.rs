use ctwatch_ebpf::{AF_INET, AF_INET6, Counters};
use proptest::prelude::*;

use super::*;
use crate::model::{SourceKind, Table, Tracker};

const INIT: u32 = 4_026_531_840;
const BOUNDS: Bounds = Bounds { top: 20, by_netns: true, series: 1000 };

fn info() -> SourceInfo {
    SourceInfo { kind: SourceKind::Kprobe, why: None, unknown: BTreeMap::new() }
}

fn udp(netns: u32) -> FlowType {
    FlowType { netns, family: AF_INET, proto: 17 }
}

fn inserts(count: u64) -> Counters {
    let mut counters = Counters::default();
    counters.0[Event::Insert as usize] = count;
    counters
}

fn table(netns: u32, name: &str, count: u64) -> Table {
    Table { netns, name: name.into(), count: Some(count), max: Some(1000) }
}

fn sample(rows: &[(FlowType, Counters)], tables: &[Table]) -> Sample {
    Sample { rows: rows.iter().copied().collect(), tables: tables.to_vec(), ..Sample::default() }
}

fn expose(series: &mut Series, tracker: &mut Tracker, sample: Sample) -> Exposition {
    let totals = Totals::of(&sample);
    series.expose(&tracker.advance(sample), &totals, &info(), true)
}

/// One reading by itself.
fn once(bounds: Bounds, sample: Sample) -> Exposition {
    expose(&mut Series::new(bounds), &mut Tracker::new(0), sample)
}

fn labels(netns: Option<&str>, family: &'static str, proto: &str) -> Labels {
    Labels { netns: netns.map(str::to_owned), family, proto: proto.into() }
}

fn count_series(exposition: &Exposition) -> usize {
    let flows: usize = exposition.flows.values().map(BTreeMap::len).sum();
    flows + OF_TABLE * exposition.tables.len() + OF_TOP * exposition.top.len() + FIXED
}

#[test]
fn the_first_namespace_goes_by_its_name_and_others_by_their_inode() {
    let rows = [(udp(INIT), inserts(1)), (udp(5), inserts(2)), (FlowType::OVERFLOW, inserts(3))];
    let exposition = once(BOUNDS, sample(&rows, &[table(INIT, "init", 1), table(5, "blue", 2)]));
    for (labels, inserts) in [
        (labels(Some("init"), "ipv4", "udp"), 1),
        (labels(Some("5"), "ipv4", "udp"), 2),
        (labels(Some("any"), "any", "overflow"), 3),
    ] {
        assert_eq!(exposition.flows[&labels][&Event::Insert], inserts, "{labels:?}");
    }
    let named: Vec<_> =
        exposition.tables.iter().map(|table| (table.netns.as_deref(), &*table.name)).collect();
    assert_eq!(named, [(Some("init"), "init"), (Some("5"), "blue")]);
}

#[test]
fn who_is_init_does_not_change() {
    let (mut series, mut tracker) = (Series::new(BOUNDS), Tracker::new(0));
    let rows = [(udp(INIT), inserts(1)), (udp(5), inserts(2))];
    expose(&mut series, &mut tracker, sample(&rows, &[table(INIT, "init", 1)]));
    let tables = [table(INIT, "init", 1), table(5, "init", 1)];
    let later = expose(&mut series, &mut tracker, sample(&rows, &tables));
    assert_eq!(later.flows[&labels(Some("init"), "ipv4", "udp")][&Event::Insert], 1);
    assert_eq!(later.flows[&labels(Some("5"), "ipv4", "udp")][&Event::Insert], 2);
    let twice = once(BOUNDS, sample(&rows, &tables));
    assert!(!twice.flows.contains_key(&labels(Some("init"), "ipv4", "udp")), "one of two");
}

#[test]
fn without_namespaces_counts_are_added_up_and_the_fullest_table_is_shown() {
    let bounds = Bounds { by_netns: false, ..BOUNDS };
    let six = FlowType { netns: 5, family: AF_INET6, proto: 17 };
    let rows = [(udp(INIT), inserts(1)), (udp(5), inserts(2)), (six, inserts(4))];
    let tables = [table(INIT, "init", 10), table(5, "blue", 900), table(6, "red", 20)];
    let exposition = once(bounds, sample(&rows, &tables));
    assert_eq!(exposition.flows[&labels(None, "ipv4", "udp")][&Event::Insert], 3);
    assert_eq!(exposition.flows[&labels(None, "ipv6", "udp")][&Event::Insert], 4);
    assert_eq!(exposition.tables.len(), 1);
    assert_eq!((exposition.tables[0].netns.as_deref(), exposition.tables[0].count), (None, Some(900)));
}

#[test]
fn what_the_source_cannot_tell_has_no_series() {
    let mut info = info();
    info.kind = SourceKind::Netlink;
    info.unknown.insert(Event::FailedDying, "no way".into());
    let all = Counters(std::array::from_fn(|event| event as u64 + 1));
    let any = FlowType { netns: INIT, family: 0, proto: 0 };
    let sample = sample(&[(udp(INIT), all), (any, all)], &[table(INIT, "init", 1)]);
    let totals = Totals::of(&sample);
    let report = Tracker::new(0).advance(sample);
    let exposition = Series::new(BOUNDS).expose(&report, &totals, &info, true);
    let (udp, any) = (labels(Some("init"), "ipv4", "udp"), labels(Some("init"), "any", "any"));
    assert!(!exposition.flows[&udp].contains_key(&Event::DropTableFull));
    assert!(exposition.flows[&any].contains_key(&Event::DropTableFull));
    assert!(!exposition.flows[&any].contains_key(&Event::FailedDying));
}

#[test]
fn the_ranking_has_its_first_lines_and_counts_the_rest() {
    let top = |dport: u16, insert, drop| Top {
        by: By::Dport,
        netns: INIT,
        family: AF_INET,
        proto: 17,
        key: dport.to_string(),
        insert,
        early_drop: 0,
        drop,
        invalid: 0,
    };
    let mut sample = sample(&[(udp(INIT), inserts(1))], &[table(INIT, "init", 1)]);
    let other = Top { by: By::Src, key: "10.0.0.1".into(), ..top(0, 1000, 1000) };
    sample.top = Some(vec![top(53, 5, 0), top(80, 900, 0), top(6881, 1, 7), other]);
    let exposition = once(Bounds { top: 2, ..BOUNDS }, sample);
    let ports: Vec<&str> = exposition.top.iter().map(|top| top.dport.as_str()).collect();
    assert_eq!(ports, ["6881", "80"]);
    assert_eq!(exposition.top_left_out, 1);
}

/// A thousand namespaces, of which one lives at a time: counts of those that have series are exact, and their number is
/// bounded.
#[test]
fn namespaces_come_and_go() {
    let (mut series, mut tracker) = (Series::new(BOUNDS), Tracker::new(0));
    let mut rows = vec![(udp(INIT), inserts(1))];
    for netns in 1..=1000 {
        rows.push((udp(netns), inserts(netns.into())));
        let tables = [table(INIT, "init", 1), table(netns, "", 1)];
        let exposition = expose(&mut series, &mut tracker, sample(&rows, &tables));
        assert!(count_series(&exposition) <= BOUNDS.series);
        let newest = &exposition.flows[&labels(Some(&netns.to_string()), "ipv4", "udp")];
        assert_eq!(newest[&Event::Insert], u64::from(netns));
        assert_eq!(exposition.flows[&labels(Some("init"), "ipv4", "udp")][&Event::Insert], 1);
        assert_eq!(exposition.left_out, (rows.len() - exposition.flows.len()) * OF_ROW);
    }
}

#[test]
fn a_row_keeps_its_series_while_others_press() {
    let (mut series, mut tracker) = (Series::new(BOUNDS), Tracker::new(0));
    let some: Vec<u32> = (1000..1010).collect();
    let tables = |all: &[u32]| all.iter().map(|netns| table(*netns, "", 1)).collect::<Vec<_>>();
    let rows = |all: &[u32]| all.iter().map(|netns| (udp(*netns), inserts(1))).collect::<Vec<_>>();
    expose(&mut series, &mut tracker, sample(&rows(&some), &tables(&some)));
    // Smaller numbers, which any order would put first.
    let all: Vec<u32> = (1..60).chain(some.iter().copied()).collect();
    let exposition = expose(&mut series, &mut tracker, sample(&rows(&all), &tables(&all)));
    for netns in some {
        assert!(exposition.flows.contains_key(&labels(Some(&netns.to_string()), "ipv4", "udp")), "{netns}");
    }
    assert!(exposition.left_out > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_bound_holds(steps in prop::collection::vec((prop::collection::vec(1_u32..300, 0..80), 0..30_usize), 1..12)) {
        let (mut series, mut tracker) = (Series::new(BOUNDS), Tracker::new(0));
        let mut rows: BTreeMap<FlowType, Counters> = BTreeMap::new();
        for (spaces, seen) in steps {
            rows.extend(spaces.iter().map(|netns| (udp(*netns), inserts(1))));
            let rows: Vec<_> = rows.iter().map(|(flow, counters)| (*flow, *counters)).collect();
            let live: BTreeSet<u32> = spaces.into_iter().take(seen).collect();
            let tables: Vec<Table> = live.iter().map(|netns| table(*netns, "", 1)).collect();
            let exposition = expose(&mut series, &mut tracker, sample(&rows, &tables));
            prop_assert!(count_series(&exposition) <= BOUNDS.series);
            prop_assert_eq!(exposition.left_out, (rows.len() - exposition.flows.len()) * OF_ROW);
        }
    }
}
