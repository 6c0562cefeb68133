//! Full counting, and beside it single losses under a small budget: what the full-screen view shows as it comes.

use std::collections::VecDeque;

use aya::maps::{MapData, RingBuf};

use super::channel::Channel;
use super::probe::{Probe, Wishes};
use super::{Source, Status};
use crate::model::ranking::Losses;
use crate::model::trace::{Names, Record, Wanted};
use crate::model::{Sample, SourceInfo};

/// More in a second from one CPU than anybody can read; few enough to cost nothing in a flood.
const PER_SECOND: u32 = 50;
/// How many are kept for the next sample, the newest: intervals may be long.
const KEPT: usize = 500;
/// About as many as fit into the ring buffer: a flood may write as fast as this reads.
const AT_ONCE: usize = 8192;

/// What to wish for beside counting.
pub fn wanted() -> Wanted {
    Wanted { names: Names::default(), per_second: PER_SECOND, counting: true, entries: None }
}

/// A probe whose samples hold single losses.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Lossy {
    probe: Probe,
    channel: Option<(RingBuf<MapData>, Channel)>,
    waiting: Waiting,
    /// Held back by programs that have been let go.
    past_suppressed: u64,
    /// Held back, as far as samples have told.
    told: u64,
}

/// Losses for the next sample.
#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Record>,
    /// Let go, since newer ones came.
    left_out: u64,
}

impl Waiting {
    fn push(&mut self, record: Record) {
        if self.events.len() == KEPT {
            self.events.pop_front();
            self.left_out += 1;
        }
        self.events.push_back(record);
    }

    fn take(&mut self) -> (Vec<Record>, u64) {
        (std::mem::take(&mut self.events).into(), std::mem::take(&mut self.left_out))
    }
}

impl Lossy {
    /// Opens a probe with [`wanted`] among its wishes.
    pub fn open(wishes: Wishes) -> anyhow::Result<Self> {
        let probe = Probe::open(Wishes { trace: Some(wanted()), ..wishes })?;
        let waiting = Waiting::default();
        let mut lossy = Self { probe, channel: None, waiting, past_suppressed: 0, told: 0 };
        lossy.take_channel()?;
        Ok(lossy)
    }

    /// Follows the probe to newly attached programs.
    fn take_channel(&mut self) -> anyhow::Result<()> {
        let Some(events) = self.probe.take_events() else { return Ok(()) };
        self.read()?;
        if let Some((_, old)) = &self.channel {
            self.past_suppressed += old.suppressed()?;
        }
        self.channel = Some(Channel::new(events, wanted().names)?);
        Ok(())
    }

    fn read(&mut self) -> anyhow::Result<()> {
        if let Some((ring, channel)) = &mut self.channel {
            let waiting = &mut self.waiting;
            channel.read(ring, AT_ONCE, |record| waiting.push(record))?;
        }
        Ok(())
    }
}

impl Source for Lossy {
    fn info(&self) -> &SourceInfo {
        self.probe.info()
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        let status = self.probe.look()?;
        self.take_channel()?;
        // However long the interval, the ring buffer does not fill.
        self.read()?;
        Ok(status)
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        let sample = self.probe.sample()?;
        self.read()?;
        let now = self.channel.as_ref().map(|(_, channel)| channel.suppressed()).transpose()?;
        let suppressed = self.past_suppressed + now.unwrap_or(0);
        let (events, left_out) = self.waiting.take();
        let more = left_out + suppressed.saturating_sub(self.told);
        self.told = suppressed;
        Ok(Sample { losses: Some(Losses { events, more }), ..sample })
    }
}

#[cfg(test)]
mod tests {
    use ctwatch_ebpf::{AF_INET, Event, Group};

    use super::*;
    use crate::model::trace::{Detail, Flow};

    #[test]
    fn the_newest_are_kept_and_the_rest_are_counted() {
        let flow = |port| Flow {
            family: AF_INET,
            proto: 17,
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            detail: Detail::Ports(port, 53),
            zone: 0,
        };
        let record = |at| Record {
            wall_ns: i128::from(at),
            name: Group::Drop,
            event: Event::DropTableFull,
            netns: 7,
            flow: flow(at),
            assured: false,
            replied: false,
            age: None,
            newcomer: None,
            entry: None,
            invalid: None,
            certainty: crate::model::trace::Certainty::default(),
            cpu: Some(0),
            comm: None,
        };
        let most = u16::try_from(KEPT).unwrap();
        let mut waiting = Waiting::default();
        (0..most + 20).for_each(|at| waiting.push(record(at)));
        let (events, left_out) = waiting.take();
        assert_eq!((events.len(), left_out), (KEPT, 20));
        assert_eq!((events[0].wall_ns, events[KEPT - 1].wall_ns), (20, i128::from(most) + 19));
        assert_eq!(waiting.take(), (Vec::new(), 0));
    }
}
