//! What was sent into one end of a pair of interfaces waits in a CPU's backlog until that CPU takes it out at the other.

use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use super::super::wait;
use super::pin;

/// Packets that may be sent before the backlog is looked at: half of what it holds (`net.core.netdev_max_backlog`).
pub(in super::super) const BATCH: usize = 500;

const STATISTICS: &str = "/proc/net/softnet_stat";
/// How many packets wait, and for which CPU (`softnet_seq_show`, 5.10 to 7.3).
const WAITING: usize = 11;
const CPU: usize = 12;

/// Waits until every packet that was sent before has been taken in. The look is made on the CPU itself: where a thread
/// runs, no softirq is in the middle of a packet.
pub(in super::super) fn drain() -> anyhow::Result<()> {
    let waiting = read()?;
    thread::scope(|scope| {
        let look = |cpu: usize| {
            pin(cpu)?;
            wait::until("an empty backlog", Duration::from_secs(20), || {
                let left = read()?.into_iter().find(|(row, _)| *row == cpu).context("no such CPU")?.1;
                Ok(if left == 0 { Ok(()) } else { Err(format!("{left} packets wait on CPU {cpu}")) })
            })
        };
        let threads: Vec<_> = waiting.iter().map(|(cpu, _)| scope.spawn(move || look(*cpu))).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("looking at a backlog panicked"))??;
        }
        Ok(())
    })
}

/// Each CPU with the packets that wait for it.
fn read() -> anyhow::Result<Vec<(usize, u64)>> {
    let text = std::fs::read_to_string(STATISTICS).context(STATISTICS)?;
    let rows = text.lines().map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |column: usize| {
            let text = columns.get(column).with_context(|| format!("{STATISTICS}: {line}"))?;
            u64::from_str_radix(text, 16).with_context(|| format!("{STATISTICS}: {line}"))
        };
        Ok((usize::try_from(number(CPU)?)?, number(WAITING)?))
    });
    rows.collect()
}
