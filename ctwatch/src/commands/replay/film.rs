//! A recording as it is played: forth and back, within the times asked for.

use std::collections::VecDeque;

use crate::record::{Reader, Step};

/// Before the report that is shown after a jump, so many more are taken in at most: histories and rates need some.
const LEAD: usize = 400;
/// And none older than this, nanoseconds.
const LEAD_NS: i128 = 600 * 1_000_000_000;

/// A recording and a place in it.
pub(super) struct Film {
    reader: Reader,
    from: Option<i128>,
    to: Option<i128>,
    ahead: Option<Step>,
    /// The time of the report taken last.
    shown: Option<i128>,
}

impl Film {
    /// From its beginning.
    pub(super) const fn new(reader: Reader, from: Option<i128>, to: Option<i128>) -> Self {
        Self { reader, from, to, ahead: None, shown: None }
    }

    /// The report that comes next, without taking it.
    pub(super) fn peek(&mut self) -> anyhow::Result<Option<&Step>> {
        while self.ahead.is_none() {
            let Some(step) = self.reader.next_step()? else { break };
            if step.counts_within(self.from, self.to) {
                self.ahead = Some(step);
            }
        }
        Ok(self.ahead.as_ref())
    }

    /// The report that comes next.
    pub(super) fn take(&mut self) -> anyhow::Result<Option<Step>> {
        self.peek()?;
        let step = self.ahead.take();
        self.shown = step.as_ref().map(|step| step.report.wall_ns).or(self.shown);
        Ok(step)
    }

    /// Goes to the first report.
    pub(super) fn begin(&mut self) -> anyhow::Result<Vec<Step>> {
        self.ahead = None;
        self.reader.rewind();
        Ok(self.take()?.into_iter().collect())
    }

    /// Goes to the last report at this time or before it, or to the first one after it where there is none. Gives it with
    /// those before it.
    pub(super) fn go_to(&mut self, wall_ns: i128) -> anyhow::Result<Vec<Step>> {
        self.ahead = None;
        self.reader.seek(wall_ns.saturating_sub(LEAD_NS))?;
        let mut lead: VecDeque<Step> = VecDeque::new();
        while self.peek()?.is_some_and(|step| step.report.wall_ns <= wall_ns) {
            lead.extend(self.take()?);
            let oldest = |step: &Step| step.report.wall_ns < wall_ns.saturating_sub(LEAD_NS);
            while lead.len() > LEAD || lead.len() > 1 && lead.front().is_some_and(oldest) {
                lead.pop_front();
            }
        }
        if lead.is_empty() {
            lead.extend(self.take()?);
        }
        Ok(lead.into())
    }

    /// Goes to the report before the one shown.
    pub(super) fn back(&mut self) -> anyhow::Result<Vec<Step>> {
        match self.shown {
            Some(shown) => self.go_to(shown.saturating_sub(1)),
            None => self.begin(),
        }
    }

    /// Goes to the last report.
    pub(super) fn end(&mut self) -> anyhow::Result<Vec<Step>> {
        match (self.to, self.reader.last_wall()?) {
            (Some(to), Some(last)) => self.go_to(to.min(last)),
            (_, Some(last)) => self.go_to(last),
            (_, None) => self.begin(),
        }
    }
}
