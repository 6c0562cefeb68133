//! The panels below the rows, other than the detail: ranking, latest losses, source; and the help screen.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::time::Duration;

use ctwatch_ebpf::loss::has_ports;
use ctwatch_ebpf::{AF_INET6, FlowType, Group};
use ratatui::text::{Line, Span};

use super::app::{App, Sort};
use super::columns::{Known, cell};
use super::keys::{Place, in_force};
use super::text;
use super::theme::Theme;
use super::watched::Loss;
use crate::model::diff::per_second;
use crate::model::ranking::{By, Top, unranked};
use crate::model::verdict::Level;
use crate::model::{SourceKind, protocol, protocol_name};
use crate::view::plain::left_out;
use crate::view::trace_lines::flow_text;

/// The lines of a panel, made as they are seen: a ranking can have thousands.
pub(super) struct Lines<'a> {
    count: usize,
    line: Box<dyn Fn(usize) -> Line<'static> + 'a>,
}

impl Lines<'_> {
    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// At most so many of them from the `first` on.
    pub(super) fn window(&self, first: usize, most: usize) -> Vec<Line<'static>> {
        (first..self.count).take(most).map(&self.line).collect()
    }
}

impl From<Vec<Line<'static>>> for Lines<'_> {
    fn from(lines: Vec<Line<'static>>) -> Self {
        Self { count: lines.len(), line: Box::new(move |at| lines[at].clone()) }
    }
}

/// Ports and addresses of the last interval in which anything was ranked, worst first.
pub(super) fn top(app: &App, width: usize) -> Lines<'_> {
    let theme = app.settings.theme;
    let ranked = app.shown().ranked.as_ref();
    let wanted: Vec<&Top> = ranked
        .iter()
        .flat_map(|ranked| &ranked.rows)
        .filter(|top| app.wants(flow_of(top.netns, top.family, top.proto)))
        .collect();
    let Some(ranked) = ranked.filter(|_| !wanted.is_empty()) else {
        return vec![Line::styled(" nothing to rank", theme.quiet())].into();
    };
    let rows = in_turn(&wanted, app.sort);
    let invalid = wanted.iter().any(|row| row.invalid > 0);
    let key = width.saturating_sub(1 + 6 + 8 + 9 * (3 + usize::from(invalid)) + 14 + 2).clamp(6, 40);
    let line = move |at: usize| match at.checked_sub(1) {
        None => Line::styled(top_head(key, invalid), theme.quiet()),
        Some(row) => top_line(app, rows[row], ranked.elapsed, (key, invalid)),
    };
    Lines { count: wanted.len() + 1, line: Box::new(line) }
}

/// `invalid` is whether invalid packets have a column.
fn top_head(key: usize, invalid: bool) -> String {
    format!(
        " {}{}{}{}{}{}{}  netns",
        text::left("by", 6),
        text::left("proto", 8),
        text::left("key", key),
        text::right("insert", 9),
        text::right("evicted", 9),
        text::right("drop", 9),
        if invalid { text::right("invalid", 9) } else { String::new() }
    )
}

fn top_line(app: &App, row: &Top, elapsed: Duration, (key, invalid): (usize, bool)) -> Line<'static> {
    let rate = |count| per_second(count, elapsed);
    let mut spans = vec![Span::raw(format!(
        " {}{}{}",
        text::left(row.by.name(), 6),
        text::left(&proto_name(row), 8),
        text::left(&text::clean(&row.key), key)
    ))];
    spans.extend(cell(app, Level::Calm, rate(row.insert), Known::All, 9));
    spans.extend(cell(app, Level::Critical, rate(row.early_drop), Known::All, 9));
    spans.extend(cell(app, Level::Critical, rate(row.drop), Known::All, 9));
    if invalid {
        spans.extend(cell(app, Level::Warning, rate(row.invalid), Known::All, 9));
    }
    spans.push(Span::raw(format!("  {}", app.netns_name(row.netns))));
    Line::from(spans)
}

/// `udp`, `udp6`: a port alone does not tell the family.
fn proto_name(row: &Top) -> String {
    let name = protocol::name(row.proto);
    if row.family == AF_INET6 && has_ports(row.proto) { format!("{name}6") } else { name.into_owned() }
}

/// The first of each kind of key, the second of each, and so on: the culprits are on top, whatever they are told by.
/// Reports have them worst first.
fn in_turn<'a>(rows: &[&'a Top], sort: Sort) -> Vec<&'a Top> {
    let mut kinds: Vec<Vec<&Top>> =
        By::ALL.iter().map(|by| rows.iter().copied().filter(|row| row.by == *by).collect()).collect();
    for kind in &mut kinds {
        match sort {
            Sort::By(Group::Insert) => kind.sort_by_key(|row| Reverse(row.insert)),
            Sort::By(Group::EarlyDrop) => kind.sort_by_key(|row| Reverse(row.early_drop)),
            Sort::By(Group::Drop) => kind.sort_by_key(|row| Reverse(row.drop)),
            Sort::By(Group::Invalid) => kind.sort_by_key(|row| Reverse(row.invalid)),
            _ => {}
        }
    }
    let most = kinds.iter().map(Vec::len).max().unwrap_or_default();
    (0..most).flat_map(|place| kinds.iter().filter_map(move |kind| kind.get(place).copied())).collect()
}

