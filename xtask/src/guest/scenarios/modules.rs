//! nf_conntrack unloaded and loaded again under a running ctwatch.

use super::super::ctwatch::Watch;
use super::super::traffic::{Family, Flows, udp};
use super::super::trial::equal;
use super::super::{modules, state, witness};
use super::{Scenario, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("modules::unload_and_load", unload_and_load),
    scenario("modules::free_at_its_end", free_at_its_end),
];

/// A trampoline keeps the module in use while ctwatch runs, a kprobe does not: neither does after its end.
fn free_at_its_end() -> anyhow::Result<()> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let watch = Watch::start(&[])?;
    let sent = udp::send(Flows::new(Family::V4, 100))?.passed;
    let totals = watch.stop()?;
    totals.check()?;
    equal("inserts", totals.sum("insert"), sent)?;
    modules::unload()?;
    modules::load()
}

/// It follows, by kprobes: what it counted stays, the entries that go with the module are deletes, and it counts on
/// afterwards.
fn unload_and_load() -> anyhow::Result<()> {
    let space = init();
    modules::load()?;
    state::fresh(&space)?;
    let mut watch = Watch::start(&["--source", "kprobe"])?;
    let first = udp::send(Flows::new(Family::V4, 800))?.passed;
    equal("entries before", first, witness::count(&space)?)?;
    watch.wait_sum("insert", first)?;
    modules::unload()?;
    // The report of what was counted until then, then silence.
    watch.wait_sum("delete", first)?;
    // It looks once a second: loaded again before it saw the module go, what happens until its next look is not seen.
    watch.wait_said()?;
    modules::load()?;
    watch.wait_object("the first object after conntrack came back", |object| {
        object["table"].as_array().is_some_and(|tables| !tables.is_empty())
    })?;
    state::fresh(&space)?;
    let second = udp::send(Flows::new(Family::V6, 600))?.passed;
    let totals = watch.stop()?;
    totals.check()?;
    let compare = |what: &str, ctwatch: u64, witness: u64| {
        let sides = |error| anyhow::anyhow!("{error:#}\nctwatch: {totals}\nit said: {}", totals.stderr);
        equal(what, ctwatch, witness).map_err(sides)
    };
    compare("inserts", totals.sum("insert"), first + second)?;
    compare("deletes", totals.sum("delete"), first)?;
    compare("delete.cleanup", totals.sum("delete.cleanup"), first)
}
