//! `ctwatch doctor`: facts, findings, and the exit code of a monitoring plugin.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};

use super::running::run_to_end;
use super::{capture, color, print};
use crate::cli::{DoctorArgs, DoctorCommand};
use crate::doctor::facts::FORMAT;
use crate::doctor::gather::{self, Wishes};
use crate::doctor::recorded::Recorded;
use crate::doctor::{Facts, diagnose, explain, mask};
use crate::model::Filter;
use crate::privileges::{self, Work};
use crate::record::Reader;
use crate::source::keeper;
use crate::view::doctor::{self as view, Context, Style};

/// The exit code for all that keeps doctor from an answer, wrong usage included.
pub const COULD_NOT_TELL: u8 = 3;

/// Runs doctor; an error is told and exits with [`COULD_NOT_TELL`].
pub fn run(args: &DoctorArgs) -> ExitCode {
    match answer(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            super::tell(&format!("{error:#}"));
            ExitCode::from(COULD_NOT_TELL)
        }
    }
}

fn answer(args: &DoctorArgs) -> anyhow::Result<u8> {
    if let Some(DoctorCommand::Explain { id }) = &args.command {
        privileges::restrict(Work::NOTHING);
        return explain_finding(id.as_deref()).map(|()| 0);
    }
    let writes = args.capture.as_deref().is_some_and(|file| file != Path::new("-"));
    let (mut facts, context) = match &args.from {
        Some(file) if Reader::is_recording(file) => recorded(file, args, writes)?,
        Some(_) if args.from_time.is_some() || args.to.is_some() => {
            anyhow::bail!("--from-time and --to choose a part of a recording, and this is none");
        }
        Some(file) => here(load(file, writes)?, false)?,
        None => here(capture_here(args, writes)?, true)?,
    };
    if let Some(file) = &args.capture {
        save(facts.clone(), file)?;
    }
    // A question of this call, and no part of what was captured.
    facts.since_ms = args.since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let diagnosis = diagnose(&facts);
    if args.capture.as_deref() == Some(Path::new("-")) {
        return Ok(diagnosis.status.exit_code());
    }
    let text = if args.output.json {
        view::json(&diagnosis, &context, args.all)?
    } else {
        view::plain(&diagnosis, Style { all: args.all, color: color(!args.output.no_color) })
    };
    print(text.as_bytes())?;
    Ok(diagnosis.status.exit_code())
}

fn capture_here(args: &DoctorArgs, writes: bool) -> anyhow::Result<Facts> {
    let wishes = Wishes {
        sample: args.sample,
        source: args.place.source,
        netns: args.place.netns(),
        latency: args.latency,
        announce: super::tell,
    };
    keeper::start(&Filter { netns: wishes.netns, ..Filter::default() });
    let probes = wishes.source.mechanism().is_some();
    privileges::restrict(Work { probes, namespaces: true, rules: true, writes, ..Work::NOTHING });
    run_to_end(gather::read(wishes))
}

/// The facts of a recording or a part of it, and when and where that ends.
fn recorded(file: &Path, args: &DoctorArgs, writes: bool) -> anyhow::Result<(Facts, Context)> {
    let mut reader = Reader::open(file)?;
    privileges::restrict(Work { writes, ..Work::NOTHING });
    let mut recorded = Recorded::default();
    let mut last = None;
    while let Some(step) = reader.next_step()? {
        if step.counts_within(args.from_time, args.to) {
            recorded.add(step.session.id, &step.session.kernel, &step.session.info, &step.report);
            last = Some((step.report.wall_ns, step.session.host));
        }
    }
    let facts = recorded.facts().zip(last);
    let (facts, (wall_ns, host)) =
        facts.with_context(|| format!("{} holds no report of this time", file.display()))?;
    let time = jiff::Timestamp::from_nanosecond(wall_ns).context("the time of the last report")?;
    let context = context(time, Some(host), &facts);
    Ok((facts, context))
}

/// What is judged now, on this machine or not.
fn here(facts: Facts, named: bool) -> anyhow::Result<(Facts, Context)> {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let time = jiff::Timestamp::new(wall.tv_sec(), i32::try_from(wall.tv_nsec())?)?;
    let host = if named { Some(nix::unistd::gethostname()?.to_string_lossy().into_owned()) } else { None };
    let context = context(time, host, &facts);
    Ok((facts, context))
}

fn context(time: jiff::Timestamp, host: Option<String>, facts: &Facts) -> Context {
    Context { time: format!("{time:.3}"), host, kernel: facts.release.clone(), sample_s: facts.live.seconds }
}

fn load(file: &Path, writes: bool) -> anyhow::Result<Facts> {
    let text = capture::read(file)?;
    privileges::restrict(Work { writes, ..Work::NOTHING });
    let facts: Facts = serde_json::from_str(&text)
        .with_context(|| format!("{} does not hold what `doctor --capture` writes", file.display()))?;
    anyhow::ensure!(
        facts.format == FORMAT,
        "{} was captured in format {}, and this ctwatch reads format {FORMAT}",
        file.display(),
        facts.format
    );
    Ok(facts)
}

fn save(mut facts: Facts, file: &Path) -> anyhow::Result<()> {
    mask::mask(&mut facts);
    let mut text = serde_json::to_string_pretty(&facts)?;
    text.push('\n');
    if file == Path::new("-") {
        return print(text.as_bytes());
    }
    capture::write(file, &text)
}

fn explain_finding(id: Option<&str>) -> anyhow::Result<()> {
    let Some(id) = id else {
        let lines = explain::TOPICS.iter().map(|topic| format!("{:<20} {}\n", topic.id, topic.title));
        return print(lines.collect::<String>().as_bytes());
    };
    let topic = explain::find(id).with_context(|| {
        let known: Vec<&str> = explain::TOPICS.iter().map(|topic| topic.id).collect();
        format!("no finding is called `{id}`; there are {}", known.join(", "))
    })?;
    print(format!("{}: {}\n\n{}", topic.id, topic.title, topic.text).as_bytes())
}
