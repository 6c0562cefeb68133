//! What commands that run for a while have in common: the event loop, signals, a reader that may go away.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use super::{nobody_reads, tell};
use crate::model::{SourceInfo, SourceKind};
use crate::privileges::{self, Work};
use crate::source::{SourceChoice, Status, keeper};

/// Gives up what neither counting by this source takes nor the work beside it. Programs may be attached later, when a module
/// is loaded or a table fills up, so their rights stay.
pub(super) fn settle_in(source: SourceChoice, beside: Work) {
    let probes = source.mechanism().is_some();
    // Without a keeper it enters namespaces itself.
    let namespaces = beside.namespaces || !keeper::runs();
    privileges::restrict(Work { probes, namespaces, ..beside });
}

/// Gives up what only programs in the kernel take, where the keeper counts by netlink instead. To be called before any
/// thread starts.
pub(super) fn settle_for(info: &SourceInfo, beside: Work) {
    if info.kind == SourceKind::Netlink && keeper::runs() {
        privileges::restrict(beside);
    }
}

/// How soon the appearance of connection tracking is seen.
pub(super) const LOOK_WHILE_WAITING: Duration = Duration::from_millis(200);
/// How soon it is seen that it went away, or went away and came back.
pub(super) const LOOK_WHILE_WATCHING: Duration = Duration::from_secs(1);
/// How long after a look the next one follows.
pub(super) const fn look_after(status: &Status) -> Duration {
    match status {
        Status::Watching => LOOK_WHILE_WATCHING,
        Status::Waiting(_) => LOOK_WHILE_WAITING,
    }
}

/// Says on stderr that connection tracking came, or why there is nothing to watch.
pub(super) fn announce(status: &Status) {
    match status {
        Status::Watching => tell("connection tracking is loaded: watching"),
        Status::Waiting(why) => tell(why),
    }
}

/// How long a reader or a terminal that takes nothing may hold up our end. One on a busy machine may not get to read for
/// a second or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs it on an event loop of its own. What still hangs at its end, as a write on a reader that does not read or a
/// reading under way, is not waited for.
pub(super) fn run_to_end<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // khugepaged makes a huge page of a heap of which half was never touched, and that half resident with it: half
    // a megabyte, at any time (mm/khugepaged.c, max_ptes_none; THP "always", as Debian has it). Without the call
    // only that changes.
    let _ = prctl::set_thp_disable(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let ended = runtime.block_on(work);
    runtime.shutdown_background();
    ended
}

/// Becomes true on SIGINT or SIGTERM, and with a screen, which ends with its terminal, on SIGHUP and SIGQUIT. Without one
/// SIGHUP is left as it is: `nohup` has it ignored.
pub(super) fn stop_on_signals(screen: bool) -> anyhow::Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let of_screen = |kind| if screen { signal(kind).map(Some) } else { Ok(None) };
    let mut hangup = of_screen(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let mut quit = of_screen(SignalKind::quit()).context("cannot handle SIGQUIT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            Some(()) = received(&mut hangup) => {}
            Some(()) = received(&mut quit) => {}
        }
        // It fails when the watching has ended already.
        let _ = stop.send(true);
    });
    Ok(stopped)
}

/// Never where the signal is not handled here.
async fn received(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can say stop any more, which the signal task does only after it has said so.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether stdout is a pipe or socket that nobody reads any more; seen without writing to it.
pub(super) fn stdout_is_closed() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Whether the reader still takes what we write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Reads,
    Gone,
}

/// So much has to be taken within [`PATIENCE`]: a quarter of what a pipe holds.
const PART: usize = 16 << 10;

/// Writes and flushes. `None` where nobody takes it: after somebody asked to stop, no part was taken for [`PATIENCE`].
/// A reader that is only slow gets everything.
pub(super) async fn write(
    out: &mut (impl AsyncWrite + Unpin),
    stop: &mut watch::Receiver<bool>,
    bytes: &[u8],
) -> Option<io::Result<()>> {
    for part in bytes.chunks(PART) {
        let written = while_taken(stop, async {
            out.write_all(part).await?;
            out.flush().await
        });
        match written.await {
            Some(Ok(())) => {}
            failed => return failed,
        }
    }
    Some(Ok(()))
}

async fn while_taken(
    stop: &mut watch::Receiver<bool>,
    writing: impl Future<Output = io::Result<()>>,
) -> Option<io::Result<()>> {
    let mut writing = pin!(writing);
    tokio::select! {
        biased;
        written = &mut writing => Some(written),
        () = stopped(stop) => timeout(PATIENCE, writing).await.ok(),
    }
}

/// The same for text on stdout.
pub(super) async fn print(
    out: &mut (impl AsyncWrite + Unpin),
    stop: &mut watch::Receiver<bool>,
    text: &str,
) -> anyhow::Result<Reader> {
    match write(out, stop, text.as_bytes()).await {
        Some(Ok(())) => Ok(Reader::Reads),
        Some(Err(error)) if !nobody_reads(&error) => Err(error).context("cannot write to stdout"),
        _ => Ok(Reader::Gone),
    }
}

pub(super) fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};
    use tokio::time::sleep;

    use super::*;

    /// Somebody has asked to stop already.
    fn stopping() -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_everything_at_the_end() {
        let (mut out, mut reader) = duplex(PART);
        let bytes = vec![b'x'; 20 * PART];
        let reads = tokio::spawn(async move {
            let mut taken = 0;
            let mut buffer = vec![0; PART];
            loop {
                sleep(PATIENCE * 3 / 4).await;
                match reader.read(&mut buffer).await.unwrap() {
                    0 => return taken,
                    some => taken += some,
                }
            }
        });
        assert!(matches!(write(&mut out, &mut stopping(), &bytes).await, Some(Ok(()))));
        drop(out);
        assert_eq!(reads.await.unwrap(), bytes.len());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_nothing_does_not_hold_up_the_end() {
        let (mut out, reader) = duplex(PART);
        let began = Instant::now();
        assert!(write(&mut out, &mut stopping(), &vec![b'x'; 20 * PART]).await.is_none());
        assert!(began.elapsed() < PATIENCE * 2);
        drop(reader);
    }
}
