//! A flood that everybody can watch: a small table, open connections that must stay, and datagrams that fill the rest.

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;

use super::ctwatch::{program, signal};
use super::space::Space;
use super::traffic::tcp::{self, End, Held};
use super::traffic::{Family, Flows, raw, spread, udp};
use super::{modules, state};

const MAX: u32 = 2000;
/// A new lot of flows leaves this often.
const BEAT: Duration = Duration::from_millis(100);

/// Longer than flows stay at first.
const WARM_UP: Duration = Duration::from_secs(4);

/// Floods for `seconds` behind `ctwatch live`, and ends with whichever ends first.
pub(super) fn run(seconds: u64, live: &[String]) -> anyhow::Result<ExitCode> {
    modules::load()?;
    state::fresh(&Space::init())?;
    state::set("nf_conntrack_max", MAX)?;
    let over = AtomicBool::new(false);
    let length = Duration::from_secs(seconds);
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(length, &over));
        // What comes and goes shall be steady before anybody looks.
        thread::sleep(WARM_UP);
        let mut child = Command::new(program())
            .arg("live")
            .args(live)
            .spawn()
            .with_context(|| format!("start {}", program()))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if flood.is_finished() {
                // As the user's own Ctrl-C would: the last totals are printed.
                signal(&child, Signal::SIGINT)?;
                break child.wait()?;
            }
            thread::sleep(BEAT);
        };
        over.store(true, Ordering::Release);
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// What a part of the demonstration is made of.
struct Part {
    /// It lasts until this share of the whole time.
    until: f64,
    /// New UDP flows a beat.
    lot: u32,
    /// How long they stay, in seconds.
    stay: u32,
    /// Hash buckets. New flows find what has expired where there are few; where there are many, a newcomer to a full
    /// table often finds nobody to evict.
    buckets: u32,
}

/// Calm: as much goes as comes. Then the table fills, and then it is full.
const PARTS: [Part; 3] = [
    Part { until: 0.4, lot: 10, stay: 2, buckets: 512 },
    Part { until: 0.65, lot: 12, stay: 600, buckets: 65_536 },
    Part { until: 1.0, lot: 100, stay: 600, buckets: 65_536 },
];

fn flood(length: Duration, over: &AtomicBool) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut held = Held::default();
    tcp::hold(Flows::new(Family::V4, 200), &mut held)?;
    let mut next = 0;
    for (number, part) in PARTS.iter().enumerate() {
        state::set("nf_conntrack_udp_timeout", part.stay)?;
        state::set("nf_conntrack_tcp_timeout_time_wait", part.stay)?;
        state::set("nf_conntrack_icmp_timeout", part.stay)?;
        state::buckets(part.buckets)?;
        while start.elapsed() < length.mul_f64(part.until) && !over.load(Ordering::Acquire) {
            let beat = Instant::now();
            spread(Flows::new(Family::V4, part.lot).from(next), 2, udp::send)?;
            udp::send(Flows::new(Family::V6, part.lot / 5).from(next))?;
            // These wait for answers, so they would hang on a full table.
            if number == 0 {
                tcp::connections(Flows::new(Family::V4, 2).from(next), End::Close)?;
                raw::echo(Flows::new(Family::V4, 1).from(next))?;
            }
            // Distinct for as long as a demonstration can last.
            next = (next + part.lot) % 4_000_000;
            thread::sleep(BEAT.saturating_sub(beat.elapsed()));
        }
    }
    Ok(())
}
