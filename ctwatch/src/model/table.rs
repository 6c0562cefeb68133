//! What a table holds, grouped and ranked, in bounded memory whatever it holds.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use ctwatch_ebpf::loss::{Tuple, has_ports};

use super::filter::ip;
use super::state::State;

pub use super::entry::{Entry, Nat, Offload, Traffic, status};
pub use super::group_by::{Dimensions, GroupBy};
pub use super::holding::{Holding, Saved, Space};

/// Groups kept at once, 18 MB of them. All ports of one protocol fit.
pub const MOST_GROUPS: usize = 1 << 16;

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
    original: Ends,
    reply: Ends,
    netns: u32,
    mark: u32,
    zone: u16,
    family: u8,
    proto: u8,
    /// `None` where it was not asked for, as are these two.
    state: Option<State>,
    flags: u8,
    nat: Nat,
    offload: Offload,
}

/// The asked parts of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Ends {
    src: [u64; 2],
    dst: [u64; 2],
    sport: [u8; 2],
    dport: [u8; 2],
}

/// In [`Key::flags`].
const ASSURED: u8 = 1;
/// There is a port 0 too.
const PORTS: u8 = 2;
/// There is a reply direction.
const REPLY: u8 = 4;

impl Key {
    /// Among groups of one size: by what they have in common, from left to right; what has no ports comes first.
    fn order(&self) -> impl Ord {
        (
            (self.netns, self.family, self.proto, self.state, self.flags),
            (self.original.order(), self.reply.order()),
            (self.nat, self.zone, self.mark, self.offload),
        )
    }
}

impl Ends {
    /// Those of a tuple that are asked for: source, its port, destination, its port.
    fn of(tuple: &Tuple, by: Dimensions, asked: [GroupBy; 4]) -> Self {
        let [src, sport, dst, dport] = asked.map(|part| by.contains(part));
        let ports = has_ports(tuple.proto);
        Self {
            src: if src { tuple.src } else { [0; 2] },
            dst: if dst { tuple.dst } else { [0; 2] },
            sport: if sport && ports { tuple.src_part } else { [0; 2] },
            dport: if dport && ports { tuple.dst_part } else { [0; 2] },
        }
    }

    fn order(&self) -> impl Ord {
        let address = |words: [u64; 2]| words.map(u64::from_be);
        (address(self.src), u16::from_be_bytes(self.sport), address(self.dst), u16::from_be_bytes(self.dport))
    }
}

/// What one group has so far.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    count: u64,
    /// `None` until an entry of it was accounted.
    traffic: Option<Traffic>,
}

impl Sum {
    fn add(&mut self, entry: &Entry) {
        self.count += 1;
        if let Some(traffic) = entry.traffic {
            self.traffic = Some(self.traffic.unwrap_or_default().plus(traffic));
        }
    }
}

