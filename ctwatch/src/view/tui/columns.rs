//! The rows of flow types: as many columns as the width allows, the most telling first.

use std::time::Duration;

use ctwatch_ebpf::{FlowType, Group};
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::app::{App, Sort};
use super::text;
use crate::model::history::windows;
use crate::model::live::Range;
use crate::model::verdict::{Level, weight};
use crate::model::{Flow, SourceInfo, family_name, protocol_name};

const NETNS: usize = 14;
const LONG_NETNS: usize = 28;
const FLOW: usize = 13;
const SHORT_FLOW: usize = 9;
const CELL: usize = 8;
const SHORTEST_RUN: usize = 6;
const LONGEST_RUN: usize = 60;

/// A column; the number says which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Netns,
    Flow,
    /// Entries in the table now.
    Live,
    Rate(Group, usize),
}

/// From left to right.
const ORDER: [Column; 21] = {
    use Column::{Flow, Live, Netns, Rate};
    [
        Netns,
        Flow,
        Live,
        Rate(Group::Insert, 0),
        Rate(Group::Insert, 1),
        Rate(Group::Insert, 2),
        Rate(Group::Delete, 0),
        Rate(Group::Delete, 1),
        Rate(Group::Delete, 2),
        Rate(Group::EarlyDrop, 0),
        Rate(Group::EarlyDrop, 1),
        Rate(Group::EarlyDrop, 2),
        Rate(Group::Drop, 0),
        Rate(Group::Drop, 1),
        Rate(Group::Drop, 2),
        Rate(Group::InsertFailed, 0),
        Rate(Group::InsertFailed, 1),
        Rate(Group::InsertFailed, 2),
        Rate(Group::Invalid, 0),
        Rate(Group::Invalid, 1),
        Rate(Group::Invalid, 2),
    ]
};

/// The rank of the run of inserts.
const RUN: usize = 9;

/// Which columns come first where there is little room.
fn rank(column: Column) -> usize {
    match column {
        Column::Flow => 0,
        Column::Rate(Group::Drop, 0) => 1,
        Column::Rate(Group::Insert, 0) => 2,
        Column::Rate(Group::EarlyDrop, 0) => 3,
        Column::Rate(Group::Delete, 0) => 4,
        Column::Rate(Group::InsertFailed, 0) => 5,
        // Only where there are any.
        Column::Rate(Group::Invalid, 0) => 6,
        Column::Netns => 7,
        Column::Live => 8,
        // Then comes the run of inserts.
        Column::Rate(Group::Insert, window) => RUN + window,
        Column::Rate(Group::Drop, window) => RUN + 2 + window,
        Column::Rate(Group::EarlyDrop, window) => RUN + 4 + window,
        Column::Rate(Group::InsertFailed, window) => RUN + 6 + window,
        Column::Rate(Group::Delete, window) => RUN + 8 + window,
        Column::Rate(Group::Invalid, window) => RUN + 10 + window,
        // These have no column.
        Column::Rate(Group::InsertNetlink | Group::ClashResolve, window) => RUN + 12 + window,
    }
}

fn title(column: Column, interval: Duration) -> String {
    match column {
        Column::Netns => "netns".into(),
        Column::Flow => "flow".into(),
        Column::Live => "live".into(),
        Column::Rate(Group::InsertFailed, 0) => "ins_failed".into(),
        Column::Rate(sum, 0) => sum.name().into(),
        Column::Rate(_, window) => window_name(interval, window),
    }
}

/// `10s`: what a rate is the mean of.
pub(super) fn window_name(interval: Duration, window: usize) -> String {
    format!("{}s", windows(interval)[window].as_secs_f64().round())
}

/// On a screen narrower than this, families lose their first letters.
const NARROW: usize = 36;

/// From this width on, namespaces may have long names.
pub(super) const BROAD: usize = 120;

fn width_of(column: Column, width: usize) -> usize {
    match column {
        Column::Netns if width >= BROAD => LONG_NETNS,
        Column::Netns => NETNS,
        Column::Flow if width < NARROW => SHORT_FLOW,
        Column::Flow => FLOW,
        Column::Rate(_, 0) if width < NARROW => 7,
        Column::Rate(Group::EarlyDrop | Group::InsertFailed, 0) => 10,
        Column::Live | Column::Rate(_, 0) => CELL,
        Column::Rate(..) => 7,
    }
}

