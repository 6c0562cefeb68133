//! What an announced removal says of its cause.

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
