//! `replay FILE --against OTHER`: what changed from the one to the other.

use anyhow::Context as _;

use crate::cli::ReplayArgs;
use crate::commands::{color, print};
use crate::model::compare::compare;
use crate::model::incident::Incident;
use crate::record::{Reader, Session};
use crate::view::compare::{Time, plain};
use crate::view::compare_json::json;

/// Reads both once.
pub(super) fn run(args: &ReplayArgs, before: Reader, after: Reader, other: &str) -> anyhow::Result<()> {
    let file = args.file.to_string_lossy();
    let (before, there) = added_up(before, args.from, args.to, &file)?;
    let (after, here) = added_up(after, args.against_from, args.against_to, other)?;
    let time = |file, session: &'_ Session, incident| Time {
        file,
        host: session.host.clone(),
        kernel: session.kernel.clone(),
        incident,
    };
    let comparison = compare(&before, &after);
    let (before, after) = (time(&file, &there, &before), time(other, &here, &after));
    let text = if args.output.json {
        json(&before, &after, &comparison)
    } else {
        let zone = jiff::tz::TimeZone::system();
        plain(&before, &after, &comparison, &zone, color(!args.output.no_color))
    };
    print(text.as_bytes())
}

/// A part of a recording, and its last session.
fn added_up(
    mut reader: Reader,
    from: Option<i128>,
    to: Option<i128>,
    file: &str,
) -> anyhow::Result<(Incident, Session)> {
    let (mut incident, mut last) = (Incident::default(), None);
    while let Some(step) = reader.next_step()? {
        if step.counts_within(from, to) {
            incident.add(step.session.id, &step.session.info, &step.report);
            last = Some(step.session);
        }
    }
    incident.finish();
    let session = last.with_context(|| format!("there is no report in this part of {file}"))?;
    Ok((incident, session))
}
