//! What stands before the payload of a frame.

use super::Version;

/// The most bytes of a frame's header.
pub(super) const MOST_HEADER: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole report with its session; it needs no frame before it.
    Key,
    /// What changed since the frame before. In version 2 it is numbers alone.
    Change,
    /// Words, and the numbers behind them. Not in version 1.
    Words,
}

/// Kind and length in one word. In version 2 it is small for the usual frame, so that it takes one byte.
fn word(version: Version, kind: Kind, payload: &[u8]) -> u32 {
    // A slot has at most 1 MiB.
    let len = u32::try_from(payload.len()).unwrap_or(0);
    match (version, kind) {
        (Version::One, Kind::Key) => 1 << 28 | len,
        (Version::One, _) => 2 << 28 | len,
        (Version::Two, Kind::Change) => (len + 1) << 1,
        (Version::Two, Kind::Key) => len << 2 | 1,
        (Version::Two, Kind::Words) => len << 2 | 3,
    }
}

/// Kind and length of a word; 0 is no frame.
const fn kind(version: Version, word: u32) -> Option<(Kind, u32)> {
    Some(match version {
        Version::One => match word >> 28 {
            1 => (Kind::Key, word & 0x0fff_ffff),
            2 => (Kind::Change, word & 0x0fff_ffff),
            _ => return None,
        },
        Version::Two => match word & 3 {
            1 => (Kind::Key, word >> 2),
            3 => (Kind::Words, word >> 2),
            _ if word == 0 => return None,
            _ => (Kind::Change, (word >> 1) - 1),
        },
    })
}

/// The slot's number is in it: what an earlier use of the slot left does not pass. Version 2 has the upper 24 bits.
fn checksum(version: Version, seq: u64, word: u32, payload: &[u8]) -> [u8; 4] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&seq.to_le_bytes());
    sum.update(&word.to_le_bytes());
    sum.update(payload);
    match version {
        Version::One => sum.finalize().to_le_bytes(),
        Version::Two => (sum.finalize() >> 8).to_le_bytes(),
    }
}

/// A whole frame.
pub(super) fn frame(version: Version, seq: u64, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let word = word(version, kind, payload);
    let sum = checksum(version, seq, word, payload);
    let mut bytes = Vec::with_capacity(MOST_HEADER + payload.len());
    match version {
        Version::One => {
            bytes.extend(word.to_le_bytes());
            bytes.extend(sum);
        }
        Version::Two => {
            put_number(&mut bytes, word);
            bytes.extend(&sum[..3]);
        }
    }
    bytes.extend(payload);
    bytes
}

/// The frame that begins here, where it is whole: kind, payload, and what is behind it.
pub(super) fn split(version: Version, seq: u64, bytes: &[u8]) -> Option<(Kind, &[u8], &[u8])> {
    let (read, rest) = match version {
        Version::One => bytes.split_first_chunk().map(|(word, rest)| (u32::from_le_bytes(*word), rest))?,
        Version::Two => take_number(bytes)?,
    };
    let (kind, len) = kind(version, read)?;
    let (sum, rest) = rest.split_at_checked(if version == Version::One { 4 } else { 3 })?;
    let (payload, behind) = rest.split_at_checked(len as usize)?;
    checksum(version, seq, read, payload).starts_with(sum).then_some((kind, payload, behind))
}

/// The payload of [`Kind::Words`].
pub(super) fn with_words(packed: &[u8], numbers: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(packed.len() + numbers.len() + 4);
    put_number(&mut bytes, u32::try_from(packed.len()).unwrap_or(u32::MAX));
    bytes.extend(packed);
    bytes.extend(numbers);
    bytes
}

/// Its parts again.
pub(super) fn split_words(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = take_number(payload)?;
    rest.split_at_checked(length as usize)
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn take_number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        number |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_each_version_is_read_again() {
        let most = vec![7; (1 << 20) - 1];
        for version in [Version::One, Version::Two] {
            for (kind, length) in
                [(Kind::Key, 0), (Kind::Change, 31), (Kind::Change, 32), (Kind::Key, most.len())]
            {
                let payload = &most[..length];
                let mut bytes = frame(version, 5, kind, payload);
                assert!(bytes.len() <= MOST_HEADER + length);
                assert_eq!(split(version, 6, &bytes), None, "of another use of the slot");
                assert_eq!(split(version, 5, &bytes[..bytes.len() - 1]), None, "cut");
                bytes.push(9);
                assert_eq!(split(version, 5, &bytes), Some((kind, payload, &[9][..])));
            }
        }
    }

    #[test]
    fn words_and_numbers_are_told_apart() {
        for length in [0, 1, 127, 128, 40_000] {
            let words = vec![1; length];
            let payload = with_words(&words, &[2, 3]);
            assert_eq!(split_words(&payload), Some((&words[..], &[2, 3][..])));
        }
        assert_eq!(split_words(&[5, 1]), None);
        assert_eq!(split_words(&[0x80, 0x80, 0x80, 0x80, 0]), None);
    }
}
