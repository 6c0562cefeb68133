//! The generators and the witnesses agree with each other, without ctwatch: what the other scenarios rest on.

use super::super::traffic::tcp::{self, End, Held};
use super::super::traffic::{Family, Flows, Sent, raw, spread, udp};
use super::super::trial::equal;
use super::super::witness::{self, Stats};
use super::super::{modules, state};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] =
    &[scenario("generators::agree_with_conntrack", agree), scenario("generators::agree_when_full", full)];

fn agree() -> anyhow::Result<()> {
    type Generator = fn(Flows) -> anyhow::Result<Sent>;
    let generators: [(&str, u32, Generator); 9] = [
        ("udp", 2000, |flows| spread(flows, 2, udp::send)),
        ("udp from ports", 300, udp::send_from_ports),
        ("udp with answers", 200, udp::ask_and_answer),
        ("tcp closed", 100, |flows| tcp::connections(flows, End::Close)),
        ("tcp reset", 100, |flows| tcp::connections(flows, End::Reset)),
        ("icmp echo", 300, raw::echo),
        ("protocol 253", 300, |flows| raw::protocol(flows, raw::EXPERIMENT)),
        ("gre", 300, |flows| raw::protocol(flows, raw::GRE)),
        ("sctp", 300, |flows| raw::protocol(flows, raw::SCTP)),
    ];
    let space = init();
    modules::load()?;
    for (name, count, generator) in generators {
        for family in Family::BOTH {
            state::fresh(&space)?;
            let sent = generator(Flows::new(family, count))?;
            let what = |witness: &str| format!("{name}, {family:?}: sent (left) and {witness}");
            equal(&what("asked"), sent, Sent { passed: u64::from(count), refused: 0 })?;
            equal(&what("conntrack -C"), sent.passed, witness::count(&space)?)?;
            equal(
                &what("conntrack -L"),
                sent.passed,
                witness::listed(&space, family.name())?.values().sum(),
            )?;
            equal(&what("nft's counter"), sent.passed, witness::new_packets(&space)?)?;
        }
    }
    Ok(())
}

/// Refusals at the sender are the kernel's drops, for both outcomes of a full table.
fn full() -> anyhow::Result<()> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    state::set("nf_conntrack_max", 100)?;
    let mut held = Held::default();
    let opened = tcp::hold(Flows::new(Family::V4, 50), &mut held)?;
    equal("connections held and conntrack -C", opened.passed, witness::count(&space)?)?;
    let before = Stats::read(&space)?;
    let sent = spread(Flows::new(Family::V4, 3000), 2, udp::send)?;
    let stats = Stats::read(&space)?.since(&before);
    equal("refusals (left) and the kernel's drop", Some(sent.refused), stats.get("drop"))?;
    let left = witness::count(&space)?;
    let evicted = stats.get("early_drop").unwrap_or(0);
    // The collector may have taken some too, which no counter shows.
    anyhow::ensure!(
        opened.passed + sent.passed >= evicted + left,
        "{opened:?} {sent:?}: {evicted} evicted, {left} left"
    );
    anyhow::ensure!(sent.refused > 0 && evicted > 0, "{sent:?}, {evicted} evicted: the table was not full");
    Ok(())
}
