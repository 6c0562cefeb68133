//! Room for more expectations.

use super::{Setting, limit};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::Remedy;
use crate::doctor::text::{bytes, thousands};

/// An expectation (x86-64, 5.10 to 7.3: 208 to 232).
const EXPECTATION: u64 = 232;
/// The kernel itself makes it four times as many as it has chains for them, at least 256 × 4.
const LEAST: u64 = 1024;

/// Four times as many expectations.
pub fn raise(facts: &Facts, namespace: &Namespace) -> Option<Remedy> {
    let now = namespace.sysctl("expect_max")?;
    let wanted = now.saturating_mul(4).max(LEAST);
    let max = |value| Setting { sysctl: "expect_max", value };
    Some(limit::set(
        facts,
        ("raise-expectations", "expectations"),
        format!("Let helpers expect {} connections instead of {}", thousands(wanted), thousands(now)),
        &[max(wanted)],
        &[max(now)],
        format!(
            "up to {} of memory; each expectation lets one more connection in from outside, so find out first whether one \
             client asks for so many",
            bytes(wanted.saturating_sub(now).saturating_mul(EXPECTATION))
        ),
    ))
}
