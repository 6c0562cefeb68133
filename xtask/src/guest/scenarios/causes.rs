//! Deletes, by each cause.

use super::super::ctwatch::PATIENCE;
use super::super::space::checked;
use super::super::state;
use super::super::traffic::tcp::{self, End};
use super::super::traffic::{Family, Flows, raw, udp};
use super::super::trial::{Finding, Trial};
use super::super::witness;
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("delete::timeout", timeout),
    scenario("delete::timeout_by_traffic", timeout_by_traffic),
    scenario("delete::tcp_refused", tcp_refused),
    scenario("delete::tcp_reopened", tcp_reopened),
    scenario("delete::netlink", netlink),
    scenario("delete::flush", flush),
];

fn short_timeouts() -> anyhow::Result<()> {
    for name in ["udp_timeout", "generic_timeout", "icmp_timeout", "tcp_timeout_time_wait"] {
        state::set(&format!("nf_conntrack_{name}"), 1)?;
    }
    Ok(())
}

/// Entries of several types whose time runs out.
pub(super) fn timeout() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], short_timeouts)?;
    let wanted = [
        (Family::V4, 17, udp::send(Flows::new(Family::V4, 500))?),
        (Family::V6, 17, udp::send(Flows::new(Family::V6, 400))?),
        (Family::V4, 1, raw::echo(Flows::new(Family::V4, 300))?),
        (Family::V4, raw::EXPERIMENT, raw::protocol(Flows::new(Family::V4, 200), raw::EXPERIMENT)?),
        (Family::V4, 6, tcp::connections(Flows::new(Family::V4, 100), End::Close)?),
    ];
    witness::wait_count(&space, 0, PATIENCE)?;
    let finding = trial.finish()?;
    for (family, proto, sent) in wanted {
        only(&finding, family, proto, sent.passed, "delete.timeout")?;
    }
    finding.equal("deletes of any type", finding.totals.sum("delete"), 1500)
}

/// Expired entries that the next packets of other flows come across, without a dump to hasten it.
fn timeout_by_traffic() -> anyhow::Result<()> {
    let space = init();
    // Few buckets: every look-up comes across its neighbours.
    let mut trial = Trial::start(&[&space], &[], || {
        short_timeouts()?;
        state::buckets(512)
    })?;
    let mut sent = udp::send(Flows::new(Family::V4, 2000))?;
    // What is sent later expires later: the sum ends above the first flows only through new look-ups.
    let mut next = 2000;
    while trial.watch.sum("delete")? < 1000 {
        anyhow::ensure!(next < 60_000, "{} flows and few timeouts", sent.passed);
        trial.watch.wait_object("the next object", |_| true)?;
        sent += udp::send(Flows::new(Family::V4, 500).from(next))?;
        next += 500;
    }
    witness::wait_count(&space, 0, PATIENCE)?;
    let finding = trial.finish()?;
    only(&finding, Family::V4, 17, sent.passed, "delete.timeout")
}

/// A RST as the answer to the SYN removes the entry at once.
pub(super) fn tcp_refused() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let v4 = tcp::refused(Flows::new(Family::V4, 300))?;
    let v6 = tcp::refused(Flows::new(Family::V6, 200))?;
    let finding = trial.finish()?;
    only(&finding, Family::V4, 6, v4.passed, "delete.closed")?;
    only(&finding, Family::V6, 6, v6.passed, "delete.closed")?;
    finding.equal("deletes of any type", finding.totals.sum("delete"), v4.passed + v6.passed)
}

/// A SYN for the tuple of a connection that was reset replaces the old entry.
fn tcp_reopened() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let sent = tcp::reopened(Flows::new(Family::V4, 200))?;
    let finding = trial.finish()?;
    finding.equal("inserts", finding.get(Family::V4, 6, "insert"), sent.passed)?;
    finding.row(Family::V4, 6, "delete.closed", sent.passed / 2)?;
    finding.equal("deletes of any cause", finding.totals.sum("delete"), sent.passed / 2)
}

/// `conntrack -D`: some are removed one by one, the others stay.
pub(super) fn netlink() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let udp = udp::send(Flows::new(Family::V4, 300))?;
    let v6 = udp::send(Flows::new(Family::V6, 100))?;
    let other = raw::protocol(Flows::new(Family::V4, 50), raw::EXPERIMENT)?;
    checked(space.command("conntrack").args(["-D", "-f", "ipv4", "-p", "udp"]))?;
    let finding = trial.finish()?;
    only(&finding, Family::V4, 17, udp.passed, "delete.netlink")?;
    finding.equal("deletes of any type", finding.totals.sum("delete"), udp.passed)?;
    finding.equal("entries left", v6.passed + other.passed, finding.counts[0])
}

/// `conntrack -F`: all at once.
pub(super) fn flush() -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let udp = udp::send(Flows::new(Family::V4, 3000))?;
    let v6 = udp::send(Flows::new(Family::V6, 2000))?;
    let tcp = tcp::connections(Flows::new(Family::V4, 50), End::Reset)?;
    checked(space.command("conntrack").arg("-F"))?;
    witness::wait_count(&space, 0, PATIENCE)?;
    let finding = trial.finish()?;
    only(&finding, Family::V4, 17, udp.passed, "delete.netlink")?;
    only(&finding, Family::V6, 17, v6.passed, "delete.netlink")?;
    only(&finding, Family::V4, 6, tcp.passed, "delete.netlink")
}

/// As many inserts as deletes, all of one cause.
fn only(finding: &Finding, family: Family, proto: u8, flows: u64, cause: &str) -> anyhow::Result<()> {
    let of = |field: &str| finding.get(family, proto, field);
    finding.equal(&format!("inserts of {family:?} {proto}"), of("insert"), flows)?;
    finding.row(family, proto, cause, flows)?;
    if !finding.totals.silence.tells(family.name(), cause) {
        finding.row(family, proto, "delete.other", flows)?;
    }
    finding.equal(&format!("deletes of {family:?} {proto} by any cause"), of("delete"), flows)
}
