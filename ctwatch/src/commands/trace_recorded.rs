//! `ctwatch trace --from`: the single losses that a recording holds.

use std::path::Path;

use super::running::{Reader as Reads, print, run_to_end, stop_on_signals};
use super::tell;
use super::trace::{View, view};
use crate::cli::TraceOptions;
use crate::model::filter::tuple;
use crate::model::trace::{Detail, Record};
use crate::privileges::{self, Work};
use crate::record::{Reader, Step};
use crate::view::{Machine, trace_json};

/// Prints them until the end, until the count is reached, until stopped or until nobody reads.
pub(super) fn run(options: &TraceOptions, file: &Path) -> anyhow::Result<()> {
    let mut reader = Reader::open(file)?;
    privileges::restrict(Work::NOTHING);
    for name in options.wanted.names.iter().filter(|name| !name.is_loss()) {
        tell(&format!("a recording holds no single events `{}`, only their number", name.name()));
    }
    run_to_end(async {
        let mut stop = stop_on_signals(false)?;
        let mut out = tokio::io::stdout();
        let mut past = Past { options, view: view(options), run: None, lost: 0, left: options.count };
        while let Some(step) = reader.next_step()? {
            // Signals need a turn where no report has a loss.
            tokio::task::yield_now().await;
            if *stop.borrow() || past.left == Some(0) {
                break;
            }
            let text = past.step(&step);
            if !text.is_empty() && print(&mut out, &mut stop, &text).await? == Reads::Gone {
                break;
            }
        }
        Ok(())
    })
}

struct Past<'a> {
    options: &'a TraceOptions,
    view: View,
    /// The run whose losses are shown, and what was lost up to there.
    run: Option<u64>,
    lost: u64,
    /// How many events are still to be shown.
    left: Option<u64>,
}

impl Past<'_> {
    fn step(&mut self, step: &Step) -> String {
        let (session, report) = (&step.session, &step.report);
        let mut text = String::new();
        if self.run.replace(session.id) != Some(session.id) {
            self.lost = 0;
            if let View::Lines(lines) = &self.view {
                let machine = Machine { host: session.host.clone(), kernel: session.kernel.clone() };
                text += &lines.start_recorded(&machine, &session.info);
            }
        }
        // What ends a run repeats the report before, without its losses.
        let losses = report.losses.as_ref();
        for record in losses.into_iter().flat_map(|losses| &losses.events) {
            if self.left == Some(0) {
                return text;
            }
            if self.wants(record) {
                let name = report.names.get(&record.netns).cloned();
                let name = name.unwrap_or_else(|| record.netns.to_string());
                text += &self.view.record(record, &name);
                self.left = self.left.map(|left| left - 1);
            }
        }
        match losses.map_or(0, |losses| losses.more) {
            0 => {}
            more => {
                text += &match &self.view {
                    View::Json => trace_json::suppressed(more),
                    View::Lines(lines) => lines.only_counted(more),
                };
            }
        }
        if report.lost > self.lost {
            text += &self.view.lost(report.lost - self.lost, session.info.kind);
            self.lost = report.lost;
        }
        text
    }

    /// Whether it is asked for; of an eviction the victim counts, as in the kernel.
    fn wants(&self, record: &Record) -> bool {
        let ports = match record.flow.detail {
            Detail::Ports(sport, dport) => Some((sport, dport)),
            Detail::Icmp { .. } | Detail::None => None,
        };
        let flow = tuple(record.flow.proto, record.flow.src, record.flow.dst, ports);
        let TraceOptions { wanted, filter, entries, .. } = self.options;
        // Other filters of entries are refused, because nothing is kept that they could look at.
        let zone = entries.zone.is_empty() || entries.zone.contains(&record.flow.zone);
        wanted.names.contains(record.name) && zone && filter.passes(record.netns, &flow)
    }
}
