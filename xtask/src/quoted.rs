//! The figures that README.md and docs/cost.md quote are those of docs/bench-baseline.json.

use std::fs;

use serde_json::Value;

use crate::paths;

const WORKLOADS: [&str; 4] = ["udp-steady", "udp-full", "tcp-steady", "tcp-full"];

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

fn row(baseline: &Value, kernel: &str, title: &str, observer: &str, field: &str, sign: &str) -> String {
    let cells = WORKLOADS.map(|workload| {
        format!(" {sign}{} |", grouped(figure(baseline, kernel, &format!("{observer} {workload}"), field)))
    });
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
        for (title, observer, field, sign) in [
            ("the flow itself", "ctwatch-fexit", "base", ""),
            ("added by ctwatch, fexit", "ctwatch-fexit", "added", "+"),
            ("added by ctwatch, kprobe", "ctwatch-kprobe", "added", "+"),
        ] {
            let row = row(&baseline, kernel, title, observer, field, sign);
            assert!(cost.contains(&row), "docs/cost.md lacks this row:\n{row}");
        }
    }
    let udp = ["udp-steady", "udp-full"];
    let (low, high) = percent(&baseline, "ctwatch-fexit", &udp);
    let (kprobe_low, kprobe_high) = percent(&baseline, "ctwatch-kprobe", &udp);
    let sentence = format!(
        "adds {low} to {high} % to the work of a new UDP flow with fexit, {kprobe_low} to {kprobe_high} % with kprobe"
    );
    for file in ["README.md", "docs/cost.md"] {
        let words: Vec<String> = read(file).split_whitespace().map(str::to_owned).collect();
        assert!(words.join(" ").contains(&sentence), "{file} lacks: {sentence}");
    }
}
