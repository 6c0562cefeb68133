//! Invalid packets: what the programs counted by the kernel's words, and when the packets about which it says nothing
//! are looked for.

use std::collections::BTreeMap;

use anyhow::Context as _;
use ctwatch_ebpf::invalid::{Key, Words};
use ctwatch_ebpf::{Event, FlowType};

use super::object::Object;
use super::reader::{Hash, Reader};
use crate::model::invalid::{Meaning, meaning, text, unsaid};

/// The maps.
#[derive(Debug)]
pub(super) struct Invalids {
    counts: Hash<Key, u64>,
    words: Hash<u64, Words>,
    /// How many the programs had counted at the last reading.
    seen: u64,
    last: Invalid,
}

/// Counts since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Invalid {
    /// What the user's filter wants.
    pub(super) rows: BTreeMap<(FlowType, Event), u64>,
    /// Everything in each namespace, whatever the filter wants.
    pub(super) all: BTreeMap<u32, u64>,
    /// The part of it about which the kernel said nothing.
    pub(super) unsaid: u64,
}

impl Invalid {
    /// What came since an earlier reading.
    pub(super) fn since(mut self, before: &Self) -> Self {
        for (row, count) in &mut self.rows {
            *count -= before.rows.get(row).copied().unwrap_or(0).min(*count);
        }
        for (netns, count) in &mut self.all {
            *count -= before.all.get(netns).copied().unwrap_or(0).min(*count);
        }
        self.unsaid = self.unsaid.saturating_sub(before.unsaid);
        self
    }
}

impl Invalids {
    pub(super) fn new(object: &mut Object) -> anyhow::Result<Self> {
        Ok(Self {
            counts: Hash::new(object, "INVALIDS")?,
            words: Hash::new(object, "INVALID_WORDS")?,
            seen: 0,
            last: Invalid::default(),
        })
    }

    /// All counts. `counted` is how many packets the programs have counted: while it stands still, so do they.
    pub(super) fn read(&mut self, reader: &mut Reader, counted: u64) -> anyhow::Result<&Invalid> {
        if counted != self.seen {
            let words = reader.entries(&self.words).context("cannot read map INVALID_WORDS")?;
            let words: BTreeMap<u64, Words> = words.into_iter().collect();
            let counts = reader.entries(&self.counts).context("cannot read map INVALIDS")?;
            self.last = sums(counts, &words);
            self.seen = counted;
        }
        Ok(&self.last)
    }
}

/// What counts by words mean.
fn sums(counts: Vec<(Key, u64)>, words: &BTreeMap<u64, Words>) -> Invalid {
    let mut sum = Invalid::default();
    for (key, count) in counts {
        let said = words.get(&key.words).and_then(|words| text(&words.text));
        let event = match said.as_deref().map(meaning) {
            Some(Meaning::Accepted) => continue,
            Some(Meaning::Invalid(event)) => event,
            None => {
                sum.unsaid += count;
                unsaid(key.words)
            }
        };
        let flow = FlowType::unpack(key.flow);
        *sum.all.entry(flow.netns).or_default() += count;
        if flow.family != 0 {
            *sum.rows.entry((flow, event)).or_default() += count;
        }
    }
    sum
}

/// For so long the return of `nf_conntrack_in` stays watched after it showed the last packet: it costs every packet.
const CALM_NS: u64 = 10_000_000_000;
/// The longest time between two attempts where the kernel counts what no packet explains.
const LONGEST_NS: u64 = 600_000_000_000;

/// What to do about the hooks on the return of `nf_conntrack_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    Attach,
    Detach,
}

/// Compares the kernel's counters of invalid packets with what the hooks saw, and decides when more must be seen: pure.
///
/// The kernel's counter may rise for packets that are not invalid: on 5.10 for a TCP connection that is opened again
/// (`nf_conntrack_in`: -NF_REPEAT). So what the hooks do not see while all of them are attached is none.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Each namespace's counter when it was first seen, and what the hooks had seen by then.
    first: BTreeMap<u32, (u64, u64)>,
    /// The largest excess of each namespace so far, which is dealt with.
    settled: BTreeMap<u32, u64>,
    /// Since when the hooks are attached, or when they last showed a packet.
    attached: Option<u64>,
    /// How much they had shown by then.
    shown: u64,
    /// Whether they have shown any since they were attached.
    found: bool,
    /// After an attempt that showed nothing: how long to wait, and until when.
    wait_ns: u64,
    not_before: u64,
    lost: u64,
}

impl Search {
    /// Begins: `kernel` are the counters once the hooks are there. `watching` is whether the hooks on the return are.
    pub(super) fn begin(kernel: &BTreeMap<u32, u64>, watching: Option<u64>) -> Self {
        let first = kernel.iter().map(|(netns, count)| (*netns, (*count, 0))).collect();
        Self { first, attached: watching, found: true, ..Self::default() }
    }

    /// Takes in the kernel's counters, which were read before what the hooks saw.
    pub(super) fn step(&mut self, now_ns: u64, kernel: &BTreeMap<u32, u64>, told: &Invalid) -> Step {
        let mut risen = 0;
        for (netns, count) in kernel {
            let told = told.all.get(netns).copied().unwrap_or(0);
            let (first, before) = *self.first.entry(*netns).or_insert((*count, told));
            let excess = count.saturating_sub(first).saturating_sub(told.saturating_sub(before));
            let settled = self.settled.entry(*netns).or_default();
            risen += excess.saturating_sub(*settled);
            *settled = excess.max(*settled);
        }
        // Their inodes may come again, with counters that begin anew.
        self.first.retain(|netns, _| kernel.contains_key(netns));
        self.settled.retain(|netns, _| kernel.contains_key(netns));
        if let Some(since) = self.attached {
            if told.unsaid > self.shown {
                (self.shown, self.attached, self.found) = (told.unsaid, Some(now_ns), true);
            } else if now_ns.saturating_sub(since) >= CALM_NS {
                self.attached = None;
                self.wait_ns = if self.found { 0 } else { (self.wait_ns * 2).clamp(CALM_NS, LONGEST_NS) };
                self.not_before = now_ns + self.wait_ns;
                return Step::Detach;
            }
            return Step::Stay;
        }
        if risen == 0 || now_ns < self.not_before {
            return Step::Stay;
        }
        self.lost += risen;
        (self.shown, self.attached, self.found) = (told.unsaid, Some(now_ns), false);
        Step::Attach
    }

    /// How many packets the kernel counted while nobody looked.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
#[path = "invalid_tests.rs"]
mod tests;
