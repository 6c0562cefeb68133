//! Who starts ctwatch chooses no program that it runs, and such a program gets nothing of ctwatch's.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use anyhow::Context;

use super::super::super::attacker::Attacker;
use super::super::super::ctwatch::program;
use super::super::super::space::{Space, checked};
use super::super::super::trial::equal;
use super::super::super::{modules, state};
use super::super::{Skip, init};

/// A directory with programs and libraries of the attacker's.
const TRAP: &str = "/tmp/trap";
const MARK: &str = "/tmp/trap-was-used";
/// What a program saw of itself.
const SEEN: &str = "/tmp/seen-by";
const NFT: &str = "/bin/nft";
const MOVED: &str = "/bin/nft-itself";

/// Programs and libraries of their own name in the caller's directory, PATH and variables are not used.
pub(super) fn of_the_caller() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;

    fs::create_dir_all(TRAP)?;
    for name in ["nft", "iptables-save", "iptables-legacy-save", "ip6tables-save", "ip6tables-legacy-save"] {
        script(&format!("{TRAP}/{name}"), &format!("touch {MARK}"))?;
    }
    for name in ["libnftables.so.1", "libmnl.so.0", "libxtables.so.12"] {
        fs::write(format!("{TRAP}/{name}"), "no library")?;
    }
    let output = doctor(&format!(
        "cd {TRAP}; export PATH=.:{TRAP}:$PATH LD_LIBRARY_PATH={TRAP} XTABLES_LIBDIR={TRAP}"
    ))?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("doctor's answer")?;
    let findings = answer["findings"].as_array().context("findings")?;
    let tracked = findings.iter().find(|finding| finding["id"] == "tracked-by").context("tracked-by")?;
    let evidence = &tracked["evidence"];
    anyhow::ensure!(!fs::exists(MARK)?, "a program of the caller's was run");
    equal("listings that failed", evidence["not_listed"]["value"].to_string(), "[]".into())?;
    let rules = evidence["rules"]["value"].to_string();
    anyhow::ensure!(rules.contains("ct state"), "the rules were not listed: {rules}");
    fs::remove_dir_all(TRAP)?;
    Ok(())
}

/// A child's rights, descriptors, variables and directory, as the child itself sees them.
pub(super) fn of_a_child() -> anyhow::Result<()> {
    /// CAP_NET_ADMIN alone.
    const NET_ADMIN: u64 = 1 << 12;
    modules::load()?;
    state::fresh(&init())?;

    fs::rename(NFT, MOVED)?;
    let looks = format!(
        "cat /proc/self/status > {SEEN}-status\n\
         for each in /proc/$$/fd/*; do readlink $each; done > {SEEN}-fd\n\
         cat /proc/$$/environ > {SEEN}-environ\n\
         readlink /proc/$$/cwd > {SEEN}-cwd\n\
         readlink /proc/$$/fd/0 > {SEEN}-stdin\n\
         exec {MOVED} \"$@\""
    );
    script(NFT, &looks)?;
    let asked = doctor("export TOKEN=secret; exec 7< /etc/passwd; cd /tmp");
    fs::rename(MOVED, NFT)?;
    asked?;
    let seen = |what: &str| -> anyhow::Result<String> {
        let file = format!("{SEEN}-{what}");
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        fs::remove_file(file)?;
        Ok(text)
    };
    let status = seen("status")?;
    let bits = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).context(status.clone())
    };
    equal("permitted", bits("CapPrm")?, NET_ADMIN)?;
    equal("effective", bits("CapEff")?, NET_ADMIN)?;
    equal("no_new_privs", bits("NoNewPrivs")?, 1)?;
    let descriptors = seen("fd")?;
    // The shell holds its script, and while it reads the others, where they go to.
    let own = [NFT, &format!("{SEEN}-fd")];
    let others = descriptors.lines().filter(|line| !line.starts_with("pipe:") && !own.contains(line));
    equal("descriptors", others.collect::<Vec<_>>().join(" "), "/dev/null".into())?;
    equal("variables", seen("environ")?, "LC_ALL=C\0PATH=/usr/sbin:/usr/bin:/sbin:/bin\0".into())?;
    equal("directory", seen("cwd")?, "/\n".into())?;
    equal("stdin", seen("stdin")?, "/dev/null\n".into())
}

/// The namespace of a user without privileges, whose rules of the older interface belong to that user.
pub(super) fn of_a_strangers_namespace() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    let attacker = Attacker::start()?;
    let there = Space::attach("stranger", attacker.pid())?;
    let rule = ["-A", "OUTPUT", "-m", "state", "--state", "NEW", "-j", "ACCEPT"];
    if let Err(error) = checked(there.command("iptables-legacy").args(rule)) {
        return Err(Skip(format!("no rules of the older interface here: {error:#}")).into());
    }
    state::rules(&there, state::RULES)?;
    let output = doctor("cd /")?;
    let answer = String::from_utf8_lossy(&output.stdout);
    for listed in ["ip filter OUTPUT: OUTPUT -m state --state NEW -j ACCEPT", "ct state"] {
        anyhow::ensure!(answer.contains(listed), "{listed} is missing: {answer}");
    }
    Ok(())
}

fn script(file: &str, lines: &str) -> anyhow::Result<()> {
    fs::write(file, format!("#!/bin/sh\n{lines}\n"))?;
    Ok(fs::set_permissions(file, Permissions::from_mode(0o755))?)
}

/// `doctor`, started by a shell after these words.
fn doctor(before: &str) -> anyhow::Result<Output> {
    let words = format!("{before}; exec {} doctor --json --all --sample 0.1 --since 1s", program());
    let output = init().command("/bin/sh").args(["-c", &words]).output()?;
    anyhow::ensure!(output.status.code() == Some(0), "doctor: {output:?}");
    Ok(output)
}
