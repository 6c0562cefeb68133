//! Switching tracking off, in the printed order, and back on.

use std::fs;
use std::process::{Command, Stdio};

use super::super::super::space::checked;
use super::super::super::{modules, state};
use super::super::{Skip, init};
use super::{configuration_folders, doctor, no_files_left, shell};

/// Rules first, then modules in the printed order; it stays off; the undo brings rules and tracking back.
pub(super) fn switch_off() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    state::rules(
        &init(),
        "table inet watched {
           chain out { type filter hook output priority 0; ct state new counter; meta l4proto tcp counter; }
         }
         table ip nat {
           chain postrouting { type nat hook postrouting priority 100; oifname \"none\" masquerade; }
         }",
    )?;
    let rules = || checked(Command::new("nft").args(["-s", "list", "ruleset"]));
    let before = rules()?;
    let answer = doctor(&["--all"], 0)?;
    let Ok(remedy) = answer.remedy("module-holders", "Switch") else {
        anyhow::bail!("nothing says how to switch it off: {}", answer.object);
    };
    if fs::metadata("/sys/module/nf_conntrack/initstate").is_err() {
        return Err(Skip("connection tracking is part of this kernel".into()).into());
    }
    shell(remedy, "commands")?;
    anyhow::ensure!(!modules::present(), "nf_conntrack is still there");
    let left = rules()?;
    anyhow::ensure!(
        left.contains("tcp") && !left.contains("ct state"),
        "other rules went, or stateful ones stayed: {left}"
    );
    doctor(&[], 0)?.expect(0, "ok")?;
    anyhow::ensure!(!modules::present(), "doctor loaded it again");
    shell(remedy, "persist")?;
    stays_off()?;
    shell(remedy, "undo")?;
    anyhow::ensure!(modules::present(), "undo did not bring tracking back");
    anyhow::ensure!(rules()? == before, "undo left other rules: {}", rules()?);
    no_files_left()?;
    modules::load()
}

/// A rule that needs tracking is refused, and loads nothing, with the modprobe that distributions have.
fn stays_off() -> anyhow::Result<()> {
    const HELPER: &str = "/proc/sys/kernel/modprobe";
    checked(Command::new("/opt/kmod/depmod").arg("-a"))?;
    let before = fs::read_to_string(HELPER)?;
    fs::write(HELPER, "/opt/kmod/modprobe")?;
    let words = ["add", "rule", "inet", "watched", "out", "ct", "state", "new"];
    let added = Command::new("nft").args(words).stderr(Stdio::null()).status();
    fs::write(HELPER, before.trim())?;
    anyhow::ensure!(!added?.success() && !modules::present(), "a rule brought connection tracking back");
    Ok(())
}

/// The same with everything but rules that can hold tracking.
pub(super) fn switch_off_objects() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::rules(
        &init(),
        "table inet watched {
           flowtable fast { hook ingress priority 0; devices = { lo }; }
           ct helper ftp { type \"ftp\" protocol tcp; }
           ct timeout brief { protocol tcp; l3proto ip; policy = { established : 120 }; }
           ct expectation more { protocol udp; dport 9876; timeout 60s; size 12; l3proto ip; }
           synproxy guard { mss 1460; wscale 7; timestamp sack-perm; }
         }",
    )?;
    let rules = || checked(Command::new("nft").args(["-s", "list", "ruleset"]));
    let before = rules()?;
    let answer = doctor(&["--all"], 0)?;
    if fs::metadata("/sys/module/nf_conntrack/initstate").is_err() {
        return Err(Skip("connection tracking is part of this kernel".into()).into());
    }
    let remedy = answer.remedy("module-holders", "Switch")?;
    let printed = remedy["commands"].to_string();
    for object in ["flowtable", "ct helper", "ct timeout", "ct expectation", "synproxy"] {
        let command = format!("nft delete {object} inet watched ");
        anyhow::ensure!(printed.contains(&command), "nothing says {command}…: {printed}");
    }
    shell(remedy, "commands")?;
    anyhow::ensure!(!modules::present(), "nf_conntrack is still there");
    shell(remedy, "persist")?;
    shell(remedy, "undo")?;
    anyhow::ensure!(modules::present(), "undo did not bring tracking back");
    anyhow::ensure!(rules()? == before, "undo left other rules: {}", rules()?);
    no_files_left()?;
    state::rules(&init(), "")?;
    modules::load()
}

/// The same with rules of the older interface.
pub(super) fn switch_off_legacy() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::rules(&init(), "")?;
    let add = |rule: &str| {
        let words = ["-t"].into_iter().chain(rule.split_whitespace());
        checked(Command::new("iptables-legacy").args(words))
    };
    if let Err(error) = add("filter -A OUTPUT -m conntrack --ctstate INVALID -j DROP") {
        return Err(Skip(format!("no rules of the older interface here: {error:#}")).into());
    }
    add("nat -A POSTROUTING -o none -j MASQUERADE")?;
    let rules = || -> anyhow::Result<Vec<String>> {
        let saved = checked(&mut Command::new("iptables-legacy-save"))?;
        Ok(saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect())
    };
    let before = rules()?;
    let answer = doctor(&["--all"], 0)?;
    if fs::metadata("/sys/module/nf_conntrack/initstate").is_err() {
        return Err(Skip("connection tracking is part of this kernel".into()).into());
    }
    let remedy = answer.remedy("module-holders", "Switch")?;
    shell(remedy, "commands")?;
    anyhow::ensure!(!modules::present(), "nf_conntrack is still there");
    doctor(&["--all"], 0)?.expect(0, "ok")?;
    anyhow::ensure!(!modules::present(), "doctor loaded it again");
    shell(remedy, "persist")?;
    shell(remedy, "undo")?;
    anyhow::ensure!(modules::present(), "undo did not bring tracking back");
    let after = rules()?;
    anyhow::ensure!(before.iter().all(|rule| after.contains(rule)), "undo left {after:?}, not {before:?}");
    add("filter -F")?;
    add("nat -F")?;
    no_files_left()?;
    modules::load()
}
