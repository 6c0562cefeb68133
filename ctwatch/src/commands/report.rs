//! `ctwatch report`: one page of a recording, or of this machine for a while.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;

use super::running::{run_to_end, settle_for, settle_in, stop_on_signals, stopped};
use super::{capture, live, print, record, tell};
use crate::cli::ReportArgs;
use crate::doctor::recorded::Recorded;
use crate::doctor::{diagnose, mask};
use crate::model::incident::Incident;
use crate::model::{Report, SourceInfo};
use crate::privileges::{self, Work};
use crate::record::{Reader, Session};
use crate::source::{self, keeper};
use crate::view::page::{Subject, page};
use crate::view::{Machine, View};

/// Reads the recording once, or watches for a while, and writes the page.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let to_stdout = args.output == Path::new("-");
    let beside = Work { writes: !to_stdout, ..Work::NOTHING };
    let text = match (&args.file, args.live) {
        (Some(file), _) => {
            let reader = Reader::open(file)?;
            privileges::restrict(beside);
            recorded(reader, args)?
        }
        (None, Some(length)) => {
            if !to_stdout {
                capture::ready(&args.output)?;
            }
            watched(args, length, beside)?
        }
        (None, None) => bail!("neither a recording nor `--live` is given"),
    };
    if to_stdout { print(text.as_bytes()) } else { capture::write(&args.output, &text) }
}

/// What a page is made of.
#[derive(Default)]
struct Gathered {
    incident: Incident,
    recorded: Recorded,
    masks: Option<mask::Recorded>,
    last: Option<Session>,
}

impl Gathered {
    fn new(masked: bool) -> Self {
        Self { masks: masked.then(mask::Recorded::default), ..Self::default() }
    }

    fn add(&mut self, mut session: Session, mut report: Report) {
        if let Some(masks) = &mut self.masks {
            masks.host(&mut session.host);
            masks.info(&mut session.info);
            masks.report(&mut report);
        }
        self.incident.add(session.id, &session.info, &report);
        self.recorded.add(session.id, &session.kernel, &session.info, &report);
        self.last = Some(session);
    }

    /// `None` where there was no report.
    fn page(mut self) -> Option<anyhow::Result<String>> {
        self.incident.finish();
        let (facts, session) = self.recorded.facts().zip(self.last)?;
        let machine = Machine { host: session.host, kernel: session.kernel };
        let subject =
            Subject { machine: &machine, version: &session.version, zone: &jiff::tz::TimeZone::system() };
        Some(page(&subject, &self.incident, &diagnose(&facts)))
    }
}

fn recorded(mut reader: Reader, args: &ReportArgs) -> anyhow::Result<String> {
    let mut gathered = Gathered::new(args.mask);
    while let Some(step) = reader.next_step()? {
        if step.counts_within(args.from, args.to) {
            gathered.add(step.session, step.report);
        }
    }
    gathered.page().context("there is no report in this part of the recording")?
}

/// Watches this machine as `live` does.
fn watched(args: &ReportArgs, length: Duration, beside: Work) -> anyhow::Result<String> {
    let options = args.options(length)?;
    keeper::start(&options.filter);
    settle_in(options.source, beside);
    run_to_end(async {
        let signals = stop_on_signals(false)?;
        let mut source = source::open(&record::needs(&options))?;
        settle_for(source.info(), beside);
        // The reports end it. This is for a machine where there is nothing to watch.
        let stop = stop_after(length + options.interval, signals);
        let (gathered, session) = (Gathered::new(args.mask), record::session()?);
        let mut watching = Watching { gathered, session, length, stop: stop.clone() };
        live::watch(&mut *source, &options, &mut watching, tokio::io::sink(), || false, stop).await?;
        watching.gathered.page().context("there was nothing to watch")?
    })
}

fn stop_after(length: Duration, mut signals: watch::Receiver<bool>) -> watch::Receiver<bool> {
    let (stop, receiver) = watch::channel(false);
    tokio::spawn(async move {
        // Either way it is over; the receiver may be gone already.
        let _ = tokio::time::timeout(length, stopped(&mut signals)).await;
        let _ = stop.send(true);
    });
    receiver
}

/// Takes in reports, and prints none.
struct Watching {
    gathered: Gathered,
    session: Session,
    length: Duration,
    stop: watch::Receiver<bool>,
}

impl View for Watching {
    fn start(&mut self, _: &SourceInfo) -> String {
        // It starts at the end where there was nothing to watch before.
        if !*self.stop.borrow() {
            let seconds = self.length.as_secs();
            tell(&format!("watching for {seconds} s; Ctrl-C ends it early, and the page is written"));
        }
        String::new()
    }

    fn report(&mut self, report: &Report, info: &SourceInfo) -> String {
        self.session.info.clone_from(info);
        // Without connection tracking there is no table.
        if !report.tables.is_empty() {
            self.gathered.add(self.session.clone(), report.clone());
        }
        String::new()
    }

    fn end(&mut self, _: &Report, _: &SourceInfo) -> String {
        String::new()
    }
}
