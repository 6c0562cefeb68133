//! Numbers in as few bits as they are surprising: an adaptive binary arithmetic coder.
//!
//! The counts of an interval are mostly noise around a mean, a few bits each. Whole bytes, and what a general compressor
//! adds at each flush, would be several times as much.

/// How likely a bit is 1, learned from those before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bit {
    /// Of 65,536.
    one: u16,
    /// How many it has seen, up to [`Bit::MEMORY`].
    seen: u8,
}

impl Bit {
    /// A change is learned after about so many bits.
    const MEMORY: u8 = 250;

    pub(super) const fn new() -> Self {
        Self { one: 1 << 15, seen: 0 }
    }

    fn learn(&mut self, bit: bool) {
        let (one, seen) = (i32::from(self.one), i32::from(self.seen));
        let wish = if bit { 0xffff } else { 0 };
        let one = one + (wish - one) * 2 / (2 * seen + 3);
        // Neither is ever impossible.
        self.one = u16::try_from(one.clamp(32, 0xffff - 32)).unwrap_or(1 << 15);
        self.seen = (self.seen + 1).min(Self::MEMORY);
    }
}

/// Writes bits, or reads them: then what it is given counts for nothing. One walk over a report serves both.
pub(super) trait Coder {
    /// One bit, by its likelihood.
    fn bit(&mut self, bit: &mut Bit, value: bool) -> bool;
    /// One bit of which nothing is known.
    fn even(&mut self, value: bool) -> bool;
}

/// The part of the numbers from 0 to 2^64 that the bits so far leave. It is cut in two for each bit.
#[derive(Clone, Copy, Debug)]
struct Span {
    low: u64,
    high: u64,
}

impl Span {
    const ALL: Self = Self { low: 0, high: u64::MAX };

    /// The end of the part that stands for a 1.
    fn cut(self, one: u16) -> u64 {
        let part = (u128::from(self.high - self.low) * u128::from(one)) >> 16;
        self.low + u64::try_from(part).unwrap_or(0)
    }

    const fn take(&mut self, cut: u64, bit: bool) {
        if bit {
            self.high = cut;
        } else {
            self.low = cut + 1;
        }
    }

    /// Whether the first byte of all that is left is the same; then it is shifted out.
    const fn shift(&mut self) -> bool {
        let settled = (self.low ^ self.high) >> 56 == 0;
        if settled {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        settled
    }
}

/// Writes.
#[derive(Debug)]
pub(super) struct Writing {
    span: Span,
    bytes: Vec<u8>,
}

impl Writing {
    pub(super) const fn new() -> Self {
        Self { span: Span::ALL, bytes: Vec::new() }
    }

    fn put(&mut self, cut: u64, bit: bool) -> bool {
        self.span.take(cut, bit);
        loop {
            let byte = self.span.high.to_be_bytes()[0];
            if !self.span.shift() {
                return bit;
            }
            self.bytes.push(byte);
        }
    }

    /// The fewest bytes that, with zeros behind them, mean what was written.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let Span { low, high } = self.span;
        let short = |bytes: u32| {
            let mask = u64::MAX.checked_shr(8 * bytes).unwrap_or(0);
            let rounded = low.checked_add(mask)? & !mask;
            (rounded <= high).then(|| rounded.to_be_bytes()[..bytes as usize].to_vec())
        };
        self.bytes.extend((0..=8).find_map(short).unwrap_or_default());
        while self.bytes.last() == Some(&0) {
            self.bytes.pop();
        }
        self.bytes
    }
}

impl Coder for Writing {
    fn bit(&mut self, bit: &mut Bit, value: bool) -> bool {
        let cut = self.span.cut(bit.one);
        bit.learn(value);
        self.put(cut, value)
    }

    fn even(&mut self, value: bool) -> bool {
        self.put(self.span.cut(1 << 15), value)
    }
}

/// Reads. Any bytes are some numbers; behind their end are zeros.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    span: Span,
    at: u64,
    rest: &'a [u8],
}

impl<'a> Reading<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut reading = Self { span: Span::ALL, at: 0, rest: bytes };
        for _ in 0..8 {
            reading.next_byte();
        }
        reading
    }

    fn next_byte(&mut self) {
        let (first, rest) = self.rest.split_first().unwrap_or((&0, &[]));
        self.at = self.at << 8 | u64::from(*first);
        self.rest = rest;
    }

    fn get(&mut self, cut: u64) -> bool {
        let bit = self.at <= cut;
        self.span.take(cut, bit);
        while self.span.shift() {
            self.next_byte();
        }
        bit
    }
}

impl Coder for Reading<'_> {
    fn bit(&mut self, bit: &mut Bit, _: bool) -> bool {
        let value = self.get(self.span.cut(bit.one));
        bit.learn(value);
        value
    }

    fn even(&mut self, _: bool) -> bool {
        self.get(self.span.cut(1 << 15))
    }
}