/// Counts entries by group.
#[derive(Debug)]
pub struct Grouping {
    by: Dimensions,
    most: usize,
    groups: HashMap<Key, Sum>,
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
        if let Some(sum) = self.groups.get_mut(&key) {
            sum.add(entry);
        } else if self.groups.len() < self.most {
            self.groups.entry(key).or_default().add(entry);
        } else {
            self.ungrouped += 1;
        }
    }

    fn key(&self, entry: &Entry) -> Key {
        let Entry { netns, tuple, reply, state, status, mark, .. } = entry;
        let by = self.by;
        let asked = |one| by.contains(one);
        let mut key = Key { original: Ends::of(tuple, by, ORIGINAL), ..Key::default() };
        if asked(GroupBy::Netns) {
            key.netns = *netns;
        }
        if by.has_family() {
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
        if by.has_ports() && has_ports(tuple.proto) {
            key.flags |= PORTS;
        }
        if by.has_reply()
            && let Some(reply) = reply
        {
            key.flags |= REPLY;
            key.reply = Ends::of(reply, by, REPLIES);
        }
        if asked(GroupBy::Nat) {
            key.nat = entry.nat();
        }
        if asked(GroupBy::Zone) {
            key.zone = tuple.zone;
        }
        if asked(GroupBy::Mark) {
            key.mark = *mark;
        }
        if asked(GroupBy::Offload) {
            key.offload = entry.offload();
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
        let mut sums: Vec<(Key, Sum)> = self.groups.drain().collect();
        sums.sort_unstable_by_key(|(_, sum)| Reverse(sum.count));
        self.ungrouped += sums.drain(keep..).map(|(_, sum)| sum.count).sum::<u64>();
        self.groups.extend(sums);
    }

    /// The census of what came since it was last taken.
    pub fn take_census(&mut self) -> Census {
        std::mem::take(&mut self.census)
    }

    /// The groups, largest first, `most` of them where that is given.
    pub fn ranked(&self, most: Option<usize>) -> Ranked {
        let mut sums: Vec<(&Key, &Sum)> = self.groups.iter().collect();
        let order = |a: &(&Key, &Sum), b: &(&Key, &Sum)| {
            b.1.count.cmp(&a.1.count).then_with(|| a.0.order().cmp(&b.0.order()))
        };
        let shown = most.unwrap_or(usize::MAX).min(sums.len());
        // Sorting what is not shown would cost more than all the rest of it.
        if shown < sums.len() {
            sums.select_nth_unstable_by(shown, order);
        }
        let rest = sums.split_off(shown);
        sums.sort_unstable_by(order);
        Ranked {
            groups: sums.into_iter().map(|(key, sum)| self.group(key, sum)).collect(),
            more_groups: rest.len(),
            more_entries: rest.iter().map(|(_, sum)| sum.count).sum(),
            ungrouped: self.ungrouped,
        }
    }

    fn group(&self, key: &Key, sum: &Sum) -> Group {
        let asked = |by| self.by.contains(by);
        let has = |flag| key.flags & flag == flag;
        let port = |by, flags, port| (asked(by) && has(flags)).then(|| u16::from_be_bytes(port));
        let address = |by, flags, words| if asked(by) && has(flags) { ip(key.family, words) } else { None };
        let (original, reply) = (&key.original, &key.reply);
        Group {
            count: sum.count,
            traffic: sum.traffic,
            netns: asked(GroupBy::Netns).then_some(key.netns),
            family: self.by.has_family().then_some(key.family),
            proto: asked(GroupBy::Proto).then_some(key.proto),
            state: key.state,
            assured: asked(GroupBy::Assured).then_some(has(ASSURED)),
            src: address(GroupBy::Src, 0, original.src),
            sport: port(GroupBy::Sport, PORTS, original.sport),
            dst: address(GroupBy::Dst, 0, original.dst),
            dport: port(GroupBy::Dport, PORTS, original.dport),
            rsrc: address(GroupBy::Rsrc, REPLY, reply.src),
            rsport: port(GroupBy::Rsport, PORTS | REPLY, reply.sport),
            rdst: address(GroupBy::Rdst, REPLY, reply.dst),
            rdport: port(GroupBy::Rdport, PORTS | REPLY, reply.dport),
            nat: asked(GroupBy::Nat).then_some(key.nat),
            zone: asked(GroupBy::Zone).then_some(key.zone),
            mark: asked(GroupBy::Mark).then_some(key.mark),
            offload: asked(GroupBy::Offload).then_some(key.offload),
        }
    }
}

/// Source, its port, destination and its port.
const ORIGINAL: [GroupBy; 4] = [GroupBy::Src, GroupBy::Sport, GroupBy::Dst, GroupBy::Dport];
const REPLIES: [GroupBy; 4] = [GroupBy::Rsrc, GroupBy::Rsport, GroupBy::Rdst, GroupBy::Rdport];

/// Entries that have in common what was asked for. What was not, or what their protocol has not, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many there are.
    pub count: u64,
    /// Their traffic, as far as the kernel accounted it.
    pub traffic: Option<Traffic>,
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
    /// Source address of answers.
    pub rsrc: Option<IpAddr>,
    /// Source port of answers.
    pub rsport: Option<u16>,
    /// Destination address of answers.
    pub rdst: Option<IpAddr>,
    /// Destination port of answers.
    pub rdport: Option<u16>,
    /// What NAT does.
    pub nat: Option<Nat>,
    /// Conntrack zone.
    pub zone: Option<u16>,
    /// `ct mark`.
    pub mark: Option<u32>,
    /// What forwards packets.
    pub offload: Option<Offload>,
}

impl Group {
    /// The part of a key that a dimension stands for, where this group has it.
    pub fn key(&self, by: GroupBy) -> Option<String> {
        match by {
            GroupBy::Src => self.src.map(|address| address.to_string()),
            GroupBy::Sport => self.sport.map(|port| port.to_string()),
            GroupBy::Dst => self.dst.map(|address| address.to_string()),
            GroupBy::Dport => self.dport.map(|port| port.to_string()),
            GroupBy::Rsrc => self.rsrc.map(|address| address.to_string()),
            GroupBy::Rsport => self.rsport.map(|port| port.to_string()),
            GroupBy::Rdst => self.rdst.map(|address| address.to_string()),
            GroupBy::Rdport => self.rdport.map(|port| port.to_string()),
            GroupBy::Nat => self.nat.map(|nat| nat.name().to_owned()),
            GroupBy::Zone => self.zone.map(|zone| zone.to_string()),
            GroupBy::Mark => self.mark.map(|mark| mark.to_string()),
            GroupBy::Offload => self.offload.map(|offload| offload.name().to_owned()),
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

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
