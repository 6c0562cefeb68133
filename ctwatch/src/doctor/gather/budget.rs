//! How much doctor takes from other programs: each bound is reported where it is reached.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What one program may write. nft writes some 350 bytes of JSON for a rule.
pub const MOST_BYTES: u64 = 16 << 20;
/// How long one program may take.
const EACH: Duration = Duration::from_secs(5);
/// How long the rules of all namespaces together may take.
const ALL: Duration = Duration::from_secs(20);
/// Rules kept of all namespaces together; the rest is counted.
const MOST_RULES: usize = 4000;
/// Rules kept of one listing: one namespace must not take the room of all others.
pub const MOST_OF_ONE: usize = 1000;
/// Bytes of a rule's text.
pub const MOST_TEXT: usize = 1024;

/// What is left of it.
#[derive(Debug)]
pub struct Budget {
    until: Instant,
    rules: AtomicUsize,
}

impl Budget {
    /// All of it, from now on.
    pub fn start() -> Self {
        Self { until: Instant::now() + ALL, rules: AtomicUsize::new(MOST_RULES) }
    }

    /// When a program that starts now has to be done; an error where there is no time left to start one.
    pub fn deadline(&self) -> Result<Instant, String> {
        let now = Instant::now();
        if now >= self.until {
            return Err(format!("not asked: the rules of all namespaces may take {} s", ALL.as_secs()));
        }
        Ok(self.until.min(now + EACH))
    }

    /// Whether one more rule of a listing that has so many may be kept.
    pub fn takes_rule(&self, have: usize) -> bool {
        let less = |left: usize| left.checked_sub(1);
        have < MOST_OF_ONE && self.rules.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}
