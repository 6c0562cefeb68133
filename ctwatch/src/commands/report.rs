//! `ctwatch report`: one page of a recording.

use std::path::Path;

use anyhow::Context as _;

use super::{capture, print};
use crate::cli::ReportArgs;
use crate::doctor::recorded::Recorded;
use crate::doctor::{diagnose, mask};
use crate::model::incident::Incident;
use crate::privileges::{self, Work};
use crate::record::Reader;
use crate::view::Machine;
use crate::view::page::{Subject, page};

/// Reads the recording once and writes the page.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let reader = Reader::open(&args.file)?;
    let to_stdout = args.output == Path::new("-");
    privileges::restrict(Work { writes: !to_stdout, ..Work::NOTHING });
    let text = made_of(reader, args)?;
    if to_stdout { print(text.as_bytes()) } else { capture::write(&args.output, &text) }
}

fn made_of(mut reader: Reader, args: &ReportArgs) -> anyhow::Result<String> {
    let (mut incident, mut recorded) = (Incident::default(), Recorded::default());
    let mut masks = args.mask.then(mask::Recorded::default);
    let mut last = None;
    while let Some(mut step) = reader.next_step()? {
        let wall = step.report.wall_ns;
        let wanted = args.from.is_none_or(|from| wall >= from) && args.to.is_none_or(|to| wall <= to);
        // What ends a run repeats its last report.
        if !wanted || step.closing {
            continue;
        }
        if let Some(masks) = &mut masks {
            masks.host(&mut step.session.host);
            masks.info(&mut step.session.info);
            masks.report(&mut step.report);
        }
        let session = &step.session;
        incident.add(session.id, &session.info, &step.report);
        recorded.add(session.id, &session.kernel, &session.info, &step.report);
        last = Some(step.session);
    }
    incident.finish();
    let facts = recorded.facts().zip(last);
    let (facts, session) = facts.context("there is no report in this part of the recording")?;
    let machine = Machine { host: session.host, kernel: session.kernel };
    let subject =
        Subject { machine: &machine, version: &session.version, zone: &jiff::tz::TimeZone::system() };
    page(&subject, &incident, &diagnose(&facts))
}
