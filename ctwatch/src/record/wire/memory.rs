//! What is remembered of single numbers from frame to frame, beside cells.

use crate::model::ranking::Top;
use crate::record::coder::{Bit, Cell, Coder};

/// A time, which is mostly a whole number of microseconds.
pub(super) struct Time {
    whole: Bit,
    micros: Cell,
    nanos: Cell,
}

impl Time {
    pub(super) const fn new() -> Self {
        Self { whole: Bit::new(), micros: Cell::new(), nanos: Cell::new() }
    }

    pub(super) fn near_mean(&mut self, coder: &mut impl Coder, value: u64) -> u64 {
        if coder.bit(&mut self.whole, value.is_multiple_of(1000)) {
            self.micros.near_mean(coder, value / 1000).wrapping_mul(1000)
        } else {
            self.nanos.near_mean(coder, value)
        }
    }

    pub(super) fn around_zero(&mut self, coder: &mut impl Coder, value: i64) -> i64 {
        if coder.bit(&mut self.whole, value % 1000 == 0) {
            self.micros.around_zero(coder, value / 1000).wrapping_mul(1000)
        } else {
            self.nanos.around_zero(coder, value)
        }
    }
}

/// How many of one thing there are for one of another, on average, in sixteenths.
#[derive(Default)]
pub(super) struct Share(u64);

impl Share {
    pub(super) const fn guess(&self, of: u64) -> u64 {
        self.0.saturating_mul(of) >> 4
    }

    pub(super) fn learn(&mut self, count: u64, of: u64) {
        if let Some(share) = count.saturating_mul(16).checked_div(of) {
            self.0 = if self.0 == 0 { share } else { self.0 - self.0 / 16 + share / 16 };
        }
    }
}

/// A line that rankings had, with counts of 0.
pub(super) struct Ranked {
    pub(super) line: Top,
    pub(super) cells: [Cell; 4],
    /// In so many reports it was not.
    pub(super) absent: u16,
}

impl Ranked {
    pub(super) fn new(line: &Top) -> Self {
        let line = Top { insert: 0, early_drop: 0, drop: 0, invalid: 0, ..line.clone() };
        Self { line, cells: std::array::from_fn(|_| Cell::new()), absent: 0 }
    }
}
