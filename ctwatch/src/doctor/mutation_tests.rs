//! Captures of strangers: machines changed in ways that no machine is. Nothing panics, nothing takes long, and no line
//! has a character that a terminal obeys.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use super::{Facts, diagnose, mask};
use crate::view::doctor::{Context, Style, json, plain};

const MACHINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines");
/// Changed captures that are tried, each with one to five changes. `PROPTEST_CASES=6000` tries more: 60 to 140 s.
const CASES: u32 = 250;
/// More than any of them takes, by far: an unoptimised build on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);
/// Numbers at the ends of what the fields hold.
const NUMBERS: [&str; 7] =
    ["0", "1", "255", "4294967295", "9223372036854775808", "18446744073709551614", "18446744073709551615"];
/// Those that only a time in seconds may be.
const ODD: [&str; 4] = ["-1", "-9223372036854775808", "1e308", "4.9e-324"];
const HOSTILE: &str = "\u{1b}[2J\u{202e}$(reboot)\";'`\n\r\0\u{7f}\u{9b}\u{200b}|&> ";

#[derive(Clone, Debug)]
enum Change {
    Number(&'static str),
    Text(String),
    Drop,
    Twice,
    Nest,
    Rename,
    Many(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let number = |among: &'static [&'static str]| proptest::sample::select(among).prop_map(Change::Number);
    prop_oneof![
        30 => number(&NUMBERS),
        1 => number(&ODD),
        3 => Just(Change::Text(String::new())),
        3 => (1_usize..3000).prop_map(|length| Change::Text("x".repeat(length))),
        6 => Just(Change::Text(HOSTILE.to_owned())),
        3 => "\\PC{0,12}".prop_map(Change::Text),
        1 => Just(Change::Drop),
        6 => Just(Change::Twice),
        1 => Just(Change::Nest),
        1 => Just(Change::Rename),
        2 => (2_usize..200).prop_map(Change::Many),
    ]
}

/// A change of a kind that the value at its place can bear; most others would only be refused when they are read.
fn fits(change: &Change, value: &Value) -> bool {
    match change {
        Change::Number(_) => value.is_number(),
        Change::Text(_) => value.is_string(),
        Change::Twice | Change::Many(_) => value.as_array().is_some_and(|items| !items.is_empty()),
        Change::Drop => value.is_array() || value.is_object(),
        Change::Rename => value.is_object(),
        Change::Nest => true,
    }
}

fn apply(change: &Change, value: &mut Value, which: usize) {
    match (change, value) {
        (Change::Number(number), value) => *value = serde_json::from_str(number).unwrap(),
        (Change::Text(text), value) => *value = text.clone().into(),
        (Change::Twice, Value::Array(items)) => items.push(items[which % items.len()].clone()),
        (Change::Many(count), Value::Array(items)) => {
            let item = items[which % items.len()].clone();
            items.extend(std::iter::repeat_n(item, *count));
        }
        (Change::Drop, Value::Array(items)) => drop(items.pop()),
        (Change::Drop, Value::Object(fields)) => {
            let key = fields.keys().nth(which % fields.len().max(1)).cloned();
            key.map(|key| fields.remove(&key));
        }
        (Change::Rename, Value::Object(fields)) => {
            let key = fields.keys().nth(which % fields.len().max(1)).cloned();
            if let Some(value) = key.and_then(|key| fields.remove(&key)) {
                fields.insert(HOSTILE.into(), value);
            }
        }
        (_, value) => *value = Value::Array(vec![value.take()]),
    }
}

/// Every place in a captured machine, as a JSON pointer.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    let mut inside = |key: &str, value: &Value| {
        places(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(at, item)| inside(&at.to_string(), item)),
        Value::Object(fields) => fields.iter().for_each(|(key, item)| inside(key, item)),
        _ => {}
    }
}

