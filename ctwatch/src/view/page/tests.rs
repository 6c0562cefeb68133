use ctwatch_ebpf::AF_INET;

use super::*;
use crate::doctor::diagnose;
use crate::doctor::recorded::Recorded;
use crate::model::ranking::{Losses, Top};
use crate::model::trace::{Detail, Flow, Record};
use crate::model::{Sample, SourceInfo, SourceKind, Table, Tracker};

/// What a stranger may call things.
const HOSTILE: &str = "</style><script>alert(1)</script>\"' onload=x <img src=//evil> \x1b[2J\u{202e}&amp;";

/// A flood in the middle of so many seconds; all names are this one.
fn made(name: &str, seconds: u64) -> String {
    let info = SourceInfo {
        kind: SourceKind::Kprobe,
        why: Some(name.into()),
        unknown: [(Event::DeletePressure, name.to_owned())].into(),
    };
    let (mut incident, mut recorded, mut tracker) =
        (Incident::default(), Recorded::default(), Tracker::new(0));
    let mut counters = Counters::default();
    for second in 1..=seconds {
        let flood = (seconds / 3..seconds / 2).contains(&second);
        counters.0[Event::Insert as usize] += if flood { 900 } else { 40 };
        counters.0[Event::DropTableFull as usize] += if flood { 700 } else { 0 };
        counters.0[Event::DeleteEarlyDrop as usize] += if flood { 120 } else { 0 };
        counters.0[Event::DeleteTimeout as usize] += 38;
        let flow = Flow {
            family: AF_INET,
            proto: 17,
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            detail: Detail::Ports(4000, 6881),
            zone: 0,
        };
        let record = Record {
            wall_ns: i128::from(second) * 1_000_000_000,
            name: Group::Drop,
            event: Event::DropTableFull,
            netns: 7,
            flow,
            assured: false,
            replied: false,
            age: None,
            newcomer: None,
            entry: None,
            invalid: None,
            certainty: crate::model::trace::Certainty::default(),
            cpu: Some(0),
            comm: Some(name.into()),
        };
        let top = Top {
            by: By::Dport,
            netns: 7,
            family: AF_INET,
            proto: 17,
            key: "6881".into(),
            insert: second * 40,
            early_drop: 0,
            drop: 0,
            invalid: 0,
        };
        let count = if flood { 4000 } else { 900 + second };
        let report = tracker.advance(Sample {
            wall_ns: 1_795_460_400_000_000_000 + i128::from(second) * 1_000_000_000,
            mono_ns: second * 1_000_000_000,
            rows: [(FlowType { netns: 7, family: AF_INET, proto: 17 }, counters)].into(),
            tables: vec![Table { netns: 7, name: name.into(), count: Some(count), max: Some(4000) }],
            top: Some(vec![top]),
            losses: Some(Losses { events: if flood { vec![record] } else { Vec::new() }, more: 3 }),
            ..Sample::default()
        });
        incident.add(1, &info, &report);
        recorded.add(1, name, &info, &report);
    }
    incident.finish();
    let machine = Machine { host: name.into(), kernel: name.into() };
    let subject = Subject { machine: &machine, version: name, zone: &TimeZone::UTC };
    page(&subject, &incident, &diagnose(&recorded.facts().unwrap())).unwrap()
}

/// The elements of a page, by their names.
fn elements(page: &str) -> Vec<&str> {
    let starts = page.split('<').skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()));
    starts.map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()).collect()
}

#[test]
fn names_of_strangers_make_no_element_and_no_attribute() {
    let (calm, hostile) = (made("web-7", 100), made(HOSTILE, 100));
    assert_eq!(elements(&calm), elements(&hostile));
    for wrong in ["onload=x <", "<img", "\x1b", "\u{202e}"] {
        assert!(!hostile.contains(wrong), "{wrong}");
    }
    assert_eq!(hostile.matches("<script").count(), 1, "its own");
    assert!(hostile.contains("&lt;script&gt;"), "names are shown as they are");
}

