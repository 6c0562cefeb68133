//! The time that the programs take. The kernel measures it only for every BPF program of the machine, other people's too,
//! and each run then reads the clock twice (`BPF_ENABLE_STATS`, `bpf_prog_start_time`, 5.8 to 7.3). So it measures in
//! short samples, and what happens between them is estimated from the last one.

use std::os::fd::OwnedFd;

use aya::sys::{Stats, enable_stats};

use crate::model::Cost;

/// How long a sample lasts at least.
const SAMPLE_NS: u64 = 1_000_000_000;
/// How many times as long the pause after it is.
const PAUSE: u64 = 30;

/// Measures the programs of one watch after another.
#[derive(Debug, Default)]
pub(super) struct ProgramTime {
    /// The kernel measures while this is open. Opening it takes CAP_SYS_ADMIN (5.8 to 7.3).
    measures: Option<OwnedFd>,
    /// False where nobody asked, or the kernel refused: then the time is not known.
    known: bool,
    rhythm: Rhythm,
    estimate: Estimate,
}

/// What is measured, and by what it grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// On the monotonic clock.
    pub mono_ns: u64,
    /// What the kernel measured of the programs since they were loaded.
    pub measured: Cost,
    /// How many events they counted.
    pub events: u64,
    /// How many programs are attached.
    pub programs: usize,
}

impl ProgramTime {
    /// Asks the kernel once, so that it is known from the start whether it agrees. It measures nothing yet.
    pub(super) fn open(wanted: bool) -> Self {
        Self { known: wanted && Self::measure().is_some(), ..Self::default() }
    }

    fn measure() -> Option<OwnedFd> {
        // Without the right to it, all else works.
        enable_stats(Stats::RunTime).ok()
    }

    /// Whether a sample begins or ends now.
    pub(super) fn is_due(&self, mono_ns: u64, programs: usize) -> bool {
        self.known && self.rhythm.is_due(mono_ns, programs)
    }

    /// Begins with programs that have done nothing yet.
    pub(super) fn begin(&mut self, mono_ns: u64, programs: usize) {
        self.estimate.begin(mono_ns);
        if self.known {
            self.rhythm.begin(mono_ns, programs);
            self.measures = Self::measure();
        }
    }

    /// Takes a reading, and ends or begins a sample where that is due. What the programs cost since the first one was
    /// attached; `None` where it is not known.
    pub(super) fn take(&mut self, work: &Work) -> Option<Cost> {
        if !self.known {
            return None;
        }
        let blind = self.estimate.take(work, self.measures.is_some());
        if blind || self.rhythm.is_due(work.mono_ns, work.programs) {
            self.rhythm.turn(work.mono_ns, work.programs);
            self.measures = self.rhythm.measures.then(Self::measure).flatten();
            self.estimate.turn(self.rhythm.measures);
        }
        Some(self.estimate.total)
    }

    /// The same of programs that are let go.
    pub(super) fn end(&mut self, work: &Work) {
        self.estimate.take(work, self.measures.is_some());
        self.measures = None;
    }

    /// What is known without a new reading.
    pub(super) fn total(&self) -> Option<Cost> {
        self.known.then_some(self.estimate.total)
    }
}

/// When the kernel measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rhythm {
    measures: bool,
    since_ns: u64,
    /// The last sample's length.
    sample_ns: u64,
    programs: usize,
}

impl Rhythm {
    const fn begin(&mut self, mono_ns: u64, programs: usize) {
        *self = Self { measures: true, since_ns: mono_ns, sample_ns: 0, programs };
    }

    const fn is_due(&self, mono_ns: u64, programs: usize) -> bool {
        let lasts = mono_ns.saturating_sub(self.since_ns);
        if self.measures {
            lasts >= SAMPLE_NS
        } else {
            // Other programs take another time.
            lasts >= self.sample_ns.saturating_mul(PAUSE) || programs != self.programs
        }
    }

