use ctwatch_ebpf::AF_INET;
use proptest::prelude::*;

use super::*;
use crate::model::{Sample, SourceKind, Table, Tracker};

const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };

/// A report a second with these refusals and ten inserts; the port of a second is its number.
fn incident(refused: &[u64], ranked: bool) -> Incident {
    let info = SourceInfo { kind: SourceKind::Fexit, why: None, unknown: [].into() };
    let (mut incident, mut tracker, mut counters) =
        (Incident::default(), Tracker::new(0), Counters::default());
    let mut top: Vec<Top> = Vec::new();
    for (at, refused) in (1_u32..).zip(refused) {
        counters.0[Event::Insert as usize] += 10;
        counters.0[Event::DropTableFull as usize] += refused;
        let row = Top {
            by: By::Dport,
            netns: 7,
            family: AF_INET,
            proto: 17,
            key: at.to_string(),
            insert: 10,
            early_drop: 0,
            drop: *refused,
            invalid: 0,
        };
        top.extend(ranked.then_some(row));
        let mono_ns = u64::from(at) * 1_000_000_000;
        let report = tracker.advance(Sample {
            wall_ns: i128::from(mono_ns),
            mono_ns,
            rows: [(UDP, counters)].into(),
            tables: vec![Table { netns: 7, name: "init".into(), count: Some(at.into()), max: Some(1000) }],
            top: Some(top.clone()),
            lost: 3,
            ..Sample::default()
        });
        incident.add(1, &info, &report);
    }
    incident.finish();
    incident
}

#[test]
fn the_worst_minute_is_the_one_with_most_losses() {
    let mut refused = vec![0; 300];
    refused[130] = 50;
    refused[250] = 40;
    let incident = incident(&refused, true);
    let worst = incident.worst.as_ref().unwrap();
    assert_eq!(worst.lost(), 50);
    assert_eq!(worst.top(By::Dport, 1)[0].key, "131");
    assert_eq!(worst.top(By::Dport, 100).len(), 60);
    assert_eq!(incident.missed, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn parts_are_few_and_nothing_is_lost_in_joining(refused in prop::collection::vec(0_u64..100, 1..900)) {
        let incident = incident(&refused, false);
        prop_assert!(incident.parts.len() <= MOST_PARTS);
        prop_assert!(incident.parts.len() > MOST_PARTS / 2 - 1 || incident.parts.len() == refused.len());
        let sum: u64 = incident.parts.iter().map(Part::losses).sum();
        prop_assert_eq!(sum, refused.iter().sum::<u64>());
        prop_assert_eq!(Group::Drop.of(&incident.total()), sum);
        let inserts: u64 = incident.parts.iter().flat_map(|part| part.inserts.values()).sum();
        prop_assert_eq!(inserts, 10 * refused.len() as u64);
        let seconds: f64 = incident.parts.iter().map(|part| part.elapsed.as_secs_f64()).sum();
        prop_assert!((seconds - refused.len() as f64).abs() < 1e-6);
        for two in incident.parts.windows(2) {
            prop_assert_eq!(two[0].to_ns, two[1].from_ns);
        }
        let fullest = incident.parts.iter().filter_map(|part| part.tables.get(&7)).map(|(count, _)| *count).max();
        prop_assert_eq!(fullest, Some(refused.len() as u64));
    }
}
