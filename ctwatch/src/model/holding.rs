//! What was found in the tables of namespaces, as the views get it.

use super::Table;
use super::held::{Reading, held};
use super::table::{Census, Dimensions, GroupBy, Ranked};

/// One namespace as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its name, count and limit.
    pub table: Table,
    /// What passed the filter.
    pub census: Census,
    /// Whether the kernel said that the table changed so much under the reading that entries may be missing or twice.
    pub interrupted: bool,
    /// What was listed against the kernel's count, twice where they differed; none where only a part was asked for.
    pub readings: Vec<Reading>,
    /// Why it could not be read, where it could not.
    pub error: Option<String>,
}

impl Space {
    /// Entries that the kernel lists.
    pub fn listed(&self) -> Option<u64> {
        self.readings.last().map(|reading| reading.listed)
    }

    /// The kernel's count as they were listed.
    pub fn counted(&self) -> Option<u64> {
        self.readings.last().map(|reading| reading.after)
    }

    /// Entries that are counted and in no list.
    pub fn held(&self) -> Option<u64> {
        held(&self.readings)
    }
}

/// What was found: in one namespace, or in all of them where they are ranked together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// When its reading ended, nanoseconds since the Unix epoch.
    pub wall_ns: i128,
    /// What it is grouped by.
    pub by: Dimensions,
    /// Whether only a part of the entries was asked for.
    pub filtered: bool,
    /// The namespaces: one, unless [`GroupBy::Netns`] was asked for.
    pub spaces: Vec<Space>,
    /// How many namespaces were not read at all.
    pub namespaces_left_out: u64,
    /// The groups of them all.
    pub ranked: Ranked,
    /// The saved list that was read instead of this machine's table.
    pub saved: Option<Saved>,
}

/// A saved list as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Its file.
    pub from: String,
    /// Entries, before filters.
    pub listed: u64,
    /// Lines that are no entries.
    pub unread: u64,
    /// The number of the first of them, counted from 1, and why it is none.
    pub first: Option<(u64, String)>,
    /// The number of the last line, where it ends in the middle.
    pub cut: Option<u64>,
}

impl Holding {
    /// Whether all namespaces are in one ranking.
    pub const fn is_joint(&self) -> bool {
        self.by.contains(GroupBy::Netns)
    }

    /// A namespace's name.
    pub fn name(&self, netns: u32) -> Option<&str> {
        self.spaces
            .iter()
            .map(|space| &space.table)
            .find(|table| table.netns == netns)
            .map(|table| table.name.as_str())
    }

    /// All namespaces of it together.
    pub fn census(&self) -> Census {
        self.spaces.iter().fold(Census::default(), |sum, space| sum.plus(space.census))
    }
}
