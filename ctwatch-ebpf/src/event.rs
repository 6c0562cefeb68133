//! The one table of events: the name, the groups and the kind of each event.
//!
//! Everything that names, groups, adds up or filters events reads it here.

use crate::Counters;

/// What is true of an event beside its name.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    /// A packet, a new flow or a live entry was lost.
    Loss,
    /// Not part of a healthy interval: shown by its name where it happens.
    Rare,
    /// Counted in the first event of its group as well: never add both.
    Within,
}

struct Row {
    event: Event,
    field: &'static str,
    groups: &'static [Group],
    kinds: &'static [Kind],
}

macro_rules! groups {
    ($($(#[$doc:meta])* $group:ident $name:literal;)*) => {
        /// Events that users see under one name: a field of `live --json`, a name in `trace --events`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
        #[repr(u8)]
        pub enum Group {
            $($(#[$doc])* $group,)*
        }

        impl Group {
            /// Every group, in the order of the fields of `live --json`.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$group),*];

            /// As flags and JSON spell it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$group => $name,)*
                }
            }

            /// Every event that is shown under this name.
            pub const fn events(self) -> &'static [Event] {
                match self {
                    $(Self::$group => {
                        const EVENTS: [Event; count(Group::$group, true)] = members(Group::$group, true);
                        &EVENTS
                    })*
                }
            }

            /// The events that add up to the group's count.
            pub const fn parts(self) -> &'static [Event] {
                match self {
                    $(Self::$group => {
                        const PARTS: [Event; count(Group::$group, false)] = members(Group::$group, false);
                        &PARTS
                    })*
                }
            }
        }
    };
}

