//! The live sample: what happens while doctor looks, through the best source.

use std::time::Duration;

use ctwatch_ebpf::{Event, FlowType};
use tokio::time::{Instant, sleep, sleep_until};

use super::Wishes;
use crate::doctor::facts::{Live, LiveFlow};
use crate::model::{Filter, Sample, family_name};
use crate::source::{self, Needs, Status};

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
    live.flows = last.rows.keys().filter_map(|flow| flow_between(*flow, &first, &last)).collect();
    Ok(())
}

fn flow_between(flow: FlowType, first: &Sample, last: &Sample) -> Option<LiveFlow> {
    let before = first.rows.get(&flow).copied().unwrap_or_default();
    let after = last.rows.get(&flow)?;
    let counts: std::collections::BTreeMap<Event, u64> = Event::ALL
        .into_iter()
        .map(|event| (event, after.get(event).saturating_sub(before.get(event))))
        .filter(|(_, count)| *count > 0)
        .collect();
    let family = family_name(flow.family).to_owned();
    (!counts.is_empty()).then_some(LiveFlow { netns: flow.netns, family, proto: flow.proto, counts })
}
