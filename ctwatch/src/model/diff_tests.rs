use ctwatch_ebpf::{AF_INET, AF_INET6, Event};
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };

fn counters(parts: &[(Event, u64)]) -> Counters {
    let mut counters = Counters::default();
    for (event, count) in parts {
        counters.0[*event as usize] = *count;
    }
    counters
}

fn sample(mono_ns: u64, rows: &[(FlowType, Counters)]) -> Sample {
    Sample { mono_ns, rows: rows.iter().copied().collect(), ..Sample::default() }
}

#[test]
fn rates_use_the_time_that_passed() {
    let mut tracker = Tracker::new(5 * SECOND);
    let first = counters(&[(Event::Insert, 100), (Event::DropTableFull, 3)]);
    let report = tracker.advance(sample(7 * SECOND, &[(UDP, first)]));
    assert_eq!(report.elapsed, Duration::from_secs(2));
    let flow = &report.flows[0];
    assert_eq!(flow.counts, first);
    assert_eq!(flow.rates.get(Group::Insert).to_bits(), 50f64.to_bits());
    assert_eq!(flow.rates.get(Group::Drop).to_bits(), 1.5f64.to_bits());

    let second = counters(&[(Event::Insert, 101), (Event::DropTableFull, 3)]);
    let report = tracker.advance(sample(7 * SECOND + SECOND / 2, &[(UDP, second)]));
    let flow = &report.flows[0];
    assert_eq!(flow.counts, counters(&[(Event::Insert, 1)]));
    assert_eq!(flow.rates.get(Group::Insert).to_bits(), 2f64.to_bits());
    assert_eq!(flow.total, second);
    assert_eq!(flow.peak.get(Group::Insert).to_bits(), 50f64.to_bits(), "the peak stays");
    assert_eq!(report.watched, Duration::from_millis(2500));
}

#[test]
fn a_delete_by_eviction_is_both() {
    let all = counters(&[(Event::DeleteEarlyDrop, 4), (Event::DeleteTimeout, 6), (Event::DropNoMemory, 1)]);
    assert_eq!(Group::Delete.of(&all), 10);
    assert_eq!(Group::EarlyDrop.of(&all), 4);
    assert_eq!(Group::Drop.of(&all), 1);
}

#[test]
fn every_event_is_in_at_most_one_sum_but_evictions() {
    for event in Event::ALL {
        let one = counters(&[(event, 1)]);
        let found: u64 = Group::TOTALS.iter().map(|sum| sum.of(&one)).sum();
        let expected = match event {
            Event::DeleteEarlyDrop => 2,
            Event::InsertNetlink | Event::ClashResolve | Event::ClashReplyOnly => 0,
            _ => 1,
        };
        assert_eq!(found, expected, "{event:?}");
    }
}

#[test]
fn a_row_missing_from_one_sample_is_no_news() {
    let mut tracker = Tracker::new(0);
    let ten = counters(&[(Event::Insert, 10)]);
    tracker.advance(sample(SECOND, &[(UDP, ten)]));
    let report = tracker.advance(sample(2 * SECOND, &[]));
    assert_eq!(report.flows[0].counts, Counters::default());
    assert_eq!(report.flows[0].total, ten);
    let twelve = counters(&[(Event::Insert, 12)]);
    let report = tracker.advance(sample(3 * SECOND, &[(UDP, twelve)]));
    assert_eq!(report.flows[0].counts, counters(&[(Event::Insert, 2)]));
    assert_eq!(report.flows[0].total, twelve);
}

#[test]
fn a_count_that_is_corrected_is_not_counted_again() {
    let mut tracker = Tracker::new(0);
    let reports = [1_000_000, 999_999, 1_000_000, 1_000_003].map(|count| {
        let now = counters(&[(Event::Insert, count)]);
        let report = tracker.advance(sample(SECOND, &[(UDP, now)]));
        let flow = &report.flows[0];
        (flow.counts.get(Event::Insert), flow.total.get(Event::Insert))
    });
    assert_eq!(reports, [(1_000_000, 1_000_000), (0, 1_000_000), (0, 1_000_000), (3, 1_000_003)]);
}

#[test]
fn names_outlive_their_namespace_and_follow_its_inode() {
    let table = |name: &str| Table { netns: 7, name: name.into(), count: Some(1), max: Some(2) };
    let mut tracker = Tracker::new(0);
    let mut first = sample(SECOND, &[(UDP, Counters::default())]);
    first.tables = vec![table("blue")];
    assert_eq!(tracker.advance(first).names[&7], "blue");
    let gone = tracker.advance(sample(2 * SECOND, &[(UDP, Counters::default())]));
    assert_eq!(gone.names[&7], "blue");
    let mut reused = sample(3 * SECOND, &[]);
    reused.tables = vec![table("green")];
    assert_eq!(tracker.advance(reused).names[&7], "green");

    let mut nameless = Tracker::new(0);
    let report = nameless.advance(sample(SECOND, &[(UDP, Counters::default())]));
    assert_eq!(report.names[&7], "7");
}

#[test]
fn time_that_was_not_watched_thins_no_rate() {
    let mut tracker = Tracker::new(0);
    tracker.advance(sample(SECOND, &[]));
    tracker.restart_interval(100 * SECOND);
    let report = tracker.advance(sample(101 * SECOND, &[(UDP, counters(&[(Event::Insert, 5)]))]));
    assert_eq!(report.flows[0].rates.get(Group::Insert).to_bits(), 5f64.to_bits());
    assert_eq!(report.watched, Duration::from_secs(2));
}

