//! A larger table.

use ctwatch_ebpf::Event;

use super::{Setting, settings_at_boot};
use crate::doctor::checks::configured;
use crate::doctor::command::{Command, Place};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::Remedy;
use crate::doctor::text::{bytes, thousands};
use crate::doctor::timeouts;

/// An entry without extensions where the slab could not be read (x86-64, 5.10 to 7.3: 240 to 256 with alignment).
const ENTRY: u64 = 256;
/// Extensions of an entry, allocated with the first of them (NAT, accounting, timestamps, labels).
const EXTENSIONS: u64 = 128;
/// The head of a chain.
const BUCKET: u64 = 8;
/// No advice may ask for more than this share of memory.
const MEMORY_SHARE: u64 = 8;
/// TCP's entries go when the connection closes, so that their timeouts say nothing of how many there will be.
const TCP: u8 = 6;

/// Bytes that one entry takes.
pub fn entry_bytes(facts: &Facts) -> u64 {
    facts.slab.map_or(ENTRY, |slab| slab.size).saturating_add(EXTENSIONS)
}

/// Bytes of a full table.
pub fn table_bytes(facts: &Facts, entries: u64, buckets: u64) -> u64 {
    entries.saturating_mul(entry_bytes(facts)).saturating_add(buckets.saturating_mul(BUCKET))
}

/// How many entries this traffic would need were none refused or evicted; `None` where nothing tells.
pub fn demand(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    let wanted = facts.live.sum(namespace.netns, &[Event::Insert, Event::DropTableFull])?;
    let largest = namespace.table.groups.first()?;
    if largest.proto == TCP || largest.count.saturating_mul(2) < namespace.table.total {
        return None;
    }
    let life = namespace.sysctl(timeouts::of(largest.proto, &largest.state)?.sysctl)?;
    // Little's law: entries = arrivals a second times the seconds that each stays.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates; neither factor is negative"
    )]
    Some((facts.live.per_second(wanted) * life as f64).ceil() as u64)
}

/// What a table that overflowed would have held: the limit and all that was lost since boot, were that one burst; at least
/// twice the limit, and at most four times, since the losses of months are no burst. 0 where nothing was lost.
fn overflow(namespace: &Namespace, max: u64) -> u64 {
    let lost = |counter| namespace.since_boot(counter).unwrap_or(0);
    match lost("drop").saturating_add(lost("early_drop")) {
        0 => 0,
        lost => max.saturating_add(lost).clamp(max.saturating_mul(2), max.saturating_mul(4)),
    }
}

/// A limit with head room over what was seen, as a power of two; `None` where memory does not allow more.
pub fn recommended(facts: &Facts, namespace: &Namespace) -> Option<u64> {
    let (peak, max) = (namespace.peak()?, namespace.max()?);
    let needed = peak
        .saturating_mul(2)
        .max(demand(facts, namespace).unwrap_or(0).saturating_mul(3) / 2)
        .max(overflow(namespace, max));
    let cap = facts.memory / MEMORY_SHARE / entry_bytes(facts).saturating_add(BUCKET);
    let cap = if cap == 0 { return None } else { 1 << cap.ilog2() };
    let limit = needed.max(max.saturating_add(1)).checked_next_power_of_two()?.min(cap);
    (limit > max).then_some(limit)
}

/// The first namespace, the only one that may set limit and buckets; `Err` where it is not reached from here.
fn first(facts: &Facts) -> Result<Option<Place>, ()> {
    let first = facts.namespaces.iter().find(|namespace| namespace.limit_writable).ok_or(())?;
    first.place().map_err(drop)
}