    const fn turn(&mut self, mono_ns: u64, programs: usize) {
        let lasts = mono_ns.saturating_sub(self.since_ns);
        let sample_ns = if self.measures { lasts } else { self.sample_ns };
        *self = Self { measures: !self.measures, since_ns: mono_ns, sample_ns, programs };
    }
}

/// Adds what was measured in samples, and what follows from the last one for the time between.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Estimate {
    total: Cost,
    before: Work,
    /// Of the sample under way.
    sample: Share,
    /// Of the last one that ended.
    last: Share,
}

/// What the programs did, and how much happened meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Share {
    cost: Cost,
    events: u64,
    ns: u64,
}

impl Estimate {
    fn begin(&mut self, mono_ns: u64) {
        self.before = Work { mono_ns, ..Work::default() };
        self.sample = Share::default();
        self.last = Share::default();
    }

    /// True where something happened of which no sample has shown yet what it costs.
    fn take(&mut self, work: &Work, measures: bool) -> bool {
        let before = std::mem::replace(&mut self.before, *work);
        let events = work.events.saturating_sub(before.events);
        let ns = work.mono_ns.saturating_sub(before.mono_ns);
        let cost = if measures {
            let run_ns = work.measured.run_ns.saturating_sub(before.measured.run_ns);
            let runs = work.measured.runs.saturating_sub(before.measured.runs);
            let cost = Cost { run_ns, runs };
            self.sample = self.sample.and(Share { cost, events, ns });
            cost
        } else {
            self.last.of(events, ns)
        };
        self.total.run_ns = self.total.run_ns.saturating_add(cost.run_ns);
        self.total.runs = self.total.runs.saturating_add(cost.runs);
        !measures && events > 0 && self.last.cost.runs == 0
    }

    /// A sample begins, or has ended.
    fn turn(&mut self, measures: bool) {
        if !measures {
            self.last = self.sample;
        }
        self.sample = Share::default();
    }
}

impl Share {
    const fn and(self, other: Self) -> Self {
        Self {
            cost: Cost {
                run_ns: self.cost.run_ns.saturating_add(other.cost.run_ns),
                runs: self.cost.runs.saturating_add(other.cost.runs),
            },
            events: self.events.saturating_add(other.events),
            ns: self.ns.saturating_add(other.ns),
        }
    }

