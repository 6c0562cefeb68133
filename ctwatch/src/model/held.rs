//! Entries that the kernel counts and that are in no list: removed ones that something still holds, and those that have
//! not entered the table yet.

/// One walk of a table between two looks at the kernel's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The count when the walk began.
    pub before: u64,
    /// Entries that the walk met.
    pub listed: u64,
    /// The count when it ended.
    pub after: u64,
}

impl Reading {
    /// Entries counted all the time and not met. Those that came or went during the walk may be among them.
    pub fn missing(&self) -> u64 {
        self.before.min(self.after).saturating_sub(self.listed)
    }
}

/// Entries that were missing in each reading; `None` where there is none. What a packet holds on its way through the kernel
/// is missing for microseconds, so that it takes two readings to say that something is held for good.
pub fn held(readings: &[Reading]) -> Option<u64> {
    readings.iter().map(Reading::missing).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn reading(before: u64, listed: u64, after: u64) -> Reading {
        Reading { before, listed, after }
    }

    #[test]
    fn only_what_is_missing_all_the_time_is_held() {
        assert_eq!(held(&[]), None);
        assert_eq!(held(&[reading(1000, 0, 1000)]), Some(1000));
        // Entries came during the first walk, and had been met by the second.
        assert_eq!(held(&[reading(100, 90, 140), reading(140, 140, 150)]), Some(0));
        // Entries went.
        assert_eq!(held(&[reading(100, 100, 40), reading(40, 30, 40)]), Some(0));
        // More were met than counted: some came and went.
        assert_eq!(held(&[reading(10, 12, 10)]), Some(0));
    }
}
