//! What timing told: plain data as captured, and what it comes to.

use ctwatch_ebpf::timing::Timing;
use serde::{Deserialize, Serialize};

use super::text::sum;
use crate::model::SourceKind;

/// How long tracking took while somebody timed it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Why nothing was timed; `None` where it was.
    pub refused: Option<String>,
    /// The mechanism.
    pub source: Option<SourceKind>,
    /// What kept a better one from running.
    pub why: Option<String>,
    /// How long it was timed, in seconds.
    pub seconds: f64,
    /// `nf_conntrack_in`: each packet.
    pub tracking: Passes,
    /// `__nf_conntrack_confirm`: the first packet of each flow.
    pub confirm: Passes,
    /// A function that does next to nothing, timed the same way: what timing itself takes.
    pub floor: Passes,
    /// What the receive softirqs took; `None` where they could not be watched.
    pub receive: Option<Receive>,
}

/// Time in the receive softirqs (NET_RX).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receive {
    /// All of it, in nanoseconds.
    pub total_ns: u64,
    /// The part of it that tracking took.
    pub tracking_ns: u64,
}

/// Passes through a function, by their length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passes {
    /// Number `n` counts those of `2^n` to `2^(n+1) - 1` nanoseconds, the first also those of 0; no zeroes at the end.
    pub buckets: Vec<u64>,
    /// Nanoseconds of all.
    pub sum_ns: u64,
    /// The shortest; 0 where there was none.
    pub min_ns: u64,
    /// Those of which only entry or return was seen.
    pub lost: u64,
}

/// Where a bucket ends; a capture may have more of them than there are bits.
fn end_of(bucket: usize) -> u64 {
    u32::try_from(bucket)
        .ok()
        .and_then(|bucket| 1_u64.checked_shl(bucket.checked_add(1)?))
        .unwrap_or(u64::MAX)
}

impl From<&Timing> for Passes {
    fn from(timing: &Timing) -> Self {
        let length = timing.buckets.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        let seen: u64 = timing.buckets.iter().sum();
        Self {
            buckets: timing.buckets[..length].to_vec(),
            sum_ns: timing.sum_ns,
            min_ns: timing.min_ns,
            lost: timing.entered.saturating_sub(seen) + timing.orphans,
        }
    }
}

impl Passes {
    /// How many were timed.
    pub fn count(&self) -> u64 {
        sum(self.buckets.iter().copied())
    }

    /// The mean in nanoseconds; 0 of none.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count()).unwrap_or(0)
    }

    /// A length that so many in a hundred stayed below; `None` of none.
    pub fn below_ns(&self, percent: u64) -> Option<u64> {
        let count = self.count();
        let mut seen = 0_u128;
        let bucket = self.buckets.iter().position(|passes| {
            seen += u128::from(*passes);
            count > 0 && seen * 100 >= u128::from(count) * u128::from(percent)
        });
        bucket.map(end_of)
    }

    /// The buckets that are not empty: from, below, count.
    pub fn histogram(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled
            .map(|(bucket, count)| (if bucket == 0 { 0 } else { end_of(bucket - 1) }, end_of(bucket), *count))
    }
}

impl Latency {
    /// Time in both functions as a share of one core, what timing them took included.
    pub fn core_share(&self) -> f64 {
        let ns = self.tracking.sum_ns.saturating_add(self.confirm.sum_ns) as f64;
        if self.seconds > 0.0 { ns / 1e9 / self.seconds } else { 0.0 }
    }

    /// Their share of the receive softirqs' time.
    pub fn receive_share(&self) -> Option<f64> {
        let receive = self.receive.filter(|receive| receive.total_ns > 0)?;
        Some(receive.tracking_ns as f64 / receive.total_ns as f64)
    }
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::timing::BUCKETS;

    use super::*;

    fn passes(buckets: &[u64]) -> Passes {
        Passes { buckets: buckets.to_vec(), ..Passes::default() }
    }

    #[test]
    fn zeroes_at_the_end_go_and_what_has_one_end_is_lost() {
        let mut timing = Timing { entered: 7, orphans: 2, sum_ns: 40, min_ns: 4, ..Timing::default() };
        timing.buckets[2] = 3;
        timing.buckets[3] = 1;
        let told = Passes::from(&timing);
        assert_eq!(told.buckets, [0, 0, 3, 1]);
        assert_eq!((told.count(), told.mean_ns(), told.lost), (4, 10, 5));
        timing.buckets[BUCKETS - 1] = 1;
        assert_eq!(Passes::from(&timing).buckets.len(), BUCKETS);
        assert_eq!(Passes::from(&Timing::default()), Passes::default());
    }

    #[test]
    fn a_quantile_is_the_upper_end_of_its_bucket() {
        assert_eq!(passes(&[]).below_ns(50), None);
        assert_eq!(passes(&[0, 0]).below_ns(50), None);
        assert_eq!(passes(&[1]).below_ns(50), Some(2));
        let skewed = passes(&[0, 98, 0, 1, 1]);
        assert_eq!(
            (skewed.below_ns(50), skewed.below_ns(98), skewed.below_ns(99), skewed.below_ns(100)),
            (Some(4), Some(4), Some(16), Some(32))
        );
    }

    #[test]
    fn a_stranger_s_buckets_and_sums_have_an_end_too() {
        let mut buckets = vec![0; 100];
        buckets[98] = u64::MAX;
        buckets[99] = u64::MAX;
        let many = Passes { buckets, ..Passes::default() };
        assert_eq!((many.count(), many.below_ns(99)), (u64::MAX, Some(u64::MAX)));
        assert_eq!(many.histogram().last(), Some((u64::MAX, u64::MAX, u64::MAX)));
        assert_eq!(passes(&[0, 1]).histogram().last(), Some((2, 4, 1)));
    }

    #[test]
    fn the_histogram_names_its_edges() {
        let told: Vec<_> = passes(&[1, 0, 5]).histogram().collect();
        assert_eq!(told, [(0, 2, 1), (4, 8, 5)]);
    }

    #[test]
    fn shares_of_nothing_are_none() {
        let mut latency = Latency::default();
        assert_eq!((latency.core_share(), latency.receive_share()), (0.0, None));
        latency.receive = Some(Receive::default());
        assert_eq!(latency.receive_share(), None);
        latency.receive = Some(Receive { total_ns: 200, tracking_ns: 10 });
        latency.seconds = 2.0;
        latency.tracking.sum_ns = 40_000_000;
        assert_eq!((latency.core_share(), latency.receive_share()), (0.02, Some(0.05)));
    }
}
