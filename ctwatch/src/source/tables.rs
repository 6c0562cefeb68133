//! Count and limit of each network namespace's table, without netlink (a ctnetlink socket loads modules).
//!
//! A descriptor of a namespace keeps it alive, so one is open only for the moment of reading.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};

use super::demand::Failures;
use super::keeper::{self, TableReading};
use super::namespaces::{self, Roots};
use super::occupant::Occupant;
use super::proc_stat::Statistics;
use super::search::{self, Found, Place, Way};
use crate::model::Table;

/// A full look costs one `readlink` a process, so it is made this rarely …
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// … and at most this often where a namespace is met that nobody knows: its last process may have ended already.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(2);

/// How many names an error lists.
const MOST_NAMES: usize = 256;

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// A namespace that is read, and what it is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    place: Place,
    /// A process that it is called by where it has no name.
    occupant: Option<Occupant>,
}

impl Known {
    fn called(&self) -> Option<String> {
        self.place.name.clone().or_else(|| self.occupant.as_ref().map(Occupant::name))
    }
}

/// What could be read of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    count: Option<u64>,
    max: Option<u64>,
    failures: Option<Failures>,
}

/// Reads the tables of all namespaces that it can find: by the keeper where there is one, which nothing stops while it is
/// inside of one.
#[derive(Debug)]
pub struct Tables {
    only: Option<u32>,
    here: Here,
    left_out: u64,
    failures: BTreeMap<u32, Failures>,
}

impl Tables {
    /// All namespaces, or only the one with this inode.
    pub fn new(only: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self { only, here: Here::new(only)?, left_out: 0, failures: BTreeMap::new() })
    }

    /// The tables now. `met` are the namespaces that the counters know: one not yet found starts a search for it.
    ///
    /// Empty where connection tracking is not loaded.
    pub fn read(&mut self, met: impl IntoIterator<Item = u32>) -> Vec<Table> {
        let met: Vec<u32> = met.into_iter().collect();
        let asked = keeper::get().and_then(|keeper| keeper.tables(self.only, met.clone()).ok());
        let reading = asked.unwrap_or_else(|| self.here.reading(met));
        let TableReading { tables, failures, left_out } = reading;
        self.failures = failures;
        self.left_out = left_out;
        tables
    }

    /// How many namespaces the last search left out: their tables are not read.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The kernel's counters of failures at the last reading, of the namespaces where they could be read.
    pub(super) const fn failures(&self) -> &BTreeMap<u32, Failures> {
        &self.failures
    }

    /// Those of invalid packets.
    pub(super) fn invalid(&self) -> BTreeMap<u32, u64> {
        self.failures.iter().map(|(netns, failures)| (*netns, failures.invalid)).collect()
    }
}

/// The same by the calling process.
#[derive(Debug)]
pub(super) struct Here {
    roots: Roots,
    only: Option<u32>,
    own: u32,
    places: BTreeMap<u32, Known>,
    left_out: usize,
    looked: Option<Instant>,
    failures: BTreeMap<u32, Failures>,
}

impl Here {
    /// All namespaces, or only the one with this inode.
    pub(super) fn new(only: Option<u32>) -> anyhow::Result<Self> {
        let roots = Roots::default();
        let own = roots.own()?;
        let (places, failures) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { roots, only, own, places, left_out: 0, looked: None, failures })
    }

    /// Tables, failures and how many namespaces were left out.
    pub(super) fn reading(&mut self, met: Vec<u32>) -> TableReading {
        let tables = self.read(met);
        TableReading { tables, failures: self.failures.clone(), left_out: self.left_out as u64 }
    }

    fn read(&mut self, met: Vec<u32>) -> Vec<Table> {
        if !Path::new(COUNT).exists() {
            return Vec::new();
        }
        let only = self.only;
        let wants = |netns: u32| only.is_none_or(|only| only == netns);
        let unknown =
            met.into_iter().any(|netns| netns != 0 && wants(netns) && !self.places.contains_key(&netns));
        let due = self.looked.is_none_or(|looked| {
            let age = looked.elapsed();
            age >= LOOK_EVERY || unknown && age >= LOOK_AT_MOST_EVERY
        });
        if due {
            let Found { places, left_out } = search::find(&self.roots, self.own, wants);
            let known = |place| Known { occupant: occupant(&self.roots, &place), place };
            self.places = places.into_iter().map(|(netns, place)| (netns, known(place))).collect();
            self.left_out = left_out;
            self.looked = Some(Instant::now());
        }
        let readings = read_all(&self.roots, self.own, &self.places);
        let tables = readings
            .iter()
            .map(|(netns, reading)| Table {
                netns: *netns,
                name: self.places.get(netns).and_then(Known::called).unwrap_or_else(|| netns.to_string()),
                count: reading.count,
                max: reading.max,
            })
            .collect();
        // Ended since the last search: forgotten, so that a namespace with the same inode is searched for anew.
        self.places.retain(|netns, _| readings.contains_key(netns));
        let failures = readings.iter().filter_map(|(netns, reading)| Some((*netns, reading.failures?)));
        self.failures = failures.collect();
        tables
    }
}

