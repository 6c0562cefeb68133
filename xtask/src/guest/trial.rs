//! One measured run: a fresh state, ctwatch and the witnesses around the traffic, and what must always be equal.

use std::cell::RefCell;
use std::fmt::Debug;

use anyhow::Context;

use super::budget::Budget;
use super::ctwatch::{self, Key, Silence, Totals, Watch};
use super::space::Space;
use super::traffic::Family;
use super::witness::{self, Stats};
use super::{modules, state};

/// Filters that the kernel's statistics, which have no flow types, cannot follow.
const BY_TYPE: [&str; 4] = ["--proto", "--family", "--port", "--net"];

/// A run under way.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    spaces: Vec<&'a Space>,
    before: Vec<Witness>,
    /// Whether ctwatch was told to look at some flow types only.
    by_type: bool,
    /// ctwatch, attached.
    pub(super) watch: Watch,
}

#[derive(Debug)]
struct Witness {
    stats: Stats,
    proc_stats: Option<Stats>,
    count: u64,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Finding {
    /// ctwatch's side.
    pub(super) totals: Totals,
    /// The kernel's counters, what was added in each namespace.
    pub(super) stats: Vec<Stats>,
    /// Entries in each namespace just before ctwatch was stopped.
    earlier: Vec<u64>,
    /// Entries in each namespace at the end.
    pub(super) counts: Vec<u64>,
    spaces: Vec<u64>,
    /// Differences that are put down to what programs missed.
    missing: RefCell<Budget>,
    /// Differences that are put down to events without a flow type.
    untyped: RefCell<Budget>,
}

impl<'a> Trial<'a> {
    /// Brings the namespaces to the fresh state, lets `arrange` change it, and starts ctwatch and the witnesses.
    pub(super) fn start(
        spaces: &[&'a Space],
        args: &[&str],
        arrange: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        modules::load()?;
        for space in spaces {
            state::fresh(space)?;
        }
        arrange().context("arrange the state")?;
        // Before ctwatch: nothing moves now, and the statistics must not miss what ctwatch sees.
        let before = spaces.iter().map(|space| Witness::read(space)).collect::<anyhow::Result<_>>()?;
        let watch = Watch::start(args)?;
        let by_type = args.iter().any(|arg| BY_TYPE.contains(arg));
        Ok(Self { spaces: spaces.to_vec(), before, by_type, watch })
    }

    /// Stops ctwatch, reads the witnesses, and compares what must be equal in every run.
    pub(super) fn finish(self) -> anyhow::Result<Finding> {
        let finding = self.finish_filtered()?;
        for (index, space) in finding.spaces.iter().enumerate() {
            finding
                .identities(index, *space)
                .map_err(|error| anyhow::anyhow!("{error:#}\n{}", finding.sides(index)))?;
        }
        Ok(finding)
    }

    /// The same for a ctwatch that was told to look at a part only: totals are checked against themselves alone.
    pub(super) fn finish_filtered(self) -> anyhow::Result<Finding> {
        // A collector at work (a full table, expired entries) removes entries between any two readings, so the table is
        // read on both sides of ctwatch's last one.
        let earlier = self.spaces.iter().map(|space| witness::count(space)).collect::<anyhow::Result<_>>()?;
        let totals = self.watch.stop()?;
        let (mut stats, mut counts) = (Vec::new(), Vec::new());
        for (space, before) in self.spaces.iter().zip(&self.before) {
            let after = Witness::read(space)?;
            anyhow::ensure!(before.count == 0, "the table of {} was not empty at the start", space.label());
            let added = after.stats.since(&before.stats);
            if let (Some(after), Some(before)) = (&after.proc_stats, &before.proc_stats) {
                let file = after.since(before);
                for name in ["drop", "early_drop", "insert_failed"] {
                    equal(
                        &format!("/proc/net/stat and conntrack -S: {name}"),
                        file.get(name),
                        added.get(name),
                    )?;
                }
            }
            stats.push(added);
            counts.push(after.count);
        }
        totals.check()?;
        // Every kernel of the matrix takes the programs. Counting by netlink instead would hide that it refused them.
        let why =
            totals.objects.last().and_then(|object| object["source"]["why"].as_str()).unwrap_or_default();
        anyhow::ensure!(
            ctwatch::source() != "auto" || totals.silence.kind != "netlink" || why.starts_with("chosen by"),
            "`auto` came to netlink: {why}"
        );
        let told_apart = stats.iter().all(|stats| stats.get("chaintoolong").is_some());
        equal(
            "what is unknown",
            &totals.silence,
            &Silence::expected(&totals.silence.kind, told_apart, self.by_type),
        )?;
        Ok(Finding {
            totals,
            stats,
            earlier,
            counts,
            spaces: self.spaces.iter().map(|space| space.inode).collect(),
            missing: RefCell::default(),
            untyped: RefCell::default(),
        })
    }
}

impl Witness {
    fn read(space: &Space) -> anyhow::Result<Self> {
        Ok(Self {
            stats: Stats::read(space)?,
            proc_stats: witness::proc_stats(space)?,
            count: witness::count(space)?,
        })
    }
}

impl Finding {
    fn identities(&self, index: usize, netns: u64) -> anyhow::Result<()> {
        let watched = |field: &str| self.totals.sum_in(netns, field);
        let stats = &self.stats[index];
        let kernel = |name: &str| stats.get(name).unwrap_or(0);
        // An entry that is evicted at once is announced by ctnetlink as removed only.
        let unheard_of = self.totals.lost()? - self.totals.missed()?;
        anyhow::ensure!(unheard_of <= kernel("early_drop"), "ctwatch lost {unheard_of}");
        let known = |field: &str| self.totals.silence.tells_somewhere(field);
        let entered = watched("insert") + watched("insert_netlink") + watched("clash_reply_only");
        // Entries that entered by their reply alone are among the resolved clashes.
        let unheard = if known("clash_reply_only") { 0 } else { kernel("clash_resolve") };
        // What programs missed may have come or gone.
        let missed = self.totals.missed()?;
        let deleted = watched("delete");
        let most = entered + unheard + missed;
        anyhow::ensure!(deleted <= most, "{deleted} deleted, {entered} entered");
        let remaining = entered.saturating_sub(deleted + missed)..=most - deleted;
        // Equal to the entry, unless the table changed while ctwatch ended: then it lies between the two readings.
        let (earlier, later) = (self.earlier[index], self.counts[index]);
        anyhow::ensure!(
            *remaining.start() <= earlier.max(later) && *remaining.end() >= earlier.min(later),
            "entries: {remaining:?} entered and not deleted; conntrack -C {earlier}, then {later}"
        );
        // Without what may have been missed, the difference is inserts where entries are left over, else deletes.
        let told = (entered + unheard).saturating_sub(deleted);
        self.charge("inserts", earlier.min(later).saturating_sub(told))?;
        self.charge("deletes", entered.saturating_sub(deleted).saturating_sub(earlier.max(later)))?;
        self.accounted("early_drop", Some(watched("early_drop")), Some(kernel("early_drop")))?;
        // The kernel's `drop` is the sum of these three; a tracker that drops does not occur here. Where clashes are
        // not told apart from other failures, nothing else fails here without being told.
        let clash = if known("insert_failed.clash") { "insert_failed.clash" } else { "insert_failed.other" };
        let dropped = watched("drop") + watched(clash);
        self.accounted("drop and insert_failed.clash", Some(dropped), Some(kernel("drop")))?;
        self.accounted("insert_failed", Some(watched("insert_failed")), Some(kernel("insert_failed")))?;
        self.accounted("insert_netlink", Some(watched("insert_netlink")), Some(kernel("insert")))?;
        if let Some(resolved) = stats.get("clash_resolve") {
            self.accounted("clash_resolve", Some(watched("clash_resolve")), Some(resolved))?;
        }
        if let Some(long) = stats.get("chaintoolong") {
            self.accounted(
                "insert_failed.chaintoolong",
                Some(watched("insert_failed.chaintoolong")),
                Some(long),
            )?;
        }
        Ok(())
    }

