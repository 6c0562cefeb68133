//! Compression of what is in words: one zstd stream from each key frame on, flushed at each frame that has any.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer};

use super::MOST_PLAIN;

/// 128 KiB: both sides hold so much of what was there before.
const WINDOW_LOG: u32 = 17;
const LEVEL: i32 = 3;
const CHUNK: usize = 16 << 10;

/// Compresses frame after frame.
pub(super) struct Packer(Option<Encoder<'static>>);

impl Packer {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    /// The bytes of a frame, at the beginning of a new stream or in the one that goes on. After an error a key frame must come next.
    pub(super) fn pack(&mut self, begin: bool, plain: &[u8]) -> io::Result<Vec<u8>> {
        if begin {
            let mut fresh = Encoder::new(LEVEL)?;
            fresh.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
            self.0 = Some(fresh);
        }
        let encoder = self.0.as_mut().ok_or_else(|| io::Error::other("no key frame yet"))?;
        let mut packed = Vec::new();
        let mut chunk = vec![0; CHUNK];
        let mut input = InBuffer::around(plain);
        while input.pos < plain.len() {
            let mut output = OutBuffer::around(&mut chunk[..]);
            encoder.run(&mut input, &mut output)?;
            packed.extend_from_slice(output.as_slice());
        }
        loop {
            let mut output = OutBuffer::around(&mut chunk[..]);
            let left = encoder.flush(&mut output)?;
            packed.extend_from_slice(output.as_slice());
            if left == 0 {
                return Ok(packed);
            }
        }
    }
}

/// Its reverse. What it allocates is bounded by [`MOST_PLAIN`] and the window.
pub(super) struct Unpacker(Option<Decoder<'static>>);

impl Unpacker {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    pub(super) fn unpack(&mut self, begin: bool, packed: &[u8]) -> Option<Vec<u8>> {
        if begin {
            let mut fresh = Decoder::new().ok()?;
            fresh.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).ok()?;
            self.0 = Some(fresh);
        }
        let decoder = self.0.as_mut()?;
        let mut plain = Vec::new();
        let mut chunk = vec![0; CHUNK];
        let mut input = InBuffer::around(packed);
        loop {
            let mut output = OutBuffer::around(&mut chunk[..]);
            decoder.run(&mut input, &mut output).ok()?;
            let got = output.as_slice();
            let full = got.len() == CHUNK;
            plain.extend_from_slice(got);
            if plain.len() > MOST_PLAIN {
                return None;
            }
            if input.pos == packed.len() && !full {
                return Some(plain);
            }
        }
    }
}
