//! The table of hooks beside the sources of the programs.

use std::{fs, path::Path};

use ctwatch_ebpf::Group;

use super::*;

/// Each program in a source, as (its name, method, the function that a trampoline names).
fn programs(text: &str) -> Vec<(String, Method, Option<String>)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(attribute) = line.strip_prefix("#[").and_then(|rest| rest.strip_suffix(']')) else {
            continue;
        };
        let (method, argument) = attribute.split_once('(').unwrap_or((attribute, ""));
        let method = match method {
            "kprobe" => Kprobe,
            "kretprobe" => Kretprobe,
            "fentry" => Fentry,
            "fexit" => Fexit,
            _ => continue,
        };
        let signature = lines.next().and_then(|line| line.strip_prefix("fn ")).expect("a program follows");
        let (name, _) = signature.split_once('(').unwrap();
        found.push((name.to_owned(), method, argument.split('"').nth(1).map(str::to_owned)));
    }
    found
}

/// The functions that a hook relies on, as (name, arguments): for most kernels, then for some.
fn headers(text: &str) -> Vec<(&str, usize)> {
    let lines = text.lines().map_while(|line| line.strip_prefix("//! match-proto"));
    lines
        .map(|line| {
            let (before, arguments) = line.split_once(": ").unwrap().1.split_once('(').unwrap();
            let arguments = arguments.strip_suffix(')').unwrap();
            let count = if arguments == "void" { 0 } else { arguments.split(',').count() };
            (before.rsplit([' ', '*']).next().unwrap(), count)
        })
        .collect()
}

#[test]
fn the_table_is_what_the_sources_of_the_programs_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ctwatch-ebpf/src/hooks");
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let headers = headers(&text);
        for (program, method, named) in programs(&text) {
            let row = find(&program).unwrap_or_else(|| panic!("{program} has no row"));
            let (newest, arguments) = headers[0];
            assert_eq!(
                (row.method, row.function.name(), row.function.arguments),
                (method, newest, arguments)
            );
            for (name, _) in &headers {
                assert!(row.function.names.contains(name), "{program}: {name} is no name of its function");
            }
            for name in row.function.names {
                assert!(
                    headers.iter().any(|(header, _)| header == name),
                    "{program}: no prototype of {name}"
                );
            }
            assert_eq!(named.as_deref(), method.is_trampoline().then_some(newest), "{program}");
            assert!(seen.insert(program.clone()), "{program} is there twice");
        }
    }
    let rows: BTreeSet<String> = ROWS.iter().map(|row| row.program.to_owned()).collect();
    assert_eq!(rows, seen, "a row without a program");
    assert_eq!(rows.len(), ROWS.len(), "a program with two rows");
}

#[test]
fn the_order_of_attaching_hides_no_call() {
    let place = |program: &str| ROWS.iter().position(|row| row.program == program).unwrap();
    assert!(place("ratelimit_bpf") < place("alloc_bpf"));
    for (at, row) in ROWS.iter().enumerate() {
        if row.method == Kretprobe {
            let pair = (ROWS[at + 1].method, ROWS[at + 1].function);
            assert_eq!(pair, (Kprobe, row.function), "{}", row.program);
        }
    }
}

#[test]
fn each_event_has_a_hook_by_kprobe_and_by_trampoline() {
    for event in Event::ALL {
        // Invalid packets are seen by kprobes only.
        let ways: &[bool] = if event.group() == Group::Invalid { &[false] } else { &[false, true] };
        for &trampoline in ways {
            let serves = |row: &&Row| row.purpose.counts() && row.serves.contains(&event);
            let mut rows = ROWS.iter().filter(serves);
            assert!(rows.any(|row| row.method.is_trampoline() == trampoline), "{event:?}");
        }
    }
}
