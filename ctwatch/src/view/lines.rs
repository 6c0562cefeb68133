//! `live --plain`: one line for each active flow type and interval, within 80 columns, its header repeated as vmstat does.

use std::fmt::Write as _;

use ctwatch_ebpf::{Counters, Event, FlowType, Group};
use jiff::tz::TimeZone;

use super::plain::{BOLD, DIM, RED, clean, left_out, level_style, paint, rate, table_style, time};
use super::{Machine, View, json};
use crate::model::ranking::{By, Top};
use crate::model::verdict::{Level, NEARLY_FULL_PCT, filled_pct, weight};
use crate::model::{Flow, Rates, Report, SourceInfo, Table, family_name, protocol_name};

/// How many lines go by before the header comes again: it must not leave a terminal of 24 lines.
const HEADER_EVERY: usize = 20;
const NETNS_WIDTH: usize = 12;
/// Lines of one ranking.
const CULPRITS: usize = 3;

/// Plain lines for people.
#[derive(Debug)]
pub struct Lines {
    machine: Machine,
    zone: TimeZone,
    color: bool,
    since_header: usize,
    lost_shown: u64,
    left_out_shown: u64,
    /// What was last said of the source: some of it can change, as when the kernel's events are switched off.
    told: Option<String>,
}

/// The columns, in their order.
const COLUMNS: [(&str, usize, Group); 5] = [
    ("insert", 9, Group::Insert),
    ("delete", 9, Group::Delete),
    ("early_drop", 11, Group::EarlyDrop),
    ("drop", 8, Group::Drop),
    ("failed", 8, Group::InsertFailed),
];

impl Lines {
    /// Lines with times in this zone, coloured or not.
    pub const fn new(machine: Machine, zone: TimeZone, color: bool) -> Self {
        Self { machine, zone, color, since_header: 0, lost_shown: 0, left_out_shown: 0, told: None }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        paint(self.color, style, text)
    }

    fn line(&mut self, out: &mut String, line: &str) {
        if self.since_header.is_multiple_of(HEADER_EVERY) {
            let header = self.paint(BOLD, &header("time"));
            let _ = writeln!(out, "{header}");
        }
        self.since_header += 1;
        let _ = writeln!(out, "{line}");
    }

    /// One row of numbers; zeroes are dots, so that what happens stands out without colour.
    fn row(&self, first: &str, flow: FlowType, name: &str, cells: [Option<String>; 5]) -> String {
        let mut line = format!("{first:<8} {:<NETNS_WIDTH$} {:<12}", shown(name), flow_name(flow));
        for ((_, width, sum), cell) in COLUMNS.iter().zip(cells) {
            let level = weight(*sum);
            let cell = match cell {
                None => "?".into(),
                Some(zero) if zero == "0" => ".".into(),
                Some(number) if level == Level::Calm => number,
                Some(number) => format!("!{number}"),
            };
            let padded = format!(" {cell:>width$}", width = width - 1);
            line += &if cell.starts_with('!') { self.paint(level_style(level), &padded) } else { padded };
        }
        line
    }

    fn table_line(&self, first: &str, table: &Table) -> String {
        let text =
            format!("{first:<8} {:<NETNS_WIDTH$} {:<12} {}", shown(&table.name), "table", occupation(table));
        self.paint(table_style(table), &text)
    }

    fn top_line(&self, time: &str, top: &Top, name: &str) -> String {
        let flow = FlowType { netns: top.netns, family: top.family, proto: top.proto };
        let what = match top.by {
            By::Dport => "to port",
            By::Src => "from",
            By::Dst => "to",
        };
        let mut text = format!(
            "{time:<8} {:<NETNS_WIDTH$} {:<12} {what} {}: {} inserted",
            shown(name),
            flow_name(flow),
            top.key,
            top.insert
        );
        let mut worst = Level::Calm;
        for (count, word, sum) in [
            (top.early_drop, "evicted", Group::EarlyDrop),
            (top.drop, "refused", Group::Drop),
            (top.invalid, "invalid", Group::Invalid),
        ] {
            if count > 0 {
                let _ = write!(text, ", !{count} {word}");
                worst = worst.max(weight(sum));
            }
        }
        self.paint(level_style(worst), &text)
    }

    fn calm_line(&self, time: &str, report: &Report) -> String {
        let fullest = report
            .tables
            .iter()
            .max_by(|a, b| filled_pct(a).unwrap_or(-1.0).total_cmp(&filled_pct(b).unwrap_or(-1.0)));
        // A table that is nearly full is not calm, though nothing happens.
        let full = fullest.and_then(filled_pct).is_some_and(|pct| pct >= NEARLY_FULL_PCT);
        let mut text = format!("{time:<8} {}", if full { "idle" } else { "calm" });
        if let Some(table) = fullest {
            let which = if report.tables.len() > 1 { "fullest" } else { "table" };
            let _ = write!(text, "; {which} {} {}", shown(&table.name), occupation(table));
        }
        self.paint(fullest.filter(|_| full).map_or(DIM, table_style), &text)
    }
}

