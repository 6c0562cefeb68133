//! The kernel's log of this guest, read as it grows.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;

use crate::complaints;

/// A record is never longer (`PRINTKRB_RECORD_MAX`, `CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;

/// `/dev/kmsg`, from the first record that the kernel still has.
#[derive(Debug)]
pub(super) struct KernelLog(File);

impl KernelLog {
    /// Opens it.
    pub(super) fn open() -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open("/dev/kmsg").map(Self).context("open /dev/kmsg")
    }

    /// What the kernel complained about since the last call, less what is allowed; a text for people.
    pub(super) fn complaints(&mut self) -> anyhow::Result<Option<String>> {
        let found = complaints::all(&self.news()?);
        let (known, bad): (Vec<_>, Vec<_>) =
            found.iter().partition(|complaint| complaint.allowed().is_some());
        for complaint in known {
            println!("allowed: {complaint}: {}", complaint.allowed().unwrap_or_default());
        }
        let bad: Vec<String> = bad.iter().map(ToString::to_string).collect();
        Ok((!bad.is_empty()).then(|| format!("the kernel complains: {}", bad.join("; "))))
    }

    /// The texts of all new records, a line each.
    fn news(&mut self) -> anyhow::Result<String> {
        let mut text = String::new();
        let mut record = [0; RECORD];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    // `level,number,time,flags;text`, then lines about the device, indented.
                    let record = String::from_utf8_lossy(&record[..length]);
                    let said = record.split_once(';').map_or(&*record, |(_, said)| said);
                    text.push_str(said.lines().next().unwrap_or_default());
                    text.push('\n');
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(text),
                // The kernel reused the room of records that nobody had read: reading goes on behind the gap, and a
                // complaint may have been in it.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {
                    text.push_str(
                        "BUG: records of the kernel's log were overwritten before they were read\n",
                    );
                }
                Err(error) => return Err(error).context("read /dev/kmsg"),
            }
        }
    }
}