#[test]
fn a_page_loads_nothing_and_runs_its_own_script_alone() {
    let page = made("web-7", 100);
    assert!(page.contains("Content-Security-Policy") && page.contains("default-src 'none'"));
    let own = format!("</main><script>{SCRIPT}</script></body></html>\n");
    assert!(page.ends_with(&own) && page.matches("<script").count() == 1);
    assert!(page.contains(&format!("script-src 'sha256-{}';", hash(SCRIPT))), "page.js has {}", hash(SCRIPT));
    for wrong in ["<link", "<img", "<iframe", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(wrong), "{wrong}");
    }
    // The name space of SVG is a name, not an address that is asked.
    assert_eq!(
        page.matches("http").count(),
        page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count() + 1
    );
}

/// As a content security policy has it, by a program that is on every Linux.
fn hash(text: &str) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let program = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut program = program.unwrap();
    program.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = program.wait_with_output().unwrap().stdout;
    let hex = std::str::from_utf8(&said[..64]).unwrap();
    let byte = |at| u32::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes: Vec<u32> = (0..64).step_by(2).map(byte).collect();
    let four = |three: &[u32]| {
        let word = (0..3).fold(0, |word, at| word << 8 | three.get(at).copied().unwrap_or(0));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(word >> shift) as usize % 64]))
    };
    // 32 bytes are 43 digits.
    bytes.chunks(3).flat_map(four).take(43).collect::<String>() + "="
}

#[test]
fn every_chart_has_its_numbers_and_the_flood_is_told() {
    let page = made("web-7", 100);
    assert_eq!(page.matches("<svg ").count(), 3);
    assert_eq!(page.matches("role=\"img\" aria-label=").count(), 3);
    for figure in page.split("<figure>").skip(1) {
        let figure = figure.split("</figure>").next().unwrap();
        assert!(figure.contains("<svg ") && figure.contains("<table "), "{figure}");
    }
    for told in ["CRITICAL", "table-full", "ctwatch doctor explain table-full"] {
        assert!(page.contains(told), "{told}");
    }
    // 17 seconds of 700 refused and 120 evicted each.
    assert!(page.contains("<b>11,900</b> new flows refused"), "{page}");
    assert!(page.contains("<b>2,040</b> live entries evicted"));
    assert!(page.contains("6881 (web-7 ipv4 udp)"));
    // All 17 records fit.
    assert!(page.contains("17 of the 13,940 losses of this minute are listed."));
}

#[test]
fn numbers_are_written_in_one_way() {
    let written = [0.0, 0.04, 0.5, 9.94, 9.96, 10.0, 12.3, 1234.5].map(figures::number);
    assert_eq!(written, ["0", "0", "0.5", "9.9", "10", "10", "12", "1,235"]);
}

/// The label of a round number at the upper end of its axis was cut off: 1000, with 1001 as the highest value.
#[test]
fn no_label_lies_at_the_upper_edge_of_a_chart() {
    for highest in (1..=2_000).chain([10_000, 99_999, 1_000_001]) {
        let points = vec![(0.0, 0.0), (1.0, f64::from(highest))];
        let line = chart::Line { name: "a".to_owned(), points, ..chart::Line::default() };
        let svg = chart::draw("a", &[line], &TimeZone::UTC).unwrap();
        let labels =
            svg.split("<text ").skip(1).filter_map(|text| text.split("y=\"").nth(1)?.split('"').next());
        let top = labels.map(|y| y.parse::<i32>().unwrap()).min();
        // Half of the 24 pixels of a phone's font, and a little.
        assert!(top >= Some(16), "{top:?} with {highest}");
    }
}

#[test]
fn one_report_is_enough_and_a_day_is_not_too_much() {
    for seconds in [1, 2, 3, 4000] {
        let page = made("web-7", seconds);
        assert!(page.ends_with("</html>\n"));
        assert!(page.len() < 400_000, "{seconds} s: {} bytes", page.len());
    }
}
