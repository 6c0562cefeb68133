//! `doctor` for people and for programs: the verdict first, then what matters.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::doctor::finding::{Diagnosis, Finding, Remedy, Status};
use crate::doctor::text::{nanoseconds, thousands};
use crate::view::clean::{clean, json_line};

/// Text is wrapped at this column; commands never are.
const WIDTH: usize = 78;
const INDENT: &str = "   ";

/// How plain text is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Also print informational findings.
    pub all: bool,
    /// With colours.
    pub color: bool,
}

/// A verdict in a line; where something is wrong, or all was asked for, each finding with its remedies.
pub fn plain(diagnosis: &Diagnosis, style: Style) -> String {
    let mut out = String::new();
    let status = paint(style, diagnosis.status, &diagnosis.status.name().to_uppercase());
    // One line, however long: monitoring systems show the first.
    let _ = writeln!(out, "{status}: {}", clean(&diagnosis.verdict));
    let shown = diagnosis.findings.iter().filter(|finding| style.all || finding.matters());
    let mut told: Vec<(&Remedy, usize)> = Vec::new();
    for (number, finding) in (1..).zip(shown) {
        out.push('\n');
        let _ = writeln!(
            out,
            "{number}. {} ({})",
            finding.id,
            paint(style, finding.status, finding.status.name())
        );
        // The verdict has told the first one already.
        if number > 1 || !diagnosis.verdict.starts_with(&finding.what) {
            wrap(&mut out, INDENT, &sentence(&finding.what));
        }
        finding_text(&mut out, number, finding, style, &mut told);
    }
    let hidden = diagnosis.findings.iter().filter(|finding| !finding.matters()).count();
    if diagnosis.status != Status::Ok && !style.all {
        let more =
            if hidden > 0 { format!("; {hidden} informational ones with --all") } else { String::new() };
        let _ = write!(
            out,
            "\ndoctor has changed nothing. `ctwatch doctor explain ID` explains a finding{more}.\n"
        );
    }
    out
}

fn finding_text<'a>(
    out: &mut String,
    number: usize,
    finding: &'a Finding,
    style: Style,
    told: &mut Vec<(&'a Remedy, usize)>,
) {
    wrap(out, INDENT, &finding.meaning);
    for (name, figure) in &finding.evidence {
        if let Some(bars) = histogram(&figure.value) {
            wrap(out, &format!("{INDENT}  "), &format!("{name}:  ({})", figure.from));
            out.push_str(&bars);
            continue;
        }
        let Some(value) = shown(&figure.value) else { continue };
        let line = format!("{name}: {value}");
        let whole = clean(&format!("{line}  ({})", figure.from).replace('\n', " "));
        if INDENT.len() + 2 + whole.chars().count() <= WIDTH {
            let _ = writeln!(out, "{INDENT}  {whole}");
        } else {
            wrap(out, &format!("{INDENT}  "), &whole);
        }
    }
    for remedy in &finding.remedies {
        if let Some((_, before)) = told.iter().find(|(known, _)| *known == remedy) {
            let _ = writeln!(out);
            wrap(out, INDENT, &format!("→ {}: see {before}.", remedy.what));
            continue;
        }
        told.push((remedy, number));
        if remedy.alternative && !style.all {
            wrap(out, INDENT, &format!("  or: {} (commands with --all).", remedy.what));
        } else {
            remedy_text(out, remedy);
        }
    }
}

fn remedy_text(out: &mut String, remedy: &Remedy) {
    out.push('\n');
    wrap(out, INDENT, &format!("→ {}.", remedy.what));
    wrap(out, &format!("{INDENT}  "), &format!("Price: {}.", remedy.price));
    for (title, commands) in
        [("now", &remedy.commands), ("to make it last", &remedy.persist), ("to undo it", &remedy.undo)]
    {
        if commands.is_empty() {
            continue;
        }
        let _ = writeln!(out, "{INDENT}  {title}:");
        for command in commands {
            // A command holds checked arguments only; this is the second lock on the same door.
            let _ = writeln!(out, "{INDENT}    {}", clean(&command.to_string()));
        }
    }
    for left in &remedy.left_out {
        wrap(out, &format!("{INDENT}  "), &format!("Left out: {left}."));
    }
}

/// Bars for buckets of nanoseconds, as long as their share of the fullest; `None` for any other value.
fn histogram(value: &Value) -> Option<String> {
    const LONGEST: u128 = 40;
    let buckets = value.as_array()?;
    let field = |bucket: &Value, name: &str| bucket.get(name)?.as_u64();
    let most = buckets.iter().filter_map(|bucket| field(bucket, "count")).max()?;
    let mut out = String::new();
    for bucket in buckets {
        let (below, count) = (field(bucket, "below_ns")?, field(bucket, "count")?);
        // What is there is seen, however rare.
        let length = (u128::from(count) * LONGEST).div_ceil(u128::from(most.max(1)));
        let bar = "#".repeat(usize::try_from(length).ok()?);
        let _ = writeln!(out, "{INDENT}    < {:>8} {:>11} {bar}", nanoseconds(below), thousands(count));
    }
    Some(out)
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(items.iter().filter_map(shown).collect::<Vec<_>>().join("; ")),
        other => Some(other.to_string()),
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map_or_else(String::new, |first| first.to_uppercase().collect());
    format!("{first}{}.", chars.as_str())
}

fn paint(style: Style, status: Status, text: &str) -> String {
    let code = match status {
        Status::Ok => "32",
        Status::Warning => "1;33",
        Status::Critical => "1;31",
        Status::Unknown => "1;35",
    };
    if style.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn wrap(out: &mut String, indent: &str, text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty()
            && indent.chars().count() + line.chars().count() + 1 + word.chars().count() > WIDTH
        {
            let _ = writeln!(out, "{indent}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&clean(word));
    }
    let _ = writeln!(out, "{indent}{line}");
}

/// Where and when it was found.
#[derive(Clone, Debug, Serialize)]
pub struct Context {
    /// RFC 3339, UTC.
    pub time: String,
    /// Host name; of captured facts, none.
    pub host: Option<String>,
    /// Kernel release.
    pub kernel: String,
    /// Length of the live sample.
    pub sample_s: f64,
}

#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    context: &'a Context,
    status: Status,
    verdict: &'a str,
    findings: Vec<&'a Finding>,
}

/// One JSON object on one line.
pub fn json(diagnosis: &Diagnosis, context: &Context, all: bool) -> serde_json::Result<String> {
    let findings = diagnosis.findings.iter().filter(|finding| all || finding.matters()).collect();
    let object = Object { context, status: diagnosis.status, verdict: &diagnosis.verdict, findings };
    serde_json::to_string(&object).map(|line| json_line(line) + "\n")
}
