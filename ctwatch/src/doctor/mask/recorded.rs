//! The same for what a recording holds.

use super::names::Masks;
use super::prose;
use crate::model::trace::Flow;
use crate::model::{Report, SourceInfo};

/// Masks reports, the same name and address in the same way in all of them.
#[derive(Debug, Default)]
pub struct Recorded(Masks);

impl Recorded {
    /// The machine's name.
    pub fn host(&mut self, host: &mut String) {
        *host = self.0.name(host);
    }

    /// What a source says of itself.
    pub fn info(&mut self, info: &mut SourceInfo) {
        let SourceInfo { kind: _, why, unknown } = info;
        for told in why.iter_mut().chain(unknown.values_mut()) {
            *told = prose(told, &mut self.0);
        }
    }

    /// Namespaces, ranked addresses, single losses and the processes that they name.
    pub fn report(&mut self, report: &mut Report) {
        let Report {
            wall_ns: _,
            elapsed: _,
            watched: _,
            flows: _,
            tables,
            names,
            namespaces_left_out: _,
            lost: _,
            cost: _,
            own: _,
            top,
            losses,
        } = report;
        for table in tables {
            self.netns(table.netns, &mut table.name);
        }
        for (netns, name) in names {
            self.netns(*netns, name);
        }
        for top in top.iter_mut().flatten() {
            if let Ok(address) = top.key.parse() {
                top.key = self.0.address(address).to_string();
            }
        }
        for record in losses.iter_mut().flat_map(|losses| &mut losses.events) {
            let known = record.invalid.as_mut().and_then(|invalid| invalid.known.as_mut());
            let reply = record.entry.as_mut().map(|entry| &mut entry.reply);
            let flows = [Some(&mut record.flow), record.newcomer.as_mut(), reply, known];
            for flow in flows.into_iter().flatten() {
                let Flow { family: _, proto: _, src, dst, detail: _, zone: _ } = flow;
                (*src, *dst) = (self.0.address(*src), self.0.address(*dst));
            }
            if let Some(comm) = &mut record.comm {
                *comm = self.0.name(comm);
            }
        }
    }

    fn netns(&mut self, netns: u32, name: &mut String) {
        if *name != netns.to_string() {
            *name = self.0.name(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ctwatch_ebpf::{AF_INET, Event, Group};

    use super::*;
    use crate::model::entry::Nat;
    use crate::model::ranking::{By, Losses, Top};
    use crate::model::trace::{Detail, OfEntry, Record};
    use crate::model::{Sample, Table, Tracker};

    #[test]
    fn no_name_and_no_address_is_left() {
        let flow = |src: [u8; 4]| Flow {
            family: AF_INET,
            proto: 17,
            src: src.into(),
            dst: [198, 51, 100, 9].into(),
            detail: Detail::Ports(1, 53),
            zone: 0,
        };
        let record = Record {
            wall_ns: 0,
            name: Group::EarlyDrop,
            event: Event::DeleteEarlyDrop,
            netns: 9,
            flow: flow([203, 0, 113, 7]),
            assured: false,
            replied: false,
            age: None,
            newcomer: Some(flow([192, 0, 2, 77])),
            entry: Some(OfEntry { reply: flow([192, 0, 2, 78]), nat: Nat::Dnat, mark: 0 }),
            invalid: None,
            certainty: crate::model::trace::Certainty::default(),
            cpu: Some(0),
            comm: Some("secretd".into()),
        };
        let top = Top {
            by: By::Src,
            netns: 9,
            family: AF_INET,
            proto: 17,
            key: "203.0.113.7".into(),
            insert: 1,
            early_drop: 0,
            drop: 0,
            invalid: 0,
        };
        let mut report = Tracker::new(0).advance(Sample {
            rows: BTreeMap::new(),
            tables: vec![Table { netns: 9, name: "customer-a".into(), count: Some(1), max: Some(2) }],
            top: Some(vec![top]),
            losses: Some(Losses { events: vec![record], more: 0 }),
            ..Sample::default()
        });
        let (mut mask, mut host) = (Recorded::default(), "web-7.example".to_owned());
        mask.host(&mut host);
        mask.report(&mut report);
        let left = format!("{host} {report:?}");
        for secret in ["web-7", "customer-a", "secretd", "203.0.113.7", "192.0.2.77", "198.51.100.9"] {
            assert!(!left.contains(secret), "{secret} in {left}");
        }
        let losses = report.losses.unwrap();
        let key = &report.top.unwrap()[0].key;
        assert_eq!(*key, losses.events[0].flow.src.to_string(), "one address, one mask");
        assert_eq!(report.tables[0].name, report.names[&9]);
    }
}
