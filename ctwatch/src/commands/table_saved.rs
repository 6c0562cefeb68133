//! `ctwatch table --from`: the entries of a saved list, grouped and ranked.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::running::{run_to_end, stdout_is_closed, stop_on_signals, stopped};
use super::table::Progress;
use super::{color, print};
use crate::cli::{Format, TableOptions};
use crate::model::Table;
use crate::model::table::{Grouping, Holding, MOST_GROUPS, Saved, Space};
use crate::privileges::{self, Work};
use crate::source::{now, saved};
use crate::view::table_json;
use crate::view::table_lines::TableLines;

/// Bytes read at once.
const BUFFER: usize = 1 << 18;
/// Whether anybody still reads is looked at once for so many entries.
const LOOK_EVERY: u64 = 1 << 16;
/// How compressed files begin, and what unpacks them.
const COMPRESSED: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "zcat"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstdcat"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xzcat"),
    (b"BZh", "bzcat"),
];

/// Reads the list, or stops on a signal.
pub(super) fn run(options: &TableOptions, file: &Path) -> anyhow::Result<()> {
    let name = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let input = open(file).with_context(|| format!("cannot read {name}"))?;
    privileges::restrict(Work::NOTHING);
    let options = options.clone();
    run_to_end(async {
        let mut stop = stop_on_signals(false)?;
        let reading = tokio::task::spawn_blocking(move || read(&options, input, &name));
        tokio::select! {
            read = reading => read.context("the reading broke down")?,
            () = stopped(&mut stop) => {
                Progress::clear();
                Ok(())
            }
        }
    })
}

fn open(file: &Path) -> anyhow::Result<Box<dyn BufRead + Send>> {
    let input: Box<dyn io::Read + Send> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let kind = std::fs::metadata(file)?.file_type();
        ensure!(kind.is_file() || kind.is_fifo(), "neither a regular file nor a pipe");
        Box::new(File::open(file)?)
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER, input)))
}

fn read(options: &TableOptions, mut input: Box<dyn BufRead + Send>, name: &str) -> anyhow::Result<()> {
    let TableOptions { by, count, filter, entries, .. } = options;
    let begin = input.fill_buf().with_context(|| format!("cannot read {name}"))?;
    if let Some((_, unpack)) = COMPRESSED.iter().find(|(magic, _)| begin.starts_with(magic)) {
        bail!("{name} is compressed: {unpack} FILE | ctwatch table --from -");
    }
    let table = Table { netns: 0, name: name.to_owned(), count: None, max: None };
    let mut grouping = Grouping::new(*by, MOST_GROUPS);
    let mut progress = Progress::of(&table);
    let mut listed = 0_u64;
    let outcome = saved::read(input, |entry| {
        progress.step();
        listed += 1;
        if filter.passes_entry(entry) && entries.passes(entry) {
            grouping.add(entry);
        }
        let nobody = listed.is_multiple_of(LOOK_EVERY) && stdout_is_closed();
        if nobody { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(progress);
    let outcome = outcome.with_context(|| format!("cannot read {name}"))?;
    let fault = outcome.first.or_else(|| outcome.cut.map(|line| (line, saved::Broken::Cut)));
    if let (0, Some((line, why))) = (outcome.entries, fault) {
        bail!(
            "{name}, line {line}: {why}. A list is what `conntrack -L` prints (also with -o extended or -o xml), or \
             /proc/net/nf_conntrack"
        );
    }
    let census = grouping.take_census();
    let space = Space { table, census, interrupted: false, readings: Vec::new(), error: None };
    let holding = Holding {
        wall_ns: now()?.0,
        by: *by,
        filtered: filter.selects_flows() || !entries.is_empty(),
        spaces: vec![space],
        namespaces_left_out: 0,
        ranked: grouping.ranked(*count),
        saved: Some(Saved {
            from: name.to_owned(),
            listed: outcome.entries,
            unread: outcome.unread,
            first: outcome.first.map(|(line, why)| (line, why.to_string())),
            cut: outcome.cut,
        }),
    };
    let text = if options.format == Format::Json {
        table_json::holding(&holding, None)
    } else {
        let lines = TableLines::new(None, jiff::tz::TimeZone::system(), color(options.color));
        lines.start_saved(name) + &lines.holding(&holding)
    };
    print(text.as_bytes())
}