macro_rules! events {
    ($($(#[$doc:meta])* $event:ident in $($group:ident)+, $field:literal $(, $kind:ident)*;)*) => {
        /// One counter of a flow type. The names are the kernel's own; each event happens to exactly one flow.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
        #[repr(u32)]
        pub enum Event {
            $($(#[$doc])* $event,)*
        }

        const TABLE: [Row; [$($field),*].len()] = [$(
            Row {
                event: Event::$event,
                field: $field,
                groups: &[$(Group::$group),+],
                kinds: &[$(Kind::$kind),*],
            },
        )*];
    };
}

groups! {
    /// An entry entered from the packet path.
    Insert "insert";
    /// An entry entered through ctnetlink or a BPF helper.
    InsertNetlink "insert_netlink";
    /// Two packets raced for one flow and both live.
    ClashResolve "clash_resolve";
    /// A live entry was evicted to make room.
    EarlyDrop "early_drop";
    /// A packet was dropped because its entry could not enter, by reason.
    InsertFailed "insert_failed";
    /// A new flow was refused, by reason.
    Drop "drop";
    /// A packet that conntrack could not assign to a flow, by reason.
    Invalid "invalid";
    /// An entry left the table, by cause.
    Delete "delete";
}

// In the order of their counters. The events of a group stand together; those of `Delete` come last.
events! {
    /// An entry entered the hash table from the packet path.
    Insert in Insert, "insert";
    /// An entry entered the hash table through ctnetlink or a BPF helper.
    InsertNetlink in InsertNetlink, "insert_netlink", Rare;
    /// Two packets raced for one flow and both live: merged, or entered reply-only.
    ClashResolve in ClashResolve, "clash_resolve", Rare;
    /// The part of [`Event::ClashResolve`] that entered the table reply-only (`IPS_NAT_CLASH`).
    ClashReplyOnly in ClashResolve, "clash_reply_only", Within;
    /// A packet dropped because another packet's entry took its tuple.
    FailedClash in InsertFailed, "insert_failed.clash", Loss, Rare;
    /// A packet dropped because its hash chain was too long.
    FailedChaintoolong in InsertFailed, "insert_failed.chaintoolong", Loss, Rare;
    /// A packet dropped because its entry was already dying.
    FailedDying in InsertFailed, "insert_failed.dying", Loss, Rare;
    /// A packet dropped at confirmation for any other reason.
    FailedOther in InsertFailed, "insert_failed.other", Loss, Rare;
    /// A new flow refused because the table was full and nothing could be evicted.
    DropTableFull in Drop, "drop.table_full", Loss;
    /// A new flow refused because the entry could not be allocated.
    DropNoMemory in Drop, "drop.no_memory", Loss, Rare;
    /// A packet outside its connection's window.
    InvalidOutOfWindow in Invalid, "invalid.out_of_window", Rare;
    /// A packet that its connection's state does not allow.
    InvalidBadState in Invalid, "invalid.bad_state", Rare;
    /// A packet with a wrong checksum.
    InvalidBadChecksum in Invalid, "invalid.bad_checksum", Rare;
    /// A packet that is cut short or contradicts its protocol.
    InvalidMalformed in Invalid, "invalid.malformed", Rare;
    /// An ICMP error about no known flow.
    InvalidUnrelated in Invalid, "invalid.unrelated", Rare;
    /// A packet invalid for any other reason.
    InvalidOther in Invalid, "invalid.other", Rare;
    /// An entry removed after its timeout.
    DeleteTimeout in Delete, "delete.timeout";
    /// An entry removed because TCP reset or reused it.
    DeleteClosed in Delete, "delete.closed";
    /// A live entry evicted by `early_drop` to make room.
    DeleteEarlyDrop in Delete EarlyDrop, "delete.early_drop", Loss;
    /// An entry evicted by the collector while the table was above 95 %.
    DeletePressure in Delete, "delete.pressure", Rare;
    /// An entry removed through ctnetlink (delete or flush).
    DeleteNetlink in Delete, "delete.netlink", Rare;
    /// An entry removed with its namespace or interface.
    DeleteCleanup in Delete, "delete.cleanup", Rare;
    /// An entry removed for any other reason.
    DeleteOther in Delete, "delete.other";
    /// An entry removed by tc's `act_ct`: a packet of the reply direction met `ct commit force`.
    DeleteTc in Delete, "delete.tc", Rare;
    /// An entry removed by Open vSwitch, for the same reason.
    DeleteOpenvswitch in Delete, "delete.openvswitch", Rare;
    /// An entry removed by IPVS, whose own connection ended.
    DeleteIpvs in Delete, "delete.ipvs", Rare;
}

impl Event {
    /// How many events there are.
    pub const COUNT: usize = TABLE.len();

    /// Every event, in the order of its counter.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Insert; Self::COUNT];
        let mut at = 0;
        while at < all.len() {
            all[at] = TABLE[at].event;
            at += 1;
        }
        all
    };

    /// A packet was dropped because its entry could not enter, by reason.
    pub const FAILURES: [Self; count(Group::InsertFailed, false)] = members(Group::InsertFailed, false);

    /// A new flow was refused, by reason.
    pub const DROPS: [Self; count(Group::Drop, false)] = members(Group::Drop, false);

    /// A packet belonged to no flow, by reason.
    pub const INVALID: [Self; count(Group::Invalid, false)] = members(Group::Invalid, false);

    /// An entry left the table, by cause; numbered without a gap.
    pub const DELETES: [Self; count(Group::Delete, false)] = members(Group::Delete, false);

    /// Its field in an object of `live --json`, with the reason or cause after a dot.
    pub const fn field(self) -> &'static str {
        self.row().field
    }

    /// What its field ends in: the reason or cause, or the name of an event that has none.
    pub fn reason(self) -> &'static str {
        self.field().split_once('.').map_or(self.field(), |(_, reason)| reason)
    }

    /// The group that its field belongs to.
    pub const fn group(self) -> Group {
        self.row().groups[0]
    }

    /// Every group that it is shown in: an eviction is a delete too.
    pub const fn groups(self) -> &'static [Group] {
        self.row().groups
    }

    /// Whether a packet, a new flow or a live entry was lost.
    pub const fn is_loss(self) -> bool {
        self.is(Kind::Loss)
    }

    /// Whether a healthy interval has none of it.
    pub const fn is_rare(self) -> bool {
        self.is(Kind::Rare)
    }

    const fn row(self) -> &'static Row {
        const ROWS: &[Row] = &TABLE;
        &ROWS[self as usize]
    }

    const fn is(self, kind: Kind) -> bool {
        let kinds = self.row().kinds;
        let mut at = 0;
        while at < kinds.len() {
            if kinds[at] as u8 == kind as u8 {
                return true;
            }
            at += 1;
        }
        false
    }

    /// Whether a group has it, with or without the events that the group's first one counts as well.
    const fn is_member(self, group: Group, within: bool) -> bool {
        self.belongs(group) && (within || !self.is(Kind::Within))
    }

    const fn belongs(self, group: Group) -> bool {
        let groups = self.row().groups;
        let mut at = 0;
        while at < groups.len() {
            if groups[at] as u8 == group as u8 {
                return true;
            }
            at += 1;
        }
        false
    }
}

