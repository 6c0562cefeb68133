//! What a table holds, grouped and ranked, in bounded memory whatever it holds.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use ctwatch_ebpf::loss::{Tuple, has_ports};

use super::Table;
use super::filter::ip;
use super::held::{Reading, held};
use super::state::State;

pub use super::group_by::{Dimensions, GroupBy};

/// Bits of an entry's status (uapi/linux/netfilter/nf_conntrack_common.h).
pub mod status {
    /// A packet came in both directions.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// `early_drop` passes it by.
    pub const ASSURED: u32 = 1 << 2;
    /// It is in the table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// It lost a clash and lives by its reply direction only (5.9).
    pub const NAT_CLASH: u32 = 1 << 12;
    /// A flow table forwards it; `early_drop` passes it by too.
    pub const OFFLOAD: u32 = 1 << 14;
}

/// Groups kept at once, 8 MB of them. All ports of one protocol fit.
pub const MOST_GROUPS: usize = 1 << 16;

/// One entry, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Inode of its network namespace.
    pub netns: u32,
    /// Its original direction.
    pub tuple: Tuple,
    /// The number that its protocol's tracker gives its state.
    pub state: Option<u8>,
    /// Bits of [`status`].
    pub status: u32,
}

/// How many entries there are, and how many of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// All of them.
    pub total: u64,
    /// Those that `early_drop` would sacrifice for a newcomer.
    pub evictable: u64,
    /// Those that never got an answer.
    pub unreplied: u64,
}

impl Census {
    fn add(&mut self, entry: &Entry) {
        let evictable = entry.status & (status::ASSURED | status::CONFIRMED | status::OFFLOAD);
        self.total += 1;
        self.evictable += u64::from(evictable == status::CONFIRMED);
        self.unreplied += u64::from(entry.status & status::SEEN_REPLY == 0);
    }

    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            evictable: self.evictable + other.evictable,
            unreplied: self.unreplied + other.unreplied,
        }
    }
}

/// What tells one group from another, small enough to be copied for each entry. What was not asked for is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Key {
    src: [u64; 2],
    dst: [u64; 2],
    netns: u32,
    sport: [u8; 2],
    dport: [u8; 2],
    family: u8,
    proto: u8,
    /// `None` where it was not asked for, as are these two.
    state: Option<State>,
    flags: u8,
}

/// In [`Key::flags`].
const ASSURED: u8 = 1;
/// There is a port 0 too.
const PORTS: u8 = 2;

impl Key {
    /// Among groups of one size: by what they have in common, from left to right; what has no ports comes first.
    fn order(&self) -> impl Ord {
        let address = |words: [u64; 2]| words.map(u64::from_be);
        (
            (self.netns, self.family, self.proto, self.state, self.flags),
            (
                address(self.src),
                u16::from_be_bytes(self.sport),
                address(self.dst),
                u16::from_be_bytes(self.dport),
            ),
        )
    }
}

/// Counts entries by group.
#[derive(Debug)]
pub struct Grouping {
    by: Dimensions,
    most: usize,
    groups: HashMap<Key, u64>,
    census: Census,
    ungrouped: u64,
}

impl Grouping {
    /// Groups by these, at most so many groups at once.
    pub fn new(by: Dimensions, most: usize) -> Self {
        Self { by, most, groups: HashMap::new(), census: Census::default(), ungrouped: 0 }
    }

    /// Counts one entry. One that would open a group too many is counted as ungrouped: the counts of groups that are
    /// there stay exact. A table is read in the order of its hash, so whatever holds a good part of it is met early.
    pub fn add(&mut self, entry: &Entry) {
        self.census.add(entry);
        let key = self.key(entry);
        if let Some(count) = self.groups.get_mut(&key) {
            *count += 1;
        } else if self.groups.len() < self.most {
            self.groups.insert(key, 1);
        } else {
            self.ungrouped += 1;
        }
    }

    fn key(&self, entry: &Entry) -> Key {
        let Entry { netns, tuple, state, status } = entry;
        let asked = |by| self.by.contains(by);
        let mut key = Key::default();
        if asked(GroupBy::Netns) {
            key.netns = *netns;
        }
        if self.by.has_family() {
            key.family = tuple.family;
        }
        if asked(GroupBy::Proto) {
            key.proto = tuple.proto;
        }
        if asked(GroupBy::State) {
            key.state = Some(State::of(tuple, *state, *status));
        }
        if asked(GroupBy::Assured) && status & status::ASSURED != 0 {
            key.flags |= ASSURED;
        }
        if asked(GroupBy::Src) {
            key.src = tuple.src;
        }
        if asked(GroupBy::Dst) {
            key.dst = tuple.dst;
        }
        if (asked(GroupBy::Sport) || asked(GroupBy::Dport)) && has_ports(tuple.proto) {
            key.flags |= PORTS;
            if asked(GroupBy::Sport) {
                key.sport = tuple.src_part;
            }
            if asked(GroupBy::Dport) {
                key.dport = tuple.dst_part;
            }
        }
        key
    }

