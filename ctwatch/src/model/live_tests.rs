use std::time::Duration;

use ctwatch_ebpf::AF_INET;
use proptest::prelude::*;

use super::super::diff::Tracker;
use super::super::sample::Table;
use super::*;

const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };
const TCP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 6 };

fn counters(insert: u64, timeout: u64) -> Counters {
    let mut counters = Counters::default();
    counters.0[Event::Insert as usize] = insert;
    counters.0[Event::DeleteTimeout as usize] = timeout;
    counters
}

fn sample(second: u64, udp: (u64, u64), count: u64) -> Sample {
    Sample {
        mono_ns: second * 1_000_000_000,
        rows: [(UDP, counters(udp.0, udp.1))].into(),
        tables: vec![Table { netns: 7, name: "init".into(), count: Some(count), max: Some(1000) }],
        ..Sample::default()
    }
}

fn dump(udp: u64) -> Dump {
    Dump { namespaces: [7].into(), entries: [(UDP, udp)].into(), filtered: false }
}

#[test]
fn a_quiet_dump_makes_exact_numbers() {
    let quiet = sample(1, (10, 4), 0);
    let baseline = Baseline::new(&dump(100), &quiet, &quiet);
    let now = |insert, timeout| baseline.entries(UDP, &counters(insert, timeout));
    assert_eq!(now(10, 4), Some(Range { least: 100, most: 100 }));
    assert_eq!(now(15, 104), Some(Range { least: 5, most: 5 }));
    assert_eq!(baseline.entries(TCP, &counters(3, 1)), Some(Range { least: 2, most: 2 }), "it had none");
    assert_eq!(baseline.entries(FlowType { netns: 8, ..UDP }, &counters(3, 1)), None, "never read");
    assert_eq!(baseline.entries(FlowType::OVERFLOW, &counters(3, 1)), None);
}

#[test]
fn what_came_and_went_during_the_dump_is_the_doubt() {
    let baseline = Baseline::new(&dump(100), &sample(1, (10, 4), 0), &sample(1, (13, 9), 0));
    assert_eq!(baseline.entries(UDP, &counters(13, 9)), Some(Range { least: 95, most: 103 }));
    assert_eq!(
        baseline.entries(UDP, &counters(13, 1000)),
        Some(Range { least: 0, most: 0 }),
        "never negative"
    );
}

#[test]
fn a_contradiction_ends_it() {
    let quiet = sample(1, (0, 0), 0);
    let told = |count, lost| {
        let mut baseline = Baseline::new(&dump(500), &quiet, &quiet);
        let mut now = sample(2, (0, 0), count);
        now.lost = lost;
        baseline.reconcile(&Tracker::new(0).advance(now));
        baseline.entries(UDP, &counters(0, 0)).is_some()
    };
    assert!(told(500, 0) && told(490, 0) && told(560, 0));
    assert!(!told(300, 0), "the table has fewer");
    assert!(!told(900, 0), "the table has more");
    assert!(!told(500, 1), "something was missed");
}

#[test]
fn silent_flow_types_count_too() {
    let quiet = sample(1, (0, 0), 0);
    let mut dump = dump(500);
    dump.entries.insert(TCP, 300);
    let mut baseline = Baseline::new(&dump, &quiet, &quiet);
    let report = Tracker::new(0).advance(sample(2, (0, 0), 800));
    assert_eq!(report.elapsed, Duration::from_secs(2));
    baseline.reconcile(&report);
    assert!(baseline.entries(UDP, &counters(0, 0)).is_some(), "300 of the 800 are TCP");
}

proptest! {
    /// Whatever order events and the dump's visits had, the truth lies within.
    #[test]
    fn the_truth_is_inside(start in 0_u64..50, events in prop::collection::vec((any::<bool>(), 0_u8..3), 0..60)) {
        let (mut live, mut insert, mut timeout) = (start, 0, 0);
        let (mut before, mut after) = (sample(0, (0, 0), 0), sample(0, (0, 0), 0));
        // Entries visited at the moment when half of the events of the dump are over.
        let mut found = start;
        let during = events.iter().filter(|(_, when)| *when == 1).count();
        let mut seen = 0;
        let mut ordered = events.clone();
        ordered.sort_by_key(|(_, when)| *when);
        let mut when_before = 0;
        for (comes, when) in ordered {
            if when_before == 0 && when > 0 {
                before = sample(0, (insert, timeout), 0);
                found = live;
            }
            if when_before < 2 && when == 2 {
                after = sample(0, (insert, timeout), 0);
            }
            when_before = when;
            if comes {
                live += 1;
                insert += 1;
            } else if live > 0 {
                live -= 1;
                timeout += 1;
            }
            if when == 1 {
                seen += 1;
                if seen == during / 2 {
                    found = live;
                }
            }
        }
        if when_before == 0 {
            before = sample(0, (insert, timeout), 0);
            found = live;
        }
        if when_before < 2 {
            after = sample(0, (insert, timeout), 0);
        }
        let baseline = Baseline::new(&dump(found), &before, &after);
        let range = baseline.entries(UDP, &counters(insert, timeout)).unwrap();
        prop_assert!((range.least..=range.most).contains(&live), "{range:?} {live}");
    }
}
