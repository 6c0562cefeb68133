//! `ctwatch doctor` as a monitoring system and a bug report meet it; on captured machines, so that it needs no rights.
#![expect(clippy::unwrap_used, reason = "an error in a helper fails the test, as it should")]

use std::process::{Command, Output};

use serde_json::Value;

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ctwatch")).arg("doctor").args(args).output().unwrap()
}

fn machine(name: &str) -> String {
    format!("{}/tests/machines/{name}.json", env!("CARGO_MANIFEST_DIR"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn exit_codes_are_those_of_a_monitoring_plugin() {
    for (name, code, word) in [
        ("healthy", 0, "OK: "),
        ("absent", 0, "OK: "),
        ("near-full", 1, "WARNING: "),
        ("dropping", 2, "CRITICAL: "),
    ] {
        let output = doctor(&["--from", &machine(name)]);
        assert_eq!(output.status.code(), Some(code), "{name}");
        assert!(text(&output.stdout).starts_with(word), "{name}: {}", text(&output.stdout));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn whatever_keeps_it_from_an_answer_is_3() {
    let garbage = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(garbage.path(), "{\"format\":1").unwrap();
    let other = tempfile::NamedTempFile::new().unwrap();
    let facts = std::fs::read_to_string(machine("absent")).unwrap();
    std::fs::write(other.path(), facts.replacen("\"format\": 1", "\"format\": 999", 1)).unwrap();
    for (args, told) in [
        (&["--no-such-flag"][..], "unexpected argument"),
        (&["--sample", "soon"], "not a number of seconds"),
        (&["--from", "/dev/zero"], "cannot read /dev/zero: not a regular file"),
        (&["--from", "/"], "cannot read /: not a regular file"),
        (&["--from", "/no/such/file"], "cannot read /no/such/file: No such file"),
        (&["--from", garbage.path().to_str().unwrap()], "does not hold what `doctor --capture` writes: EOF"),
        (&["--from", other.path().to_str().unwrap()], "captured in format 999"),
        (&["explain", "no-such-finding"], "no finding is called `no-such-finding`"),
    ] {
        let output = doctor(args);
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains(told), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn json_is_one_line_with_what_the_contract_names() {
    let output = doctor(&["--json", "--from", &machine("dropping")]);
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["status"], "critical");
    let finding = &object["findings"][0];
    assert_eq!(finding["id"], "table-full");
    assert_eq!(finding["status"], "critical");
    assert!(finding["what"].as_str().unwrap().contains("udp port 6881"));
    assert!(finding["evidence"]["count"]["value"].is_u64());
    let remedy = &finding["remedies"][0];
    for list in ["commands", "persist", "undo"] {
        assert!(remedy[list].as_array().is_some_and(|list| !list.is_empty()), "{list}");
    }
    let brief = object["findings"].as_array().unwrap().len();
    let all = doctor(&["--json", "--all", "--from", &machine("dropping")]);
    let all: Value = serde_json::from_slice(&all.stdout).unwrap();
    assert!(all["findings"].as_array().unwrap().len() > brief);
}

#[test]
fn a_healthy_machine_has_no_finding() {
    let output = doctor(&["--json", "--from", &machine("healthy")]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["findings"], Value::Array(Vec::new()));
}

#[test]
fn facts_survive_capture_and_reading() {
    let name = machine("container");
    let output = doctor(&["--from", &name, "--capture", "-"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &output.stdout).unwrap();
    let again = doctor(&["--from", file.path().to_str().unwrap(), "--capture", "-"]);
    assert_eq!(text(&again.stdout), text(&output.stdout), "masked twice is masked once");
    let mut first: Value = serde_json::from_str(&std::fs::read_to_string(&name).unwrap()).unwrap();
    let mut masked: Value = serde_json::from_slice(&output.stdout).unwrap();
    for facts in [&mut first, &mut masked] {
        let namespace = facts["namespaces"][0].as_object_mut().unwrap();
        // Names are in these alone.
        for field in ["name", "nft"] {
            assert!(namespace.remove(field).is_some());
        }
    }
    assert_eq!(masked, first);
}

#[test]
fn explain_tells_all_about_every_finding_it_lists() {
    let list = doctor(&["explain"]);
    assert_eq!(list.status.code(), Some(0));
    for line in text(&list.stdout).lines() {
        let id = line.split_whitespace().next().unwrap();
        let told = doctor(&["explain", id]);
        assert_eq!(told.status.code(), Some(0));
        assert!(text(&told.stdout).starts_with(id) && told.stdout.len() > 200);
    }
}

/// This machine, whatever it is: it answers, and loads nothing by looking.
#[test]
fn this_machine_gets_an_answer() {
    let modules = || std::fs::read_to_string("/proc/modules").unwrap_or_default().lines().count();
    let before = modules();
    let output = doctor(&["--json", "--sample", "0.1", "--netns", "self"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    let code = ["ok", "warning", "critical", "unknown"].iter().position(|status| object["status"] == *status);
    assert_eq!(output.status.code(), code.map(|code| i32::try_from(code).unwrap()));
    assert_eq!(modules(), before);
}

/// A finding may show text of a stranger's capture. A command never holds any of it.
#[test]
fn nothing_of_a_capture_is_printed_as_a_command() {
    const HOSTILE: &str = "x;touch ctwatch-was-here;$(touch ctwatch-was-here)\nreboot #";
    let text = std::fs::read_to_string(machine("container")).unwrap();
    let mut facts: Value = serde_json::from_str(&text).unwrap();
    let namespace = &mut facts["namespaces"][0];
    namespace["own"] = false.into();
    for name in ["enter", "name"] {
        namespace[name] = HOSTILE.into();
    }
    for rule in namespace["nft"]["rules"].as_array_mut().unwrap() {
        for name in ["family", "table", "chain", "text"] {
            rule[name] = HOSTILE.into();
        }
    }
    for module in facts["modules"].as_array_mut().unwrap() {
        if module["name"] == "nf_conntrack" {
            module["used_by"].as_array_mut().unwrap().push(HOSTILE.into());
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), facts.to_string()).unwrap();
    let output = doctor(&["--json", "--all", "--from", file.path().to_str().unwrap()]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (mut commands, mut left_out) = (0, 0);
    for finding in object["findings"].as_array().unwrap() {
        for remedy in finding["remedies"].as_array().unwrap() {
            for list in ["commands", "persist", "undo"] {
                for command in remedy[list].as_array().unwrap() {
                    commands += 1;
                    assert!(!command.as_str().unwrap().contains("was-here"), "{command}");
                }
            }
            left_out += remedy["left_out"].as_array().map_or(0, Vec::len);
        }
    }
    assert!(commands > 0 && left_out > 0, "{object}");
}
