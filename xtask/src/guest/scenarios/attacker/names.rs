//! Names that a stranger chose, in a namespace of their own: doctor's commands do nothing that the stranger wrote.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::json;

use super::super::super::space::{Space, checked};
use super::super::super::{modules, state};
use super::super::doctor::{configuration_folders, doctor, shell};
use super::super::{Skip, init};

const SCRIPT: &str = "/tmp/rules.json";
const MARK: &str = "/tmp/ctwatch-was-here";

/// Names that nft's own language cannot write: its JSON form hands them to the kernel as they are.
fn rules(space: &Space, table: &str, chain: &str) -> anyhow::Result<()> {
    let place = json!({ "family": "ip", "table": table });
    let of_chain = |name: &str| {
        let mut chain = place.clone();
        chain["name"] = name.into();
        chain
    };
    let mut rule = place.clone();
    rule["chain"] = chain.into();
    rule["comment"] = format!("$(touch {MARK})").into();
    rule["expr"] = json!([
        { "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": "new" } },
        { "counter": null }
    ]);
    let script = json!({ "nftables": [
        { "add": { "table": { "family": "ip", "name": "kept" } } },
        { "add": { "table": { "family": "ip", "name": table } } },
        { "add": { "chain": of_chain(chain) } },
        { "add": { "rule": rule } },
    ]});
    // By a file: a guest has no /dev/stdin, which nft opens for JSON.
    fs::write(SCRIPT, script.to_string())?;
    checked(space.command("nft").args(["-j", "-f", SCRIPT]))?;
    fs::remove_file(SCRIPT)?;
    Ok(())
}

/// A chain whose name goes on as another command of nft, a table whose name is one of the shell.
pub(super) fn nft_names() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    for (table, chain) in
        [("filter", "c;flush ruleset"), ("$(touch /tmp/ctwatch-was-here)", "c"), ("t", "a\nb")]
    {
        let space = Space::create("stranger")?;
        rules(&space, table, chain)?;
        let answer = doctor(&["--all"], 0)?;
        let remedy = answer.remedy("module-holders", "Switch")?;
        for list in ["commands", "persist", "undo"] {
            let printed = remedy[list].to_string();
            anyhow::ensure!(
                !printed.contains("flush ruleset\"") && !printed.contains("was-here"),
                "{printed}"
            );
        }
        let left = remedy["left_out"].to_string();
        anyhow::ensure!(left.contains("handle") && left.contains("stranger"), "nothing says why: {remedy}");
        shell(remedy, "commands")?;
        let tables = checked(space.command("nft").args(["list", "tables"]))?;
        anyhow::ensure!(tables.contains("kept"), "the stranger's name flushed the rules: {tables}");
        shell(remedy, "undo")?;
        anyhow::ensure!(!Path::new(MARK).exists(), "the stranger's command was run");
        space.delete()?;
    }
    Ok(())
}

/// A comment of the older interface is the stranger's own text; the rule goes by its number.
pub(super) fn xt_comment() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    let space = Space::create("stranger")?;
    let add = |comment: &str| {
        let rule = ["-A", "OUTPUT", "-m", "state", "--state", "NEW", "-m", "comment", "--comment", comment];
        checked(space.command("iptables-legacy").args(rule))
    };
    if let Err(error) = add(&format!("'; touch {MARK}; $(touch {MARK}) `touch {MARK}` \"")) {
        return Err(Skip(format!("no rules of the older interface here: {error:#}")).into());
    }
    let answer = doctor(&["--all"], 0)?;
    let remedy = answer.remedy("module-holders", "Switch")?.clone();
    // Unloading the modules is another scenario's subject, and would end this one.
    let commands = remedy["commands"].as_array().context("commands")?;
    let of_rules = commands.iter().filter(|line| line.to_string().contains("iptables-legacy"));
    let of_rules = json!({ "commands": of_rules.collect::<Vec<_>>() });
    shell(&of_rules, "commands")?;
    let left = checked(space.command("iptables-legacy").arg("-S"))?;
    anyhow::ensure!(!left.contains("-A OUTPUT"), "the rule is still there: {left}");
    anyhow::ensure!(!Path::new(MARK).exists(), "the stranger's command was run");
    // Once more: another rule has that number now, and stays.
    add("another")?;
    anyhow::ensure!(
        shell(&of_rules, "commands").is_err(),
        "another rule was taken for the one that was seen"
    );
    let left = checked(space.command("iptables-legacy").arg("-S"))?;
    anyhow::ensure!(left.contains("another"), "another rule was deleted: {left}");
    space.delete()
}

/// The file that led to a namespace leads to another one when the command is pasted.
pub(super) fn another_namespace() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    let (seen, other) = (Space::create("seen")?, Space::create("other")?);
    for space in [&seen, &other] {
        state::rules(space, state::RULES)?;
    }
    let answer = doctor(&["--all"], 0)?;
    let remedy = answer.remedy("module-holders", "Switch")?;
    let commands = remedy["commands"].as_array().context("commands")?;
    let there: Vec<_> = commands.iter().filter(|line| line.to_string().contains("/run/netns/seen")).collect();
    anyhow::ensure!(there.len() > 1, "no commands for that namespace: {remedy}");
    let name = seen.label().to_owned();
    seen.delete()?;
    fs::write(format!("/run/netns/{name}"), "")?;
    checked(Command::new("mount").args(["--bind", "/run/netns/other", &format!("/run/netns/{name}")]))?;
    for line in there {
        let ran = shell(&json!({ "commands": [line] }), "commands");
        anyhow::ensure!(ran.is_err(), "it ran in another namespace: {line}");
    }
    let rules = checked(other.command("nft").args(["list", "ruleset"]))?;
    anyhow::ensure!(rules.contains("ct state new"), "the other namespace lost its rules: {rules}");
    checked(Command::new("umount").arg(format!("/run/netns/{name}")))?;
    fs::remove_file(format!("/run/netns/{name}"))?;
    other.delete()
}