    /// The same share of so many events; of so much time where no event was counted, as programs also run for what a
    /// filter leaves out.
    fn of(self, events: u64, ns: u64) -> Cost {
        let (part, whole) = if self.events > 0 { (events, self.events) } else { (ns, self.ns) };
        let share = |amount: u64| {
            let product = u128::from(amount) * u128::from(part);
            product.checked_div(u128::from(whole)).map_or(0, |share| u64::try_from(share).unwrap_or(u64::MAX))
        };
        Cost { run_ns: share(self.cost.run_ns), runs: share(self.cost.runs) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = SAMPLE_NS;

    fn work(seconds: u64, measured: (u64, u64), events: u64) -> Work {
        let measured = Cost { run_ns: measured.0, runs: measured.1 };
        Work { mono_ns: seconds * SECOND, measured, events, programs: 3 }
    }

    #[test]
    fn a_sample_of_a_second_is_followed_by_a_pause_of_half_a_minute() {
        let mut rhythm = Rhythm::default();
        rhythm.begin(SECOND, 3);
        assert!(!rhythm.is_due(2 * SECOND - 1, 3) && rhythm.is_due(2 * SECOND, 3));
        rhythm.turn(2 * SECOND, 3);
        assert!(!rhythm.measures && !rhythm.is_due(32 * SECOND - 1, 3) && rhythm.is_due(32 * SECOND, 3));
        assert!(rhythm.is_due(3 * SECOND, 4), "programs were attached");
        rhythm.turn(32 * SECOND, 3);
        assert!(rhythm.measures && !rhythm.is_due(32 * SECOND, 4));
    }

    /// A report every minute must not make the kernel measure all the time.
    #[test]
    fn a_longer_sample_is_followed_by_a_longer_pause() {
        let mut rhythm = Rhythm::default();
        rhythm.begin(0, 3);
        rhythm.turn(10 * SECOND, 3);
        assert!(!rhythm.is_due(309 * SECOND, 3) && rhythm.is_due(310 * SECOND, 3));
    }

    #[test]
    fn what_was_not_measured_follows_the_events() {
        let mut estimate = Estimate::default();
        estimate.begin(0);
        estimate.take(&work(1, (1000, 20), 10), true);
        estimate.turn(false);
        assert_eq!(estimate.total, Cost { run_ns: 1000, runs: 20 });
        estimate.take(&work(2, (1000, 20), 40), false);
        assert_eq!(estimate.total, Cost { run_ns: 4000, runs: 80 });
        estimate.take(&work(3, (1000, 20), 40), false);
        assert_eq!(estimate.total, Cost { run_ns: 4000, runs: 80 }, "nothing happened");
        estimate.turn(true);
        estimate.take(&work(4, (1500, 21), 41), true);
        assert_eq!(estimate.total, Cost { run_ns: 4500, runs: 81 });
        estimate.turn(false);
        estimate.take(&work(5, (1500, 21), 43), false);
        assert_eq!(estimate.total, Cost { run_ns: 5500, runs: 83 }, "by the last sample");
    }

    /// A machine that was idle in the last sample shows what its first events cost without a pause.
    #[test]
    fn the_first_events_begin_a_sample() {
        let mut estimate = Estimate::default();
        estimate.begin(0);
        assert!(!estimate.take(&work(1, (0, 0), 0), true));
        estimate.turn(false);
        assert!(!estimate.take(&work(2, (0, 0), 0), false));
        assert!(estimate.take(&work(3, (0, 0), 5), false));
        estimate.turn(true);
        assert!(!estimate.take(&work(4, (100, 2), 6), true));
        estimate.turn(false);
        assert!(!estimate.take(&work(5, (100, 2), 9), false));
        assert_eq!(estimate.total, Cost { run_ns: 400, runs: 8 });
    }

    #[test]
    fn what_a_filter_leaves_out_follows_the_time() {
        let mut estimate = Estimate::default();
        estimate.begin(0);
        estimate.take(&work(1, (1000, 20), 0), true);
        estimate.turn(false);
        estimate.take(&work(3, (1000, 20), 0), false);
        assert_eq!(estimate.total, Cost { run_ns: 3000, runs: 60 });
    }

    /// They start from nothing, and the sum goes on.
    #[test]
    fn programs_of_another_load_are_measured_anew() {
        let mut estimate = Estimate::default();
        estimate.begin(0);
        estimate.take(&work(1, (1000, 20), 10), true);
        estimate.begin(5 * SECOND);
        estimate.take(&work(6, (100, 2), 1), true);
        assert_eq!(estimate.total, Cost { run_ns: 1100, runs: 22 });
    }

    #[test]
    fn nobody_asked_so_nothing_is_known() {
        let mut time = ProgramTime::open(false);
        time.begin(0, 3);
        assert!(!time.is_due(u64::MAX, 9));
        assert_eq!((time.take(&work(1, (1, 1), 1)), time.total()), (None, None));
    }

    proptest! {
        /// A counter that falls is taken for a restart by those who read it.
        #[test]
        fn the_sum_never_falls(steps in prop::collection::vec(any::<(bool, u64, u64, u64, u64)>(), 0..20)) {
            let mut estimate = Estimate::default();
            let mut before = Cost::default();
            for (measures, mono_ns, run_ns, runs, events) in steps {
                let measured = Cost { run_ns, runs };
                estimate.take(&Work { mono_ns, measured, events, programs: 1 }, measures);
                estimate.turn(!measures);
                prop_assert!(estimate.total.run_ns >= before.run_ns && estimate.total.runs >= before.runs);
                before = estimate.total;
            }
        }
    }
}
