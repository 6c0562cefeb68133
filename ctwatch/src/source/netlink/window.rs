//! Removals of which it is open which were evictions.
//!
//! The kernel announces a removal, and if it was an eviction counts it a moment later; what it counts has no flow. So a
//! removal is certain to have been an eviction only where as many were counted as there were removals that can have been
//! some, whether anybody asked for them or not. It is certain to have been none only where nothing was counted.

use ctwatch_ebpf::loss::Traced;

use super::fate::Fate;
use super::room::Kept;

/// How many settlements in a row may leave it open: a line then still comes within about a second.
const MOST_SETTLEMENTS: u32 = 3;

/// What a reading of the kernel's statistics says, and how it relates to the events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Evictions since listening began. What was announced of them was taken before.
    pub evictions: u64,
    /// Whether as many were counted a moment ago: then the kernel has counted all that were announced.
    pub calm: bool,
    /// Whether the number of removals that nobody announced is known for certain.
    pub complete: bool,
}

/// What is known of all that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All were evictions.
    All,
    /// None was.
    None,
    /// Some were, and which will not be known.
    Some,
}

/// Removals since it was last known which were evictions.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Those asked for.
    pub kept: Vec<Kept<(Traced, Fate)>>,
    /// Those asked for that found no place.
    pub refused: u64,
    /// Those that nobody asked for.
    pub others: u64,
    /// Those whose event was lost, which is counted elsewhere.
    pub lost: u64,
    /// Those that the kernel did not announce.
    pub unheard: u64,
    /// Those that were given up, and may yet be counted as evictions.
    pub late: u64,
    /// Evictions that were counted.
    pub evicted: u64,
    settlements: u32,
}

impl Window {
    /// How many removals can have been the evictions that were counted.
    pub(super) const fn candidates(&self) -> u64 {
        self.kept.len() as u64 + self.refused + self.others + self.lost + self.unheard + self.late
    }

    /// Evictions beyond all removals that are known of: the kernel told of none of these.
    pub(super) const fn excess(&self) -> u64 {
        self.evicted.saturating_sub(self.candidates())
    }

    /// Whether all are certain to have been evictions, with so many counted up to now.
    pub(super) fn is_all(&self, evictions: u64) -> bool {
        let evicted = self.evicted + evictions;
        evicted > 0 && evicted == self.candidates()
    }

    /// Takes what a settlement read, with so many evictions more. Nothing follows yet where evictions are going on, and
    /// more of what waits may be counted.
    pub(super) fn settle(&mut self, evictions: u64, reading: Reading) -> Option<Verdict> {
        let all = self.is_all(evictions) && reading.complete;
        self.evicted += evictions;
        self.settlements += 1;
        let verdict = if all {
            Verdict::All
        } else if reading.calm && self.evicted == 0 {
            Verdict::None
        } else if reading.calm && reading.complete || self.settlements > MOST_SETTLEMENTS {
            Verdict::Some
        } else {
            return None;
        };
        Some(verdict)
    }

    /// Closes it, and begins anew. Unless it is `calm`, what is given up here may be counted later.
    pub(super) fn close(&mut self, verdict: Verdict, calm: bool) -> Self {
        let late = match verdict {
            Verdict::Some if !calm => self.candidates().saturating_sub(self.evicted),
            _ => 0,
        };
        std::mem::replace(self, Self { late, ..Self::default() })
    }

    /// Ends it without knowing more: all may have been evictions.
    pub(super) fn give_up(&mut self) -> Self {
        let window = std::mem::take(self);
        let evicted = window.candidates().max(window.evicted);
        Self { evicted, ..window }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Reading = Reading { evictions: 0, calm: true, complete: true };
    const UNREST: Reading = Reading { calm: false, ..CALM };

    fn window(others: u64) -> Window {
        Window { others, ..Window::default() }
    }

    #[test]
    fn it_is_certain_where_as_many_are_counted_as_can_have_been() {
        assert_eq!(window(3).settle(3, UNREST), Some(Verdict::All));
        assert_eq!(window(3).settle(0, CALM), Some(Verdict::None));
        assert_eq!(window(3).settle(2, CALM), Some(Verdict::Some));
        assert_eq!(window(3).settle(4, CALM), Some(Verdict::Some));
        // What is known of by its number alone can have been one too.
        let parts = Window { refused: 1, others: 2, lost: 3, unheard: 4, late: 5, ..Window::default() };
        assert!(parts.is_all(15) && !parts.is_all(14) && !window(0).is_all(0));
        assert_eq!((window(3).excess(), Window { evicted: 5, ..window(3) }.excess()), (0, 2));
    }

    #[test]
    fn while_evictions_go_on_it_stays_open_but_not_for_ever() {
        let mut window = window(5);
        for _ in 0..MOST_SETTLEMENTS {
            assert_eq!(window.settle(1, UNREST), None);
        }
        assert_eq!(window.settle(0, UNREST), Some(Verdict::Some));
        let closed = window.close(Verdict::Some, false);
        assert_eq!((closed.evicted, window.late), (3, 2));
        // Two of those given up may be counted now, so that two are not enough for two more.
        window.others = 2;
        assert_eq!(window.settle(2, UNREST), None);
        assert_eq!(window.settle(2, UNREST), Some(Verdict::All));
        window.close(Verdict::All, false);
        assert_eq!(window.candidates(), 0);
    }

    #[test]
    fn what_nobody_announced_leaves_it_open() {
        let unclear = Reading { complete: false, ..CALM };
        let mut window = window(2);
        assert_eq!(window.settle(2, unclear), None);
        assert_eq!(window.settle(0, CALM), Some(Verdict::All));
        let mut none = Window { unheard: 3, ..Window::default() };
        assert_eq!(none.settle(0, unclear), Some(Verdict::None));
    }
}
