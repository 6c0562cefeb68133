use ctwatch_ebpf::{AF_INET, Group};
use proptest::prelude::*;

use super::*;
use crate::model::{Sample, Tracker};

const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };
const INSERT: &[Event] = &[Event::Insert];

fn sample(mono_ns: u64, inserts: u64) -> Sample {
    let mut counters = Counters::default();
    counters.0[Event::Insert as usize] = inserts;
    Sample { mono_ns, rows: [(UDP, counters)].into(), ..Sample::default() }
}

/// Inserts in milliseconds after the start: (time, total).
fn history(readings: &[(u64, u64)]) -> History {
    let mut history = History::default();
    let mut tracker = Tracker::new(0);
    for (ms, inserts) in readings {
        history.advance(&tracker.advance(sample(ms * 1_000_000, *inserts)));
    }
    history
}

fn rate(history: &History, seconds: u64) -> f64 {
    history.flow(UDP).unwrap().rate(INSERT, Duration::from_secs(seconds))
}

#[test]
fn windows_tell_the_burst_from_the_mean() {
    // 10 a second for 100 s, then 1000 in one second.
    let mut readings: Vec<(u64, u64)> = (1..=100).map(|second| (second * 1000, second * 10)).collect();
    readings.push((101_000, 2000));
    let history = history(&readings);
    assert!((rate(&history, 1) - 1000.0).abs() < 1e-9);
    assert!((rate(&history, 10) - 109.0).abs() < 1e-9);
    assert!((rate(&history, 60) - 26.5).abs() < 1e-9);
    let flow = history.flow(UDP).unwrap();
    assert!((flow.peak(Group::Insert) - 1000.0).abs() < 1e-9);
    assert_eq!(flow.run(Group::Insert).len(), 101);
}

#[test]
fn a_jittering_second_is_one_second() {
    let history = history(&[(1000, 10), (1990, 20), (2985, 40)]);
    assert_eq!(history.flow(UDP).unwrap().since(Duration::from_secs(1)).1, Duration::from_millis(995));
}

#[test]
fn what_was_not_watched_thins_no_rate() {
    let mut history = History::default();
    let mut tracker = Tracker::new(0);
    history.advance(&tracker.advance(sample(1_000_000_000, 10)));
    tracker.restart_interval(3_600_000_000_000);
    history.advance(&tracker.advance(sample(3_601_000_000_000, 20)));
    assert!((rate(&history, 10) - 10.0).abs() < 1e-9);
}

#[test]
fn a_long_interval_has_no_shorter_window() {
    assert_eq!(windows(Duration::from_millis(100)), WINDOWS);
    let five = Duration::from_secs(5);
    assert_eq!(windows(five), [five, WINDOWS[1], WINDOWS[2]]);
    let hour = Duration::from_hours(1);
    assert_eq!(windows(hour), [hour; 3]);
}

#[test]
fn reset_forgets_all_but_the_present() {
    let mut history = history(&[(1000, 10), (2000, 20)]);
    history.reset();
    assert_eq!(history.total(), Counters::default());
    assert!(rate(&history, 60).abs() < f64::EPSILON);
    let flow = history.flow(UDP).unwrap();
    assert!(flow.run(Group::Insert).is_empty() && flow.peak(Group::Insert).abs() < f64::EPSILON);
}

proptest! {
    #[test]
    fn steady_traffic_has_one_rate_in_every_window(
        per_ms in 0_u64..100,
        steps in prop::collection::vec(50_u64..30_000, 1..300),
    ) {
        let mut now = 0;
        let readings: Vec<(u64, u64)> = steps.iter().map(|step| { now += step; (now, now * per_ms) }).collect();
        let history = history(&readings);
        for window in [1, 10, 60] {
            prop_assert!((rate(&history, window) - per_ms as f64 * 1000.0).abs() < 1e-6);
        }
    }

    #[test]
    fn memory_is_bounded_and_windows_are_covered(steps in prop::collection::vec(10_u64..2_000, 1..2_000)) {
        let mut now = 0;
        let readings: Vec<(u64, u64)> = steps.iter().map(|step| { now += step; (now, now) }).collect();
        let history = history(&readings);
        let flow = history.flow(UDP).unwrap();
        prop_assert!(flow.marks.len() <= MARKS && flow.run(Group::Insert).len() <= RUN);
        for window in WINDOWS {
            let covered = flow.since(window).1;
            prop_assert!(covered >= window.saturating_sub(JITTER).min(Duration::from_millis(now)), "{covered:?} of {window:?}");
            // The mark before the window may be as far as a step and the spacing.
            prop_assert!(covered <= window + Duration::from_millis(4_500), "{covered:?} of {window:?}");
        }
    }
}

#[test]
fn every_total_has_a_run() {
    for group in Group::TOTALS {
        assert!(SUMS.contains(&group), "{group:?}");
    }
}
