//! Reads a recording from a stranger: bounded, and up to the last whole report wherever it was cut.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use nix::fcntl::OFlag;

use super::codec::Unpacker;
use super::frame::{Kind, MOST_HEADER, split, split_words};
use super::wire::{Delta, Key, Model, Names};
use super::{HEADER, MAGIC, SLOT_HEADER, Session, Version, slot_seq, slot_size};
use crate::model::Report;

/// More slots than any file has that a flight recorder writes in a year.
const MOST_SLOTS: u64 = 1 << 20;

/// One report of a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The run it belongs to.
    pub session: Session,
    /// Which report of the run, from 0, as far as the frames tell.
    pub number: u64,
    /// The report.
    pub report: Report,
    /// Whether it ends its run; then it may repeat the one before.
    pub closing: bool,
}

impl Step {
    /// Whether it lies between these times, both included, in nanoseconds since the Unix epoch.
    pub fn is_within(&self, from: Option<i128>, to: Option<i128>) -> bool {
        let wall = self.report.wall_ns;
        from.is_none_or(|from| wall >= from) && to.is_none_or(|to| wall <= to)
    }

    /// Whether it is also a report of its own: the one that ends a run repeats the last.
    pub fn counts_within(&self, from: Option<i128>, to: Option<i128>) -> bool {
        !self.closing && self.is_within(from, to)
    }
}

/// The report before, and what the frames behind it need.
struct Last {
    step: Step,
    names: Names,
    model: Model,
}

/// Hands out reports, oldest first.
#[expect(missing_debug_implementations, reason = "zstd's decoder has none")]
pub struct Reader {
    file: Bytes,
    slot_size: u32,
    /// Place in the file and number of each slot, oldest first.
    order: Vec<(u32, u64)>,
    next: usize,
    slot: Vec<u8>,
    version: Version,
    seq: u64,
    at: usize,
    unpacker: Unpacker,
    last: Option<Last>,
    damaged: u64,
}

