//! What the numbers of events and groups in frames mean: a recording has their names.

use ctwatch_ebpf::{Counters, Event, Group};

use crate::model::{Flow, Rates};

/// The events and groups of a recording, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::record) struct Names {
    events: Vec<Event>,
    groups: Vec<Group>,
}

impl Names {
    /// As this ctwatch writes them.
    pub(in crate::record) fn own() -> Self {
        Self { events: Event::ALL.into(), groups: Group::ALL.into() }
    }

    /// As a recording has them; `None` where it has one that this ctwatch does not know, or one twice.
    pub(super) fn read(events: &[String], groups: &[String]) -> Option<Self> {
        let event = |name: &String| Event::ALL.into_iter().find(|event| event.field() == name);
        let group = |name: &String| Group::ALL.into_iter().find(|group| group.name() == name);
        let events: Vec<Event> = all_different(events)?.iter().map(event).collect::<Option<_>>()?;
        let groups = all_different(groups)?.iter().map(group).collect::<Option<_>>()?;
        Some(Self { events, groups })
    }

    /// How they are written.
    pub(super) fn written(&self) -> (Vec<String>, Vec<String>) {
        (
            self.events.iter().map(|event| event.field().to_owned()).collect(),
            self.groups.iter().map(|group| group.name().to_owned()).collect(),
        )
    }

    pub(super) fn event(&self, number: u8) -> Option<Event> {
        self.events.get(usize::from(number)).copied()
    }

    pub(super) fn group(&self, number: u8) -> Option<Group> {
        self.groups.get(usize::from(number)).copied()
    }

    pub(super) fn counters(&self, sparse: &[(u8, u64)]) -> Option<Counters> {
        let mut counters = Counters::default();
        for (number, count) in sparse {
            counters.0[self.event(*number)? as usize] = *count;
        }
        Some(counters)
    }

    /// The rates of a recording's groups; 0 for a group that it does not have.
    pub(super) fn rates(&self, values: &[f64]) -> Rates {
        let rate = |group: Group| {
            let at = self.groups.iter().position(|one| *one == group)?;
            values.get(at).copied().filter(|rate| rate.is_finite())
        };
        Rates::from_fn(|group| rate(group).unwrap_or(0.0))
    }

    /// The counts that a difference has a number for: those that were ever other than 0, by row and event.
    pub(super) fn cells(&self, flows: &[Flow]) -> Vec<(usize, Event)> {
        let of = |(row, flow): (usize, &Flow)| {
            let total = flow.total;
            self.events.iter().filter(move |event| total.get(**event) > 0).map(move |event| (row, *event))
        };
        flows.iter().enumerate().flat_map(of).collect()
    }
}

/// Counts other than 0, by the number of the event as this ctwatch writes it.
pub(super) fn sparse(counters: &Counters) -> Vec<(u8, u64)> {
    (0u8..).zip(counters.0).filter(|(_, count)| *count > 0).collect()
}

/// A list of names, each there once.
fn all_different(names: &[String]) -> Option<&[String]> {
    // Far more than there are events, and few enough to compare each with each.
    let few = names.len() <= 256;
    (few && names.iter().enumerate().all(|(at, name)| !names[..at].contains(name))).then_some(names)
}