/// Lengths in bits with a place of their own. Longer numbers share the last place.
const LENGTHS: usize = 20;

/// What is known of one number of each report: its mean, and how far it is from it.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    /// In sixteenths.
    mean: u64,
    /// Whether the number is longer than so many bits.
    longer: [Bit; LENGTHS],
    /// The bit behind the first, by the length.
    second: [Bit; LENGTHS],
    negative: Bit,
}

impl Cell {
    pub(super) const fn new() -> Self {
        let new = Bit::new();
        Self { mean: 0, longer: [new; LENGTHS], second: [new; LENGTHS], negative: new }
    }

    /// A number that is near its mean.
    pub(super) fn near_mean(&mut self, coder: &mut impl Coder, value: u64) -> u64 {
        // A small number is itself the best word for it.
        let guess = if self.mean < 8 << 4 { 0 } else { self.mean >> 4 };
        let value = self.near(coder, guess, value);
        let scaled = value.min(1 << 58) << 4;
        self.mean = if scaled > self.mean {
            self.mean + (scaled - self.mean).div_ceil(16)
        } else {
            self.mean - (self.mean - scaled) / 16
        };
        value
    }

    /// A number that is near this guess.
    pub(super) fn near(&mut self, coder: &mut impl Coder, guess: u64, value: u64) -> u64 {
        if guess == 0 {
            return self.size(coder, value);
        }
        guess.wrapping_add_signed(self.around_zero(coder, value.wrapping_sub(guess).cast_signed()))
    }

    /// A number that is small either way.
    pub(super) fn around_zero(&mut self, coder: &mut impl Coder, value: i64) -> i64 {
        let size = self.size(coder, value.unsigned_abs()).cast_signed();
        let negative = size != 0 && coder.bit(&mut self.negative, value < 0);
        if negative { size.wrapping_neg() } else { size }
    }

    fn size(&mut self, coder: &mut impl Coder, value: u64) -> u64 {
        let bits = 64 - value.leading_zeros();
        let mut length = 0;
        while length < 64 {
            let place = (length as usize).min(LENGTHS - 1);
            if !coder.bit(&mut self.longer[place], bits > length) {
                break;
            }
            length += 1;
        }
        let mut read = u64::from(length > 0);
        for left in (0..length.saturating_sub(1)).rev() {
            let bit = value >> left & 1 == 1;
            let bit = if left + 2 == length {
                coder.bit(&mut self.second[(length as usize).min(LENGTHS - 1)], bit)
            } else {
                coder.even(bit)
            };
            read = read << 1 | u64::from(bit);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(
        cells: &mut [Cell],
        coder: &mut impl Coder,
        (guess, value, small): (u64, u64, i64),
    ) -> (u64, i64) {
        let [mean, near, signed] = cells else { panic!("three cells") };
        let one = mean.near_mean(coder, value);
        assert_eq!(near.near(coder, guess, one), one);
        (one, signed.around_zero(coder, small))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            frames in prop::collection::vec(prop::collection::vec((any::<u64>(), 0u32..64, any::<i64>(), 0u32..64), 0..20), 1..20)
        ) {
            let (mut ours, mut theirs) = (vec![Cell::new(); 3], vec![Cell::new(); 3]);
            for frame in frames {
                let numbers = frame.iter().map(|(value, by, small, less)| (*value >> by ^ 5, value >> by, small >> less));
                let mut writing = Writing::new();
                for one in numbers.clone() {
                    through(&mut ours, &mut writing, one);
                }
                let bytes = writing.finish();
                let mut reading = Reading::new(&bytes);
                for (guess, value, small) in numbers {
                    let [mean, near, signed] = &mut theirs[..] else { panic!("three cells") };
                    prop_assert_eq!(mean.near_mean(&mut reading, 0), value);
                    prop_assert_eq!(near.near(&mut reading, guess, 0), value);
                    prop_assert_eq!(signed.around_zero(&mut reading, 0), small);
                }
            }
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut cell = Cell::new();
            let mut reading = Reading::new(&bytes);
            for _ in 0..200 {
                cell.near_mean(&mut reading, 0);
                cell.around_zero(&mut reading, 0);
            }
        }
    }

    #[test]
    fn what_never_changes_takes_next_to_nothing() {
        let mut cells = vec![Cell::new(); 100];
        let mut write = || {
            let mut writing = Writing::new();
            for cell in &mut cells {
                cell.near_mean(&mut writing, 0);
            }
            writing.finish().len()
        };
        let lengths: Vec<usize> = (0..200).map(|_| write()).collect();
        assert!(lengths[199] <= 1, "{lengths:?}");
    }
}