impl Reader {
    /// Opens a recording; it may be written at the same time.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)
            .with_context(|| format!("cannot open {shown}"))?;
        anyhow::ensure!(file.metadata()?.is_file(), "{shown} is no regular file");
        Self::of_file(file).with_context(|| format!("cannot read {shown}"))
    }

    /// Whether this is a regular file that begins as a recording does.
    pub fn is_recording(path: &Path) -> bool {
        let flags = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        let mut head = Vec::new();
        OpenOptions::new().read(true).custom_flags(flags).open(path).is_ok_and(|file| {
            file.metadata().is_ok_and(|data| data.is_file())
                && Bytes::OnDisk(file).read_some(&mut head, MAGIC.len(), 0).is_ok()
                && head == MAGIC
        })
    }

    /// The same for a file that is open.
    pub(super) fn of_file(file: File) -> anyhow::Result<Self> {
        let length = file.metadata()?.len();
        Self::new(Bytes::OnDisk(file), length)
    }

    /// The same for what was read already.
    pub fn of_bytes(bytes: Vec<u8>) -> anyhow::Result<Self> {
        let length = bytes.len() as u64;
        Self::new(Bytes::InMemory(bytes), length)
    }

    fn new(file: Bytes, length: u64) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        file.read_some(&mut bytes, HEADER, 0)?;
        let slot_size = slot_size(&bytes)?;
        let slots = length.saturating_sub(HEADER as u64).div_ceil(u64::from(slot_size));
        anyhow::ensure!(slots <= MOST_SLOTS, "it has too many slots ({slots})");
        let mut order = Vec::new();
        for index in 0..u32::try_from(slots)? {
            let at = HEADER as u64 + u64::from(index) * u64::from(slot_size);
            file.read_some(&mut bytes, SLOT_HEADER, at)?;
            order.extend(slot_seq(&bytes).map(|(_, seq)| (index, seq)));
        }
        order.sort_by_key(|(_, seq)| *seq);
        Ok(Self {
            file,
            slot_size,
            order,
            next: 0,
            slot: Vec::new(),
            version: Version::Two,
            seq: 0,
            at: 0,
            unpacker: Unpacker::new(),
            last: None,
            damaged: 0,
        })
    }

    /// The next report; `None` at the end.
    pub fn next_step(&mut self) -> anyhow::Result<Option<Step>> {
        loop {
            if let Some(step) = self.frame() {
                return Ok(Some(step));
            }
            let Some((index, seq)) = self.order.get(self.next).copied() else { return Ok(None) };
            self.load(index, seq)?;
            self.next += 1;
        }
    }

    /// The next report is the first again.
    pub fn rewind(&mut self) {
        (self.next, self.last) = (0, None);
        self.slot.clear();
    }

    /// The next report is one at this time or before it, at most a slot's worth away. Where the wall clock was set back,
    /// which one of those with that time is not said.
    pub fn seek(&mut self, wall_ns: i128) -> anyhow::Result<()> {
        let damaged = self.damaged;
        let (mut low, mut high) = (0, self.order.len());
        while low < high {
            let middle = low.midpoint(high);
            let (index, seq) = self.order[middle];
            self.load(index, seq)?;
            // A slot whose first report is not whole has none.
            match self.frame() {
                Some(step) if step.report.wall_ns > wall_ns => high = middle,
                _ => low = middle + 1,
            }
        }
        self.rewind();
        (self.next, self.damaged) = (low.saturating_sub(1), damaged);
        Ok(())
    }

    /// The time of the newest whole report; reading begins anew after that.
    pub fn last_wall(&mut self) -> anyhow::Result<Option<i128>> {
        let damaged = self.damaged;
        let mut last = None;
        for (index, seq) in self.order.clone().into_iter().rev() {
            self.load(index, seq)?;
            while let Some(step) = self.frame() {
                last = Some(step.report.wall_ns);
            }
            if last.is_some() {
                break;
            }
        }
        self.rewind();
        self.damaged = damaged;
        Ok(last)
    }

    /// Slots that end in bytes which are no whole report: what was being written, or damage.
    pub const fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Place, number and the wall clock of the first report of each slot.
    pub(super) fn slots(mut self) -> Vec<(u32, u64, Option<i128>)> {
        let mut slots = Vec::new();
        for (index, seq) in self.order.clone() {
            let first = self.load(index, seq).ok().and_then(|()| self.frame());
            slots.push((index, seq, first.map(|step| step.report.wall_ns)));
        }
        slots
    }

    fn load(&mut self, index: u32, seq: u64) -> anyhow::Result<()> {
        let at = HEADER as u64 + u64::from(index) * u64::from(self.slot_size);
        self.file.read_some(&mut self.slot, self.slot_size as usize, at)?;
        // A writer may have begun the slot anew since.
        match slot_seq(&self.slot) {
            Some((version, now)) if now == seq => self.version = version,
            _ => self.slot.clear(),
        }
        (self.seq, self.at, self.last) = (seq, SLOT_HEADER, None);
        Ok(())
    }

    /// The next frame of the slot; where it is not whole, nothing behind it can be trusted.
    fn frame(&mut self) -> Option<Step> {
        let slot = std::mem::take(&mut self.slot);
        let rest = slot.get(self.at..)?;
        let step = self.whole(rest);
        if step.is_some() {
            self.slot = slot;
        } else {
            self.damaged += u64::from(rest_is_written(rest));
        }
        step
    }

    fn whole(&mut self, rest: &[u8]) -> Option<Step> {
        let (kind, payload, behind) = split(self.version, self.seq, rest)?;
        let last = match (kind, self.version) {
            (Kind::Key, _) => {
                let plain = self.unpacker.unpack(true, payload)?;
                let opened = postcard::from_bytes::<Key>(&plain).ok()?.open()?;
                let model = Model::new(&opened.report);
                let (number, report, closing) = (opened.number, opened.report, opened.closing);
                Last {
                    step: Step { session: opened.session, number, report, closing },
                    names: opened.names,
                    model,
                }
            }
            (_, Version::One) => {
                let plain = self.unpacker.unpack(false, payload)?;
                let last = self.last.take()?;
                let delta = postcard::from_bytes::<Delta>(&plain).ok()?;
                let report = delta.apply(&last.step.report, &last.names)?;
                last.next(report)
            }
            (kind, Version::Two) => {
                let mut last = self.last.take()?;
                let (words, numbers) = match kind {
                    Kind::Words => {
                        let (packed, numbers) = split_words(payload)?;
                        (Some(self.unpacker.unpack(false, packed)?), numbers)
                    }
                    _ => (None, payload),
                };
                let report = last.model.read(&last.step.report, words.as_deref(), numbers, &last.names)?;
                last.next(report)
            }
        };
        self.at += rest.len() - behind.len();
        let step = last.step.clone();
        self.last = Some(last);
        Some(step)
    }
}

impl Last {
    fn next(self, report: Report) -> Self {
        let number = self.step.number.wrapping_add(1);
        Self { step: Step { report, number, closing: false, ..self.step }, ..self }
    }
}

/// A slot that was never filled ends in nothing or zeros.
fn rest_is_written(rest: &[u8]) -> bool {
    rest.iter().take(MOST_HEADER).any(|byte| *byte != 0)
}

/// Where a recording is.
#[derive(Debug)]
enum Bytes {
    OnDisk(File),
    InMemory(Vec<u8>),
}

impl Bytes {
    /// As much as there is of `length` bytes.
    fn read_some(&self, bytes: &mut Vec<u8>, length: usize, at: u64) -> anyhow::Result<()> {
        bytes.resize(length, 0);
        let mut got = 0;
        while got < length {
            match self.read_at(&mut bytes[got..], at + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the recording"),
            }
        }
        bytes.truncate(got);
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        match self {
            Self::OnDisk(file) => file.read_at(bytes, at),
            Self::InMemory(all) => {
                let rest = usize::try_from(at).ok().and_then(|at| all.get(at..)).unwrap_or_default();
                io::Read::read(&mut &*rest, bytes)
            }
        }
    }
}
