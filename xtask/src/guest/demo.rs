//! A flood that everybody can watch: a small table, open connections that must stay, and datagrams that fill the rest.

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::ctwatch::program;
use super::space::Space;
use super::traffic::tcp::{self, End, Held};
use super::traffic::{Family, Flows, raw, spread, udp};
use super::{modules, state};

const MAX: u32 = 2000;
/// A new lot of flows leaves this often.
const BEAT: Duration = Duration::from_millis(100);

/// Floods for `seconds` behind `ctwatch live`, and ends with whichever ends first.
pub(super) fn run(seconds: u64, live: &[String]) -> anyhow::Result<ExitCode> {
    modules::load()?;
    state::fresh(&Space::init())?;
    state::set("nf_conntrack_max", MAX)?;
    let over = AtomicBool::new(false);
    let length = Duration::from_secs(seconds);
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(length, &over));
        let mut child = Command::new(program())
            .arg("live")
            .args(live)
            .spawn()
            .with_context(|| format!("start {}", program()))?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if flood.is_finished() {
                // As the user's own Ctrl-C would: the last totals are printed.
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
                break child.wait()?;
            }
            thread::sleep(BEAT);
        };
        over.store(true, Ordering::Release);
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Calm at first, then more and more until the table is full: evictions, and refusals where nobody can be evicted.
fn flood(length: Duration, over: &AtomicBool) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut held = Held::default();
    tcp::hold(Flows::new(Family::V4, 200), &mut held)?;
    let mut next = 0;
    while start.elapsed() < length && !over.load(Ordering::Acquire) {
        let beat = Instant::now();
        let share = start.elapsed().as_secs_f64() / length.as_secs_f64();
        let lot = if share < 0.25 { 10 } else { 100 };
        spread(Flows::new(Family::V4, lot).from(next), 2, udp::send)?;
        udp::send(Flows::new(Family::V6, lot / 5).from(next))?;
        // These wait for answers, so they would hang on a full table.
        if share < 0.25 {
            tcp::connections(Flows::new(Family::V4, 2).from(next), End::Close)?;
            raw::echo(Flows::new(Family::V4, 1).from(next))?;
        }
        // Distinct for as long as a demonstration can last.
        next = (next + lot) % 4_000_000;
        thread::sleep(BEAT.saturating_sub(beat.elapsed()));
    }
    Ok(())
}
