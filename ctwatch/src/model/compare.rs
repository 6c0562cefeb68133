//! What differs between two times: before and after a deployment, a healthy and a sick machine.

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Event, FlowType};

use super::diff::per_second;
use super::incident::Incident;

/// What one of the two can say of a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen {
    /// Events per second.
    Rate(f64),
    /// Its source cannot tell this event.
    Unknown,
}

/// Something that happens at one rate in the one time and at another in the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Name of the namespace: inodes differ between machines.
    pub netns: String,
    /// Family and protocol; the namespace in it is not to be shown.
    pub flow: FlowType,
    /// What happens.
    pub event: Event,
    /// Before.
    pub before: Seen,
    /// After.
    pub after: Seen,
}

/// A table at its fullest, entries and limit; `None` where a time had no such table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Name of the namespace.
    pub netns: String,
    /// Before.
    pub before: Option<(u64, Option<u64>)>,
    /// After.
    pub after: Option<(u64, Option<u64>)>,
}

/// All that differs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Losses first, then the largest change of a rate first.
    pub changes: Vec<Change>,
    /// How many rates are taken as the same.
    pub same: usize,
    /// Every table, by name.
    pub tables: Vec<Fill>,
}

type Key = (String, u8, u8);

/// What to compare of a time.
struct Side<'a> {
    incident: &'a Incident,
    watched: Duration,
    flows: BTreeMap<Key, [u64; Event::COUNT]>,
}

impl<'a> Side<'a> {
    fn new(incident: &'a Incident) -> Self {
        let mut flows: BTreeMap<Key, [u64; Event::COUNT]> = BTreeMap::new();
        for (flow, counts) in &incident.flows {
            let sums = flows
                .entry((name(incident, flow.netns), flow.family, flow.proto))
                .or_insert([0; Event::COUNT]);
            for (sum, count) in sums.iter_mut().zip(counts.0) {
                *sum = sum.saturating_add(count);
            }
        }
        Self { incident, watched: incident.watched(), flows }
    }

    fn count(&self, key: &Key, event: Event) -> u64 {
        self.flows.get(key).map_or(0, |counts| counts[event as usize])
    }

    fn seen(&self, key: &Key, event: Event) -> Seen {
        if self.incident.unknown.contains_key(&event) {
            return Seen::Unknown;
        }
        Seen::Rate(per_second(self.count(key, event), self.watched))
    }

    fn tables(&self) -> BTreeMap<String, (u64, Option<u64>)> {
        let mut fullest: BTreeMap<String, (u64, Option<u64>)> = BTreeMap::new();
        for (netns, (count, max)) in self.incident.parts.iter().flat_map(|part| &part.tables) {
            let known = fullest.entry(name(self.incident, *netns)).or_insert((*count, *max));
            if *count >= known.0 {
                *known = (*count, *max);
            }
        }
        fullest
    }
}

fn name(incident: &Incident, netns: u32) -> String {
    incident.names.get(&netns).cloned().unwrap_or_else(|| netns.to_string())
}

/// Compares two times.
pub fn compare(before: &Incident, after: &Incident) -> Comparison {
    let (before, after) = (Side::new(before), Side::new(after));
    let mut comparison = Comparison::default();
    let mut keys: Vec<&Key> = before.flows.keys().chain(after.flows.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        for event in Event::ALL {
            let counts = (before.count(key, event), after.count(key, event));
            let seen = (before.seen(key, event), after.seen(key, event));
            if counts == (0, 0) || seen == (Seen::Unknown, Seen::Unknown) {
                continue;
            }
            // A loss that comes or goes is news, however rare it is.
            let news = event.is_loss() && (counts.0 == 0) != (counts.1 == 0) || is_unknown(seen);
            if !news && !differs((counts.0, before.watched), (counts.1, after.watched)) {
                comparison.same += 1;
                continue;
            }
            let (netns, family, proto) = key.clone();
            let flow = FlowType { netns: 0, family, proto };
            comparison.changes.push(Change { netns, flow, event, before: seen.0, after: seen.1 });
        }
    }
    comparison.changes.sort_by(|one, other| {
        let weight =
            |change: &Change| (change.event.is_loss(), (rate(change.after) - rate(change.before)).abs());
        let (one, other) = (weight(one), weight(other));
        other.0.cmp(&one.0).then(other.1.total_cmp(&one.1))
    });
    let (old, new) = (before.tables(), after.tables());
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let fill = |netns: &String| Fill {
        netns: netns.clone(),
        before: old.get(netns).copied(),
        after: new.get(netns).copied(),
    };
    comparison.tables = names.into_iter().map(fill).collect();
    comparison
}

const fn rate(seen: Seen) -> f64 {
    match seen {
        Seen::Rate(rate) => rate,
        Seen::Unknown => 0.0,
    }
}