    /// Both sides, for the message of a comparison that failed.
    pub(super) fn sides(&self, index: usize) -> String {
        format!(
            "ctwatch {:?}; the kernel {:?}, {} entries",
            self.totals.rows, self.stats[index], self.counts[index]
        )
    }

    /// A count of one flow type in the first namespace of the trial.
    pub(super) fn get(&self, family: Family, proto: u8, field: &str) -> u64 {
        self.get_in(self.spaces[0], family, proto, field)
    }

    /// The same in any namespace.
    pub(super) fn get_in(&self, netns: u64, family: Family, proto: u8, field: &str) -> u64 {
        self.totals.get(&Key { netns, family: family.name().to_owned(), proto }, field)
    }

    /// Compares a count of one flow type in the first namespace; what the source does not tell by flow type is not in
    /// the row, which was checked when it was read, and has to be compared by namespace.
    pub(super) fn row(&self, family: Family, proto: u8, field: &str, witness: u64) -> anyhow::Result<()> {
        if !self.totals.silence.tells(family.name(), field) {
            return Ok(());
        }
        if field == "insert" && self.totals.silence.kind == "netlink" && self.totals.lost()? > 0 {
            let (told, lost) = (self.get(family, proto, field), self.totals.lost()?);
            let what = format!("inserts of {family:?} {proto}");
            let mut untyped = self.untyped.borrow_mut();
            untyped.charge(&what, witness.saturating_sub(told));
            anyhow::ensure!(
                witness >= told && untyped.spent() <= lost,
                "{what}: ctwatch {told} and {lost} without a type, witness {witness}; {untyped:?}"
            );
            return Ok(());
        }
        self.equal(&format!("{field} of {family:?} {proto}"), self.get(family, proto, field), witness)
    }