/// The columns that fit and what is left for the run of inserts.
fn fitting(app: &App, width: usize) -> (Vec<Column>, usize) {
    let netns = app.rows().first().map(|flow| flow.key.netns);
    let any_invalid = app.rows().iter().any(|flow| Group::Invalid.of(&flow.total) > 0);
    let several = app.rows().iter().any(|flow| Some(flow.key.netns) != netns);
    // Windows as long as the interval tell the same as the one before them.
    let told = windows(app.interval);
    let mut wanted: Vec<Column> = ORDER
        .into_iter()
        .filter(|column| match column {
            Column::Netns => several,
            Column::Live => app.rows().iter().any(|flow| app.shown().entries(flow.key).is_some()),
            Column::Rate(Group::Invalid, _) if !any_invalid => false,
            Column::Rate(_, window @ 1..) => told[*window] > told[window - 1],
            _ => true,
        })
        .collect();
    wanted.sort_by_key(|column| rank(*column));
    // One cell before the rows for the mark of the chosen one.
    let mut left = width.saturating_sub(1);
    let mut run = 0;
    let mut taken = Vec::new();
    for column in wanted {
        if rank(column) > RUN && run == 0 {
            // The run is worth more than the longer windows.
            run = if left > SHORTEST_RUN { 12.min(left - 1) } else { 0 };
            left -= if run > 0 { run + 1 } else { 0 };
        }
        let needs = width_of(column, width) + 1;
        if needs > left && !taken.is_empty() {
            break;
        }
        left = left.saturating_sub(needs);
        taken.push(column);
    }
    taken.sort_by_key(|column| ORDER.iter().position(|ordered| ordered == column));
    run = match run {
        0 if left > SHORTEST_RUN => left - 1,
        0 => 0,
        run => run + left,
    };
    (taken, run.min(LONGEST_RUN))
}

/// The heading and the rows, within `room` lines.
pub(super) fn lines(app: &App, width: usize, room: usize) -> Vec<Line<'static>> {
    let (columns, run) = fitting(app, width);
    let theme = app.settings.theme;
    let mut lines = vec![heading(app, &columns, run, width)];
    let rows = app.rows();
    if rows.is_empty() {
        let hidden = app.shown().report.as_ref().map_or(0, |report| report.flows.len());
        let why = match (hidden, &app.shown().report) {
            (0, None) => " the first report is on its way",
            (0, Some(_)) => " no connection was tracked yet",
            _ => " nothing matches the filter (Esc shows everything)",
        };
        lines.push(Line::styled(why, theme.quiet()));
    }
    let chosen = app.chosen();
    let at = rows.iter().position(|flow| Some(flow.key) == chosen).unwrap_or_default();
    let room = room.saturating_sub(1);
    let crowded = rows.len() > room;
    let fits = if crowded && room > 2 { room - 1 } else { room };
    let first = (at + 1).saturating_sub(fits).min(rows.len());
    let last = (first + fits).min(rows.len());
    for flow in &rows[first..last] {
        lines.push(row(app, flow, Some(flow.key) == chosen, (&columns, run), width));
    }
    if crowded && room > 2 {
        let more = format!("  {} to {last} of {} flow types", first + 1, rows.len());
        lines.push(Line::styled(more, theme.quiet()));
    }
    lines
}

fn heading(app: &App, columns: &[Column], run: usize, width: usize) -> Line<'static> {
    let theme = app.settings.theme;
    let mut spans = vec![Span::raw(" ")];
    for column in columns {
        let wide = width_of(*column, width);
        let title = title(*column, app.interval);
        let text = match column {
            Column::Netns | Column::Flow => text::left(&title, wide + 1),
            Column::Live | Column::Rate(..) => text::right(&title, wide + 1),
        };
        let sorted = matches!((column, app.sort), (Column::Rate(sum, 0), Sort::By(by)) if *sum == by);
        let style = match column {
            Column::Rate(_, 1..) => theme.quiet(),
            _ if sorted => theme.heading().underlined(),
            _ => theme.heading(),
        };
        spans.push(Span::styled(text, style));
    }
    if run > 0 {
        let title = if run >= 9 { "inserts" } else { "" };
        spans.push(Span::styled(format!(" {}", text::right(title, run)), theme.quiet()));
    }
    Line::from(spans)
}

