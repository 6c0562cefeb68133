//! `--proto`, `--family`, `--netns`, `--source`: what was asked for is exact, everything else is absent.

use super::super::space::Space;
use super::super::traffic::{Family, Flows, raw, udp};
use super::super::trial::{Finding, Trial, equal};
use super::{Scenario, init, scenario, traffic};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("filter::proto", proto),
    scenario("filter::proto_number", proto_number),
    scenario("filter::family", family),
    scenario("filter::netns", netns),
    scenario("source::kprobe", kprobe),
];

const UDP4: u32 = 300;
const UDP6: u32 = 200;
const ICMP: u32 = 100;
const OTHER: u32 = 50;

fn mixture() -> anyhow::Result<()> {
    udp::send(Flows::new(Family::V4, UDP4))?;
    udp::send(Flows::new(Family::V6, UDP6))?;
    raw::echo(Flows::new(Family::V4, ICMP))?;
    raw::protocol(Flows::new(Family::V4, OTHER), raw::EXPERIMENT)?;
    Ok(())
}

fn watched(args: &[&str]) -> anyhow::Result<Finding> {
    let space = init();
    let trial = Trial::start(&[&space], args, || Ok(()))?;
    mixture()?;
    let finding = trial.finish_filtered()?;
    finding.equal("entries", finding.counts[0], u64::from(UDP4 + UDP6 + ICMP + OTHER))?;
    Ok(finding)
}

fn rows(finding: &Finding, wanted: &[(Family, u8, u32)]) -> anyhow::Result<()> {
    let mut all = 0;
    for &(family, proto, flows) in wanted {
        finding.equal(
            &format!("{family:?} {proto}"),
            finding.get(family, proto, "insert"),
            u64::from(flows),
        )?;
        all += u64::from(flows);
    }
    finding.equal("inserts of any type", finding.totals.sum("insert"), all)?;
    equal("rows", finding.totals.rows.len(), wanted.len())
}

fn proto() -> anyhow::Result<()> {
    rows(
        &watched(&["--proto", "udp,icmp"])?,
        &[(Family::V4, 17, UDP4), (Family::V6, 17, UDP6), (Family::V4, 1, ICMP)],
    )
}

fn proto_number() -> anyhow::Result<()> {
    rows(&watched(&["--proto", "253"])?, &[(Family::V4, raw::EXPERIMENT, OTHER)])
}

fn family() -> anyhow::Result<()> {
    rows(&watched(&["--family", "ipv6"])?, &[(Family::V6, 17, UDP6)])?;
    let both = watched(&["--family", "ipv4", "--proto", "udp"])?;
    rows(&both, &[(Family::V4, 17, UDP4)])
}

/// By name, by inode and `self`, with traffic in all namespaces.
fn netns() -> anyhow::Result<()> {
    let (first, one, two) = (init(), Space::create("one")?, Space::create("two")?);
    let inode = two.inode.to_string();
    for (asked, space) in [("one", &one), (inode.as_str(), &two), ("self", &first)] {
        let trial = Trial::start(&[&first, &one, &two], &["--netns", asked], || Ok(()))?;
        let mut made = 0;
        for (of, flows) in [(&first, 300), (&one, 200), (&two, 100)] {
            let sent = traffic::in_space(of, flows)?;
            made = if of.inode == space.inode { sent } else { made };
        }
        let finding = trial.finish_filtered()?;
        finding.equal(&format!("--netns {asked}"), finding.totals.sum_in(space.inode, "insert"), made)?;
        finding.equal(&format!("--netns {asked}, anywhere"), finding.totals.sum("insert"), made)?;
    }
    Ok(())
}

/// A source that is named runs, and says so.
fn kprobe() -> anyhow::Result<()> {
    let finding = watched(&["--source", "kprobe"])?;
    let kind = finding.totals.objects.last().map(|object| object["source"]["kind"].clone());
    equal("source", kind, Some("kprobe".into()))?;
    let wanted = [
        (Family::V4, 17, UDP4),
        (Family::V6, 17, UDP6),
        (Family::V4, 1, ICMP),
        (Family::V4, raw::EXPERIMENT, OTHER),
    ];
    rows(&finding, &wanted)
}
