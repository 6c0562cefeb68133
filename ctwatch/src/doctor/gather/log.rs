//! What the kernel's log says about full tables.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::libc;
use nix::time::{ClockId, clock_gettime};

use crate::doctor::facts::KernelLog;

/// `None` where the log may not be read (kernel.dmesg_restrict).
pub fn read() -> Option<KernelLog> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let now_us = now_us();
    let mut log = KernelLog::default();
    let mut first = true;
    // A read gives one record, which is at most this long (CONSOLE_EXT_LOG_MAX, PRINTKRB_RECORD_MAX).
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                read_record(&text, &mut log, std::mem::take(&mut first), now_us);
            }
            // Overwritten while we read: the next read goes on with the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(log)
}

/// By the clock that stamps the log. That is the scheduler's (`local_clock`), which nobody corrects: in months it goes
/// seconds to hours away from `CLOCK_MONOTONIC`. The scheduler shows it to root (the second file until 5.12).
fn now_us() -> u64 {
    let shown = ["/sys/kernel/debug/sched/debug", "/proc/sched_debug"].into_iter().find_map(|file| {
        // It stands at the beginning; all tasks of the machine follow.
        let mut head = [0; 2048];
        let length = fs::File::open(file).and_then(|mut file| file.read(&mut head)).ok()?;
        scheduler_now(&String::from_utf8_lossy(&head[..length]))
    });
    shown.unwrap_or_else(monotonic_us)
}

fn monotonic_us() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    u64::try_from(i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000).unwrap_or(0)
}

/// `cpu_clk   : 5855.521000`, in milliseconds with six digits behind the point (`SPLIT_NS`).
fn scheduler_now(head: &str) -> Option<u64> {
    let line = head.lines().find_map(|line| line.strip_prefix("cpu_clk"))?;
    let (millis, nanos) = line.trim_start().strip_prefix(':')?.trim().split_once('.')?;
    let nanos: u64 = nanos.parse().ok().filter(|nanos| *nanos < 1_000_000)?;
    millis.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(nanos / 1000)
}

/// `priority,sequence,microseconds,flags;text`.
fn read_record(record: &str, log: &mut KernelLog, first: bool, now_us: u64) {
    let Some((head, text)) = record.split_once(';') else { return };
    let mut fields = head.split(',').skip(1);
    let sequence = fields.next();
    if first {
        log.whole = sequence == Some("0");
    }
    // Lines that follow the first are the record's own fields.
    let text = text.lines().next().unwrap_or_default();
    if !text.contains("nf_conntrack") {
        return;
    }
    let ago_ms =
        fields.next().and_then(|at| at.parse::<u64>().ok()).map(|at| now_us.saturating_sub(at) / 1000);
    if text.contains("expectation table full") {
        log.expectations_ms = ago_ms;
    } else if let Some((_, rest)) = text.split_once(": table full") {
        log.lines += 1;
        log.last_ms = ago_ms;
        log.last_s = ago_ms.map(|ago| ago / 1000);
        // ` in netns 4026531840, dropping packet` since 6.18, but of the first namespace `, dropping packet` as before.
        let netns =
            rest.strip_prefix(" in netns ").and_then(|rest| rest.split(',').next()?.trim().parse().ok());
        match (netns, ago_ms) {
            (Some(netns), Some(ago))
                if log.by_netns.contains_key(&netns) || log.by_netns.len() < MOST_NAMED =>
            {
                log.by_netns.insert(netns, ago);
            }
            (None, _) => log.unnamed_ms = ago_ms,
            _ => {}
        }
    }
}

/// Namespaces kept; the log of a machine with many is no longer than its buffer, yet it comes from outside.
const MOST_NAMED: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(records: &[&str]) -> KernelLog {
        let mut log = KernelLog::default();
        for (number, record) in records.iter().enumerate() {
            read_record(record, &mut log, number == 0, 10_000_000);
        }
        log
    }

    #[test]
    fn the_log_tells_whether_and_when_not_how_often() {
        let log = logged(&[
            "5,0,0,-;Linux version 6.1\n",
            "4,900,5000000,-;nf_conntrack: nf_conntrack: table full, dropping packet\n",
            "4,901,7000000,c;nf_conntrack: nf_conntrack: table full in netns 4026531840, dropping packet\n",
            "6,902,9000000,-;nf_conntrack: default automatic helper assignment\n",
        ]);
        let expected = KernelLog {
            lines: 2,
            last_s: Some(3),
            whole: true,
            last_ms: Some(3000),
            by_netns: [(4_026_531_840, 3000)].into(),
            unnamed_ms: Some(5000),
            expectations_ms: None,
        };
        assert_eq!(log, expected);
    }

    /// Another table of another size.
    #[test]
    fn a_full_table_of_expectations_is_no_full_table_of_connections() {
        let log = logged(&["4,7,9500000,-;nf_conntrack: nf_conntrack: expectation table full\n"]);
        assert_eq!((log.lines, log.last_ms, log.expectations_ms), (0, None, Some(500)));
    }

    #[test]
    fn the_scheduler_shows_the_clock_of_the_log() {
        let head = "Sched Debug Version: v0.11, 6.12\nktime                    : 5855.499\nsched_clk                \
                    : 5855.1\ncpu_clk                                 : 5855521.004000\njiffies    : 4295\n";
        assert_eq!(scheduler_now(head), Some(5_855_521_004));
        assert_eq!(["", "cpu_clk : 1.9999999", "cpu_clk : x.1", "cpu_clk : 1"].map(scheduler_now), [None; 4]);
    }

    #[test]
    fn other_records_are_passed_over() {
        let log = logged(&[
            "",
            "4,7",
            ";",
            "4,x,y,-;nf_conntrack: table full",
            "4,1,2,-;ext4: table full, dropping",
        ]);
        assert_eq!((log.lines, log.last_ms), (1, None));
    }
}
