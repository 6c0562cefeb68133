//! How long functions took, as the programs add it up for userspace.

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// `nf_conntrack_in`: each packet that tracking meets.
    In = 0,
    /// `__nf_conntrack_confirm`: the first packet of each flow, as it leaves or is delivered.
    Confirm,
    /// A system call that does next to nothing, called by ctwatch itself: what the measuring adds.
    Floor,
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// All of them, in the order of their places.
    pub const ALL: [Self; Self::COUNT] = [Self::In, Self::Confirm, Self::Floor];
}

/// Buckets of a histogram: number `n` counts what took `2^n` to `2^(n+1) - 1` nanoseconds, the first also 0, and the
/// last (from 9 minutes on) all that is longer.
pub const BUCKETS: usize = 40;

/// The passes through one function on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Timing {
    /// Passes by their length.
    pub buckets: [u64; BUCKETS],
    /// Nanoseconds of all of them.
    pub sum_ns: u64,
    /// The shortest; 0 where there was none.
    pub min_ns: u64,
    /// Entries seen.
    pub entered: u64,
    /// Returns seen whose entry was not.
    pub orphans: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_ns: 0, min_ns: 0, entered: 0, orphans: 0 }
    }
}

impl Timing {
    /// Adds another CPU's passes to these.
    pub fn add(&mut self, other: &Self) {
        crate::add_each(&mut self.buckets, &other.buckets);
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.entered = self.entered.wrapping_add(other.entered);
        self.orphans = self.orphans.wrapping_add(other.orphans);
        if self.min_ns == 0 || other.min_ns != 0 && other.min_ns < self.min_ns {
            self.min_ns = other.min_ns;
        }
    }

    /// What was added since `before`, of which only the shortest pass is still of both.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        for (sum, part) in self.buckets.iter_mut().zip(before.buckets) {
            *sum = sum.wrapping_sub(part);
        }
        self.sum_ns = self.sum_ns.wrapping_sub(before.sum_ns);
        self.entered = self.entered.wrapping_sub(before.entered);
        self.orphans = self.orphans.wrapping_sub(before.orphans);
        self
    }
}

/// The bucket of a length.
pub const fn bucket(ns: u64) -> usize {
    let log2 = 63 - (ns | 1).leading_zeros() as usize;
    if log2 < BUCKETS { log2 } else { BUCKETS - 1 }
}

/// The receive softirq (NET_RX) of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Receive {
    /// When the one that is running began; 0 between them.
    pub began_ns: u64,
    /// Nanoseconds spent in those that have ended.
    pub total_ns: u64,
    /// Nanoseconds that timed functions took inside them.
    pub tracking_ns: u64,
}

const _: () = assert!(size_of::<Timing>() == 352);
const _: () = assert!(size_of::<Receive>() == 24);

#[cfg(feature = "user")]
// SAFETY: repr(C) of u64 alone has no padding, and every bit pattern is a value.
unsafe impl aya::Pod for Timing {}

#[cfg(feature = "user")]
// SAFETY: as above.
unsafe impl aya::Pod for Receive {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let of = [0, 1, 2, 3, 4, 1023, 1024, u64::MAX].map(bucket);
        assert_eq!(of, [0, 0, 1, 1, 2, 9, 10, BUCKETS - 1]);
    }

    #[test]
    fn stages_are_numbered_as_listed() {
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, index);
        }
    }

    #[test]
    fn cpus_add_up_and_the_shortest_pass_is_never_that_of_an_idle_one() {
        let mut sum = Timing::default();
        let one = Timing { sum_ns: 5, min_ns: 5, entered: 1, ..Timing::default() };
        sum.add(&Timing::default());
        sum.add(&one);
        sum.add(&Timing { sum_ns: 7, min_ns: 7, entered: 2, orphans: 1, ..Timing::default() });
        sum.add(&Timing::default());
        assert_eq!((sum.sum_ns, sum.min_ns, sum.entered, sum.orphans), (12, 5, 3, 1));
        assert_eq!(sum.since(&one).sum_ns, 7);
    }
}
