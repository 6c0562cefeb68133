//! The programs' ring buffer of single events: reading it, on the wall clock, with what was held back.

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use ctwatch_ebpf::loss::Budget;

use super::now;
use super::watch::Events;
use crate::model::trace::{self, Names, Record};

/// How far the wall clock must have moved for us to follow.
const CLOCK_STEP_NS: i128 = 1_000_000;

/// What goes with a ring buffer.
pub(super) struct Channel {
    names: Names,
    budget: PerCpuArray<MapData, Budget>,
    since_ns: u64,
    /// What to add to the monotonic clock.
    wall_minus_mono: i128,
    /// Held back before all programs were attached.
    suppressed_before: u64,
}

impl Channel {
    /// The ring buffer of newly attached programs, and its channel.
    pub(super) fn new(events: Events, names: Names) -> anyhow::Result<(RingBuf<MapData>, Self)> {
        let Events { ring, budget, since_ns } = events;
        let mut channel = Self { names, budget, since_ns, wall_minus_mono: offset()?, suppressed_before: 0 };
        channel.suppressed_before = channel.suppressed()?;
        Ok((ring, channel))
    }

    /// Reads at most so many events; whether there were no more.
    pub(super) fn read(
        &mut self,
        ring: &mut RingBuf<MapData>,
        most: usize,
        mut each: impl FnMut(Record),
    ) -> anyhow::Result<bool> {
        // Two readings of two clocks are never the same distance apart: following that would show a burst out of order.
        let offset = offset()?;
        if (offset - self.wall_minus_mono).abs() > CLOCK_STEP_NS {
            self.wall_minus_mono = offset;
        }
        let offset = self.wall_minus_mono;
        let since = i128::from(self.since_ns) + offset;
        for _ in 0..most {
            let Some(item) = ring.next() else { return Ok(true) };
            if let Some(record) = trace::decode(&item, self.names, offset)
                && record.wall_ns >= since
            {
                each(record);
            }
        }
        Ok(false)
    }

    /// How many events were held back since the programs were attached.
    pub(super) fn suppressed(&self) -> anyhow::Result<u64> {
        let budgets = self.budget.get(&0, 0).context("cannot read map TRACE_BUDGET")?;
        let all: u64 = budgets.iter().map(|budget| budget.suppressed).sum();
        Ok(all.saturating_sub(self.suppressed_before))
    }
}

/// What to add to the monotonic clock to get the wall clock.
fn offset() -> anyhow::Result<i128> {
    let (wall_ns, mono_ns) = now()?;
    Ok(wall_ns - i128::from(mono_ns))
}
