//! Writes a recording: slots of one size, each readable alone, the oldest given up where limits ask for it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::codec::Packer;
use super::frame::{Kind, MOST_HEADER, frame, with_words};
use super::wire::{Key, Model};
use super::{HEADER, SLOT_HEADER, SLOT_SIZES, Session, Version, header, slot_header, slot_size};
use crate::model::Report;
use crate::record::Reader;

/// The slot size of a file without a limit.
const SLOT: u32 = 256 << 10;
/// Into how many slots a limit is divided.
const SLOTS: u64 = 16;

/// How far a recording may grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The oldest report kept.
    pub keep: Option<Duration>,
    /// The largest size of the file, bytes.
    pub max_size: Option<u64>,
}

impl Limits {
    /// The smallest size that holds all slots with room for a large report each.
    pub const LEAST_SIZE: u64 = 1 << 20;

    fn slot_size(self) -> u32 {
        let size = self.max_size.map_or(u64::from(SLOT), |size| size.saturating_sub(HEADER as u64) / SLOTS);
        u32::try_from(size).unwrap_or(SLOT).clamp(*SLOT_SIZES.start(), SLOT)
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
struct Slot {
    seq: u64,
    /// Wall clock and time since boot at its first report, nanoseconds; the second of our own run alone.
    first: Option<(i128, Option<u64>)>,
}

/// The one writer of a file.
#[expect(missing_debug_implementations, reason = "zstd's encoder has none")]
pub struct Writer {
    file: Flock<File>,
    limits: Limits,
    slot_size: u32,
    slots: BTreeMap<u32, Slot>,
    /// Where the next frame goes: slot, and offset in it. `None` before the first.
    place: Option<(u32, usize)>,
    seq: u64,
    number: u64,
    packer: Packer,
    /// The report before and what was learned up to it, unless a key frame must come next.
    before: Option<(Report, Model)>,
}

impl Writer {
    /// Makes the file, or goes on in one that holds a recording. Follows no link, and is alone.
    pub fn open(path: &Path, limits: Limits) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)
            .with_context(|| format!("cannot open {shown} for recording (a link is not followed)"))?;
        anyhow::ensure!(file.metadata()?.is_file(), "{shown} is no regular file");
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => anyhow::anyhow!("another ctwatch records to {shown}"),
            error => anyhow::anyhow!("cannot lock {shown}: {error}"),
        })?;
        let length = file.metadata()?.len();
        let mut writer = Self {
            file,
            limits,
            slot_size: limits.slot_size(),
            slots: BTreeMap::new(),
            place: None,
            seq: 0,
            number: 0,
            packer: Packer::new(),
            before: None,
        };
        if length == 0 {
            let head = header(writer.slot_size);
            writer.file.write_all_at(&head, 0).with_context(|| format!("cannot write to {shown}"))?;
        } else {
            writer.take_over(path, length)?;
        }
        writer.file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(writer)
    }

    fn take_over(&mut self, path: &Path, length: u64) -> anyhow::Result<()> {
        let shown = path.display();
        let mut head = [0; HEADER];
        let got = self.file.read_at(&mut head, 0)?;
        self.slot_size = slot_size(&head[..got]).with_context(|| format!("{shown} is left as it is"))?;
        if let Some(most) = self.limits.max_size {
            anyhow::ensure!(
                length <= most,
                "{shown} is larger than --max-size already ({length} bytes); record to another file"
            );
        }
        if head[..] != header(self.slot_size) {
            // An older version: what is in it stays as it is, and new slots are of our own.
            self.file.write_all_at(&header(self.slot_size), 0)?;
        }
        for (index, seq, first) in Reader::of_file(self.file.try_clone()?)?.slots() {
            self.slots.insert(index, Slot { seq, first: first.map(|wall| (wall, None)) });
            self.seq = self.seq.max(seq);
        }
        Ok(())
    }

    /// Writes one report. After an error nothing of it is in the file, and the next one is tried anew.
    pub fn append(
        &mut self,
        session: &Session,
        report: &Report,
        closing: bool,
        boot_ns: u64,
    ) -> anyhow::Result<()> {
        let number = self.number;
        self.number += 1;
        let model = self.try_append(session, report, number, closing, boot_ns)?;
        self.before = Some((report.clone(), model));
        Ok(())
    }

    /// The file, to bring what was written to the disk.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The next report opens with its session.
    pub fn restart(&mut self) {
        self.before = None;
    }

    fn try_append(
        &mut self,
        session: &Session,
        report: &Report,
        number: u64,
        closing: bool,
        boot_ns: u64,
    ) -> anyhow::Result<Model> {
        let before = self.before.take().filter(|_| !closing);
        self.expire(report.wall_ns, boot_ns)?;
        if let (Some((before, mut model)), Some((slot, offset)), false) =
            (before, self.place, self.is_old(boot_ns))
            && let Some((words, numbers)) = model.write(&before, report)
        {
            let (kind, payload) = match words {
                Some(words) => (Kind::Words, with_words(&self.packer.pack(false, &words)?, &numbers)),
                None => (Kind::Change, numbers),
            };
            if self.fits(offset, payload.len()) {
                self.write(slot, offset, kind, &payload)?;
                return Ok(model);
            }
        }
        let (packed, model) = self.key(session, report, number, closing)?;
        let (slot, offset) = match self.place {
            Some((slot, offset)) if self.fits(offset, packed.len()) && !self.is_old(boot_ns) => {
                (slot, offset)
            }
            _ => self.begin(report.wall_ns, boot_ns)?,
        };
        self.write(slot, offset, Kind::Key, &packed)?;
        Ok(model)
    }

    fn fits(&self, offset: usize, length: usize) -> bool {
        offset + MOST_HEADER + length <= self.slot_size as usize
    }

    /// A key frame that fits into a slot: what is too much of single losses and rankings is left out.
    fn key(
        &mut self,
        session: &Session,
        report: &Report,
        number: u64,
        closing: bool,
    ) -> anyhow::Result<(Vec<u8>, Model)> {
        let mut report = report.clone();
        loop {
            let plain = postcard::to_stdvec(&Key::new(session, &report, number, closing))?;
            let packed = self.packer.pack(true, &plain)?;
            if self.fits(SLOT_HEADER, packed.len()) {
                return Ok((packed, Model::new(&report)));
            }
            if let Some(losses) = report.losses.as_mut().filter(|losses| !losses.events.is_empty()) {
                losses.more = losses.more.saturating_add(losses.events.len() as u64);
                losses.events.clear();
            } else if report.top.take().is_none() {
                anyhow::bail!("a report of {} bytes has no room in the recording", packed.len());
            }
        }
    }

    /// Whether the slot in use has held its part of the time to keep.
    fn is_old(&self, boot_ns: u64) -> bool {
        let begun = self.place.and_then(|(slot, _)| self.slots.get(&slot)?.first?.1);
        match (self.limits.keep, begun) {
            (Some(keep), Some(begun)) => {
                u128::from(boot_ns.saturating_sub(begun)) * u128::from(SLOTS) >= keep.as_nanos()
            }
            _ => false,
        }
    }

    /// Gives up the slots whose first report is older than what is to be kept.
    fn expire(&mut self, wall_ns: i128, boot_ns: u64) -> anyhow::Result<()> {
        let Some(keep) = self.limits.keep else { return Ok(()) };
        let now = self.place.map(|(slot, _)| slot);
        let old = |slot: &Slot| match slot.first {
            Some((_, Some(boot))) => u128::from(boot_ns.saturating_sub(boot)) > keep.as_nanos(),
            // Of an earlier run only the wall clock is known; a time still to come was a wrong clock.
            Some((wall, None)) => u128::try_from(wall_ns - wall).map_or(true, |age| age > keep.as_nanos()),
            None => true,
        };
        let gone: Vec<u32> = self
            .slots
            .iter()
            .filter(|(index, slot)| Some(**index) != now && old(slot))
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            self.write_at(&[0; SLOT_HEADER], index, 0)?;
            self.slots.remove(&index);
        }
        Ok(())
    }

    /// Begins a slot: a free one, a new one, or else the oldest.
    fn begin(&mut self, wall_ns: i128, boot_ns: u64) -> anyhow::Result<(u32, usize)> {
        let most = self.limits.max_size.map_or(u32::MAX, |size| {
            u32::try_from(size.saturating_sub(HEADER as u64) / u64::from(self.slot_size)).unwrap_or(u32::MAX)
        });
        let free = (0..most).find(|index| !self.slots.contains_key(index));
        let oldest = || self.slots.iter().min_by_key(|(_, slot)| slot.seq).map(|(index, _)| *index);
        let index = free.or_else(oldest).context("no slot fits below --max-size")?;
        self.seq += 1;
        if let Err(error) = self.write_at(&slot_header(Version::Two, self.seq), index, 0) {
            // A slot that could not be begun is free again.
            self.place = None;
            self.slots.remove(&index);
            return Err(error);
        }
        self.slots.insert(index, Slot { seq: self.seq, first: Some((wall_ns, Some(boot_ns))) });
        self.place = Some((index, SLOT_HEADER));
        Ok((index, SLOT_HEADER))
    }

    fn write(&mut self, slot: u32, offset: usize, kind: Kind, packed: &[u8]) -> anyhow::Result<()> {
        let frame = frame(Version::Two, self.seq, kind, packed);
        self.write_at(&frame, slot, offset)?;
        self.place = Some((slot, offset + frame.len()));
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], slot: u32, offset: usize) -> anyhow::Result<()> {
        let at = HEADER as u64 + u64::from(slot) * u64::from(self.slot_size) + offset as u64;
        self.file.write_all_at(bytes, at).context("cannot write to the recording")
    }
}
