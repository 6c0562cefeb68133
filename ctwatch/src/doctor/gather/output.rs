//! What a program writes, as it comes: bounded in size and time, and valid UTF-8 whatever it was.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pipe that ends with an error once a bound is reached.
#[derive(Debug)]
pub struct Bounded<R> {
    pipe: R,
    left: u64,
    until: Instant,
    reached: Option<&'static str>,
}

impl<R: Read + AsFd> Bounded<R> {
    /// At most so many bytes until then.
    pub const fn new(pipe: R, most: u64, until: Instant) -> Self {
        Self { pipe, left: most, until, reached: None }
    }

    /// The bound that was reached.
    pub const fn reached(&self) -> Option<&'static str> {
        self.reached
    }

    fn stop(&mut self, bound: &'static str) -> io::Error {
        self.reached = Some(bound);
        io::Error::other(bound)
    }
}

impl<R: Read + AsFd> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wait = self.until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(self.stop("it took too long")),
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Err(io::ErrorKind::Interrupted.into()),
            Err(error) => return Err(error.into()),
        }
        if wait.is_zero() {
            return Err(self.stop("it took too long"));
        }
        let read = self.pipe.read(buffer)?;
        self.left = match self.left.checked_sub(read as u64) {
            Some(left) => left,
            None => return Err(self.stop("it wrote too much")),
        };
        Ok(read)
    }
}

/// Bytes that are no UTF-8 come as U+FFFD.
#[derive(Debug)]
pub struct Lossy<R> {
    inner: R,
    text: Vec<u8>,
    given: usize,
    /// The beginning of a character whose end has not come yet.
    begun: Vec<u8>,
}

impl<R: Read> Lossy<R> {
    /// What this gives.
    pub const fn new(inner: R) -> Self {
        Self { inner, text: Vec::new(), given: 0, begun: Vec::new() }
    }

    fn fill(&mut self) -> io::Result<()> {
        const AT_ONCE: usize = 1 << 15;
        self.given = 0;
        self.text.clear();
        let mut bytes = std::mem::take(&mut self.begun);
        let begun = bytes.len();
        bytes.resize(begun + AT_ONCE, 0);
        let read = match self.inner.read(&mut bytes[begun..]) {
            Ok(read) => read,
            Err(error) => {
                bytes.truncate(begun);
                self.begun = bytes;
                return Err(error);
            }
        };
        bytes.truncate(begun + read);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text.extend(chunk.valid().as_bytes());
            let invalid = chunk.invalid();
            let cut = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if cut && read > 0 && chunks.peek().is_none() {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.text.extend("\u{fffd}".as_bytes());
            }
        }
        if self.text.is_empty() && read > 0 { self.fill() } else { Ok(()) }
    }
}

impl<R: Read> Read for Lossy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.text.len() {
            self.fill()?;
        }
        let rest = &self.text[self.given..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn read(bytes: &[u8], most: u64) -> (io::Result<usize>, Option<&'static str>) {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        drop(writer);
        let mut bounded = Bounded::new(reader, most, soon());
        (bounded.read_to_end(&mut Vec::new()), bounded.reached())
    }

    #[test]
    fn what_fits_comes_whole_and_more_is_an_error() {
        assert_eq!(read(b"12345", 5).0.unwrap(), 5);
        let (result, reached) = read(b"123456", 5);
        assert!(result.is_err());
        assert_eq!(reached, Some("it wrote too much"));
    }

    #[test]
    fn a_writer_that_does_not_end_is_left() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"some").unwrap();
        let mut bounded = Bounded::new(reader, 100, Instant::now() + Duration::from_millis(30));
        assert!(bounded.read_to_end(&mut Vec::new()).is_err());
        assert_eq!(bounded.reached(), Some("it took too long"));
    }

    /// A reader that gives a few bytes at a time.
    struct Few<'a>(&'a [u8], usize);

    impl Read for Few<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_what_the_standard_library_makes_of_them(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xe2), Just(0x82), Just(0xac)], 0..200),
            few in 1..5_usize,
        ) {
            let mut text = String::new();
            Lossy::new(Few(&bytes, few)).read_to_string(&mut text).unwrap();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
