use ctwatch_ebpf::{AF_INET, Counters, Event, FlowType};

use super::*;
use crate::model::compare::compare;
use crate::model::{Sample, SourceInfo, SourceKind, Table, Tracker};
use crate::view::compare_json::json;

/// Ten seconds in a namespace of this name.
fn time(name: &str, max: u64, counts: &[(Event, u64)], unknown: &[Event]) -> Incident {
    let unknown = unknown.iter().map(|event| (*event, String::new())).collect();
    let info = SourceInfo { kind: SourceKind::Kprobe, why: None, unknown };
    let (mut incident, mut tracker, mut counters) =
        (Incident::default(), Tracker::new(0), Counters::default());
    for second in 1..=10_u64 {
        for (event, count) in counts {
            counters.0[*event as usize] += count;
        }
        let report = tracker.advance(Sample {
            wall_ns: 1_795_460_400_000_000_000 + i128::from(second) * 1_000_000_000,
            mono_ns: second * 1_000_000_000,
            rows: [(FlowType { netns: 7, family: AF_INET, proto: 17 }, counters)].into(),
            tables: vec![Table { netns: 7, name: name.into(), count: Some(100 * second), max: Some(max) }],
            lost: 3,
            ..Sample::default()
        });
        incident.add(1, &info, &report);
    }
    incident.finish();
    incident
}

fn shown(before: &Incident, after: &Incident, color: bool) -> String {
    let of =
        |incident| Time { file: "a.ctw", host: "web-7\x1b[2J".into(), kernel: "6.12.117".into(), incident };
    plain(&of(before), &of(after), &compare(before, after), &TimeZone::UTC, color)
}

#[test]
fn what_changed_in_plain_lines() {
    let before = time(
        "init",
        262_144,
        &[(Event::Insert, 120), (Event::DeleteTimeout, 118), (Event::DeleteClosed, 40)],
        &[],
    );
    let after = time(
        "init",
        1000,
        &[(Event::Insert, 2500), (Event::DeleteTimeout, 119), (Event::DropTableFull, 700)],
        &[Event::DeletePressure, Event::DeleteClosed],
    );
    insta::assert_snapshot!(shown(&before, &after, false));
    let of =
        |incident| Time { file: "a.ctw", host: "web-7\x1b[2J".into(), kernel: "6.12.117".into(), incident };
    let line = json(&of(&before), &of(&after), &compare(&before, &after));
    assert_eq!(line.matches(|char: char| char.is_control()).count(), 1, "JSON is one line");
    insta::assert_json_snapshot!(serde_json::from_str::<serde_json::Value>(&line).unwrap());
    let back = shown(&after, &before, true);
    assert!(back.contains("\x1b[1;31m") && back.contains("gone") && !back.contains("\x1b[2J"), "{back}");
}

#[test]
fn nothing_changed() {
    let one = time("a\nb", 1000, &[(Event::Insert, 120)], &[]);
    let text = shown(&one, &one, false);
    assert!(text.contains("\nNo rate changed.\n1 rate is the same"), "{text}");
    assert!(!text.contains("a\nb"), "{text}");
}
