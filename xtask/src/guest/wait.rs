//! Waiting for a condition, never for a while.

use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

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
