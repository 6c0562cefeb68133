//! When a table will be full, from how it grew lately; silent where the past does not tell.

use std::collections::VecDeque;
use std::time::Duration;

use super::sample::Table;

/// Growth is judged over so much time …
const SPAN: Duration = Duration::from_secs(10);
/// … or over so many intervals where they are long.
const INTERVALS: u32 = 5;
/// Readings closer than this are not all kept.
const SPACING: Duration = Duration::from_millis(250);
/// As many as fit into the span, the one before it, and one to spare.
const READINGS: usize = 44;
/// Fewer readings make no trend …
const FEWEST: usize = 4;
/// … and neither does a shorter time.
const SHORTEST: Duration = Duration::from_secs(2);
/// How much of the variation a straight line must explain (r²): below, the count wanders rather than grows.
const STRAIGHT: f64 = 0.8;
/// Traffic changes within the hour: what would fill later is no forecast.
const HORIZON: Duration = Duration::from_hours(1);

/// How full one table was lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Occupancy {
    /// Time watched and count, oldest first.
    readings: VecDeque<(Duration, u64)>,
    max: Option<u64>,
}

impl Occupancy {
    /// Takes in a reading; one that failed ends what was known.
    pub fn advance(&mut self, now: Duration, interval: Duration, table: &Table) {
        self.max = table.max;
        let Some(count) = table.count else {
            self.readings.clear();
            return;
        };
        // The newest reading always stands last; the one before it stays only if it has its distance.
        if let [.., (before, _), (last, _)] = *self.readings.make_contiguous()
            && last.saturating_sub(before) < SPACING
        {
            self.readings.pop_back();
        }
        self.readings.push_back((now, count));
        let span = SPAN.max(interval.saturating_mul(INTERVALS));
        while self.readings.front().is_some_and(|(at, _)| now.saturating_sub(*at) > span)
            || self.readings.len() > READINGS
        {
            self.readings.pop_front();
        }
    }

    /// Entries gained per second over the span; `None` before there are two readings.
    pub fn growth(&self) -> Option<f64> {
        let (start, first) = *self.readings.front()?;
        let (end, last) = *self.readings.back()?;
        let passed = end.saturating_sub(start);
        (!passed.is_zero()).then(|| (last as f64 - first as f64) / passed.as_secs_f64())
    }

    /// How long until the table is full, if it goes on as it did. `None` where that would be a guess: too little seen,
    /// no limit, full already, not growing steadily, or more than an hour away.
    pub fn full_in(&self) -> Option<Duration> {
        let (start, _) = *self.readings.front()?;
        let (end, count) = *self.readings.back()?;
        let max = self.max?;
        if count >= max || self.readings.len() < FEWEST || end.saturating_sub(start) < SHORTEST {
            return None;
        }
        let (slope, straightness) = self.line();
        if straightness < STRAIGHT || slope <= 0.0 {
            return None;
        }
        let seconds = (max - count) as f64 / slope;
        (seconds <= HORIZON.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
    }

    /// Slope and r² of the straight line nearest to the readings; 0 and 0 where there is none.
    fn line(&self) -> (f64, f64) {
        let points = self.readings.len() as f64;
        let (start, first) = self.readings.front().copied().unwrap_or_default();
        let at = |(time, count): &(Duration, u64)| {
            (time.saturating_sub(start).as_secs_f64(), *count as f64 - first as f64)
        };
        let (sum_x, sum_y) =
            self.readings.iter().map(at).fold((0.0, 0.0), |(sum_x, sum_y), (x, y)| (sum_x + x, sum_y + y));
        let (mean_x, mean_y) = (sum_x / points, sum_y / points);
        let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
        for (x, y) in self.readings.iter().map(at) {
            let (dx, dy) = (x - mean_x, y - mean_y);
            xx += dx * dx;
            yy += dy * dy;
            xy += dx * dy;
        }
        if xx > 0.0 && yy > 0.0 { (xy / xx, xy * xy / (xx * yy)) } else { (0.0, 0.0) }
    }
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
