//! The recording's format: what is written, and how it is read again. `docs/recording-format.md` describes it.

mod budget;
mod codec;
mod reader;
mod wire;
mod writer;

pub use budget::Budget;
pub use reader::{Reader, Step};
pub use writer::{Limits, Writer};

use std::io;

use crate::model::SourceInfo;

/// The first bytes of every recording. A transfer that changes line ends breaks them.
const MAGIC: [u8; 8] = *b"ctwrec\r\n";
/// The version written; all versions up to it are read.
const VERSION: u16 = 1;
/// Bytes of the file's header.
const HEADER: usize = 32;
/// The first bytes of a slot that holds something.
const SLOT_MAGIC: [u8; 4] = *b"SLOT";
/// Bytes of a slot's header.
const SLOT_HEADER: usize = 16;
/// Bytes of a frame's header.
const FRAME_HEADER: usize = 8;
/// The sizes a slot can have.
const SLOT_SIZES: std::ops::RangeInclusive<u32> = 16 << 10..=1 << 20;
/// No report is larger before it is compressed.
const MOST_PLAIN: usize = 4 << 20;

/// What a run of reports has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Tells the runs in one file apart.
    pub id: u64,
    /// Host name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// The version of ctwatch that wrote it.
    pub version: String,
    /// The source that counted.
    pub info: SourceInfo,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A whole report with its session; it needs no frame before it.
    Key,
    /// What changed since the frame before.
    Delta,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHead {
    kind: Kind,
    len: usize,
    crc: u32,
}

impl FrameHead {
    fn new(seq: u64, kind: Kind, payload: &[u8]) -> Self {
        let head = Self { kind, len: payload.len(), crc: 0 };
        Self { crc: head.checksum(seq, payload), ..head }
    }

    fn word(self) -> u32 {
        let kind = match self.kind {
            Kind::Key => 1,
            Kind::Delta => 2,
        };
        kind << 28 | u32::try_from(self.len).unwrap_or(0)
    }

    /// The slot's number is in it: what an earlier use of the slot left does not pass.
    fn checksum(self, seq: u64, payload: &[u8]) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&seq.to_le_bytes());
        sum.update(&self.word().to_le_bytes());
        sum.update(payload);
        sum.finalize()
    }

    fn to_bytes(self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..4].copy_from_slice(&self.word().to_le_bytes());
        bytes[4..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = u32::from_le_bytes(*bytes.first_chunk()?);
        let crc = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
        let kind = match word >> 28 {
            1 => Kind::Key,
            2 => Kind::Delta,
            _ => return None,
        };
        Some(Self { kind, len: (word & 0x0fff_ffff) as usize, crc })
    }
}

fn header(slot_size: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&slot_size.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The slot size that a file's header gives.
fn slot_size(bytes: &[u8]) -> io::Result<u32> {
    let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let bytes: &[u8; HEADER] =
        bytes.first_chunk().ok_or_else(|| broken("this is no recording of ctwatch: too short"))?;
    if bytes[..8] != MAGIC {
        return Err(broken("this is no recording of ctwatch"));
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version > VERSION {
        return Err(broken(&format!(
            "the recording has format {version}, and this ctwatch reads formats up to {VERSION}"
        )));
    }
    let crc = u32::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]);
    let size = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    if crc != crc32fast::hash(&bytes[..28]) || !SLOT_SIZES.contains(&size) {
        return Err(broken("the header of the recording is damaged"));
    }
    Ok(size)
}

fn slot_header(seq: u64) -> [u8; SLOT_HEADER] {
    let mut bytes = [0; SLOT_HEADER];
    bytes[..4].copy_from_slice(&SLOT_MAGIC);
    bytes[4..12].copy_from_slice(&seq.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The number of a slot; `None` where it holds nothing.
fn slot_seq(bytes: &[u8]) -> Option<u64> {
    let bytes: &[u8; SLOT_HEADER] = bytes.first_chunk()?;
    let crc = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let seq = u64::from_le_bytes(*bytes[4..12].first_chunk()?);
    (bytes[..4] == SLOT_MAGIC && crc == crc32fast::hash(&bytes[..12])).then_some(seq)
}

/// A recording of one slot, made of the contents of frames: whether each is a key frame, and what is packed in it. Its
/// checksums are right. For tests and fuzzing: a stranger can do the same.
pub fn sealed<'a>(frames: impl IntoIterator<Item = (bool, &'a [u8])>) -> io::Result<Vec<u8>> {
    let mut bytes = header(*SLOT_SIZES.end()).to_vec();
    bytes.extend(slot_header(1));
    let mut packer = codec::Packer::new();
    for (key, plain) in frames {
        let kind = if key { Kind::Key } else { Kind::Delta };
        let payload = packer.pack(kind, plain)?;
        bytes.extend(FrameHead::new(1, kind, &payload).to_bytes());
        bytes.extend(payload);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
