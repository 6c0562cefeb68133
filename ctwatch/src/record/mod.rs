//! The recording's format: what is written, and how it is read again. `docs/recording-format.md` describes it.

mod budget;
mod codec;
mod coder;
mod frame;
mod reader;
mod wire;
mod writer;

pub use budget::Budget;
pub use reader::{Reader, Step};
pub use writer::{Limits, Writer};

use std::io;

use crate::model::SourceInfo;
use frame::{Kind, with_words};

/// The first bytes of every recording. A transfer that changes line ends breaks them.
const MAGIC: [u8; 8] = *b"ctwrec\r\n";
/// The version written; all versions up to it are read.
const VERSION: u16 = 2;
/// Bytes of the file's header.
const HEADER: usize = 32;
/// Bytes of a slot's header.
const SLOT_HEADER: usize = 16;
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

/// How the frames of a slot are written. A file of version 2 may have slots of version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The first bytes of a slot that holds something.
    const fn magic(self) -> [u8; 4] {
        match self {
            Self::One => *b"SLOT",
            Self::Two => *b"SLT2",
        }
    }
}

fn slot_header(version: Version, seq: u64) -> [u8; SLOT_HEADER] {
    let mut bytes = [0; SLOT_HEADER];
    bytes[..4].copy_from_slice(&version.magic());
    bytes[4..12].copy_from_slice(&seq.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Version and number of a slot; `None` where it holds nothing.
fn slot_seq(bytes: &[u8]) -> Option<(Version, u64)> {
    let bytes: &[u8; SLOT_HEADER] = bytes.first_chunk()?;
    let version = [Version::One, Version::Two].into_iter().find(|version| bytes[..4] == version.magic())?;
    let crc = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let seq = u64::from_le_bytes(*bytes[4..12].first_chunk()?);
    (crc == crc32fast::hash(&bytes[..12])).then_some((version, seq))
}

/// What a stranger can put into a frame.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// A key frame.
    Key(&'a [u8]),
    /// A difference of version 1.
    Difference(&'a [u8]),
    /// A change of version 2: numbers alone.
    Numbers(&'a [u8]),
    /// A change of version 2: words, and numbers behind them.
    Words(&'a [u8], &'a [u8]),
}

/// A recording of one slot. Its checksums are right. It is of version 1 where its first difference is. For tests and
/// fuzzing: a stranger can do the same.
pub fn sealed<'a>(pieces: impl IntoIterator<Item = Piece<'a>>) -> io::Result<Vec<u8>> {
    let pieces: Vec<Piece<'_>> = pieces.into_iter().collect();
    let old = pieces.iter().find(|piece| !matches!(piece, Piece::Key(_)));
    let version = if matches!(old, Some(Piece::Difference(_))) { Version::One } else { Version::Two };
    let mut bytes = header(*SLOT_SIZES.end()).to_vec();
    bytes.extend(slot_header(version, 1));
    let mut packer = codec::Packer::new();
    for piece in pieces {
        let (kind, payload) = match piece {
            Piece::Key(plain) => (Kind::Key, packer.pack(true, plain)?),
            Piece::Difference(plain) => (Kind::Change, packer.pack(false, plain)?),
            Piece::Numbers(numbers) => (Kind::Change, numbers.to_vec()),
            Piece::Words(words, numbers) => (Kind::Words, with_words(&packer.pack(false, words)?, numbers)),
        };
        bytes.extend(frame::frame(version, 1, kind, &payload));
    }
    Ok(bytes)
}

#[cfg(test)]
mod day_tests;
#[cfg(test)]
mod tests;
