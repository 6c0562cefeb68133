//! What users are told of this source: why no better one runs, what it costs, what it cannot tell.

use std::collections::{BTreeMap, BTreeSet};

use ctwatch_ebpf::Event;

use super::super::search::MOST;
use super::listener::Met;
use super::setting::Announced;
use super::watched::Watched;
use crate::model::Filter;

const LISTENING_COSTS: &str = "listening costs each new flow far more than probes";

/// What is listened to.
pub(super) struct Listening<'a> {
    /// Each namespace.
    pub(super) watched: Vec<&'a Watched>,
    /// What following namespaces has met.
    pub(super) met: &'a Met,
}

/// What `why` and `unknown` say. `better` is why no better source runs.
pub(super) fn notes(
    better: &str,
    filter: &Filter,
    listening: &Listening<'_>,
) -> (Option<String>, BTreeMap<Event, String>) {
    let Listening { watched, met: Met { beyond, left_out, interrupted, was_silent } } = listening;
    let mut why = vec![better.to_owned(), LISTENING_COSTS.to_owned()];
    let mut unknown = BTreeMap::new();
    let silent: Vec<&Watched> =
        watched.iter().filter(|watched| watched.announced != Announced::On).copied().collect();
    if let Some(first) = silent.first() {
        let note = silence(first.announced);
        why.push(note.to_owned());
        if silent.len() == watched.len() {
            // Evictions are in the statistics as well.
            let deletes = Event::DELETES.into_iter().filter(|event| *event != Event::DeleteEarlyDrop);
            for event in [Event::Insert, Event::InsertNetlink].into_iter().chain(deletes) {
                unknown.insert(event, note.to_owned());
            }
        } else {
            let which = listed(silent.iter().map(|watched| watched.netns));
            why.push(format!("inserts and deletes are unknown in {which}"));
        }
    }
    if *was_silent {
        why.push("nf_conntrack_events was 0 for a while: what came or went then is missing".to_owned());
    }
    if *beyond > 0 {
        why.push(format!("{beyond} network namespaces more are left out (at most {MOST} are listened to)"));
    }
    if !left_out.is_empty() {
        let reasons: BTreeSet<&str> = left_out.values().map(String::as_str).collect();
        let reasons: Vec<&str> = reasons.into_iter().take(3).collect();
        why.push(format!("left out: {} ({})", listed(left_out.keys().copied()), reasons.join("; ")));
    }
    // One that is still left out says so already.
    let back: Vec<u32> = interrupted.iter().filter(|netns| !left_out.contains_key(netns)).copied().collect();
    if !back.is_empty() {
        why.push(format!(
            "listening was interrupted in {}: what came or went then is missing",
            listed(back.into_iter())
        ));
    }
    tell_unknown(&mut unknown, filter, watched);
    (Some(why.join("; ")), unknown)
}

const fn silence(announced: Announced) -> &'static str {
    match announced {
        Announced::Never => "this kernel was built without CONFIG_NF_CONNTRACK_EVENTS",
        _ => {
            "net.netfilter.nf_conntrack_events is 0; to hear events: sudo sysctl -w net.netfilter.nf_conntrack_events=1"
        }
    }
}

/// At most five inodes, and how many more there are.
fn listed(all: impl Iterator<Item = u32>) -> String {
    let all: Vec<u32> = all.collect();
    let shown: Vec<String> = all.iter().take(5).map(u32::to_string).collect();
    let more = all.len() - shown.len();
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    let noun = if all.len() == 1 { "network namespace" } else { "network namespaces" };
    format!("{noun} {}{rest}", shown.join(", "))
}

/// What neither events nor statistics say.
fn tell_unknown(unknown: &mut BTreeMap<Event, String>, filter: &Filter, watched: &[&Watched]) {
    let mut note = |events: &[Event], note: &str| {
        for event in events {
            unknown.entry(*event).or_insert_with(|| note.to_owned());
        }
    };
    note(&[Event::ClashReplyOnly], "ctnetlink announces no entry that enters by a clash");
    note(
        &[
            Event::DeleteClosed,
            Event::DeletePressure,
            Event::DeleteCleanup,
            Event::DeleteTc,
            Event::DeleteOpenvswitch,
            Event::DeleteIpvs,
        ],
        "the end of an entry is announced without its cause: counted as delete.other",
    );
    if !watched.is_empty() && !watched.iter().any(|watched| watched.account.tells_time_left()) {
        note(
            &[Event::DeleteTimeout],
            "this kernel does not announce whether time was left (before 5.12): counted as delete.other",
        );
    }
    if filter.selects_flows() {
        note(
            &[
                Event::ClashResolve,
                Event::FailedClash,
                Event::FailedChaintoolong,
                Event::FailedDying,
                Event::FailedOther,
                Event::DropTableFull,
                Event::DropNoMemory,
                Event::InvalidOther,
                Event::DeleteEarlyDrop,
            ],
            "the kernel's statistics hold all flows together: shown without --proto, --family, --port and --net",
        );
    }
    note(&[Event::FailedClash, Event::FailedDying], "the kernel counts them as one: see insert_failed.other");
    note(&[Event::DropNoMemory], "the kernel's `drop` holds it too: see drop.table_full");
    note(
        &[
            Event::InvalidOutOfWindow,
            Event::InvalidBadState,
            Event::InvalidBadChecksum,
            Event::InvalidMalformed,
            Event::InvalidUnrelated,
        ],
        "the kernel counts invalid packets without their reason: see invalid.other",
    );
    if watched.iter().any(|watched| !watched.has_clash_resolve()) {
        note(&[Event::ClashResolve], "this kernel does not count it (before 5.9)");
    }
}