/// The inode behind `--netns`: `None` for `all`.
pub fn resolve(text: &str) -> anyhow::Result<Option<u32>> {
    resolve_in(&Roots::default(), text)
}

fn resolve_in(roots: &Roots, text: &str) -> anyhow::Result<Option<u32>> {
    match text {
        "all" => return Ok(None),
        "self" => return Ok(Some(roots.own()?)),
        "init" => {
            let inode = roots.own().ok().and_then(|own| roots.init(own));
            return inode.map(Some).context(
                "which namespace process 1 is in may not be read here (it needs CAP_SYS_PTRACE); give its inode, or `self`",
            );
        }
        _ => {}
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Some).context("an inode has at most 32 bits");
    }
    let inode = roots.of_name(text);
    if inode.is_some() {
        return Ok(inode);
    }
    let names: Vec<String> = roots.named().into_iter().map(|(name, _)| name).take(MOST_NAMES).collect();
    let known =
        if names.is_empty() { "none has a name here".into() } else { format!("known: {}", names.join(", ")) };
    anyhow::bail!("no network namespace `{text}` ({known}); or give `all`, `self`, `init` or an inode")
}

/// Who a namespace without a name is called by: of a few processes the first that is more than a holder.
fn occupant(roots: &Roots, place: &Place) -> Option<Occupant> {
    let mut holder = None;
    if place.name.is_some() {
        return None;
    }
    for pid in place.processes() {
        let inode = roots.of_process(pid);
        let Some(occupant) = Occupant::read(&roots.proc.join(pid.to_string())) else { continue };
        // Still there: else the number may have become another's meanwhile.
        if inode.is_none() || roots.of_process(pid) != inode {
            continue;
        }
        if !occupant.is_holder() {
            return Some(occupant);
        }
        holder.get_or_insert(occupant);
    }
    holder
}

/// Reads each namespace; those that have ended are missing from the answer.
fn read_all(roots: &Roots, own: u32, places: &BTreeMap<u32, Known>) -> BTreeMap<u32, Reading> {
    let mut readings = BTreeMap::new();
    if places.contains_key(&own) {
        readings.insert(own, read_here());
    }
    let others: Vec<(u32, &Place)> = places
        .iter()
        .filter(|(netns, _)| **netns != own)
        .map(|(netns, known)| (*netns, &known.place))
        .collect();
    if !others.is_empty() {
        let entered = namespaces::apart(|| {
            let read = |(netns, place)| Some((netns, enter(roots, netns, place)?));
            others.into_iter().filter_map(read).collect()
        });
        readings.extend(entered.unwrap_or_else(|_| BTreeMap::new()));
    }
    // One limit holds for all namespaces and only the first may set it, so ours stands in where a namespace hides its
    // own (it may, where it belongs to an unprivileged user) or could not be entered.
    let limit = readings.get(&own).and_then(|reading| reading.max).or_else(|| number_in(Path::new(MAX)));
    for reading in readings.values_mut() {
        reading.max = reading.max.or(limit);
    }
    readings
}

/// Moves the calling thread into the namespace and reads there; where that is not allowed, asks a process in it.
fn enter(roots: &Roots, netns: u32, place: &Place) -> Option<Reading> {
    let mut found = None;
    for way in &place.ways {
        let Ok(file) = namespaces::open(&way.path(roots), netns) else { continue };
        if setns(&file, CloneFlags::CLONE_NEWNET).is_ok() {
            let here = read_here();
            if here.count.is_some() {
                return Some(here);
            }
        }
        drop(file);
        if let Way::Process(pid) = way
            && let Ok(text) = fs::read_to_string(roots.proc.join(format!("{pid}/net/stat/nf_conntrack")))
            && let Some(statistics) = Statistics::parse(&text)
            && let Some(count) = statistics.get("entries")
        {
            return Some(Reading { count: Some(count), max: None, failures: Failures::of(&statistics) });
        }
        // It lives, even if nothing can be read of it.
        found = Some(Reading::default());
    }
    found
}

/// `/proc/sys/net` shows the namespace of whoever reads it.
fn read_here() -> Reading {
    // Not `/proc/net`, which is the process's: this may be a thread that has moved.
    let statistics = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack");
    Reading {
        count: number_in(Path::new(COUNT)),
        max: number_in(Path::new(MAX)),
        failures: statistics.ok().and_then(|text| Failures::of(&Statistics::parse(&text)?)),
    }
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