/// What stands over the ranking: how much it leaves out, where it does.
pub(super) fn top_title(app: &App) -> String {
    let mut title = "top, per second".to_owned();
    let (Some(report), Some(ranked)) = (&app.shown().report, &app.shown().ranked) else { return title };
    if ranked.wall_ns != report.wall_ns {
        return format!("top at {}, per second", text::time(ranked.wall_ns, &app.settings.zone));
    }
    let rows = report.top.as_deref().unwrap_or_default();
    let flows = || report.flows.iter().map(|flow| (&flow.key, &flow.counts));
    for by in By::ALL.into_iter().filter(|by| rows.iter().any(|row| row.by == *by)) {
        let left: Vec<String> = unranked(rows, by, flows())
            .into_iter()
            .zip(["inserts", "evictions", "drops", "invalid packets"])
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", text::count(count)))
            .collect();
        if !left.is_empty() {
            let _ = write!(title, "; {} not ranked by {}", left.join(", "), by.name());
        }
    }
    title
}

fn flow_of(netns: u32, family: u8, proto: u8) -> FlowType {
    FlowType { netns, family, proto }
}

/// The latest losses, newest first.
pub(super) fn losses(app: &App, width: usize) -> Vec<Line<'static>> {
    let theme = app.settings.theme;
    let lines: Vec<Line<'static>> =
        app.shown().losses.iter().flat_map(|loss| loss_lines(app, loss, width)).collect();
    if lines.is_empty() { vec![Line::styled(" none", theme.quiet())] } else { lines }
}

/// One line, or two where a victim and its newcomer do not fit on one.
fn loss_lines(app: &App, loss: &Loss, width: usize) -> Vec<Line<'static>> {
    let theme = app.settings.theme;
    let time = |wall_ns| format!(" {} ", text::time(wall_ns, &app.settings.zone));
    let record = match loss {
        Loss::Event(record) => record,
        Loss::More(count, wall_ns) => {
            let which = if app.filter().is_empty() { "" } else { " of any flow type" };
            let more = format!("+{} more{which}, counted and not shown one by one", text::count(*count));
            return vec![Line::from(vec![Span::raw(time(*wall_ns)), Span::styled(more, theme.quiet())])];
        }
    };
    if !app.wants(flow_of(record.netns, record.flow.family, record.flow.proto)) {
        return Vec::new();
    }
    let mut rest = flow_text(&record.flow, theme.arrow());
    rest += match (record.name, record.assured, record.replied) {
        (Group::EarlyDrop, true, _) => ", assured",
        (Group::EarlyDrop, false, true) => ", replied",
        (Group::EarlyDrop, false, false) => ", no reply",
        _ => "",
    };
    if let Some(reason) = record.reason() {
        let _ = write!(rest, ", {reason}");
    }
    let mut for_whom = String::new();
    if let Some(newcomer) = &record.newcomer {
        let _ = write!(for_whom, "for {}", flow_text(newcomer, theme.arrow()));
    }
    let mut around = String::new();
    let netns = app.netns_name(record.netns);
    if netns != "init" {
        let _ = write!(around, ", in {netns}");
    }
    if let Some(comm) = &record.comm {
        let _ = write!(around, ", by {}", text::clean(comm));
    }
    let time = time(record.wall_ns);
    let name = text::left(record.name.name(), 13);
    let indent = text::width(&time) + text::width(&name) + 1;
    let line = |rest: String| {
        let name = Span::styled(name.clone(), theme.heading());
        Line::from(vec![Span::raw(time.clone()), name, Span::raw(format!(" {rest}"))])
    };
    if for_whom.is_empty() {
        return vec![line(rest + &around)];
    }
    if indent + text::width(&rest) + 2 + text::width(&for_whom) + text::width(&around) <= width {
        return vec![line(format!("{rest}, {for_whom}{around}"))];
    }
    vec![line(rest), Line::raw(format!("{:indent$}{for_whom}{around}", ""))]
}

/// Where the counts come from, what they miss, what they cannot tell and what they cost.
pub(super) fn source(app: &App, width: usize) -> Vec<Line<'static>> {
    let shown = app.shown();
    let mut said = vec![format!("counting by {}", shown.info.kind.name())];
    said.push(shown.info.why.as_ref().map_or_else(
        || "no better source exists".to_owned(),
        |why| format!("no better source: {}", text::clean(why)),
    ));
    for (event, note) in &shown.info.unknown {
        said.push(format!("? {} is unknown here: {}", event.field(), text::clean(note)));
    }
    if let Some(report) = &shown.report {
        said.push(match report.lost {
            0 => "nothing lost: every count is exact".to_owned(),
            lost => format!("!{lost} events missed since the start: counts are too low by this number"),
        });
        if report.namespaces_left_out > 0 {
            said.push(format!("!{}", left_out(report.namespaces_left_out)));
        }
        if report.flows.iter().any(|flow| flow.key == FlowType::OVERFLOW) {
            said.push(format!(
                "row {}: flow types beyond the limit share it",
                protocol_name(FlowType::OVERFLOW)
            ));
        }
        if let Some(cost) = &report.cost {
            let each = cost.ns_per_event.map_or_else(String::new, |ns| format!(", {ns} ns each"));
            said.push(format!(
                "own cost: {:.2} % of one CPU, programs ran {} times in the interval{each}",
                cost.cpu_pct, cost.events
            ));
            if shown.info.kind != SourceKind::Netlink {
                said.push(
                    "the kernel times programs for 1 second in 31, and between these this is an estimate"
                        .to_owned(),
                );
            }
        }
        if let Some(own) = report.own {
            said.push(format!(
                "this report took ctwatch {:.1} ms of processor time",
                own.as_secs_f64() * 1e3
            ));
        }
        said.push(format!("watched for {}", text::span(report.watched)));
    }
    said.iter().flat_map(|line| wrap(line, width)).map(Line::raw).collect()
}