/// Answers in every form; whether it is a capture at all.
fn judged(text: &str) -> bool {
    let Ok(mut facts) = serde_json::from_str::<Facts>(text) else { return false };
    let began = Instant::now();
    for masked in [false, true] {
        if masked {
            mask::mask(&mut facts);
            serde_json::to_string_pretty(&facts).unwrap();
        }
        let diagnosis = diagnose(&facts);
        let context = Context {
            time: String::new(),
            host: None,
            kernel: facts.release.clone(),
            sample_s: facts.live.seconds,
        };
        let mut texts =
            vec![json(&diagnosis, &context, true).unwrap(), json(&diagnosis, &context, false).unwrap()];
        for all in [false, true] {
            texts.push(plain(&diagnosis, Style { all, color: false }));
        }
        for text in texts {
            let unsafe_char = text.chars().find(|char| char.is_control() && *char != '\n');
            assert_eq!(unsafe_char, None, "{text}");
        }
    }
    assert!(began.elapsed() < LONGEST, "it took {:?}", began.elapsed());
    true
}

fn machines() -> Vec<Value> {
    let files = fs::read_dir(MACHINES).unwrap().flatten().map(|file| file.path());
    let captures = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
    captures.map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect()
}

#[test]
fn no_capture_makes_doctor_panic() {
    let machines: Vec<(Value, Vec<String>)> = machines()
        .into_iter()
        .map(|machine| {
            let mut all = Vec::new();
            places(&machine, "", &mut all);
            (machine, all)
        })
        .collect();
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), change(), any::<u16>()), 1..6);
    let asked = Config::default().cases;
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked } else { CASES };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let strategy = (0..machines.len(), changes);
    let read = std::cell::Cell::new(0_u32);
    runner
        .run(&strategy, |(machine, changes)| {
            let (machine, places) = &machines[machine];
            let mut machine = machine.clone();
            for (index, change, which) in changes {
                let start = index.index(places.len());
                let mut from_here = places[start..].iter().chain(&places[..start]);
                let place =
                    from_here.find(|at| machine.pointer(at).is_some_and(|value| fits(&change, value)));
                if let Some(value) = place.and_then(|at| machine.pointer_mut(at)) {
                    apply(&change, value, which.into());
                }
            }
            read.set(read.get() + u32::from(judged(&machine.to_string())));
            Ok(())
        })
        .unwrap();
    let read = read.get();
    assert!(read > cases / 2, "only {read} of {cases} were captures: the others tested nothing");
}

#[test]
fn long_chains_and_circles_of_modules_are_walked() {
    let mut machine = machines().remove(0);
    let module = |at: usize, next: usize| serde_json::json!({ "name": format!("m{at}"), "refs": 1, "used_by": [format!("m{next}")] });
    let mut modules: Vec<Value> = (0..200_000).map(|at| module(at, at + 1)).collect();
    modules.push(serde_json::json!({ "name": "nf_conntrack", "refs": 1, "used_by": ["m0", "nf_conntrack"] }));
    modules.push(module(200_000, 0));
    machine["modules"] = modules.into();
    machine["conntrack"] = "module".into();
    let facts: Facts = serde_json::from_value(machine).unwrap();
    let diagnosis = diagnose(&facts);
    assert!(plain(&diagnosis, Style { all: true, color: false }).contains("m199999"));
}

/// Two of them together do not fit a number.
#[test]
fn each_number_may_be_the_largest() {
    // Of equal places, in a list or in several machines, three are enough.
    let mut seen: HashMap<Vec<String>, u32> = HashMap::new();
    for machine in machines() {
        let mut all = Vec::new();
        places(&machine, "", &mut all);
        let is_new = |place: &&String| {
            let name =
                |part: &str| if part.parse::<usize>().is_ok() { "#".to_owned() } else { part.to_owned() };
            let times = seen.entry(place.split('/').map(name).collect()).or_default();
            *times += 1;
            *times <= 3
        };
        let numbers = all.iter().filter(|place| machine.pointer(place).is_some_and(Value::is_u64));
        for place in numbers.filter(is_new) {
            let mut changed = machine.clone();
            if let Some(value) = changed.pointer_mut(place) {
                *value = Value::from(u64::MAX - 1);
            }
            println!("{place}");
            judged(&changed.to_string());
        }
    }
}
