//! What the screen has taken in from the source.

use std::collections::VecDeque;
use std::time::Duration;

use ctwatch_ebpf::{FlowType, Group};

use crate::model::history::History;
use crate::model::live::{Baseline, Range};
use crate::model::ranking::{Losses, Top};
use crate::model::trace::Record;
use crate::model::verdict::{Trouble, troubles};
use crate::model::{Report, SourceInfo};

/// How many lines are kept for the panel of losses.
const LOSSES: usize = 200;

/// A line of the latest losses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Event(Box<Record>),
    /// So many more came up to this time, and were only counted.
    More(u64, i128),
}

/// A ranking and what belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    pub(super) rows: Vec<Top>,
    pub(super) elapsed: Duration,
    pub(super) wall_ns: i128,
}

/// Everything that comes from the source.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) info: SourceInfo,
    pub(super) report: Option<Report>,
    pub(super) history: History,
    pub(super) troubles: Vec<Trouble>,
    /// Newest first.
    pub(super) losses: VecDeque<Loss>,
    /// The report that last ranked anything: a burst is over before it is read.
    pub(super) ranked: Option<Ranked>,
    /// Where counting the entries of each flow type starts from.
    pub(super) baseline: Option<Baseline>,
    /// When something was last lost or evicted, since the last reset.
    pub(super) last_loss: Option<i128>,
    /// What is missing, where there is nothing to watch.
    pub(super) waiting: Option<String>,
}

impl Watched {
    /// Nothing yet.
    pub(super) fn new(info: SourceInfo) -> Self {
        Self {
            info,
            report: None,
            history: History::default(),
            troubles: Vec::new(),
            losses: VecDeque::new(),
            ranked: None,
            baseline: None,
            last_loss: None,
            waiting: None,
        }
    }

    /// Takes in a report.
    pub(super) fn report(&mut self, report: Report, info: &SourceInfo) {
        self.info.clone_from(info);
        self.history.advance(&report);
        self.troubles = troubles(&report, &self.history);
        let lossy = [Group::Drop, Group::EarlyDrop, Group::InsertFailed];
        if report.flows.iter().any(|flow| lossy.iter().any(|sum| sum.of(&flow.counts) > 0)) {
            self.last_loss = Some(report.wall_ns);
        }
        if let Some(baseline) = &mut self.baseline {
            baseline.reconcile(&report);
        }
        if let Some(rows) = report.top.as_ref().filter(|rows| !rows.is_empty()) {
            self.ranked =
                Some(Ranked { rows: rows.clone(), elapsed: report.elapsed, wall_ns: report.wall_ns });
        }
        self.losses(report.losses.as_ref(), report.wall_ns);
        self.report = Some(report);
    }

    /// Takes in losses that came up to this time.
    pub(super) fn losses(&mut self, losses: Option<&Losses>, wall_ns: i128) {
        let Some(losses) = losses else { return };
        let lines = &mut self.losses;
        for record in &losses.events {
            lines.push_front(Loss::Event(Box::new(record.clone())));
        }
        if losses.more > 0 {
            lines.push_front(Loss::More(losses.more, wall_ns));
        }
        lines.truncate(LOSSES);
    }

    /// There is nothing to watch: why. Or there is again.
    pub(super) fn waiting(&mut self, why: Option<String>) {
        if why.is_none() && self.waiting.is_some() {
            self.history.gap();
        }
        if why.is_some() {
            self.baseline = None;
        }
        self.waiting = why;
    }

    /// Begins anew, but for what is known of the table.
    pub(super) fn reset(&mut self) {
        self.history.reset();
        self.losses.clear();
        self.ranked = None;
        self.last_loss = None;
        if let Some(report) = &self.report {
            self.troubles = troubles(report, &self.history);
        }
    }

    /// How many entries a flow type has now, where that can be told.
    pub(super) fn entries(&self, flow: FlowType) -> Option<Range> {
        let flow = self.report.as_ref()?.flows.iter().find(|other| other.key == flow)?;
        self.baseline.as_ref()?.entries(flow.key, &flow.total)
    }
}