/// The one line about the source that is always there.
pub(super) fn source_line(app: &App, width: usize) -> Line<'static> {
    let theme = app.settings.theme;
    let shown = app.shown();
    let mut spans = Vec::new();
    let lost = shown.report.as_ref().map_or(0, |report| report.lost);
    let mut text = format!(" source {}, ", shown.info.kind.name());
    if lost == 0 {
        text += "lost 0";
        spans.push(Span::styled(text, theme.quiet()));
    } else {
        spans.push(Span::styled(text, theme.quiet()));
        spans.push(Span::styled(format!("!lost {lost}: counts too low"), theme.bad(Level::Warning)));
    }
    let left_out = shown.report.as_ref().map_or(0, |report| report.namespaces_left_out);
    if left_out > 0 {
        let text = format!(", !{left_out} namespaces not looked at");
        spans.push(Span::styled(text, theme.bad(Level::Warning)));
    }
    let mut text = String::new();
    if let Some(cost) = shown.report.as_ref().and_then(|report| report.cost.as_ref()) {
        let each = cost.ns_per_event.map_or_else(String::new, |ns| format!(", {ns} ns/event"));
        let _ = write!(text, ", cost {:.2} % CPU{each}", cost.cpu_pct);
    }
    match shown.info.unknown.len() {
        0 => {}
        unknown => {
            let _ = write!(text, ", ? {unknown} unknown");
        }
    }
    if let Some(why) = &shown.info.why {
        let _ = write!(text, "; {}", text::clean(why));
    }
    let used: usize = spans.iter().map(Span::width).sum();
    spans.push(Span::styled(text::cut(&text, width.saturating_sub(used)), theme.quiet()));
    Line::from(spans)
}

/// From this width on the help screen has two columns.
const TWO_COLUMNS: usize = 78;

/// The help screen, from the key map.
pub(super) fn help(app: &App, width: usize) -> Vec<Line<'static>> {
    let theme = app.settings.theme;
    let half = if width >= TWO_COLUMNS { width / 2 } else { width };
    let left = keys_of(app.place(), "Keys", theme);
    let mut right = keys_of(Place::Filter, "While typing a filter", theme);
    right.push(Line::raw("   a word of netns, family or protocol"));
    right.push(Line::styled(" Signs", theme.heading()));
    for sign in SIGNS {
        right.extend(
            wrap(sign, half.saturating_sub(3)).into_iter().map(|line| Line::raw(format!("  {line}"))),
        );
    }
    if half == width {
        return left.into_iter().chain(right).collect();
    }
    let lines = left.len().max(right.len());
    let (mut left, mut right) = (left.into_iter(), right.into_iter());
    (0..lines)
        .map(|_| {
            let mut line = left.next().unwrap_or_default();
            line.push_span(" ".repeat(half.saturating_sub(line.width())));
            line.extend(right.next().unwrap_or_default());
            line
        })
        .collect()
}

const SIGNS: [&str; 5] = [
    ". nothing   ! bad news   ~ about so many",
    "? unknown by this source: the panel `source` says why   9+ at least 9",
    "Rates are events per second over the time named above, or as much of it as was watched.",
    "A forecast shows only while a table grows steadily and fills within the hour.",
    "Interval and filter are of this screen; nothing changes on the machine.",
];

fn keys_of(place: Place, title: &str, theme: Theme) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(format!(" {title}"), theme.heading())];
    for binding in in_force(place) {
        let keys: Vec<String> = binding.keys.iter().map(ToString::to_string).collect();
        let keys = keys.join(" ");
        let gap = " ".repeat(10_usize.saturating_sub(text::width(&keys)));
        lines.push(Line::from(vec![
            Span::styled(format!("   {keys}{gap} "), theme.heading()),
            Span::raw(binding.help),
        ]));
    }
    lines
}

/// Breaks at spaces; a word that is too long is cut.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("one line from the start");
        if text::width(line) + 1 + text::width(word) > width && !line.trim().is_empty() {
            lines.push(format!("   {}", text::cut(word, width.saturating_sub(3))));
        } else {
            line.push(' ');
            line.push_str(&text::cut(word, width.saturating_sub(1)));
        }
    }
    lines
}
