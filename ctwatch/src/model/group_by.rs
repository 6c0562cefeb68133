//! What the entries of a table can be grouped by.

/// What entries are grouped by.
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
    /// Source address of the original direction, as are the next three.
    Src,
    /// Source port.
    Sport,
    /// Destination address.
    Dst,
    /// Destination port.
    Dport,
    /// Source address of the reply direction, as are the next three: with NAT of the destination the real server.
    Rsrc,
    /// Source port of answers.
    Rsport,
    /// Destination address of answers: with NAT of the source the address that the flow was given.
    Rdst,
    /// Destination port of answers.
    Rdport,
    /// What NAT does.
    Nat,
    /// Conntrack zone.
    Zone,
    /// `ct mark`.
    Mark,
    /// Whether a flow table forwards the packets.
    Offload,
}

impl GroupBy {
    /// All of them, as they are shown from left to right.
    pub const ALL: [Self; 16] = [
        Self::Netns,
        Self::Proto,
        Self::State,
        Self::Assured,
        Self::Src,
        Self::Sport,
        Self::Dst,
        Self::Dport,
        Self::Rsrc,
        Self::Rsport,
        Self::Rdst,
        Self::Rdport,
        Self::Nat,
        Self::Zone,
        Self::Mark,
        Self::Offload,
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
            Self::Rsrc => "rsrc",
            Self::Rsport => "rsport",
            Self::Rdst => "rdst",
            Self::Rdport => "rdport",
            Self::Nat => "nat",
            Self::Zone => "zone",
            Self::Mark => "mark",
            Self::Offload => "offload",
        }
    }
}

/// A set of what to group by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dimensions(u16);

impl Dimensions {
    /// Those of a list.
    pub fn of(list: &[GroupBy]) -> Self {
        Self(list.iter().fold(0, |bits, by| bits | 1 << *by as u8))
    }

    /// Whether it is one of them.
    pub const fn contains(self, by: GroupBy) -> bool {
        self.0 >> by as u8 & 1 == 1
    }

    const fn has_any(self, list: &[GroupBy]) -> bool {
        let mut at = 0;
        while at < list.len() {
            if self.contains(list[at]) {
                return true;
            }
            at += 1;
        }
        false
    }

    /// Those of them that stand in a group's key.
    pub fn keys(self) -> impl Iterator<Item = GroupBy> {
        GroupBy::ALL.into_iter().filter(move |by| *by >= GroupBy::Src && self.contains(*by))
    }

    /// Whether the address family is one: it belongs to the flow type, and tells addresses apart.
    pub const fn has_family(self) -> bool {
        self.has_any(&[GroupBy::Proto, GroupBy::Src, GroupBy::Dst, GroupBy::Rsrc, GroupBy::Rdst])
    }

    /// Whether some port is one.
    pub const fn has_ports(self) -> bool {
        self.has_any(&[GroupBy::Sport, GroupBy::Dport, GroupBy::Rsport, GroupBy::Rdport])
    }

    /// Whether some part of the reply direction is one.
    pub const fn has_reply(self) -> bool {
        self.has_any(&[GroupBy::Rsrc, GroupBy::Rsport, GroupBy::Rdst, GroupBy::Rdport])
    }
}
