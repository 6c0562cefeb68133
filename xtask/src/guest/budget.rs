//! What ctwatch knows that it missed, spent once: the differences of all comparisons of a run share one budget.

use std::collections::BTreeMap;

/// Events whose losses are one loss, whatever they are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Inserts,
    InsertsByNetlink,
    Refusals,
    Resolved,
    Removals,
    /// Sums over several groups, and comparisons that fit no group. They have a bound, and are not added to the rest.
    Other,
}

impl Group {
    /// By the words of a comparison, which begin with the event's name.
    fn of(what: &str) -> Self {
        const WORDS: [(&str, Group); 11] = [
            ("newcomers", Group::Other),
            ("early_drop", Group::Removals),
            ("evict", Group::Removals),
            ("delete", Group::Removals),
            ("insert_netlink", Group::InsertsByNetlink),
            ("clash_resolve", Group::Resolved),
            ("drop", Group::Refusals),
            ("refus", Group::Refusals),
            ("insert_failed", Group::Refusals),
            ("chaintoolong", Group::Refusals),
            ("insert", Group::Inserts),
        ];
        WORDS.iter().find(|(word, _)| what.contains(word)).map_or(Self::Other, |(_, group)| *group)
    }
}

/// What was found missing so far.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// The largest difference of a group's sum.
    wholes: BTreeMap<Group, u64>,
    /// The largest difference of each flow type, by its name.
    parts: BTreeMap<(Group, String), u64>,
}

impl Budget {
    /// Notes that a comparison came out short. One that names a flow type (`inserts of V4 17`) is added to those of
    /// others; two about the same events are not.
    pub(super) fn charge(&mut self, what: &str, short: u64) {
        let group = Group::of(what);
        let largest = match flow_type(what) {
            Some(flow_type) => self.parts.entry((group, flow_type)).or_default(),
            None => self.wholes.entry(group).or_default(),
        };
        *largest = short.max(*largest);
    }

    /// How many events must have been missed for all of that.
    pub(super) fn spent(&self) -> u64 {
        let groups = [
            Group::Inserts,
            Group::InsertsByNetlink,
            Group::Refusals,
            Group::Resolved,
            Group::Removals,
            Group::Other,
        ];
        let of = |group: Group| {
            let parts: u64 =
                self.parts.iter().filter(|((of, _), _)| *of == group).map(|(_, short)| short).sum();
            parts.max(self.wholes.get(&group).copied().unwrap_or(0))
        };
        let (other, rest): (Vec<Group>, Vec<Group>) =
            groups.into_iter().partition(|group| *group == Group::Other);
        let rest: u64 = rest.into_iter().map(of).sum();
        other.into_iter().map(of).max().unwrap_or(0).max(rest)
    }
}

/// The family and protocol in `inserts of V4 17 and conntrack -L`.
fn flow_type(what: &str) -> Option<String> {
    let (_, rest) = what.split_once(" of V")?;
    let mut words = rest.split_whitespace();
    Some(format!("V{} {}", words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(charges: &[(&str, u64)]) -> u64 {
        let mut budget = Budget::default();
        for (what, short) in charges {
            budget.charge(what, *short);
        }
        budget.spent()
    }

    #[test]
    fn the_same_loss_compared_twice_is_one_loss() {
        assert_eq!(spent(&[("inserts", 3), ("inserts and nft's count of new packets", 3)]), 3);
        assert_eq!(spent(&[("inserts of V4 17", 2), ("inserts of V4 17 and conntrack -L", 2)]), 2);
        assert_eq!(spent(&[("inserts of V4 17", 2), ("inserts of any type", 3)]), 3);
        assert_eq!(spent(&[("inserts", 2), ("drop.table_full and refusals", 1), ("IPv4 newcomers", 3)]), 3);
    }

    #[test]
    fn losses_of_different_events_add_up() {
        assert_eq!(spent(&[("inserts", 3), ("drop and insert_failed.clash", 3), ("early_drop", 3)]), 9);
        assert_eq!(spent(&[("inserts of V4 17", 2), ("inserts of V6 17", 2), ("inserts of V4 6", 2)]), 6);
        assert_eq!(spent(&[("early_drop", 3), ("deletes by eviction", 3)]), 3);
        assert_eq!(spent(&[("entries", 5), ("inserts", 3)]), 5);
    }
}
