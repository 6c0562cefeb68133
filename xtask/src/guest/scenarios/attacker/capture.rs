//! A captured file can be shown to anybody, and writing it harms nobody.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Output;

use anyhow::Context;
use serde_json::{Value, json};

use super::super::super::ctwatch::run;
use super::super::super::space::{Space, checked};
use super::super::super::trial::equal;
use super::super::super::{modules, state};
use super::super::init;

const FILE: &str = "/tmp/capture.json";
const SCRIPT: &str = "/tmp/capture-rules.json";

fn doctor(args: &[&str]) -> anyhow::Result<Output> {
    run(&[&["doctor", "--json", "--all", "--sample", "0.1"], args].concat())
}

fn capture() -> anyhow::Result<Output> {
    doctor(&["--capture", FILE])
}

/// The capture was written, and doctor judges as it does without: by what scenarios before this one left in the kernel.
fn judged(captured: &Output) -> anyhow::Result<()> {
    let code = |output: &Output| output.status.code().context("doctor was killed");
    let plain = code(&doctor(&[])?)?;
    anyhow::ensure!((0..3).contains(&plain), "doctor fails without a capture: exit code {plain}");
    equal("exit code", code(captured)?, plain)
}

/// A link leads to a file that others rely on; a file that is there may be read by all.
pub(super) fn into_files() -> anyhow::Result<()> {
    const VICTIM: &str = "/tmp/victim";
    modules::load()?;
    state::fresh(&init())?;
    fs::write(VICTIM, "kept")?;
    symlink(VICTIM, FILE)?;
    let refused = capture()?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    equal("exit code", refused.status.code(), Some(3))?;
    anyhow::ensure!(told.contains("symbolic link"), "{told}");
    equal("the file behind the link", fs::read_to_string(VICTIM)?, "kept".into())?;
    fs::remove_file(FILE)?;
    fs::write(FILE, "old")?;
    fs::set_permissions(FILE, Permissions::from_mode(0o644))?;
    let (old, written) = (fs::metadata(FILE)?.ino(), capture()?);
    judged(&written)?;
    let new = fs::metadata(FILE)?;
    equal("mode", new.mode() & 0o777, 0o600)?;
    anyhow::ensure!(new.ino() != old, "the file that was there was written to");
    fs::remove_file(FILE)?;
    fs::remove_file(VICTIM)?;
    Ok(())
}

/// Names, comments, addresses of a stranger and of the machine: none is in the file, and doctor finds in it what it found.
pub(super) fn masked() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let space = Space::create("sekret-space")?;
    let table = json!({ "family": "inet", "table": "sekret_table" });
    let named = |name: &str| {
        let mut chain = table.clone();
        chain["name"] = name.into();
        chain
    };
    let rule = |comment: &str| {
        let matches = |protocol: &str, field: &str, right: &str| json!({ "match": { "op": "==", "left": { "payload": { "protocol": protocol, "field": field } }, "right": right } });
        let mut rule = table.clone();
        rule["chain"] = "sekret_chain".into();
        rule["comment"] = comment.into();
        rule["expr"] = json!([
            { "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": "sekret0" } },
            matches("ether", "saddr", "52:54:00:12:34:56"),
            matches("ip", "saddr", "10.77.88.99"),
            { "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": "new" } },
            { "counter": null }
        ]);
        json!({ "add": { "rule": rule } })
    };
    let load = |list: Vec<Value>| -> anyhow::Result<()> {
        fs::write(SCRIPT, json!({ "nftables": list }).to_string())?;
        checked(space.command("nft").args(["-j", "-f", SCRIPT]))?;
        Ok(fs::remove_file(SCRIPT)?)
    };
    load(vec![
        json!({ "add": { "table": { "family": "inet", "name": "sekret_table" } } }),
        json!({ "add": { "chain": named("sekret_chain") } }),
        rule("sekret plain"),
    ])?;
    compare(&space)?;
    // It ends its own quotes, and what follows looks like a rule.
    load(vec![rule("a\" sekret 5551234 10.77.88.99 \"b\\\" sekret")])?;
    compare(&space)?;
    space.delete()
}

fn compare(space: &Space) -> anyhow::Result<()> {
    // Where a kernel has the older interface; rules of nft are enough where it has not.
    let comment = "a\\\" sekret 52:54:00:12:34:56 \" 2001:db8:77::1";
    let legacy = [
        "-A",
        "OUTPUT",
        "-o",
        "sekret0",
        "-d",
        "10.77.88.99",
        "-m",
        "state",
        "--state",
        "NEW",
        "-m",
        "comment",
    ];
    let legacy = space.command("iptables-legacy").args(legacy).args(["--comment", comment]).output()?;
    eprintln!("rules of the older interface: {}", legacy.status);
    let answer = capture()?;
    judged(&answer)?;
    let text = fs::read_to_string(FILE)?;
    anyhow::ensure!(text.contains("ct state new") || text.contains("left out"), "no rule is in it: {text}");
    for hidden in ["sekret", "52:54:00", "10.77.88", "2001:db8", "5551234"] {
        anyhow::ensure!(!text.contains(hidden), "{hidden} is in the capture: {text}");
    }
    let again = run(&["doctor", "--json", "--all", "--from", FILE])?;
    fs::remove_file(FILE)?;
    equal("findings of the capture and of the machine", ids(&again.stdout)?, ids(&answer.stdout)?)
}

fn ids(answer: &[u8]) -> anyhow::Result<Vec<String>> {
    let answer: Value = serde_json::from_slice(answer)?;
    let findings = answer["findings"].as_array().context("findings")?;
    Ok(findings.iter().map(|finding| finding["id"].to_string()).collect())
}