const fn is_unknown(seen: (Seen, Seen)) -> bool {
    matches!(seen.0, Seen::Unknown) || matches!(seen.1, Seen::Unknown)
}

/// Whether two counts come from different rates: the rates are more than a tenth apart, and further than three times what
/// independent events scatter by (the root of a count).
fn differs(before: (u64, Duration), after: (u64, Duration)) -> bool {
    let of = |(count, watched): (u64, Duration)| {
        let seconds = watched.as_secs_f64().max(1e-9);
        // Of nothing seen in a time, up to one may have been due.
        (count as f64 / seconds, (count.max(1) as f64).sqrt() / seconds)
    };
    let ((before, scatter), (after, other)) = (of(before), of(after));
    let apart = (after - before).abs();
    apart > before.max(after) / 10.0 && apart > 3.0 * scatter.hypot(other)
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::{AF_INET, Counters};
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Sample, SourceInfo, SourceKind, Table, Tracker};

    /// Some seconds with these inserts and refusals in each; `netns` is the inode of `init`.
    fn time(netns: u32, seconds: u64, inserts: u64, refused: u64, unknown: &[Event]) -> Incident {
        let unknown = unknown.iter().map(|event| (*event, String::new())).collect();
        let info = SourceInfo { kind: SourceKind::Fexit, why: None, unknown };
        let (mut incident, mut tracker) = (Incident::default(), Tracker::new(0));
        let mut counters = Counters::default();
        for at in 1..=seconds {
            counters.0[Event::Insert as usize] += inserts;
            counters.0[Event::DropTableFull as usize] += refused;
            let report = tracker.advance(Sample {
                mono_ns: at * 1_000_000_000,
                rows: [(FlowType { netns, family: AF_INET, proto: 17 }, counters)].into(),
                tables: vec![Table { netns, name: "init".into(), count: Some(at), max: Some(1000) }],
                ..Sample::default()
            });
            incident.add(1, &info, &report);
        }
        incident.finish();
        incident
    }

    #[test]
    fn losses_come_first_and_what_is_the_same_is_counted() {
        let (healthy, sick) = (time(7, 20, 100, 0, &[]), time(9, 10, 900, 5, &[]));
        let found = compare(&healthy, &sick);
        let shown: Vec<(Event, Seen, Seen)> =
            found.changes.iter().map(|change| (change.event, change.before, change.after)).collect();
        assert_eq!(
            shown,
            [
                (Event::DropTableFull, Seen::Rate(0.0), Seen::Rate(5.0)),
                (Event::Insert, Seen::Rate(100.0), Seen::Rate(900.0)),
            ]
        );
        assert_eq!(found.changes[0].netns, "init");
        let fill =
            Fill { netns: "init".into(), before: Some((20, Some(1000))), after: Some((10, Some(1000))) };
        assert_eq!(found.tables, [fill]);
        assert_eq!(found.same, 0);
        assert_eq!(
            compare(&sick, &time(3, 40, 905, 5, &[])),
            Comparison {
                same: 2,
                tables: vec![Fill {
                    netns: "init".into(),
                    before: Some((10, Some(1000))),
                    after: Some((40, Some(1000))),
                }],
                ..Comparison::default()
            }
        );
    }

    #[test]
    fn what_a_source_cannot_tell_is_no_change_to_0() {
        let (one, other) = (time(7, 10, 100, 5, &[]), time(7, 10, 100, 0, &[Event::DropTableFull]));
        let found = compare(&one, &other);
        assert_eq!(found.changes.len(), 1);
        assert_eq!((found.changes[0].before, found.changes[0].after), (Seen::Rate(5.0), Seen::Unknown));
        let blind = time(7, 10, 100, 5, &[Event::DropTableFull]);
        assert_eq!(compare(&blind, &other).changes, []);
    }

    #[test]
    fn chance_is_no_change() {
        let second = Duration::from_secs(1);
        for (before, after, expected) in [
            (0, 1, false),
            (0, 4, false),
            (0, 12, true),
            (10, 20, false),
            (10, 40, true),
            (1000, 1090, false),
        ] {
            assert_eq!(differs((before, second), (after, second)), expected, "{before} and {after}");
        }
        // Much is never chance; less than a tenth is nothing to look at.
        assert!(!differs((1_000_000, second), (1_090_000, second)));
        assert!(differs((1_000_000, second), (1_200_000, second)));
    }

    proptest! {
        #[test]
        fn a_time_does_not_differ_from_itself(seconds in 1_u64..30, inserts in 0_u64..1000, refused in 0_u64..1000) {
            let one = time(7, seconds, inserts, refused, &[]);
            prop_assert_eq!(compare(&one, &one).changes, []);
        }
    }
}
