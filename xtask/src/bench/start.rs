//! `bench --start`: how long ctwatch takes on this machine from its start until it counts. Not in guests, whose time is
//! not this machine's; and no test, since what else the machine does is in it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::build;

/// How often each source is started.
const RUNS: usize = 7;
/// What is promised, and what nobody would wait for.
const PROMISED: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts it by each source and prints how long that took, or why it cannot run here.
pub(super) fn run() -> Result<()> {
    let ctwatch = build::dist()?;
    println!("from start until counting on this machine; promised with probes: {} ms", PROMISED.as_millis());
    for source in ["fexit", "kprobe", "netlink"] {
        let mut times = Vec::new();
        for _ in 0..RUNS {
            match until_counting(&ctwatch, source)? {
                Ok(time) => times.push(time),
                Err(why) => {
                    println!("  {source:8} cannot run here: {}", why.lines().next().unwrap_or_default());
                    break;
                }
            }
        }
        times.sort();
        if let [first, .., last] = times[..] {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let median = times[times.len() / 2];
            println!(
                "  {source:8} {:.0} ms at best, {:.0} ms in the median, {:.0} ms at worst of {RUNS}",
                ms(first),
                ms(median),
                ms(last)
            );
        }
    }
    Ok(())
}

/// The time until its header says that it counts, or what it says instead.
fn until_counting(ctwatch: &Path, source: &str) -> Result<Result<Duration, String>> {
    let mut command = Command::new(ctwatch);
    command.args(["live", "--plain", "--interval", "3600", "--source", source]);
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", ctwatch.display()))?;
    let output = child.stdout.take().context("it has no output")?;
    let (sender, header) = mpsc::channel();
    let reader = thread::spawn(move || {
        let counting =
            BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains(", counting by "));
        // Nobody waits any more where it took too long.
        let _ = sender.send(counting.then(Instant::now));
    });
    let counting = header.recv_timeout(PATIENCE);
    let said = end(child)?;
    reader.join().ok();
    match counting {
        Ok(Some(counting)) => Ok(Ok(counting - began)),
        Ok(None) => Ok(Err(said)),
        Err(_) => bail!("ctwatch --source {source} did not count within {} s: {said}", PATIENCE.as_secs()),
    }
}

/// Ends it as a user would; what it wrote to stderr.
fn end(mut child: Child) -> Result<String> {
    if child.try_wait()?.is_none() {
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT).context("cannot stop ctwatch")?;
    }
    let mut said = String::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_string(&mut said)?;
    }
    child.wait()?;
    Ok(said)
}
