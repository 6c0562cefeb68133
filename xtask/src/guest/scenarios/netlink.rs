//! Entries made through ctnetlink.

use super::super::space::checked;
use super::super::traffic::{Family, Flows, udp};
use super::super::trial::Trial;
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario("netlink::insert", insert)];

/// `conntrack -I` beside ordinary traffic: each is counted as what it is. A second one for a tuple that is there is
/// refused and counts nothing.
fn insert() -> anyhow::Result<()> {
    const ENTRIES: u64 = 40;
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let sent = udp::send(Flows::new(Family::V4, 100))?;
    let make = |number: u64| {
        let port = (1000 + number).to_string();
        let mut command = space.command("conntrack");
        command.args(["-I", "-p", "udp", "-s", "192.0.2.1", "-d", "192.0.2.2", "-t", "900"]);
        command.args(["--sport", &port, "--dport", "53"]);
        command
    };
    for number in 0..ENTRIES {
        checked(&mut make(number))?;
    }
    anyhow::ensure!(checked(&mut make(0)).is_err(), "the same entry was made twice");
    let finding = trial.finish()?;
    finding.equal("insert_netlink", finding.get(Family::V4, 17, "insert_netlink"), ENTRIES)?;
    finding.equal("insert", finding.get(Family::V4, 17, "insert"), sent.passed)?;
    finding.equal("entries", finding.counts[0], ENTRIES + sent.passed)
}
