//! The figures that README.md and docs/cost.md quote are those of docs/bench-baseline.json.

use std::fs;

use serde_json::Value;

use crate::paths;

/// The columns of the tables.
const TABLES: [&[&str]; 2] = [
    &["udp-steady", "udp-ports", "udp-full", "tcp-steady", "tcp-full"],
    &["udp-half", "udp-refused", "tcp-half", "tcp-refused"],
];

fn read(file: &str) -> String {
    fs::read_to_string(paths::root().join(file)).unwrap()
}

fn figure(baseline: &Value, kernel: &str, name: &str, field: &str) -> f64 {
    baseline[kernel]["figures"][name][field]
        .as_f64()
        .unwrap_or_else(|| panic!("no {field} of {name} on {kernel}"))
}

/// 12632 as `12,632`.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn row(
    baseline: &Value,
    kernel: &str,
    title: &str,
    [observer, field, sign]: [&str; 3],
    workloads: &[&str],
) -> String {
    let cell = |workload: &&str| {
        let figure = figure(baseline, kernel, &format!("{observer} {workload}"), field);
        format!(" {sign}{} |", grouped(figure))
    };
    let cells: Vec<String> = workloads.iter().map(cell).collect();
    format!("| {kernel} | {title} |{}", cells.concat())
}

/// The lowest and the highest share of a new UDP flow, over the measured kernels, in whole percent.
fn percent(baseline: &Value, observer: &str, workloads: &[&str]) -> (String, String) {
    let shares: Vec<f64> = ["6.1", "7.3"]
        .iter()
        .flat_map(|kernel| workloads.iter().map(move |workload| (kernel, format!("{observer} {workload}"))))
        .map(|(kernel, name)| {
            100.0 * figure(baseline, kernel, &name, "added") / figure(baseline, kernel, &name, "base")
        })
        .collect();
    let low = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shares.iter().copied().fold(0.0, f64::max);
    (format!("{low:.0}"), format!("{high:.0}"))
}

#[test]
fn quoted_costs_are_those_of_the_baseline() {
    let baseline: Value = serde_json::from_str(&read("docs/bench-baseline.json")).unwrap();
    let cost = read("docs/cost.md");
    for kernel in ["6.1", "7.3"] {
        for (title, cells) in [
            ("the flow itself", ["ctwatch-fexit", "base", ""]),
            ("added by ctwatch, fexit", ["ctwatch-fexit", "added", "+"]),
            ("added by ctwatch, kprobe", ["ctwatch-kprobe", "added", "+"]),
        ] {
            for workloads in TABLES {
                let row = row(&baseline, kernel, title, cells, workloads);
                assert!(cost.contains(&row), "docs/cost.md lacks this row:\n{row}");
            }
        }
    }
    let percents = |workloads: &[&str]| {
        let (low, high) = percent(&baseline, "ctwatch-fexit", workloads);
        let (kprobe_low, kprobe_high) = percent(&baseline, "ctwatch-kprobe", workloads);
        [low, high, kprobe_low, kprobe_high]
    };
    let [low, high, kprobe_low, kprobe_high] = percents(&["udp-steady", "udp-full"]);
    let [worst_low, worst_high, worst_kprobe_low, worst_kprobe_high] = percents(&["udp-refused"]);
    let sentences = [
        format!(
            "adds {low} to {high} % to the work of a new UDP flow with fexit, {kprobe_low} to {kprobe_high} % with kprobe"
        ),
        format!(
            "adds {worst_low} to {worst_high} % with fexit, {worst_kprobe_low} to {worst_kprobe_high} % with kprobe"
        ),
    ];
    for file in ["README.md", "docs/cost.md"] {
        let words: Vec<String> = read(file).split_whitespace().map(str::to_owned).collect();
        let text = words.join(" ");
        for sentence in &sentences {
            assert!(text.contains(sentence), "{file} lacks: {sentence}");
        }
    }
}
