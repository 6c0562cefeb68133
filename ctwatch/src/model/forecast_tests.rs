use proptest::prelude::*;

use super::*;

fn occupancy(max: Option<u64>, readings: impl IntoIterator<Item = (u64, Option<u64>)>) -> Occupancy {
    let mut occupancy = Occupancy::default();
    let mut before = 0;
    for (ms, count) in readings {
        let table = Table { netns: 7, name: "init".into(), count, max };
        occupancy.advance(Duration::from_millis(ms), Duration::from_millis(ms - before), &table);
        before = ms;
    }
    occupancy
}

fn each_second(max: u64, counts: impl IntoIterator<Item = u64>) -> Occupancy {
    occupancy(Some(max), (1..).map(|second| second * 1000).zip(counts.into_iter().map(Some)))
}

#[test]
fn steady_growth_has_a_forecast() {
    let filling = each_second(10_000, (0..10).map(|second| 1000 + 100 * second));
    assert_eq!(filling.full_in(), Some(Duration::from_secs(81)));
    assert!((filling.growth().unwrap() - 100.0).abs() < 1e-9);
}

#[test]
fn a_flood_is_foreseen_though_it_was_calm_before() {
    let counts = std::iter::repeat_n(1000, 60).chain((1..=8).map(|second| 1000 + 500 * second));
    let eta = each_second(10_000, counts).full_in().unwrap().as_secs_f64();
    assert!((10.0..15.0).contains(&eta), "{eta}");
}

#[test]
fn silent_where_it_would_be_a_guess() {
    let growing =
        |max, readings: u64| each_second(max, (0..readings).map(|second| 1000 + 100 * second)).full_in();
    assert_eq!(growing(10_000, 3), None, "too little seen");
    assert_eq!(growing(1900, 10), None, "full");
    assert_eq!(growing(1000, 10), None, "over full");
    assert_eq!(growing(1_000_000, 10), None, "more than an hour away");
    assert_eq!(each_second(10_000, [9000; 10]).full_in(), None, "standing still");
    assert_eq!(each_second(10_000, (0..10).map(|second| 9000 - second)).full_in(), None, "falling");
    assert_eq!(
        each_second(10_000, [9000, 9100, 9010, 9090, 9000, 9110, 9010, 9100]).full_in(),
        None,
        "wandering"
    );
    assert_eq!(occupancy(None, (1..9).map(|s| (s * 1000, Some(s * 100)))).full_in(), None, "no limit known");
    assert_eq!(occupancy(Some(0), (1..9).map(|s| (s * 1000, Some(s * 100)))).full_in(), None, "no limit");
    let failed = (1..9).map(|s| (s * 1000, (s != 8).then_some(s * 100)));
    assert_eq!(occupancy(Some(1000), failed).full_in(), None, "the last reading failed");
}

#[test]
fn growth_that_stopped_has_no_forecast() {
    let counts = (0..10).map(|second| 1000 + 500 * second).chain([5500; 10]);
    assert_eq!(each_second(10_000, counts).full_in(), None);
}

proptest! {
    #[test]
    fn a_straight_line_is_met_exactly(
        interval_ms in 100_u64..60_000,
        per_interval in 1_u64..100_000,
        left in 1_u64..200,
    ) {
        let readings = 60;
        let last = (readings - 1) * per_interval;
        let max = last + left * per_interval;
        let points = (0..readings).map(|n| ((n + 1) * interval_ms, Some(n * per_interval)));
        let eta = occupancy(Some(max), points).full_in();
        let truth = Duration::from_millis(left * interval_ms);
        match eta {
            Some(eta) => prop_assert!((eta.as_secs_f64() - truth.as_secs_f64()).abs() < 0.01 * truth.as_secs_f64() + 0.001),
            None => prop_assert!(truth >= HORIZON),
        }
    }

    #[test]
    fn never_longer_than_the_horizon_and_never_when_full(
        counts in prop::collection::vec(0_u64..100_000, 0..100),
        max in 0_u64..100_000,
        interval_ms in 100_u64..10_000,
    ) {
        let points = counts.iter().zip(1_u64..).map(|(count, n)| (n * interval_ms, Some(*count)));
        let occupancy = occupancy(Some(max), points);
        prop_assert!(occupancy.readings.len() <= READINGS);
        if let Some(eta) = occupancy.full_in() {
            prop_assert!(eta <= HORIZON && counts.last().is_some_and(|count| *count < max));
        }
    }
}