    /// A kernel counter of the first namespace.
    pub(super) fn kernel(&self, name: &str) -> u64 {
        self.stats[0].get(name).unwrap_or(0)
    }

    /// Compares counts, and shows both sides in full where they differ.
    pub(super) fn equal(
        &self,
        what: &str,
        ctwatch: impl Into<Option<u64>>,
        witness: impl Into<Option<u64>>,
    ) -> anyhow::Result<()> {
        self.accounted(what, ctwatch.into(), witness.into())
            .map_err(|error| anyhow::anyhow!("{error:#}\n{}", self.sides(0)))
    }

    /// Equal, or less by no more than what ctwatch knows that its programs missed, all comparisons of this run together.
    fn accounted(&self, what: &str, ctwatch: Option<u64>, witness: Option<u64>) -> anyhow::Result<()> {
        match (ctwatch, witness) {
            (Some(ctwatch), Some(witness)) if ctwatch < witness && self.totals.missed()? > 0 => {
                self.charge(what, witness - ctwatch)
            }
            _ => equal(what, ctwatch, witness),
        }
    }

    /// Puts a difference down to what was missed; fails where that was not so much.
    fn charge(&self, what: &str, short: u64) -> anyhow::Result<()> {
        let mut missing = self.missing.borrow_mut();
        missing.charge(what, short);
        let missed = self.totals.missed()?;
        anyhow::ensure!(
            missing.spent() <= missed,
            "{what}: ctwatch has {short} less than the witness, and missed {missed} in all: {missing:?}"
        );
        Ok(())
    }
}

/// Compares what ctwatch said with what a witness said.
#[expect(
    clippy::needless_pass_by_value,
    reason = "callers compare counts, and `&` before each would be noise"
)]
pub(super) fn equal<T: PartialEq + Debug>(what: &str, ctwatch: T, witness: T) -> anyhow::Result<()> {
    anyhow::ensure!(ctwatch == witness, "{what}: ctwatch {ctwatch:?}, witness {witness:?}");
    Ok(())
}