fn row(
    app: &App,
    flow: &Flow,
    chosen: bool,
    (columns, run): (&[Column], usize),
    width: usize,
) -> Line<'static> {
    let theme = app.settings.theme;
    let shown = app.shown();
    let past = shown.history.flow(flow.key);
    let mark = if chosen { theme.chosen() } else { ' ' };
    let mut spans = vec![Span::raw(mark.to_string())];
    for column in columns {
        let wide = width_of(*column, width);
        match column {
            Column::Netns => spans.push(Span::raw(text::left(&app.netns_name(flow.key.netns), wide) + " ")),
            Column::Flow if width < NARROW => {
                let name = flow_name(flow.key).replacen("ipv", "v", 1);
                spans.push(Span::raw(text::left(&name, wide) + " "));
            }
            Column::Flow => spans.push(Span::raw(text::left(&flow_name(flow.key), wide) + " ")),
            Column::Live => {
                let shown = live(app, flow.key);
                spans.push(Span::raw(text::right(&shown, wide + 1)));
            }
            Column::Rate(sum, window) => {
                let rate = past.map_or(0.0, |past| past.rate(sum.parts(), windows(app.interval)[*window]));
                spans.extend(cell(app, weight(*sum), rate, known(*sum, flow.key, &shown.info), wide + 1));
            }
        }
    }
    if run > 0 {
        let drawn = past.map_or_else(String::new, |past| text::run(past.run(Group::Insert), run, theme));
        spans.push(Span::raw(format!(" {drawn}")));
    }
    Line::from(spans)
}

/// Entries in the table now, about so many, or a dash where nobody can tell.
pub(super) fn live(app: &App, flow: FlowType) -> String {
    match app.shown().entries(flow) {
        Some(Range { least, most }) if least == most => text::count(least),
        Some(Range { least, most }) => format!("~{}", text::count(least.midpoint(most))),
        None => "-".into(),
    }
}

/// A rate in its cell, and the room before it; bad news carries a mark that needs no colour.
pub(super) fn cell(app: &App, level: Level, rate: f64, known: Known, wide: usize) -> [Span<'static>; 2] {
    let theme = app.settings.theme;
    let unknown = ("?".to_owned(), theme.heading());
    let (shown, style) = match known {
        // A part that is unknown may hide anything behind a 0.
        Known::Part if rate <= 0.0 => unknown,
        Known::Nothing => unknown,
        _ => {
            let more = if known == Known::Part { "+" } else { "" };
            match (rate > 0.0, level) {
                (false, _) => (text::rate(rate), theme.quiet()),
                (true, Level::Calm) => (text::rate(rate) + more, Style::new()),
                (true, _) => (format!("!{}{more}", text::rate(rate)), theme.bad(level)),
            }
        }
    };
    let shown = text::cut(&shown, wide);
    [Span::raw(" ".repeat(wide - text::width(&shown))), Span::styled(shown, style)]
}

/// How much of a number the source can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The number is exact.
    All,
    /// It may be more, so 0 means nothing.
    Part,
    /// There is no number.
    Nothing,
}

/// How much of a sum the source can tell of flows of this type.
pub(super) fn known(sum: Group, flow: FlowType, info: &SourceInfo) -> Known {
    match sum.parts().iter().filter(|event| !info.tells(flow, **event)).count() {
        0 => Known::All,
        unknown if unknown == sum.parts().len() => Known::Nothing,
        _ => Known::Part,
    }
}

/// `ipv4 udp`; rows that stand for more than one have one name for both.
pub(super) fn flow_name(flow: FlowType) -> String {
    if flow.family == 0 {
        return protocol_name(flow).into_owned();
    }
    format!("{} {}", family_name(flow.family), protocol_name(flow))
}