impl Group {
    /// How many groups there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Those with a rate and a total of their own, in the order of `rate` and `total` in `live --json`.
    pub const TOTALS: [Self; 6] =
        [Self::Insert, Self::EarlyDrop, Self::Drop, Self::InsertFailed, Self::Invalid, Self::Delete];

    /// The group's count in one set of counters.
    pub fn of(self, counters: &Counters) -> u64 {
        self.parts().iter().fold(0, |sum, event| sum.saturating_add(counters.get(*event)))
    }

    /// Whether its events are losses.
    pub fn is_loss(self) -> bool {
        self.parts().iter().all(|event| event.is_loss())
    }
}

/// How many events a group has. See [`Event::is_member`].
const fn count(group: Group, within: bool) -> usize {
    let mut count = 0;
    let mut at = 0;
    while at < TABLE.len() {
        if TABLE[at].event.is_member(group, within) {
            count += 1;
        }
        at += 1;
    }
    count
}

/// The events of a group, in the order of their counters.
const fn members<const N: usize>(group: Group, within: bool) -> [Event; N] {
    let mut members = [Event::Insert; N];
    let mut count = 0;
    let mut at = 0;
    while at < TABLE.len() {
        let event = TABLE[at].event;
        if event.is_member(group, within) {
            members[count] = event;
            count += 1;
        }
        at += 1;
    }
    members
}

// `TRACE_EVENTS` has one bit for each event.
const _: () = assert!(Event::COUNT <= u32::BITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_as_listed() {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
        }
        for (index, event) in Event::DELETES.into_iter().enumerate() {
            assert_eq!(event as usize, Event::DELETES[0] as usize + index);
        }
        assert_eq!(Event::DELETES.last(), Event::ALL.last(), "the deletes come last");
    }

    #[test]
    fn a_field_begins_with_the_name_of_its_group() {
        for event in Event::ALL {
            let group = event.group();
            match event.field().split_once('.') {
                Some((before, _)) => assert_eq!(before, group.name(), "{event:?}"),
                None => assert_eq!(group.parts().len(), 1, "{event:?} needs a reason"),
            }
            let same = Event::ALL.iter().filter(|other| other.field() == event.field());
            assert_eq!(same.count(), 1, "{event:?}");
        }
    }

    #[test]
    fn each_event_belongs_to_its_groups_and_no_other() {
        for group in Group::ALL {
            assert!(!group.parts().is_empty(), "{group:?}");
            for event in Event::ALL {
                assert_eq!(group.events().contains(&event), event.groups().contains(&group), "{event:?}");
            }
        }
        assert_eq!(Group::EarlyDrop.parts(), [Event::DeleteEarlyDrop]);
        assert_eq!(Group::ClashResolve.events(), [Event::ClashResolve, Event::ClashReplyOnly]);
        assert_eq!(Group::ClashResolve.parts(), [Event::ClashResolve]);
        assert_eq!(Group::Delete.parts(), Event::DELETES);
    }

    #[test]
    fn each_loss_has_a_total() {
        for event in Event::ALL.into_iter().filter(|event| event.is_loss()) {
            assert!(event.groups().iter().any(|group| Group::TOTALS.contains(group)), "{event:?}");
        }
        let losses: Vec<Group> = Group::ALL.into_iter().filter(|group| group.is_loss()).collect();
        assert_eq!(losses, [Group::EarlyDrop, Group::InsertFailed, Group::Drop]);
    }
}
