//! What the entries of a table can be grouped by.

/// What entries are grouped by. Addresses and ports are those of the original direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum GroupBy {
    /// Network namespace.
    Netns,
    /// Address family and L4 protocol: the flow type.
    Proto,
    /// The tracker's state; of protocols without one, whether an answer came.
    State,
    /// Whether `early_drop` must pass it by.
    Assured,
    /// Source address.
    Src,
    /// Source port.
    Sport,
    /// Destination address.
    Dst,
    /// Destination port.
    Dport,
}

impl GroupBy {
    /// All of them, as they are shown from left to right.
    pub const ALL: [Self; 8] = [
        Self::Netns,
        Self::Proto,
        Self::State,
        Self::Assured,
        Self::Src,
        Self::Sport,
        Self::Dst,
        Self::Dport,
    ];

    /// As flags spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Proto => "proto",
            Self::State => "state",
            Self::Assured => "assured",
            Self::Src => "src",
            Self::Sport => "sport",
            Self::Dst => "dst",
            Self::Dport => "dport",
        }
    }
}

/// A set of what to group by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dimensions(u8);

impl Dimensions {
    /// Those of a list.
    pub fn of(list: &[GroupBy]) -> Self {
        Self(list.iter().fold(0, |bits, by| bits | 1 << *by as u8))
    }

    /// Whether it is one of them.
    pub const fn contains(self, by: GroupBy) -> bool {
        self.0 >> by as u8 & 1 == 1
    }

    /// Those of them that tell ports or addresses, which stand in a group's key.
    pub fn keys(self) -> impl Iterator<Item = GroupBy> {
        [GroupBy::Src, GroupBy::Sport, GroupBy::Dst, GroupBy::Dport]
            .into_iter()
            .filter(move |by| self.contains(*by))
    }

    /// Whether the address family is one: it belongs to the flow type, and tells addresses apart.
    pub const fn has_family(self) -> bool {
        self.contains(GroupBy::Proto) || self.contains(GroupBy::Src) || self.contains(GroupBy::Dst)
    }
}
