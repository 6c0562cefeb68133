//! Plain traffic, family by protocol: as many inserts as flows, and nothing else.

use super::super::space::Space;
use super::super::traffic::tcp::{self, End};
use super::super::traffic::{Family, Flows, Sent, raw, spread, udp};
use super::super::trial::Trial;
use super::super::witness;
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("traffic::udp_one", || one_by_one(17, udp::send, 1)),
    scenario("traffic::udp", || one_by_one(17, udp::send, 2000)),
    scenario("traffic::udp_source_ports", || one_by_one(17, udp::send_from_ports, 2000)),
    scenario("traffic::udp_answered", || one_by_one(17, udp::ask_and_answer, 500)),
    scenario("traffic::tcp_close", || one_by_one(6, |flows| tcp::connections(flows, End::Close), 300)),
    scenario("traffic::tcp_reset", || one_by_one(6, |flows| tcp::connections(flows, End::Reset), 300)),
    scenario("traffic::icmp_echo", icmp_echo),
    scenario("traffic::raw_protocol", || {
        one_by_one(raw::EXPERIMENT, |f| raw::protocol(f, raw::EXPERIMENT), 1000)
    }),
    scenario("traffic::gre", || one_by_one(raw::GRE, |flows| raw::protocol(flows, raw::GRE), 1000)),
    scenario("traffic::sctp", || one_by_one(raw::SCTP, |flows| raw::protocol(flows, raw::SCTP), 1000)),
    scenario("traffic::all_types", || mixed(10_000)),
    scenario("traffic::mixed_100000", || mixed(100_000)),
];

/// Both families after each other, counted apart.
fn one_by_one(
    proto: u8,
    generator: impl Fn(Flows) -> anyhow::Result<Sent>,
    count: u32,
) -> anyhow::Result<()> {
    both_families(|_| proto, generator, count)
}

fn icmp_echo() -> anyhow::Result<()> {
    let proto = |family| if family == Family::V4 { 1 } else { 58 };
    both_families(proto, raw::echo, 1000)
}

fn both_families(
    proto: impl Fn(Family) -> u8,
    generator: impl Fn(Flows) -> anyhow::Result<Sent>,
    count: u32,
) -> anyhow::Result<()> {
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let mut wanted = Vec::new();
    for family in Family::BOTH {
        // Different numbers, so that a family counted as the other shows.
        let flows = Flows::new(family, if family == Family::V4 { count } else { count.div_ceil(2) });
        let sent = generator(flows)?;
        anyhow::ensure!(sent.refused == 0, "{} packets were refused in an empty table", sent.refused);
        wanted.push((family, proto(family), sent.passed));
    }
    let opened = witness::new_packets(&space)?;
    let finding = trial.finish()?;
    let mut all = 0;
    for (family, proto, flows) in wanted {
        finding.equal(
            &format!("inserts of {family:?} {proto}"),
            finding.get(family, proto, "insert"),
            flows,
        )?;
        let listed = witness::listed(&space, family.name())?.get(&proto).copied();
        finding.equal(&format!("inserts of {family:?} {proto} and conntrack -L"), Some(flows), listed)?;
        all += flows;
    }
    finding.equal("inserts of any type", finding.totals.sum("insert"), all)?;
    finding.equal("inserts and nft's count of new packets", finding.totals.sum("insert"), opened)?;
    finding.equal("deletes", finding.totals.sum("delete"), 0)
}

/// So many flows of eight types from two CPUs at once.
fn mixed(flows: u32) -> anyhow::Result<()> {
    const CPUS: u32 = 2;
    let space = init();
    let trial = Trial::start(&[&space], &[], || Ok(()))?;
    let wanted = mixed_traffic(flows, CPUS)?;
    let finding = trial.finish()?;
    let mut all = 0;
    for &(family, proto, flows) in &wanted {
        finding.equal(
            &format!("inserts of {family:?} {proto}"),
            finding.get(family, proto, "insert"),
            flows,
        )?;
        all += flows;
    }
    anyhow::ensure!(all == u64::from(flows), "the generators made {all} flows");
    finding.equal("inserts of any type", finding.totals.sum("insert"), all)?;
    for family in Family::BOTH {
        let listed = witness::listed(&space, family.name())?;
        for (_, proto, flows) in wanted.iter().filter(|wanted| wanted.0 == family) {
            finding.equal(
                &format!("{family:?} {proto} in conntrack -L"),
                Some(*flows),
                listed.get(proto).copied(),
            )?;
        }
    }
    Ok(())
}

fn mixed_traffic(flows: u32, cpus: u32) -> anyhow::Result<Vec<(Family, u8, u64)>> {
    type Generator = fn(Flows) -> anyhow::Result<Sent>;
    // Of 1,000 flows.
    let parts: [(Family, u8, u32, Generator); 8] = [
        (Family::V4, 17, 400, udp::send),
        (Family::V6, 17, 300, udp::send),
        (Family::V4, raw::EXPERIMENT, 100, |flows| raw::protocol(flows, raw::EXPERIMENT)),
        (Family::V6, raw::EXPERIMENT, 80, |flows| raw::protocol(flows, raw::EXPERIMENT)),
        (Family::V4, 1, 60, raw::echo),
        (Family::V6, 58, 40, raw::echo),
        (Family::V4, 6, 12, |flows| tcp::connections(flows, End::Close)),
        (Family::V6, 6, 8, |flows| tcp::connections(flows, End::Reset)),
    ];
    std::thread::scope(|scope| {
        // All types at once, each of them from every CPU.
        let running: Vec<_> = parts
            .into_iter()
            .map(|(family, proto, count, generator)| {
                let work =
                    scope.spawn(move || spread(Flows::new(family, flows / 1000 * count), cpus, generator));
                (family, proto, work)
            })
            .collect();
        let mut made = Vec::new();
        for (family, proto, work) in running {
            let sent = work.join().map_err(|_| anyhow::anyhow!("a generator panicked"))??;
            anyhow::ensure!(sent.refused == 0, "{} packets were refused in an empty table", sent.refused);
            made.push((family, proto, sent.passed));
        }
        Ok(made)
    })
}

/// The traffic of a whole namespace at once, for scenarios with several.
pub(super) fn in_space(space: &Space, flows: u32) -> anyhow::Result<u64> {
    space.enter(|| {
        let mut sent = udp::send(Flows::new(Family::V4, flows))?;
        sent += udp::send(Flows::new(Family::V6, flows))?;
        anyhow::ensure!(sent.refused == 0, "{} packets were refused in an empty table", sent.refused);
        Ok(sent.passed)
    })
}
