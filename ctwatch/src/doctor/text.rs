//! Numbers as people read them.

/// `262144` as `262,144`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A name as a sentence has room for it: a stranger's may be as long as the kernel lets it be.
pub fn short(name: &str) -> String {
    const MOST: usize = 48;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// A sum that stays at the largest number: a capture may hold any.
pub fn sum(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

/// A rate, with a fraction only where it is small.
pub fn rate(per_second: f64) -> String {
    if per_second >= 10.0 || per_second == 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and rates are not negative"
        )]
        thousands(per_second.round() as u64)
    } else {
        format!("{per_second:.1}")
    }
}

/// A share as `12 %`, or `0.3 %` where it is small.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    // What is not quite full must not read as full.
    if (99.5..100.0).contains(&percent) {
        return ">99 %".into();
    }
    if percent == 0.0 || percent >= 10.0 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// Part of a whole; 0 of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Seconds as `45 s`, `3 min`, `5 h` or `2 days`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A short time as `512 ns`, `17 µs`, `17 ms`; rounded up, since it mostly follows “less than”.
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{} ns", thousands(ns)),
        10_000..10_000_000 => format!("{} µs", thousands(ns.div_ceil(1000))),
        _ => format!("{} ms", thousands(ns.div_ceil(1_000_000))),
    }
}

/// Bytes as `512 B`, `120 KiB`, `1.5 MiB`, `64 MiB`, `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const TEN_MIB: u64 = 10 * MIB;
    const GIB: u64 = 1 << 30;
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{} KiB", bytes / KIB),
        MIB..TEN_MIB => format!("{:.1} MiB", bytes as f64 / MIB as f64),
        TEN_MIB..GIB => format!("{} MiB", bytes / MIB),
        _ => format!("{:.1} GiB", bytes as f64 / GIB as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(short("input"), "input");
        assert_eq!(short(&"é".repeat(48)), "é".repeat(48));
        assert_eq!(short(&"é".repeat(49)), "é".repeat(48) + "…");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(262_144), "262,144");
        assert_eq!(thousands(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!((rate(0.0), rate(0.25), rate(1234.4)), ("0".into(), "0.2".into(), "1,234".into()));
        assert_eq!(
            (percent(0.0), percent(0.003), percent(0.987)),
            ("0 %".into(), "0.3 %".into(), "99 %".into())
        );
        assert_eq!((percent(0.9999), percent(1.0)), (">99 %".into(), "100 %".into()));
        assert_eq!(
            (duration(119), duration(120), duration(432_000)),
            ("119 s".into(), "2 min".into(), "5 days".into())
        );
        assert_eq!(
            (nanoseconds(2048), nanoseconds(16_384), nanoseconds(16_777_216)),
            ("2,048 ns".into(), "17 µs".into(), "17 ms".into())
        );
        assert_eq!(
            (bytes(512), bytes(3 << 20), bytes(3 << 29)),
            ("512 B".into(), "3.0 MiB".into(), "1.5 GiB".into())
        );
    }
}
