//! One page of a time: what was lost, when, to whom, why, and what to do. It loads nothing, and runs nothing but its own
//! script, without which it is whole.

mod chart;
mod figures;
mod html;

use ctwatch_ebpf::{Counters, Event, FlowType, Group};
use jiff::tz::TimeZone;

use self::html::Html;
use super::Machine;
use super::plain::date_and_time;
use super::trace_lines::TraceLines;
use crate::doctor::Diagnosis;
use crate::doctor::text::thousands;
use crate::model::incident::Incident;
use crate::model::ranking::By;
use crate::model::{family_name, protocol_name};

/// Lines of a ranking.
const TOP: usize = 10;
/// Single losses that are listed.
const LOSSES: usize = 40;
/// Rows of a table.
const ROWS: usize = 60;

const STYLE: &str = include_str!("page.css");
/// Zooms charts and filters tables.
const SCRIPT: &str = include_str!("page.js");
/// Nothing may be loaded, and nothing run but [`SCRIPT`], whose hash this is, whatever got into the page.
const POLICY: &str = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'sha256-ajqMMjVnI4dhRAhx2qewtaAz8s17dY7X/uNYWeDJKuM='; base-uri 'none'; form-action 'none'\">";

/// What the page is about.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The version of ctwatch that watched.
    pub version: &'a str,
    /// The zone of its times.
    pub zone: &'a TimeZone,
}

/// The page.
pub fn page(subject: &Subject<'_>, incident: &Incident, diagnosis: &Diagnosis) -> anyhow::Result<String> {
    let zone = subject.zone;
    let mut out = Html::new();
    out.raw("<!doctype html>\n<html lang=en><head><meta charset=utf-8>")
        .raw(POLICY)
        .raw("<meta name=viewport content=\"width=device-width, initial-scale=1\">")
        .raw("<meta name=color-scheme content=\"light dark\">")
        .element("title", &format!("ctwatch: {}, {}", subject.machine.host, span(incident, zone)))
        .raw("<style>")
        .raw(STYLE)
        .raw("</style></head><body><main>");
    head(&mut out, subject, incident, diagnosis);
    figures::fill(&mut out, incident, zone)?;
    figures::rates(&mut out, incident, zone)?;
    rankings(&mut out, incident, zone);
    singles(&mut out, incident, zone);
    reasons(&mut out, incident);
    findings(&mut out, diagnosis);
    unseen(&mut out, subject, incident);
    out.raw("</main><script>").raw(SCRIPT).raw("</script></body></html>\n");
    Ok(out.into_string())
}

fn span(incident: &Incident, zone: &TimeZone) -> String {
    match (incident.parts.first(), incident.parts.last()) {
        (Some(first), Some(last)) => {
            format!("{} to {}", date_and_time(first.from_ns, zone), date_and_time(last.to_ns, zone))
        }
        _ => "nothing".into(),
    }
}

fn head(out: &mut Html, subject: &Subject<'_>, incident: &Incident, diagnosis: &Diagnosis) {
    let total = incident.total();
    out.raw("<header><h1>Connection tracking on ").text(&subject.machine.host).raw("</h1><p>");
    out.text(&format!("{}, Linux {}", span(incident, subject.zone), subject.machine.kernel)).raw("</p>");
    out.raw(match diagnosis.status {
        crate::doctor::Status::Ok => "<p class=\"verdict ok\"><strong>OK</strong> ",
        crate::doctor::Status::Warning => "<p class=\"verdict warning\"><strong>WARNING</strong> ",
        crate::doctor::Status::Critical => "<p class=\"verdict critical\"><strong>CRITICAL</strong> ",
        crate::doctor::Status::Unknown => "<p class=\"verdict unknown\"><strong>UNKNOWN</strong> ",
    });
    out.text(&diagnosis.verdict).raw("</p><ul class=sums>");
    for group in Group::TOTALS {
        out.raw("<li><b>").text(&known(incident, &total, group)).raw("</b> ").text(name(group)).raw("</li>");
    }
    out.raw("</ul></header>");
}

/// What a group is called here.
const fn name(group: Group) -> &'static str {
    match group {
        Group::Insert => "inserts",
        Group::EarlyDrop => "live entries evicted",
        Group::Drop => "new flows refused",
        Group::InsertFailed => "failed inserts",
        Group::Invalid => "invalid packets",
        Group::Delete => "deletes",
        other => other.name(),
    }
}

/// A count, or that the source could not tell it.
fn known(incident: &Incident, counts: &Counters, group: Group) -> String {
    let blind = group.parts().iter().all(|event| incident.unknown.contains_key(event));
    if blind { "unknown:".into() } else { thousands(group.of(counts)) }
}

fn netns(incident: &Incident, netns: u32) -> String {
    incident.names.get(&netns).cloned().unwrap_or_else(|| netns.to_string())
}

fn flow_name(incident: &Incident, flow: FlowType) -> String {
    format!("{} {} {}", netns(incident, flow.netns), family_name(flow.family), protocol_name(flow))
}

