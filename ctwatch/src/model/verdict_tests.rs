use ctwatch_ebpf::{AF_INET, Counters, FlowType};

use super::*;
use crate::model::{Sample, Tracker};

const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };

/// The troubles after `seconds`, of counts and a table that depend on the second.
fn after(
    seconds: u64,
    events: impl Fn(u64) -> Vec<(Event, u64)>,
    count: impl Fn(u64) -> u64,
) -> Vec<Trouble> {
    let mut history = History::default();
    let mut tracker = Tracker::new(0);
    let mut last = Vec::new();
    for second in 1..=seconds {
        let mut counters = Counters::default();
        for (event, total) in events(second) {
            counters.0[event as usize] = total;
        }
        let report = tracker.advance(Sample {
            mono_ns: second * 1_000_000_000,
            rows: [(UDP, counters)].into(),
            tables: vec![Table {
                netns: 7,
                name: "init".into(),
                count: Some(count(second)),
                max: Some(10_000),
            }],
            ..Sample::default()
        });
        history.advance(&report);
        last = troubles(&report, &history);
    }
    last
}

#[test]
fn a_healthy_machine_has_none() {
    let busy = |second| {
        vec![
            (Event::Insert, second * 9000),
            (Event::DeleteTimeout, second * 9000),
            (Event::ClashResolve, second),
            // One in two seconds, and such as strangers send.
            (Event::InvalidBadChecksum, second / 2),
            (Event::InvalidUnrelated, second * 90),
        ]
    };
    assert_eq!(after(20, busy, |second| 5000 + second % 3), []);
}

#[test]
fn the_worst_comes_first() {
    let all = |second| {
        vec![
            (Event::DropTableFull, second * 9),
            (Event::DeleteEarlyDrop, second * 4),
            (Event::DeletePressure, second * 3),
            (Event::FailedChaintoolong, second * 2),
            (Event::InvalidOutOfWindow, second * 5),
            (Event::InvalidBadState, second * 500),
        ]
    };
    let found = after(5, all, |_| 10_000);
    assert_eq!(
        found,
        [
            Trouble::Drop(9.0),
            Trouble::EarlyDrop(4.0),
            Trouble::Full("init".into()),
            Trouble::Pressure(3.0),
            Trouble::InsertFailed(2.0),
            Trouble::Invalid(5.0),
        ]
    );
}

#[test]
fn news_stays_for_a_while_and_goes() {
    let once = |second: u64| vec![(Event::DropTableFull, if second >= 3 { 50 } else { 0 })];
    assert_eq!(after(3, once, |_| 100), [Trouble::Drop(50.0)]);
    assert!(matches!(after(8, once, |_| 100)[..], [Trouble::Drop(rate)] if rate < 10.0));
    assert_eq!(after(30, once, |_| 100), []);
}

#[test]
fn a_table_is_told_once() {
    let nothing = |_| Vec::new();
    assert_eq!(
        after(10, nothing, |second| 5000 + 400 * second),
        [Trouble::Filling("init".into(), Duration::from_millis(2500))]
    );
    assert_eq!(after(10, nothing, |_| 9600), [Trouble::NearlyFull("init".into(), 96.0)]);
    assert_eq!(after(10, nothing, |_| 10_000), [Trouble::Full("init".into())]);
    // Full in 1000 s at this pace: too far to be news.
    assert_eq!(after(10, nothing, |second| 5 * second), []);
}
