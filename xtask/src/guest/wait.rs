//! Waiting for a condition, never for a while.

use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until so much time has passed since `start`.
pub(super) fn passed(what: &str, start: Instant, least: Duration) -> anyhow::Result<()> {
    until(what, least * 2, || {
        let passed = start.elapsed();
        Ok(if passed >= least { Ok(()) } else { Err(format!("{} ms", passed.as_millis())) })
    })
}

/// Calls `condition` until it holds. When `limit` passes first, the error says what was waited for and what
/// `condition` last said about it.
pub(super) fn until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<Result<(), String>>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let Err(state) = condition()? else { return Ok(()) };
        anyhow::ensure!(start.elapsed() < limit, "waited {} s for {what}: {state}", limit.as_secs());
        thread::sleep(POLL);
    }
}
