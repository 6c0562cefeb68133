//! A source for tests.

use std::collections::{BTreeMap, VecDeque};

use ctwatch_ebpf::{AF_INET, Counters, Event, FlowType};
use tokio::time::Instant;

use crate::model::{Sample, SourceInfo, SourceKind};
use crate::source::{Source, Status};

const UDP: FlowType = FlowType { netns: 7, family: AF_INET, proto: 17 };

/// Counts one insert at each sample; the tokio clock is its clock.
pub(super) struct Scripted {
    info: SourceInfo,
    opened: Instant,
    inserts: u64,
    looks: VecDeque<anyhow::Result<Status>>,
}

impl Scripted {
    pub(super) fn new(looks: Vec<anyhow::Result<Status>>) -> Self {
        let info = SourceInfo { kind: SourceKind::Kprobe, why: None, unknown: BTreeMap::new() };
        Self { info, opened: Instant::now(), inserts: 0, looks: looks.into() }
    }
}

impl Source for Scripted {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        self.looks.pop_front().unwrap_or(Ok(Status::Watching))
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        self.inserts += 1;
        let mut counters = Counters::default();
        counters.0[Event::Insert as usize] = self.inserts;
        Ok(Sample {
            mono_ns: u64::try_from(self.opened.elapsed().as_nanos())?,
            rows: [(UDP, counters)].into(),
            ..Sample::default()
        })
    }
}
