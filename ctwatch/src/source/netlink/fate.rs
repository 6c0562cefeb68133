//! What an announced removal says of its cause, and what the kernel's statistics said of those that say too little.

use ctwatch_ebpf::Event as Counted;

use super::entry::status::{ASSURED, SEEN_REPLY};
use super::event::{Ending, Event};

/// `TCP_CONNTRACK_CLOSE`.
pub(super) const TCP_CLOSE: u8 = 8;

/// Why an entry left, as far as its event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This is why.
    Known(Counted),
    /// Un-ASSURED with time left and at nobody's request: evicted, unless something else removed it.
    Alive,
    /// Un-ASSURED without a second left: expired, unless it was evicted in its last second.
    Expired,
}

impl Fate {
    /// Reads it off an event. `tells_time_left` says whether events of this kernel carry the time that was left.
    pub fn of(event: Event, ending: Ending, tells_time_left: bool) -> Self {
        // A reset of a connection that nobody answered kills it within that packet (nf_conntrack_tcp_packet).
        let reset = ending.state == Some(TCP_CLOSE) && ending.status & SEEN_REPLY == 0;
        let has_time = ending.alive || !tells_time_left;
        if event.portid != 0 {
            Self::Known(Counted::DeleteNetlink)
        } else if ending.status & ASSURED == 0 && !reset {
            if has_time { Self::Alive } else { Self::Expired }
        } else if has_time {
            Self::Known(Counted::DeleteOther)
        } else {
            Self::Known(Counted::DeleteTimeout)
        }
    }
}

/// Of so many removals, how many the kernel counted as evictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Those counted.
    pub evicted: u64,
    /// All of them.
    pub of: u64,
}

/// What a settlement found among the removals that were undecided, by [`Fate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Those of [`Fate::Alive`] that an earlier settlement left undecided.
    pub held: Share,
    /// Those of [`Fate::Alive`] since.
    pub alive: Share,
    /// Those of [`Fate::Expired`].
    pub expired: Share,
    /// Whether the rest of `alive` is decided at the next settlement only.
    pub waits: bool,
    /// Whether events of this kernel carry the time that was left.
    pub tells_time_left: bool,
}