/// Lines of each ranking that are shown: those that lose, and of addresses, which were asked for, the first ones anyhow.
fn culprits(report: &Report) -> impl Iterator<Item = &Top> {
    let top = report.top.as_deref().unwrap_or_default();
    [By::Dport, By::Src, By::Dst].into_iter().flat_map(move |by| {
        let of_kind = top.iter().filter(move |top| top.by == by);
        of_kind
            .filter(|top| top.by != By::Dport || top.early_drop | top.drop | top.invalid > 0)
            .take(CULPRITS)
    })
}

impl View for Lines {
    fn start(&mut self, info: &SourceInfo) -> String {
        let notes = notes(info);
        let text = format!(
            "ctwatch on {}, Linux {}, counting by {}; events per second\n",
            clean(&self.machine.host),
            clean(&self.machine.kernel),
            info.kind.name()
        );
        let text = text + &notes;
        self.told = Some(notes);
        text
    }

    fn report(&mut self, report: &Report, info: &SourceInfo) -> String {
        let time = time(report.wall_ns, &self.zone);
        let mut out = String::new();
        let now = notes(info);
        if self.told.as_ref().is_some_and(|told| *told != now) {
            out += if now.is_empty() { "all counters are available again\n" } else { &now };
            self.told = Some(now);
        }
        let active: Vec<&Flow> =
            report.flows.iter().filter(|flow| flow.counts != Counters::default()).collect();
        if active.is_empty() {
            let line = self.calm_line(&time, report);
            self.line(&mut out, &line);
        }
        if report.namespaces_left_out != self.left_out_shown {
            self.left_out_shown = report.namespaces_left_out;
            let (mark, style) = if report.namespaces_left_out > 0 { ("!", RED) } else { ("", "") };
            let text = format!("{time:<8} {mark}{}", left_out(report.namespaces_left_out));
            let line = self.paint(style, &text);
            self.line(&mut out, &line);
        }
        for (at, flow) in active.iter().enumerate() {
            let line =
                self.row(&time, flow.key, name_of(report, flow.key), rate_cells(flow.key, &flow.rates, info));
            self.line(&mut out, &line);
            if let Some(detail) = rare(&flow.counts) {
                self.line(&mut out, &indented(&detail));
            }
            let netns = flow.key.netns;
            let last_of_netns = active.get(at + 1).is_none_or(|next| next.key.netns != netns);
            if let Some(table) = report.tables.iter().find(|table| last_of_netns && table.netns == netns) {
                let line = self.table_line(&time, table);
                self.line(&mut out, &line);
            }
        }
        for top in culprits(report) {
            let line = self.top_line(&time, top, report.names.get(&top.netns).map_or("?", String::as_str));
            self.line(&mut out, &line);
        }
        if report.lost > self.lost_shown {
            self.lost_shown = report.lost;
            let line =
                format!("{time:<8} !{} events missed since the start: counts are too low", report.lost);
            let line = self.paint(RED, &line);
            self.line(&mut out, &line);
        }
        out
    }

    fn end(&mut self, last: &Report, info: &SourceInfo) -> String {
        let mut out = format!(
            "\ntotal of {:.1} s by {}: {} lost\n",
            last.watched.as_secs_f64(),
            info.kind.name(),
            if last.lost == 0 { "nothing".into() } else { format!("!{} events", last.lost) },
        );
        if last.namespaces_left_out > 0 {
            let _ = writeln!(out, "!{}", left_out(last.namespaces_left_out));
        }
        if last.flows.is_empty() {
            out += "no connection was tracked\n";
            return out;
        }
        let header = self.paint(BOLD, &header(""));
        let _ = writeln!(out, "{header}");
        for flow in &last.flows {
            let name = name_of(last, flow.key);
            let totals = COLUMNS
                .map(|(_, _, sum)| json::known(sum, flow.key, info).then(|| sum.of(&flow.total).to_string()));
            let _ = writeln!(out, "{}", self.row("total", flow.key, name, totals));
            let _ = writeln!(
                out,
                "{}",
                self.row("peak /s", flow.key, name, rate_cells(flow.key, &flow.peak, info))
            );
            let details = parts(&flow.total);
            if !details.is_empty() {
                let _ = writeln!(out, "{}", indented(&details));
            }
        }
        out
    }
}

