//! Tables and rankings as they lie in frames.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::ranking::{By, Top};
use crate::model::{Report, Table};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TableWire {
    netns: u32,
    name: String,
    count: Option<u64>,
    max: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TopWire {
    by: u8,
    netns: u32,
    family: u8,
    proto: u8,
    key: String,
    counts: [u64; 4],
}

impl From<&Table> for TableWire {
    fn from(table: &Table) -> Self {
        Self { netns: table.netns, name: table.name.clone(), count: table.count, max: table.max }
    }
}

impl From<TableWire> for Table {
    fn from(wire: TableWire) -> Self {
        Self { netns: wire.netns, name: wire.name, count: wire.count, max: wire.max }
    }
}

impl From<&Top> for TopWire {
    fn from(top: &Top) -> Self {
        Self {
            by: top.by as u8,
            netns: top.netns,
            family: top.family,
            proto: top.proto,
            key: top.key.clone(),
            counts: top.counts(),
        }
    }
}

impl TopWire {
    /// `None` where it is no line of a ranking that this ctwatch knows.
    fn top(self) -> Option<Top> {
        let by = By::ALL.into_iter().find(|by| *by as u8 == self.by)?;
        // A key is shown as it is: it must be nothing else.
        let is_key = match by {
            By::Dport => self.key.parse::<u16>().is_ok_and(|port| port.to_string() == self.key),
            By::Src | By::Dst => self.key.parse::<IpAddr>().is_ok(),
        };
        let [insert, early_drop, drop, invalid] = self.counts;
        let Self { netns, family, proto, key, .. } = self;
        is_key.then_some(Top { by, netns, family, proto, key, insert, early_drop, drop, invalid })
    }
}

/// The rankings of a report again.
pub(super) fn open_tops(tops: Vec<TopWire>) -> Option<Vec<Top>> {
    tops.into_iter().map(TopWire::top).collect()
}

/// The rankings of a report.
pub(super) fn tops(report: &Report) -> Option<Vec<TopWire>> {
    report.top.as_ref().map(|top| top.iter().map(TopWire::from).collect())
}
