//! How many single losses are kept: a flood that lasts must not fill the disk.

use std::time::Duration;

use crate::model::ranking::Losses;

/// Kept at most of one report.
const PER_REPORT: usize = 100;
/// Kept at most in a burst.
const BURST: f64 = 2000.0;
/// Kept in a second where losses last.
const PER_SECOND: f64 = 5.0;

/// A bucket that fills with time and that each kept loss empties by one.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    left: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: BURST }
    }
}

impl Budget {
    /// Leaves out what the budget does not hold, the newest first, and counts it.
    pub fn spend(&mut self, losses: &mut Losses, elapsed: Duration) {
        self.left = PER_SECOND.mul_add(elapsed.as_secs_f64(), self.left).min(BURST);
        let mut kept = 0;
        while kept < losses.events.len().min(PER_REPORT) && self.left >= 1.0 {
            self.left -= 1.0;
            kept += 1;
        }
        losses.more = losses.more.saturating_add((losses.events.len() - kept) as u64);
        losses.events.truncate(kept);
    }
}