#[test]
fn a_moment_makes_no_peak() {
    let mut tracker = Tracker::new(0);
    let report = tracker.advance(sample(1000, &[(UDP, counters(&[(Event::Insert, 1)]))]));
    assert_eq!(report.flows[0].peak, Rates::default());
    assert_eq!(report.flows[0].total, counters(&[(Event::Insert, 1)]));
}

#[test]
fn own_time_is_of_the_interval_and_the_first_has_our_start_in_it() {
    let mut tracker = Tracker::new(0);
    let own = |mono_ns, own_ns| Sample { own_ns, ..sample(mono_ns, &[]) };
    assert_eq!(tracker.advance(own(SECOND, Some(90_000_000))).own, Some(Duration::from_millis(90)));
    assert_eq!(tracker.advance(own(2 * SECOND, Some(90_600_000))).own, Some(Duration::from_micros(600)));
    assert_eq!(tracker.advance(own(3 * SECOND, None)).own, None);
}

#[test]
fn cost_is_of_the_interval() {
    let mut tracker = Tracker::new(0);
    let with_cost =
        |mono_ns, run_ns, runs| Sample { cost: Some(Cost { run_ns, runs }), ..sample(mono_ns, &[]) };
    tracker.advance(with_cost(SECOND, 1_000_000, 1000));
    let cost = tracker.advance(with_cost(2 * SECOND, 3_100_000, 17_000)).cost.unwrap();
    assert!((cost.cpu_pct - 0.21).abs() < 1e-9);
    assert_eq!(cost.events, 16_000);
    assert_eq!(cost.ns_per_event, Some(131));
    let idle = tracker.advance(with_cost(3 * SECOND, 3_100_000, 17_000)).cost.unwrap();
    assert_eq!(idle.ns_per_event, None);
}

#[test]
fn flows_are_sorted_as_they_are_shown() {
    let key = |netns, family, proto| (FlowType { netns, family, proto }, Counters::default());
    let mut tracker = Tracker::new(0);
    let report = tracker.advance(sample(
        SECOND,
        &[
            key(9, AF_INET, 6),
            key(7, AF_INET6, 17),
            key(7, AF_INET, 132),
            key(7, AF_INET, 17),
            key(7, AF_INET, 253),
        ],
    ));
    let shown: Vec<String> = report
        .flows
        .iter()
        .map(|flow| {
            let proto = protocol_name(flow.key);
            format!("{} {} {proto}", flow.key.netns, family_name(flow.key.family))
        })
        .collect();
    assert_eq!(shown, ["7 ipv4 253", "7 ipv4 sctp", "7 ipv4 udp", "7 ipv6 udp", "9 ipv4 tcp"]);
}

/// What a source may do between two samples, and what it must never do: count, omit a row, fall.
#[derive(Clone, Debug)]
struct Step {
    nanoseconds: u64,
    rows: BTreeMap<u8, [u64; Event::COUNT]>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let count = prop_oneof![Just(0), 0..1000u64, any::<u64>()];
    let counts = prop::array::UniformArrayStrategy::<_, [u64; Event::COUNT]>::new(count);
    let rows = prop::collection::btree_map(0..5u8, counts, 0..5);
    let step = (prop_oneof![Just(0), 1..2000u64, 0..10_000_000_000u64], rows)
        .prop_map(|(nanoseconds, rows)| Step { nanoseconds, rows });
    prop::collection::vec(step, 0..20)
}

proptest! {
    #[test]
    fn totals_are_the_sum_of_intervals_whatever_comes(steps in steps()) {
        let mut tracker = Tracker::new(0);
        let mut mono_ns = 0;
        let mut sums: BTreeMap<FlowType, Counters> = BTreeMap::new();
        for step in steps {
            mono_ns += step.nanoseconds;
            let rows: Vec<_> = step.rows.iter().map(|(proto, counts)| {
                (FlowType { proto: *proto, ..UDP }, Counters(*counts))
            }).collect();
            let report = tracker.advance(sample(mono_ns, &rows));
            for flow in &report.flows {
                let sum = sums.entry(flow.key).or_default();
                let before = *sum;
                sum.add(&flow.counts);
                prop_assert_eq!(*sum, flow.total);
                prop_assert!(before.0.iter().zip(flow.total.0).all(|(before, now)| *before <= now));
                for rates in [&flow.rates, &flow.peak] {
                    for group in Group::ALL {
                        let rate = rates.get(group);
                        prop_assert!(rate.is_finite() && rate >= 0.0);
                    }
                }
            }
            prop_assert!(sums.keys().all(|key| report.flows.iter().any(|flow| flow.key == *key)));
        }
    }

    #[test]
    fn a_monotone_source_is_counted_to_the_event(
        growth in prop::collection::vec(prop::array::UniformArrayStrategy::<_, [u64; Event::COUNT]>::new(0..1_000_000u64), 1..20),
    ) {
        let mut tracker = Tracker::new(0);
        let mut now = Counters::default();
        for (at, grown) in growth.iter().enumerate() {
            now.add(&Counters(*grown));
            let report = tracker.advance(sample(at as u64 * SECOND, &[(UDP, now)]));
            prop_assert_eq!(report.flows[0].counts, Counters(*grown));
            prop_assert_eq!(report.flows[0].total, now);
        }
    }
}
