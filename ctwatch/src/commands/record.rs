//! `ctwatch record`: every report of `live` and its single losses, kept in a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::running::{run_to_end, settle_for, settle_in, stdout_is_closed, stop_on_signals};
use super::{live, machine, tell};
use crate::cli::{Format, Options, RecordOptions};
use crate::model::{Report, SourceInfo, SourceKind};
use crate::privileges::Work;
use crate::record::{Budget, Session, Writer};
use crate::source::{self, Needs, keeper};
use crate::view::View;

/// How much time a loss of power may take with it.
const SYNC_EVERY: Duration = Duration::from_secs(30);

/// Runs until stopped or until the count is reached.
pub fn run(options: &RecordOptions) -> anyhow::Result<()> {
    keeper::start(&options.live.filter);
    // Before rights are given up: afterwards no file can be opened for writing. It stays open.
    let mut recorder = Recorder::new(options)?;
    settle_in(options.live.source, Work::NOTHING);
    run_to_end(async {
        let stop = stop_on_signals(false)?;
        let mut source = source::open(&needs(&options.live))?;
        settle_for(source.info(), Work::NOTHING);
        let silent = recorder.view.is_none();
        let gone = || !silent && stdout_is_closed();
        live::watch(&mut *source, &options.live, &mut recorder, tokio::io::stdout(), gone, stop).await?;
        recorder.finish()
    })
}

/// Whatever is printed beside it, a recording has the cost of watching and single losses.
pub(super) fn needs(live: &Options) -> Needs {
    Needs { cost: true, losses: true, ..live.needs() }
}

/// A new run on this machine, whose source is not open yet.
pub(super) fn session() -> anyhow::Result<Session> {
    let machine = machine()?;
    let (wall, _) = source::now()?;
    Ok(Session {
        id: u64::try_from(wall).unwrap_or(0) ^ u64::from(std::process::id()) << 48,
        host: machine.host,
        kernel: machine.kernel,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        info: SourceInfo { kind: SourceKind::Replay, why: None, unknown: BTreeMap::new() },
    })
}

/// Writes each report down, and hands it to the view that prints it, if any does.
struct Recorder {
    writer: Writer,
    session: Session,
    view: Option<Box<dyn View>>,
    budget: Budget,
    synced: Instant,
    /// Why the last report was not written; printed when it changes.
    failed: Option<String>,
    /// How many of them are missing.
    missing: u64,
}

impl Recorder {
    fn new(options: &RecordOptions) -> anyhow::Result<Self> {
        let writer = Writer::open(&options.file, options.limits)?;
        Ok(Self {
            writer,
            session: session()?,
            view: if options.live.format == Format::Auto { None } else { Some(live::view(&options.live)?) },
            budget: Budget::default(),
            synced: Instant::now(),
            failed: None,
            missing: 0,
        })
    }

    fn write(&mut self, report: &Report, info: &SourceInfo, closing: bool) {
        if self.session.info != *info {
            self.session.info = info.clone();
            self.writer.restart();
        }
        let mut report = report.clone();
        if closing {
            // They stand in the report before.
            report.losses = None;
        } else if let Some(losses) = &mut report.losses {
            self.budget.spend(losses, report.elapsed);
        }
        let written = since_boot().and_then(|boot| self.writer.append(&self.session, &report, closing, boot));
        match written {
            Ok(()) if self.failed.take().is_some() => {
                tell(&format!("recording again; {} reports are missing", self.missing));
            }
            Ok(()) => {}
            Err(error) => {
                self.missing += u64::from(!closing);
                let why = format!("{error:#}");
                if self.failed.as_ref() != Some(&why) {
                    tell(&format!("this report is not recorded: {why}; the next one is tried again"));
                }
                self.failed = Some(why);
            }
        }
        if self.synced.elapsed() >= SYNC_EVERY {
            self.synced = Instant::now();
            if let Ok(file) = self.writer.file() {
                // On a thread of its own: a disk may take its time, and what fails here fails at the next write.
                tokio::task::spawn_blocking(move || drop(File::sync_data(&file)));
            }
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        let synced = self.writer.file().and_then(|file| file.sync_data());
        if let Some(why) = self.failed {
            anyhow::bail!("{} reports are missing at the end of the recording: {why}", self.missing);
        }
        Ok(synced?)
    }
}

impl View for Recorder {
    fn start(&mut self, info: &SourceInfo) -> String {
        self.view.as_mut().map(|view| view.start(info)).unwrap_or_default()
    }

    fn report(&mut self, report: &Report, info: &SourceInfo) -> String {
        self.write(report, info, false);
        self.view.as_mut().map(|view| view.report(report, info)).unwrap_or_default()
    }

    fn end(&mut self, last: &Report, info: &SourceInfo) -> String {
        self.write(last, info, true);
        self.view.as_mut().map(|view| view.end(last, info)).unwrap_or_default()
    }
}

/// Nanoseconds since boot, time asleep included: no jump of the wall clock changes what is kept.
fn since_boot() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}
