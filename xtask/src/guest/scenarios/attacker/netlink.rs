//! Forged netlink messages to every socket that others have in the attacker's network namespace.

use std::process::Command;

use anyhow::Context as _;

use super::super::super::attacker::Attacker;
use super::super::super::ctwatch::{program, source};
use super::super::super::space::Space;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::trial::{Trial, equal};
use super::super::super::{modules, state};
use super::super::{Skip, init};

const MESSAGES: u64 = 100_000;

/// Short, malformed and forged messages, to each socket and to the groups of events, while flows come: all that is
/// counted is what came.
pub(super) fn forged_messages() -> anyhow::Result<()> {
    modules::load()?;
    let space = init();
    let mut attacker = Attacker::start()?;
    let there = Space::attach("attacker", attacker.pid())?;
    state::fresh(&there)?;
    state::fresh(&space)?;
    let calm = doctor()?;

    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    attacker.attack(MESSAGES)?;
    let sent = udp::send(Flows::new(Family::V4, 2000))?;
    let sent_there = there.enter(|| udp::send(Flows::new(Family::V4, 500)))?;
    let meanwhile = doctor()?;
    let later = udp::send(Flows::new(Family::V4, 1000).from(2000))?;
    let made = attacker.stop()?;
    eprintln!("attacker: {made:?}");
    anyhow::ensure!(made.messages >= MESSAGES, "only {made:?}");
    if source() == "netlink" {
        anyhow::ensure!(made.sockets >= 3, "ctwatch's sockets were not found: {made:?}");
    }
    equal("doctor's answer during the attack and before it", meanwhile, calm)?;

    let finding = trial.finish()?;
    let inserts = finding.totals.sum_in(space.inode, "insert");
    finding.equal("inserts", inserts, sent.passed + later.passed)?;
    finding.equal("inserts there", finding.totals.sum_in(there.inode, "insert"), sent_there.passed)?;
    finding.equal("inserts anywhere", finding.totals.sum("insert"), inserts + sent_there.passed)?;
    for field in ["insert_netlink", "insert_failed", "drop", "early_drop", "clash_resolve"] {
        finding.equal(field, finding.totals.sum(field), 0)?;
    }
    equal("lost", finding.totals.lost()?, finding.totals.missed()?)
}

/// Each shows counts of another kind.
const COUNTING: [&str; 7] = [
    "traffic::udp",
    "traffic::tcp_close",
    "full::unassured",
    "delete::flush",
    "netlink::insert",
    "clash::udp_merged",
    "invalid::datagrams",
];

/// The same messages while other scenarios compare every kind of count with its witness.
pub(super) fn while_counting() -> anyhow::Result<()> {
    modules::load()?;
    let mut attacker = Attacker::start()?;
    state::fresh(&Space::attach("attacker", attacker.pid())?)?;
    attacker.attack(MESSAGES)?;
    let all = super::super::all();
    for name in COUNTING {
        let scenario = all.iter().find(|scenario| scenario.name == name).context(name)?;
        match (scenario.run)() {
            Err(error) if !error.is::<Skip>() => return Err(error.context(name)),
            _ => {}
        }
    }
    let made = attacker.stop()?;
    eprintln!("attacker: {made:?}");
    anyhow::ensure!(made.messages >= MESSAGES, "only {made:?}");
    Ok(())
}

/// An exit code, and findings with their severities.
type Answer = (Option<i32>, Vec<(String, String)>);

/// What doctor says: its exit code, and the findings with their severities.
fn doctor() -> anyhow::Result<Answer> {
    let output = Command::new(program()).args(["doctor", "--json", "--sample", "1"]).output()?;
    let object: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let findings = object["findings"].as_array().into_iter().flatten();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let findings = findings.map(|finding| (text(&finding["id"]), text(&finding["severity"]))).collect();
    Ok((output.status.code(), findings))
}