fn rankings(out: &mut Html, incident: &Incident, zone: &TimeZone) {
    out.raw("<section><h2>Who causes it</h2>");
    let Some(worst) = &incident.worst else {
        out.raw("<p>Nothing was watched.</p></section>");
        return;
    };
    let what = if worst.lost() > 0 { "with most losses" } else { "with most new flows, as nothing was lost" };
    out.element("p", &format!("The minute {what} began at {}.", date_and_time(worst.from_ns, zone)));
    for (by, title) in
        [(By::Dport, "destination port"), (By::Src, "source address"), (By::Dst, "destination address")]
    {
        let rows: Vec<Vec<String>> = worst
            .top(by, TOP)
            .into_iter()
            .map(|top| {
                let flow = FlowType { netns: top.netns, family: top.family, proto: top.proto };
                let numbers = [top.insert, top.early_drop, top.drop, top.invalid].map(thousands);
                [vec![format!("{} ({})", top.key, flow_name(incident, flow))], numbers.into()].concat()
            })
            .collect();
        if !rows.is_empty() || by == By::Dport {
            out.element("h3", &format!("By {title}"));
            out.table(&[title, "inserts", "evicted", "refused", "invalid"], &rows, true);
        }
    }
    out.raw("</section>");
}

fn singles(out: &mut Html, incident: &Incident, zone: &TimeZone) {
    out.raw("<section><h2>Single losses</h2>");
    let (losses, lost) =
        incident.worst.as_ref().map_or((&[][..], 0), |worst| (&worst.losses[..], worst.lost()));
    if losses.is_empty() {
        out.raw("<p>None was kept.</p>");
    } else {
        out.raw("<p>From the same minute: what happened, to whom, and for whom a live entry had to go.</p>");
        out.raw("<pre class=scroll tabindex=0>");
        let lines = TraceLines::new(zone.clone(), false);
        for record in losses.iter().take(LOSSES) {
            out.text(lines.record(record, &netns(incident, record.netns)).trim_end()).raw("\n");
        }
        out.raw("</pre>");
    }
    let shown = losses.len().min(LOSSES);
    if u64::try_from(shown).is_ok_and(|shown| shown < lost) {
        out.element("p", &format!("{shown} of the {} losses of this minute are listed.", thousands(lost)));
    }
    out.raw("</section>");
}

/// Counts of the whole time, by reason and cause.
fn reasons(out: &mut Html, incident: &Incident) {
    out.raw("<section><h2>Why, by flow type</h2>");
    for group in [Group::Drop, Group::InsertFailed, Group::Invalid, Group::Delete] {
        let events = group.parts();
        let rows: Vec<Vec<String>> = incident
            .flows
            .iter()
            .filter(|(_, counts)| group.of(counts) > 0)
            .take(ROWS)
            .map(|(flow, counts)| {
                let cell = |event: &Event| {
                    let unknown = incident.unknown.contains_key(event);
                    if unknown { "?".to_owned() } else { thousands(counts.get(*event)) }
                };
                let numbers = events.iter().map(cell);
                std::iter::once(flow_name(incident, *flow)).chain(numbers).collect()
            })
            .collect();
        let head: Vec<&str> =
            std::iter::once("flow type").chain(events.iter().map(|event| event.reason())).collect();
        out.element(
            "h3",
            match group {
                Group::Drop => "New flows refused",
                Group::InsertFailed => "Failed inserts",
                Group::Invalid => "Invalid packets",
                _ => "Deletes by cause",
            },
        );
        out.table(&head, &rows, true);
    }
    out.raw("</section>");
}

fn findings(out: &mut Html, diagnosis: &Diagnosis) {
    out.raw("<section><h2>What doctor finds</h2>");
    for finding in diagnosis.findings.iter().filter(|finding| finding.matters()) {
        out.raw("<article><h3>").text(finding.id).raw(" (").text(finding.status.name()).raw(")</h3>");
        out.element("p", &finding.what).element("p", &finding.meaning);
        if finding.remedies.is_empty() {
            out.raw("<p>Exact commands depend on rules, settings and memory, which this page does not know. For them, run <code>ctwatch doctor</code> on the machine while it lasts, ")
                .raw("or read <code>ctwatch doctor explain ")
                .text(finding.id)
                .raw("</code>.</p>");
        }
        for remedy in &finding.remedies {
            out.raw("<h4>").text(&remedy.what).raw("</h4><p>Price: ").text(&remedy.price).raw("</p>");
            for (title, commands) in [
                ("now", &remedy.commands),
                ("to make it last", &remedy.persist),
                ("to undo it", &remedy.undo),
            ] {
                if !commands.is_empty() {
                    out.element("p", title).raw("<pre class=scroll tabindex=0>");
                    for command in commands {
                        out.text(&command.to_string()).raw("\n");
                    }
                    out.raw("</pre>");
                }
            }
        }
        out.raw("</article>");
    }
    if diagnosis.findings.iter().all(|finding| !finding.matters()) {
        out.raw("<p>Nothing that needs care.</p>");
    }
    out.raw("</section>");
}

fn unseen(out: &mut Html, subject: &Subject<'_>, incident: &Incident) {
    out.raw("<section><h2>What was not seen</h2><ul>");
    if let Some(info) = &incident.info {
        out.element("li", &format!("Counted by {}.", info.kind.name()));
        if let Some(why) = &info.why {
            out.element("li", &format!("No better source: {why}"));
        }
    }
    for (event, why) in &incident.unknown {
        out.element("li", &format!("{} is unknown: {why}", event.field()));
    }
    out.element("li", &format!("Watched by ctwatch {}.", subject.version));
    out.element("li", &format!("Events that the source knows it missed: {}.", thousands(incident.missed)));
    if incident.namespaces_left_out > 0 {
        let left_out = thousands(incident.namespaces_left_out);
        out.element("li", &format!("Network namespaces that were not looked at: {left_out}."));
    }
    out.raw("</ul></section>");
}

#[cfg(test)]
mod tests;
