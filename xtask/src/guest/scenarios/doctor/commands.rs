//! Every command that doctor prints for any captured machine is run here, but those that switch tracking off, whose
//! scenarios are their own: these name rules that a captured machine had and a guest has not.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::super::super::space::checked;
use super::super::super::{modules, state};
use super::super::init;
use super::{configuration_folders, judge, no_files_left, shell, sysctl};

/// The captured machines; together they show every remedy there is, which a test beside them sees to.
const MACHINES: [(&str, &str); 21] = [
    ("absent", include_str!("../../../../../ctwatch/tests/machines/absent.json")),
    ("container", include_str!("../../../../../ctwatch/tests/machines/container.json")),
    ("dns-race", include_str!("../../../../../ctwatch/tests/machines/dns-race.json")),
    ("dropping", include_str!("../../../../../ctwatch/tests/machines/dropping.json")),
    ("dropping-7.3", include_str!("../../../../../ctwatch/tests/machines/dropping-7.3.json")),
    ("every-timeout", include_str!("../../../../../ctwatch/tests/machines/every-timeout.json")),
    ("expectations", include_str!("../../../../../ctwatch/tests/machines/expectations.json")),
    ("healthy", include_str!("../../../../../ctwatch/tests/machines/healthy.json")),
    ("idle-tcp", include_str!("../../../../../ctwatch/tests/machines/idle-tcp.json")),
    ("invalid", include_str!("../../../../../ctwatch/tests/machines/invalid.json")),
    ("kube-proxy", include_str!("../../../../../ctwatch/tests/machines/kube-proxy.json")),
    ("limit-not-applied", include_str!("../../../../../ctwatch/tests/machines/limit-not-applied.json")),
    ("misleading-counters", include_str!("../../../../../ctwatch/tests/machines/misleading-counters.json")),
    ("near-full", include_str!("../../../../../ctwatch/tests/machines/near-full.json")),
    ("old-advice", include_str!("../../../../../ctwatch/tests/machines/old-advice.json")),
    ("old-kernel", include_str!("../../../../../ctwatch/tests/machines/old-kernel.json")),
    ("refused-anyway", include_str!("../../../../../ctwatch/tests/machines/refused-anyway.json")),
    ("snat-exhausted", include_str!("../../../../../ctwatch/tests/machines/snat-exhausted.json")),
    ("stale-nat", include_str!("../../../../../ctwatch/tests/machines/stale-nat.json")),
    ("timed", include_str!("../../../../../ctwatch/tests/machines/timed.json")),
    ("unprivileged", include_str!("../../../../../ctwatch/tests/machines/unprivileged.json")),
];

pub(super) fn every_command() -> anyhow::Result<()> {
    modules::load()?;
    configuration_folders()?;
    state::fresh(&init())?;
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    // Many machines get the same advice, but for the numbers in it.
    let mut remedies = BTreeMap::new();
    for (machine, facts) in MACHINES {
        let answer = judge(facts).with_context(|| format!("machine {machine}"))?;
        let findings = answer.object["findings"].as_array().context("no findings")?.clone();
        for remedy in
            findings.iter().flat_map(|finding| finding["remedies"].as_array().cloned().unwrap_or_default())
        {
            let commands = format!("{}{}{}", remedy["commands"], remedy["persist"], remedy["undo"]);
            let shape: String = commands.chars().filter(|char| !char.is_ascii_digit()).collect();
            // Some are advice alone: a rule stands in files that doctor does not know.
            let advice = remedy["commands"].as_array().is_some_and(Vec::is_empty);
            // Those delete entries that a guest has not; doctor::stale_nat runs them.
            let elsewhere = remedy["id"] == "switch-off" || remedy["id"] == "delete-entries";
            if !elsewhere && !advice {
                remedies.entry(shape).or_insert((machine, remedy));
            }
        }
    }
    for (machine, remedy) in remedies.values() {
        there_and_back(remedy).with_context(|| format!("machine {machine}: {remedy}"))?;
    }
    println!("{} remedies run and undone", remedies.len());
    fs::remove_file("/etc/resolv.conf")?;
    Ok(())
}

/// Runs a remedy's commands, sees that they did something, and that their undo leaves nothing of it.
fn there_and_back(remedy: &Value) -> anyhow::Result<()> {
    // The settings of the machine that was captured are those that the undo goes back to.
    for (key, value) in settings(&remedy["undo"])? {
        set(&key, value)?;
    }
    let before = State::read()?;
    shell(remedy, "commands")?;
    anyhow::ensure!(State::read()? != before, "its commands did nothing");
    for (key, value) in settings(&remedy["commands"])? {
        let found = sysctl(&key)?;
        anyhow::ensure!(found == value, "{key} is {found} and not {value}");
    }
    shell(remedy, "persist")?;
    shell(remedy, "undo")?;
    let after = State::read()?;
    anyhow::ensure!(after == before, "undo left {after:?}, not {before:?}");
    no_files_left()
}

/// What `sysctl -w` would set, by the name without its prefix.
fn settings(commands: &Value) -> anyhow::Result<Vec<(String, u64)>> {
    let commands = commands.as_array().context("no list of commands")?.iter().filter_map(Value::as_str);
    let settings =
        commands.filter_map(|command| command.strip_prefix("sysctl -w net.netfilter.nf_conntrack_"));
    settings
        .map(|setting| {
            let (key, value) = setting.split_once('=').with_context(|| setting.to_owned())?;
            Ok((key.to_owned(), value.parse().with_context(|| setting.to_owned())?))
        })
        .collect()
}

fn set(key: &str, value: u64) -> anyhow::Result<()> {
    let value = u32::try_from(value)?;
    if key == "buckets" { state::buckets(value) } else { state::set(&format!("nf_conntrack_{key}"), value) }
}

/// Everything that the commands could change.
#[derive(Debug, PartialEq, Eq)]
struct State {
    sysctls: BTreeMap<String, String>,
    rules: Vec<String>,
    files: Vec<Option<String>>,
}

impl State {
    fn read() -> anyhow::Result<Self> {
        let mut sysctls = BTreeMap::new();
        for file in fs::read_dir("/proc/sys/net/netfilter")? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name != "nf_conntrack_count"
                && let Ok(value) = fs::read_to_string(&path)
            {
                sysctls.insert(name, value);
            }
        }
        // Rules of the older interface leave an empty table behind, which holds nothing.
        let mut rules = vec![checked(Command::new("nft").args(["-s", "list", "table", "inet", "watched"]))?];
        let tables = checked(Command::new("nft").args(["list", "tables", "inet"]))?;
        rules.extend(tables.lines().map(str::to_owned));
        for program in ["iptables-save", "ip6tables-save"] {
            let saved = checked(&mut Command::new(program))?;
            rules.extend(saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned));
        }
        let files = ["/etc/nftables.conf", "/etc/resolv.conf", "/root/ctwatch-resolv.conf"]
            .map(|file| Path::new(file).exists().then(|| fs::read_to_string(file)).transpose());
        Ok(Self { sysctls, rules, files: files.into_iter().collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::MACHINES;

    #[test]
    fn no_captured_machine_is_left_out() {
        let directory = crate::paths::root().join("ctwatch/tests/machines");
        let files = std::fs::read_dir(directory).expect("captured machines").flatten();
        let mut names: Vec<String> = files
            .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .collect();
        names.sort();
        assert_eq!(names, MACHINES.map(|(name, _)| name));
    }
}
