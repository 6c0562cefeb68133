//! The charts, each with its legend and its numbers.

use ctwatch_ebpf::{FlowType, Group};
use jiff::tz::TimeZone;

use super::chart::{self, Line};
use super::html::Html;
use super::{flow_name, name, netns};
use crate::doctor::text::thousands;
use crate::model::incident::{Incident, Part};
use crate::view::plain::{date_and_time, time_ms};

/// Flow types and tables with a line of their own.
const LINES: usize = 5;
/// Rows below a chart.
const ROWS: usize = 60;

pub(super) fn fill(out: &mut Html, incident: &Incident, zone: &TimeZone) -> anyhow::Result<()> {
    out.raw("<section><h2>Entries against the limit</h2>");
    // The fullest first.
    let mut tables: Vec<(u32, f64)> = Vec::new();
    for (netns, (count, max)) in incident.parts.iter().flat_map(|part| &part.tables) {
        let share = max.filter(|max| *max > 0).map_or(0.0, |max| *count as f64 / max as f64);
        match tables.iter_mut().find(|(known, _)| known == netns) {
            Some((_, fullest)) => *fullest = fullest.max(share),
            None => tables.push((*netns, share)),
        }
    }
    tables.sort_by(|a, b| b.1.total_cmp(&a.1));
    if tables.is_empty() {
        out.raw("<p>No table was read.</p>");
    }
    for (at, (inode, _)) in tables.iter().take(LINES).enumerate() {
        let of = |value: fn(&(u64, Option<u64>)) -> Option<u64>| {
            let parts = incident.parts.iter();
            parts.filter_map(|part| Some((middle(part), value(part.tables.get(inode)?)? as f64))).collect()
        };
        let entries: Vec<(f64, f64)> = of(|table| Some(table.0));
        let lossy = |at: &f64| at_part(incident, *at).is_some_and(|part| part.losses() > 0);
        let marks = if at == 0 {
            entries.iter().filter(|(time, _)| lossy(time)).copied().collect()
        } else {
            Vec::new()
        };
        let name = netns(incident, *inode);
        let lines = [
            Line { name: format!("entries in {name}"), color: 0, points: entries, marks },
            Line { name: "limit".into(), color: 2, points: of(|table| table.1), marks: Vec::new() },
        ];
        figure(out, &format!("entries in {name} and its limit over time"), &lines, zone)?;
    }
    if tables.len() > LINES {
        out.element("p", &format!("{} more tables were less full.", tables.len() - LINES));
    }
    out.raw("</section>");
    Ok(())
}

fn at_part(incident: &Incident, time: f64) -> Option<&Part> {
    incident.parts.iter().find(|part| middle(part) >= time)
}

pub(super) fn rates(out: &mut Html, incident: &Incident, zone: &TimeZone) -> anyhow::Result<()> {
    out.raw("<section><h2>Losses per second</h2>");
    let groups = [Group::Drop, Group::EarlyDrop, Group::InsertFailed, Group::Invalid];
    let mut color = 0..;
    let lossy = groups.map(|group| Line {
        name: name(group).into(),
        color: color.next().unwrap_or_default(),
        points: incident.parts.iter().map(|part| (middle(part), part.rate(group.of(&part.counts)))).collect(),
        marks: Vec::new(),
    });
    figure(out, "losses per second over time", &lossy, zone)?;
    out.raw("</section><section><h2>New flows per second</h2>");
    let mut flows: Vec<(FlowType, u64)> =
        incident.flows.iter().map(|(flow, counts)| (*flow, Group::Insert.of(counts))).collect();
    flows.sort_by_key(|(_, inserts)| std::cmp::Reverse(*inserts));
    let lines: Vec<Line> = flows
        .iter()
        .take(LINES)
        .enumerate()
        .map(|(color, (flow, _))| Line {
            name: flow_name(incident, *flow),
            color,
            points: incident
                .parts
                .iter()
                .map(|part| (middle(part), part.rate(part.inserts.get(flow).copied().unwrap_or(0))))
                .collect(),
            marks: Vec::new(),
        })
        .collect();
    if lines.is_empty() {
        out.raw("<p>No flow was seen.</p>");
    } else {
        figure(out, "inserts per second by flow type over time", &lines, zone)?;
    }
    out.raw("</section>");
    Ok(())
}

/// Seconds since the Unix epoch. A stranger's recording may have any time; beyond this, nothing could be drawn.
fn middle(part: &Part) -> f64 {
    const YEAR_9999: f64 = 253_402_300_799.0;
    (part.from_ns.midpoint(part.to_ns) as f64 / 1e9).clamp(0.0, YEAR_9999)
}

/// A chart, its legend, and its numbers.
fn figure(out: &mut Html, label: &str, lines: &[Line], zone: &TimeZone) -> anyhow::Result<()> {
    let svg = chart::draw(label, lines, zone)?;
    out.raw("<figure><div class=chart>").drawing(&svg).raw("</div><figcaption>");
    for line in lines {
        let color = ["c0", "c1", "c2", "c3", "c4", "c5"][line.color % chart::COLORS.len()];
        out.raw("<span class=key><i class=").raw(color).raw("></i>").text(&line.name).raw("</span> ");
    }
    if lines.iter().any(|line| !line.marks.is_empty()) {
        out.raw("<span class=key><i class=mark></i>losses</span>");
    }
    out.raw("</figcaption>");
    let times = lines.first().map_or(0, |line| line.points.len());
    let step = times.div_ceil(ROWS).max(1);
    let all = || lines.iter().flat_map(|line| &line.points).map(|(at, _)| *at);
    let precise = all().fold(f64::MIN, f64::max) - all().fold(f64::MAX, f64::min) < 600.0;
    let rows: Vec<Vec<String>> = (0..times)
        .step_by(step)
        .map(|first| {
            let at = chart::nanoseconds(lines[0].points[first].0);
            let time = if precise { time_ms(at, zone) } else { date_and_time(at, zone) };
            let mut row = vec![time];
            row.extend(lines.iter().map(|line| {
                let points = line.points.iter().skip(first).take(step);
                number(points.map(|(_, value)| *value).fold(0.0, f64::max))
            }));
            row
        })
        .collect();
    let mut titles = vec!["time"];
    titles.extend(lines.iter().map(|line| line.name.as_str()));
    out.table(&titles, &rows, true).raw("</figure>");
    Ok(())
}

/// A rate or a count, to one digit behind the point where it is small.
pub(super) fn number(value: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and is not negative"
    )]
    let whole = |value: f64| value.round() as u64;
    let tenths = whole(value * 10.0);
    if tenths < 100 && !tenths.is_multiple_of(10) { format!("{value:.1}") } else { thousands(whole(value)) }
}
