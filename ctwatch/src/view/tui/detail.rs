//! Everything about one flow type: each sum and each reason over three windows, peak, total and run.

use ctwatch_ebpf::{Counters, Event, Group};
use ratatui::text::{Line, Span};

use super::app::App;
use super::columns::{Known, cell, flow_name, known, window_name};
use super::text;
use crate::model::history::{FlowHistory, SUMS, windows};
use crate::model::live::Range;
use crate::model::verdict::{Level, weight};

const NAME: usize = 20;
const CELL: usize = 9;

/// What stands over the panel.
pub(super) fn title(app: &App) -> String {
    match app.chosen() {
        Some(flow) if flow.netns == 0 => flow_name(flow),
        Some(flow) => format!("{} in {}", flow_name(flow), app.netns_name(flow.netns)),
        None => "no flow type".into(),
    }
}

/// The lines of the panel.
pub(super) fn lines(app: &App, width: usize) -> Vec<Line<'static>> {
    let theme = app.settings.theme;
    let Some(past) = app.chosen().and_then(|chosen| app.shown().history.flow(chosen)) else {
        return vec![Line::styled(" no data yet", theme.quiet())];
    };
    let total = past.total();
    let mut lines = Vec::new();
    if let Some(Range { least, most }) = app.chosen().and_then(|chosen| app.shown().entries(chosen)) {
        let now = if least == most { least.to_string() } else { format!("{least} to {most}") };
        lines.push(Line::from(vec![
            Span::styled(format!(" {}", text::left("entries now", NAME)), theme.heading()),
            Span::raw(format!("  {now}")),
        ]));
    }
    lines.push(heading(app, width));
    for sum in SUMS {
        if sum == Group::Invalid && !told_of_invalid(app, &total) {
            continue;
        }
        lines.push(sum_line(app, past, sum, &total, width));
        if sum == Group::EarlyDrop {
            continue;
        }
        let parts = sum.parts();
        for event in parts {
            let unknown = app.shown().info.unknown.get(event);
            if parts.len() > 1 && (total.get(*event) > 0 || unknown.is_some()) {
                lines.push(part_line(app, past, *event, &total, width));
            }
        }
    }
    for event in [Event::InsertNetlink, Event::ClashResolve] {
        if total.get(event) > 0 || app.shown().info.unknown.contains_key(&event) {
            lines.push(part_line(app, past, event, &total, width));
        }
    }
    lines
}

/// Whether there were invalid packets, or the source cannot tell.
fn told_of_invalid(app: &App, total: &Counters) -> bool {
    let unknown = &app.shown().info.unknown;
    Group::Invalid.of(total) > 0 || Group::Invalid.parts().iter().any(|event| unknown.contains_key(event))
}

fn heading(app: &App, width: usize) -> Line<'static> {
    let mut text = format!(" {}", text::left("per second", NAME));
    for window in 0..3 {
        let name = window_name(app.interval, window);
        let again = window > 0 && name == window_name(app.interval, window - 1);
        text += &text::right(if again { "" } else { &name }, CELL);
    }
    text += &text::right("peak", CELL);
    text += &text::right("total", CELL);
    let run = run_width(width);
    if run > 0 {
        text += "  ";
        text += &text::right(if run < 13 { "" } else { "each interval" }, run);
    }
    Line::styled(text, app.settings.theme.quiet())
}

fn sum_line(app: &App, past: &FlowHistory, sum: Group, total: &Counters, width: usize) -> Line<'static> {
    let theme = app.settings.theme;
    let known = app.chosen().map_or(Known::Nothing, |flow| known(sum, flow, &app.shown().info));
    let mut spans = vec![Span::styled(format!(" {}", text::left(sum.name(), NAME)), theme.heading())];
    spans.extend(rates(app, past, sum.parts(), weight(sum), known));
    spans.extend(cell(app, weight(sum), past.peak(sum), known, CELL));
    let count = match (known, sum.of(total)) {
        (Known::All, count) => text::count(count),
        (Known::Part, count @ 1..) => format!("{}+", text::count(count)),
        _ => "?".into(),
    };
    spans.push(Span::raw(text::right(&count, CELL)));
    if known != Known::Nothing {
        spans.push(Span::raw(format!("  {}", text::run(past.run(sum), run_width(width), theme))));
    }
    Line::from(spans)
}

fn part_line(app: &App, past: &FlowHistory, event: Event, total: &Counters, width: usize) -> Line<'static> {
    let theme = app.settings.theme;
    let note = app.shown().info.unknown.get(&event);
    let indent = if matches!(event, Event::InsertNetlink | Event::ClashResolve) { " " } else { "   " };
    let name = text::left(&format!("{indent}{}", event.reason()), NAME + 1);
    let mut spans = vec![Span::raw(name)];
    if let Some(note) = note {
        let room = width.saturating_sub(NAME + 1 + CELL + 2);
        spans.push(Span::styled(text::right("?", CELL), theme.heading()));
        spans.push(Span::raw(format!("  {}", text::cut(&text::clean(note), room))));
        return Line::from(spans);
    }
    let sum = SUMS.into_iter().find(|sum| *sum != Group::EarlyDrop && sum.parts().contains(&event));
    let level = match event {
        Event::DeleteEarlyDrop => Level::Critical,
        Event::DeletePressure => Level::Warning,
        _ => sum.map_or(Level::Calm, weight),
    };
    spans.extend(rates(app, past, &[event], level, Known::All));
    spans.push(Span::raw(" ".repeat(CELL)));
    spans.push(Span::raw(text::right(&text::count(total.get(event)), CELL)));
    Line::from(spans)
}

fn rates(app: &App, past: &FlowHistory, events: &[Event], level: Level, known: Known) -> Vec<Span<'static>> {
    let windows = windows(app.interval);
    (0..3)
        .flat_map(|window| {
            if window > 0 && windows[window] == windows[window - 1] {
                [Span::raw(" ".repeat(CELL)), Span::default()]
            } else {
                cell(app, level, past.rate(events, windows[window]), known, CELL)
            }
        })
        .collect()
}

fn run_width(width: usize) -> usize {
    let left = width.saturating_sub(1 + NAME + 5 * CELL + 3);
    if left < 6 { 0 } else { left.min(60) }
}
