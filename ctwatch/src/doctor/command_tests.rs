use std::process::Command as Process;

use proptest::prelude::*;

use super::*;

#[test]
fn the_shell_gets_one_word() {
    let quoted = |text: &'static str| Arg::from(text).to_string();
    assert_eq!(quoted("udp_timeout=10"), "udp_timeout=10");
    assert_eq!(quoted("my chain"), "'my chain'");
    assert_eq!(quoted("it's"), r"'it'\''s'");
    assert_eq!(quoted("$(reboot)"), "'$(reboot)'");
    assert_eq!(quoted(""), "''");
}

#[test]
fn nft_gets_one_name_or_none() {
    for name in ["filter", "ctwatch_notrack", "KUBE-SVC/x.y", "_", "a1"] {
        assert_eq!(Arg::nft_name(name).unwrap().as_str(), name);
    }
    for name in [
        "",
        "c;flush ruleset",
        "a b",
        "1a",
        "-f",
        "a\nb",
        "$x",
        "a#",
        "{",
        "\"a\"",
        "ä",
        "@s",
        "a*",
        "\u{202e}a",
    ] {
        assert!(Arg::nft_name(name).is_err(), "{name}");
    }
    assert!(Arg::nft_name(&"a".repeat(256)).is_err());
}

#[test]
fn other_grammars_have_checks_of_their_own() {
    assert!(Arg::xt_chain("a;b $(c)").is_ok(), "iptables takes it as it is, and the shell is quoted for");
    for name in ["", "-F", "!x", "a\tb", "é", "a\u{1b}[2J"] {
        assert!(Arg::xt_chain(name).is_err(), "{name}");
    }
    assert!(Arg::module("nf_conntrack").is_ok());
    for name in ["", "a;b", "-f", "a b", "a.ko", &"a".repeat(56)] {
        assert!(Arg::module(name).is_err(), "{name}");
    }
    for name in ["", ".", "..", "a/b", "a\nb", "\u{7f}"] {
        assert!(Arg::file_name(name).is_err(), "{name}");
    }
    assert!(Arg::xt_rule("INPUT -m comment --comment \"a\nb\"").is_err());
}

#[test]
fn a_namespace_is_checked_in_the_line_that_enters_it() {
    let place = Place::new("/run/netns/blue".into(), 4_026_532_113);
    let line = Call::new("nft").at(Some(&place)).args(["list", "ruleset"]).into_file("/root/x").to_string();
    assert_eq!(
        line,
        "nsenter --net=/run/netns/blue -- sh -c '[ \"$(readlink /proc/self/ns/net)\" = \"net:[$0]\" ] || \
         { echo \"not the namespace that doctor saw\" >&2; exit 1; }; exec \"$@\"' 4026532113 nft list ruleset > /root/x"
    );
}

/// What a shell makes of a printed line, with a program that prints its arguments.
fn shell(line: &str) -> (bool, String) {
    let output = Process::new("sh").args(["-c", line]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_rule_that_became_another_is_left_alone() {
    let line = |text: &str| {
        Command::WhereShown {
            show: Call::new("echo").args(["-A", "OUTPUT", "-m", "comment"]),
            text: Arg::xt_rule(text).unwrap(),
            then: Call::new("echo").arg("deleted"),
        }
        .to_string()
    };
    assert_eq!(shell(&line("OUTPUT -m comment")), (true, "deleted\n".into()));
    assert_eq!(shell(&line("OUTPUT -m other")), (false, String::new()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever an argument holds, the shell hands it on as it is.
    #[test]
    fn quoting_hides_everything_from_the_shell(text in "[ -~\\n]{0,40}") {
        let line = Call::new("printf").arg("%s.").arg(Arg(text.clone().into())).to_string();
        prop_assert_eq!(shell(&line), (true, text + "."));
    }
}