/// Why this source runs, and what it cannot tell.
fn notes(info: &SourceInfo) -> String {
    let mut text = String::new();
    if let Some(why) = &info.why {
        let _ = writeln!(
            text,
            "using {}, because no better source is available: {}",
            info.kind.name(),
            clean(why)
        );
    }
    for (at, note) in info.unknown.values().enumerate() {
        if !info.unknown.values().take(at).any(|earlier| earlier == note) {
            let same = info.unknown.iter().filter(|(_, other)| *other == note);
            let events: Vec<&str> = same.map(|(event, _)| event.field()).collect();
            let _ = writeln!(text, "unknown here: {}: {}", events.join(", "), clean(note));
        }
    }
    let by_namespace: Vec<&str> = json::by_namespace(info).collect();
    if !by_namespace.is_empty() {
        let _ =
            writeln!(text, "only by network namespace, on the row of any flow: {}", by_namespace.join(", "));
    }
    text
}

fn header(first: &str) -> String {
    let mut line = format!("{first:<8} {:<NETNS_WIDTH$} {:<12}", "netns", "flow");
    for (title, width, _) in COLUMNS {
        let _ = write!(line, " {title:>width$}", width = width - 1);
    }
    line
}

fn rate_cells(flow: FlowType, rates: &Rates, info: &SourceInfo) -> [Option<String>; 5] {
    COLUMNS.map(|(_, _, sum)| json::known(sum, flow, info).then(|| rate(rates.get(sum))))
}

/// Counts that the columns leave out or that need their reason: none of them is part of a healthy interval.
fn rare(counts: &Counters) -> Option<String> {
    let rare: Vec<Event> = Event::ALL.into_iter().filter(|event| event.is_rare()).collect();
    let text = listed(counts, &rare);
    (!text.is_empty()).then(|| format!("counted: {text}"))
}

/// Everything that no column gives by itself.
fn parts(counts: &Counters) -> String {
    let events: Vec<Event> = Event::ALL
        .into_iter()
        .filter(|event| !matches!(event, Event::Insert | Event::DeleteEarlyDrop))
        .collect();
    listed(counts, &events)
}

fn listed(counts: &Counters, events: &[Event]) -> String {
    let parts: Vec<String> = events
        .iter()
        .filter(|event| counts.get(**event) > 0)
        .map(|event| format!("{} {}", event.field(), counts.get(*event)))
        .collect();
    parts.join(", ")
}

/// Indented under the row it belongs to and wrapped at 80 columns.
fn indented(text: &str) -> String {
    let indent = " ".repeat(9);
    let mut out = indent.clone();
    let mut width = indent.len();
    for part in text.split_inclusive(", ") {
        if width + part.trim_end().len() > 80 && width > indent.len() {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out += &indent;
            width = indent.len();
        }
        out += part;
        width += part.len();
    }
    out
}

fn name_of(report: &Report, flow: FlowType) -> &str {
    if flow == FlowType::OVERFLOW {
        "(any)"
    } else {
        report.names.get(&flow.netns).map_or("?", String::as_str)
    }
}

fn flow_name(flow: FlowType) -> String {
    if flow == FlowType::OVERFLOW {
        return "overflow".into();
    }
    if flow.family == 0 {
        return "any".into();
    }
    format!("{} {}", family_name(flow.family), protocol_name(flow))
}

/// A namespace's name in its column. Names are file names: they may hold anything, escape sequences too.
fn shown(name: &str) -> String {
    let clean = clean(name);
    if clean.chars().count() <= NETNS_WIDTH {
        return clean;
    }
    let mut cut: String = clean.chars().take(NETNS_WIDTH - 1).collect();
    cut.push('~');
    cut
}

fn occupation(table: &Table) -> String {
    match (table.count, table.max, filled_pct(table)) {
        (Some(count), Some(max), Some(pct)) => {
            // Rounding may not make a full table of one that has room.
            let pct = if count < max { (pct * 10.0).floor() / 10.0 } else { pct };
            let mark = if count >= max { "  !FULL" } else { "" };
            format!("{count} of {max} entries, {pct:.1} %{mark}")
        }
        (Some(count), Some(0), _) => format!("{count} entries, no limit"),
        (Some(count), ..) => format!("{count} entries, limit unknown"),
        _ => "cannot be read".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_total_has_a_column_or_is_named_where_it_happens() {
        for group in Group::TOTALS {
            let named = group.parts().iter().all(|event| event.is_rare());
            let column = COLUMNS.iter().any(|(_, _, shown)| *shown == group);
            assert!(if group == Group::Invalid { named } else { column }, "{group:?}");
        }
    }
}