    /// Before the next of several namespaces: the groups of those before it must not have taken all the room. Of more
    /// than half of it, the largest stay and the entries of the others become ungrouped.
    pub fn make_room(&mut self) {
        let keep = self.most / 2;
        if self.groups.len() <= keep {
            return;
        }
        let mut counts: Vec<(Key, u64)> = self.groups.drain().collect();
        counts.sort_unstable_by_key(|(_, count)| Reverse(*count));
        self.ungrouped += counts.drain(keep..).map(|(_, count)| count).sum::<u64>();
        self.groups.extend(counts);
    }

    /// The census of what came since it was last taken.
    pub fn take_census(&mut self) -> Census {
        std::mem::take(&mut self.census)
    }

    /// The groups, largest first, `most` of them where that is given.
    pub fn ranked(&self, most: Option<usize>) -> Ranked {
        let mut counts: Vec<(&Key, u64)> = self.groups.iter().map(|(key, count)| (key, *count)).collect();
        let order =
            |a: &(&Key, u64), b: &(&Key, u64)| b.1.cmp(&a.1).then_with(|| a.0.order().cmp(&b.0.order()));
        let shown = most.unwrap_or(usize::MAX).min(counts.len());
        // Sorting what is not shown would cost more than all the rest of it.
        if shown < counts.len() {
            counts.select_nth_unstable_by(shown, order);
        }
        let rest = counts.split_off(shown);
        counts.sort_unstable_by(order);
        Ranked {
            groups: counts.into_iter().map(|(key, count)| self.group(key, count)).collect(),
            more_groups: rest.len(),
            more_entries: rest.iter().map(|(_, count)| count).sum(),
            ungrouped: self.ungrouped,
        }
    }

    fn group(&self, key: &Key, count: u64) -> Group {
        let asked = |by| self.by.contains(by);
        let port = |by, port| (asked(by) && key.flags & PORTS != 0).then(|| u16::from_be_bytes(port));
        Group {
            count,
            netns: asked(GroupBy::Netns).then_some(key.netns),
            family: self.by.has_family().then_some(key.family),
            proto: asked(GroupBy::Proto).then_some(key.proto),
            state: key.state,
            assured: asked(GroupBy::Assured).then_some(key.flags & ASSURED != 0),
            src: if asked(GroupBy::Src) { ip(key.family, key.src) } else { None },
            sport: port(GroupBy::Sport, key.sport),
            dst: if asked(GroupBy::Dst) { ip(key.family, key.dst) } else { None },
            dport: port(GroupBy::Dport, key.dport),
        }
    }
}

/// Entries that have in common what was asked for. What was not, or what their protocol has not, is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// How many there are.
    pub count: u64,
    /// Inode of their network namespace.
    pub netns: Option<u32>,
    /// [`ctwatch_ebpf::AF_INET`] or [`ctwatch_ebpf::AF_INET6`].
    pub family: Option<u8>,
    /// L4 protocol number.
    pub proto: Option<u8>,
    /// See [`GroupBy::State`].
    pub state: Option<State>,
    /// See [`GroupBy::Assured`].
    pub assured: Option<bool>,
    /// Source address.
    pub src: Option<IpAddr>,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Destination port.
    pub dport: Option<u16>,
}

impl Group {
    /// The address or port that a dimension stands for, where this group has it.
    pub fn key(&self, by: GroupBy) -> Option<String> {
        match by {
            GroupBy::Src => self.src.map(|address| address.to_string()),
            GroupBy::Sport => self.sport.map(|port| port.to_string()),
            GroupBy::Dst => self.dst.map(|address| address.to_string()),
            GroupBy::Dport => self.dport.map(|port| port.to_string()),
            GroupBy::Netns | GroupBy::Proto | GroupBy::State | GroupBy::Assured => None,
        }
    }
}

/// Groups, largest first, and what is left out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranked {
    /// The largest ones.
    pub groups: Vec<Group>,
    /// How many more there are …
    pub more_groups: usize,
    /// … and how many entries they have.
    pub more_entries: u64,
    /// Entries for whose groups there was no room.
    pub ungrouped: u64,
}

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

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