/// Raising the limit, and the buckets with it.
pub fn raise(facts: &Facts, namespace: &Namespace) -> Option<Remedy> {
    let limit = recommended(facts, namespace)?;
    let max = namespace.max()?;
    let buckets = namespace.sysctl("buckets")?;
    let mut settings = Vec::new();
    let mut old = Vec::new();
    if buckets < limit {
        settings.push(Setting { sysctl: "buckets", value: limit });
        old.push(Setting { sysctl: "buckets", value: buckets });
    }
    settings.push(Setting { sysctl: "max", value: limit });
    old.push(Setting { sysctl: "max", value: max });
    let more = table_bytes(facts, limit, limit.max(buckets)).saturating_sub(table_bytes(facts, max, buckets));
    let mut remedy = set(
        facts,
        ("raise-limit", "limit"),
        format!(
            "Raise the limit from {} to {}{}",
            thousands(max),
            thousands(limit),
            if buckets < limit {
                format!(", and the buckets to {}", thousands(limit))
            } else {
                "; there are buckets enough".to_owned()
            }
        ),
        &settings,
        &old,
        format!("up to {} more memory, taken only as the table really fills; nothing else", bytes(more)),
    );
    remedy.left_out.extend(configured::left_to_kube_proxy(facts, "max", max));
    Some(remedy)
}

/// More buckets for the limit that is there.
pub fn more_buckets(facts: &Facts, namespace: &Namespace) -> Option<Remedy> {
    let (max, buckets) = (namespace.max()?, namespace.sysctl("buckets")?);
    let wanted = max.checked_next_power_of_two()?;
    (buckets < wanted).then(|| {
        set(
            facts,
            ("more-buckets", "buckets"),
            format!("Give the table a bucket for each entry it may hold: {}", thousands(wanted)),
            &[Setting { sysctl: "buckets", value: wanted }],
            &[Setting { sysctl: "buckets", value: buckets }],
            format!(
                "{} of memory, and one pass over the table while it is rebuilt",
                bytes((wanted - buckets).saturating_mul(BUCKET))
            ),
        )
    })
}

/// The value that a file configures.
pub fn apply(facts: &Facts, first: &Namespace, sysctl: &'static str, value: u64) -> Option<Remedy> {
    let now = first.sysctl(sysctl)?;
    let mut settings = vec![Setting { sysctl, value }];
    let mut old = vec![Setting { sysctl, value: now }];
    let mut price = "what the file was written for; look whether that still holds".to_owned();
    if let ("max" | "buckets", Some(mut buckets)) = (sysctl, first.sysctl("buckets")) {
        let before = table_bytes(facts, first.max().unwrap_or(0), buckets);
        if let ("max", Some(wanted)) = (sysctl, value.checked_next_power_of_two())
            && buckets < wanted
        {
            settings.insert(0, Setting { sysctl: "buckets", value: wanted });
            old.insert(0, Setting { sysctl: "buckets", value: buckets });
            buckets = wanted;
        }
        let entries = if sysctl == "max" { value } else { first.max().unwrap_or(0) };
        let after = table_bytes(facts, entries, if sysctl == "max" { buckets } else { value });
        let when = if sysctl == "max" { "taken as the table fills" } else { "taken at once" };
        price = format!("up to {} more memory, {when}", bytes(after.saturating_sub(before)));
        if after > facts.memory / MEMORY_SHARE {
            price = format!(
                "{price}. A full table would take {} of the {} of this machine: that is too much if it can really fill, and a \
                 smaller value is better then",
                bytes(after),
                bytes(facts.memory)
            );
        }
    }
    let more = match (sysctl, settings.as_slice()) {
        ("max", [buckets, _]) => format!(", and the buckets to {}", thousands(buckets.value)),
        _ => String::new(),
    };
    let name = match sysctl {
        "max" => "limit",
        other => other,
    };
    Some(set(
        facts,
        ("apply-configured", name),
        format!(
            "Set nf_conntrack_{sysctl} to the {} of the file{more}, in a file that is applied after the others",
            thousands(value)
        ),
        &settings,
        &old,
        price,
    ))
}

pub fn set(
    facts: &Facts,
    (id, name): (&'static str, &'static str),
    what: String,
    settings: &[Setting],
    old: &[Setting],
    price: String,
) -> Remedy {
    let first = first(facts);
    let place = first.as_ref().ok().and_then(Option::as_ref);
    let (persist, forget) = settings_at_boot(facts, name, settings);
    let mut undo: Vec<Command> = old.iter().rev().map(|setting| setting.apply(place)).collect();
    undo.extend(forget);
    let what = if first.is_ok() {
        what
    } else {
        format!("On the host, since only the first namespace may: {}", lower_first(&what))
    };
    let commands = settings.iter().map(|setting| setting.apply(place)).collect();
    Remedy { id, what, commands, persist, undo, price, ..Remedy::default() }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
