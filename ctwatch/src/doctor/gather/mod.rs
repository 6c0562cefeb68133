//! Reads a machine without changing it, and without loading a module by looking.

pub mod budget;
pub mod child;
pub mod configured;
pub mod dropped;
pub mod kube_proxy;
pub mod latency;
pub mod live;
pub mod log;
pub mod namespace;
pub mod nft;
pub mod output;
pub mod places;
pub mod reach;
pub mod rules;
pub mod system;
pub mod table;
mod translations;
pub mod waiting;
pub mod written;

use std::path::Path;
use std::time::{Duration, Instant};

use self::budget::Budget;
use super::facts::{FORMAT, Facts};
use crate::kernel::facts::{Presence, presence};
use crate::source::SourceChoice;

/// What to look at, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Length of the live sample.
    pub sample: Duration,
    /// The source of the live sample.
    pub source: SourceChoice,
    /// Only this namespace.
    pub netns: Option<u32>,
    /// For how long packets are timed, if at all.
    pub latency: Option<Duration>,
    /// Is told what takes a while.
    pub announce: fn(&str),
}

/// All facts; takes as long as the live sample.
pub async fn read(wishes: Wishes) -> anyhow::Result<Facts> {
    let conntrack = presence();
    let (root, tools, modules) = (Path::new("/"), system::tools(), system::modules());
    let (configured, configured_left_out) = configured::settings(root, tools.systemd);
    let mut facts = Facts {
        format: FORMAT,
        release: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
        uptime_s: system::uptime(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        memory: system::memory(),
        conntrack,
        root: nix::unistd::geteuid().is_root(),
        configured,
        configured_left_out,
        firewalld_unloads: configured::firewalld_unloads(root),
        loaded_early: configured::loaded_early(root, &modules),
        modules,
        programs: system::programs(),
        modprobe: system::modprobe(),
        slab: system::slab(),
        log: log::read(),
        written_ms: written::ages(),
        tools,
        ..Facts::default()
    };
    if conntrack == Presence::Absent {
        facts.latency = latency::read(&wishes, conntrack).await;
        return Ok(facts);
    }
    let kernel = system::Kernel::read();
    let (places, left_out) = places::find(wishes.netns);
    facts.namespaces_left_out = left_out;
    let budget = Budget::start();
    facts.namespaces = places::visit(&places, |place| namespace::read(place, kernel, &budget));
    if let Some(first) = facts.namespaces.iter().find(|namespace| namespace.limit_writable) {
        facts.kube_proxy = kube_proxy::read(Path::new("/proc"), first.netns);
    }
    // Statistics are read as close around the sample as can be: before it, what the listing of rules took has passed.
    let began = Instant::now();
    let before = places::visit(&places, |place| (place.netns, namespace::read_again(kernel)));
    facts.live = live::sample(&wishes).await;
    facts.live.around_s = began.elapsed().as_secs_f64();
    let after = places::visit(&places, |place| (place.netns, namespace::read_again(kernel)));
    for namespace in &mut facts.namespaces {
        if let Some((_, (count, stats))) = before.iter().find(|(netns, _)| *netns == namespace.netns) {
            namespace.count = *count;
            namespace.stats.clone_from(stats);
        }
        if let Some((_, (count, stats))) = after.iter().find(|(netns, _)| *netns == namespace.netns) {
            namespace.count_after = *count;
            namespace.stats_after.clone_from(stats);
        }
    }
    // By itself: programs that count run inside the functions that are timed.
    facts.latency = latency::read(&wishes, conntrack).await;
    Ok(facts)
}
