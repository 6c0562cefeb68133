//! The live sample: what happens while doctor looks, through the best source.

use std::collections::BTreeMap;
use std::time::Duration;

use ctwatch_ebpf::{Event, FlowType};
use tokio::time::{Instant, sleep, sleep_until};

use super::Wishes;
use crate::doctor::early::RefusedPort;
use crate::doctor::facts::{Live, LiveFlow};
use crate::model::ranking::{self, Top};
use crate::model::{By, Filter, Sample, family_name};
use crate::source::{self, Needs, Status};

/// Ports of refused flows that are kept of one namespace: it must not take the room of all others.
const MOST_REFUSED: usize = 64;

/// Counts for as long as wished. A source that cannot run leaves its reason, and the time passes all the same: the
/// kernel's own counters are read around it.
pub async fn sample(wishes: &Wishes) -> Live {
    let mut live = Live::default();
    let until = Instant::now() + wishes.sample;
    if let Err(error) = watch(wishes, &mut live).await {
        live = Live { why: Some(format!("{error:#}")), ..Live::default() };
        sleep_until(until).await;
    }
    if live.seconds == 0.0 {
        live.seconds = wishes.sample.as_secs_f64();
    }
    live
}

async fn watch(wishes: &Wishes, live: &mut Live) -> anyhow::Result<()> {
    let filter = Filter { netns: wishes.netns, ..Filter::default() };
    let mut source = source::open(&Needs::counts(wishes.source, filter))?;
    if let Status::Waiting(why) = source.look()? {
        anyhow::bail!(why);
    }
    let first = source.sample()?;
    // From here on: attaching took its own time.
    sleep(wishes.sample).await;
    let last = source.sample()?;
    let info = source.info();
    live.source = Some(info.kind);
    live.why.clone_from(&info.why);
    live.unknown.clone_from(&info.unknown);
    live.seconds = Duration::from_nanos(last.mono_ns.saturating_sub(first.mono_ns)).as_secs_f64();
    live.lost = last.lost.saturating_sub(first.lost);
    live.run_ns = last.cost.map(|cost| cost.run_ns - first.cost.unwrap_or_default().run_ns);
    live.runs = last.cost.map(|cost| cost.runs - first.cost.unwrap_or_default().runs);
    // Whoever has no ranking says so by having none, not by an empty one.
    live.ranks_ports = first.top.is_some() && last.top.is_some();
    (live.refused, live.refused_left_out) =
        refused(first.top.as_deref().unwrap_or_default(), last.top.as_deref().unwrap_or_default());
    live.flows = last.rows.keys().filter_map(|flow| flow_between(*flow, &first, &last)).collect();
    Ok(())
}

/// Where the flows wanted to go that were refused in between, both families together, most first; and how many went to
/// ports for which there was no room, by namespace.
fn refused(before: &[Top], now: &[Top]) -> (Vec<RefusedPort>, BTreeMap<u32, u64>) {
    let mut sums: BTreeMap<(u32, u8, u16), u64> = BTreeMap::new();
    for top in ranking::since(before, now) {
        if let (By::Dport, 1.., Ok(port)) = (top.by, top.drop, top.key.parse()) {
            let sum = sums.entry((top.netns, top.proto, port)).or_default();
            *sum = sum.saturating_add(top.drop);
        }
    }
    let port = |((netns, proto, port), count)| RefusedPort { netns, proto, port, count };
    let mut refused: Vec<RefusedPort> = sums.into_iter().map(port).collect();
    refused.sort_by_key(|port| std::cmp::Reverse(port.count));
    let (mut kept, mut left_out) = (BTreeMap::<u32, usize>::new(), BTreeMap::<u32, u64>::new());
    refused.retain(|port| {
        let kept = kept.entry(port.netns).or_default();
        *kept += 1;
        if *kept > MOST_REFUSED {
            let left_out = left_out.entry(port.netns).or_default();
            *left_out = left_out.saturating_add(port.count);
        }
        *kept <= MOST_REFUSED
    });
    (refused, left_out)
}

fn flow_between(flow: FlowType, first: &Sample, last: &Sample) -> Option<LiveFlow> {
    let before = first.rows.get(&flow).copied().unwrap_or_default();
    let after = last.rows.get(&flow)?;
    let counts: BTreeMap<Event, u64> = Event::ALL
        .into_iter()
        .map(|event| (event, after.get(event).saturating_sub(before.get(event))))
        .filter(|(_, count)| *count > 0)
        .collect();
    let family = family_name(flow.family).to_owned();
    (!counts.is_empty()).then_some(LiveFlow { netns: flow.netns, family, proto: flow.proto, counts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_without_room_are_counted_and_no_namespace_takes_anothers() {
        let top = |netns, port: u16| Top {
            by: By::Dport,
            netns,
            family: 2,
            proto: 17,
            key: port.to_string(),
            insert: 0,
            early_drop: 0,
            drop: u64::from(port),
            invalid: 0,
        };
        let crowd = (1000..1070).map(|port| top(7, port));
        let now: Vec<Top> = crowd.chain([top(8, 3)]).collect();
        let (refused, left_out) = refused(&[], &now);
        assert_eq!(refused.len(), MOST_REFUSED + 1);
        assert_eq!((refused[0].port, refused[MOST_REFUSED].netns), (1069, 8));
        assert_eq!(left_out, [(7, (1000..1006).sum())].into());
    }
}
