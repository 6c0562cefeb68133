//! The binary as scripts meet it: exit codes, stdout, stderr.
#![expect(clippy::unwrap_used, reason = "an error in a helper fails the test, as it should")]

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};

fn ctwatch(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(args);
    command
}

fn run(args: &[&str]) -> Output {
    ctwatch(args).output().unwrap()
}

#[test]
fn wrong_usage_is_2_and_says_what_is_wrong() {
    for (args, told) in [
        (&["--proto", "foo"][..], "no protocol `foo`"),
        (&["live", "-i", "0"], "between 0.1 and 3600"),
        (&["nonsense"], "unrecognized subcommand"),
        (&["table", "--by", "sports"], "no grouping `sports`"),
        (&["table", "--by", "netns", "--from", "-"], "does not name network namespaces: leave --by out"),
        (&["table", "--from", "/no/file", "--by", "dst,netns,state"], "use `--by state,dst`"),
        (&["--netns", "no-such-name"], "no network namespace `no-such-name`"),
        (&["-i", "2", "man"], "cannot be used with"),
        (&["trace", "--events", "-all,drop", "--nat", "snat"], "no event would be shown"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(told), "{args:?}: {text}");
    }
}

#[test]
fn every_command_has_help() {
    for args in [
        &["--help"][..],
        &["live", "--help"],
        &["trace", "--help"],
        &["table", "--help"],
        &["facts", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn man_page_and_completions_are_written_whole() {
    let man = run(&["man"]);
    assert_eq!(man.status.code(), Some(0));
    assert!(String::from_utf8(man.stdout).unwrap().contains(".TH ctwatch 1"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("interval"), "{shell}");
    }
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    let mut child =
        ctwatch(&["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{told}");
    assert_eq!(told, "");
}

#[test]
fn a_full_disk_is_1_with_its_cause() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = ctwatch(&["man"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("ctwatch: cannot write to stdout: No space left"), "{told}");
}
