//! `bench --million`: are the totals exact when it matters most?

use std::time::Duration;

use anyhow::{Result, bail};

use super::figure::{Figure, Million};
use crate::vm;
use crate::vm::boot::Guest;
use crate::vm::kernels;

/// The kernels it must hold on.
const KERNELS: [&str; 3] = ["6.1", "6.12", "7.3"];

/// Two mechanisms, three times a million flows each, on an emulated machine.
const GUEST_LIMIT: Duration = Duration::from_mins(40);

/// Runs it on these kernels, or on those that it must hold on.
pub(super) fn run(names: &[String]) -> Result<()> {
    let names: Vec<&str> =
        if names.is_empty() { KERNELS.to_vec() } else { names.iter().map(String::as_str).collect() };
    let kernels = names.into_iter().map(kernels::ensure).collect::<Result<Vec<_>>>()?;
    let initramfs = vm::prepare()?;
    let mut wrong = 0;
    for kernel in &kernels {
        let args = ["million", "fexit", "kprobe"].map(str::to_owned).to_vec();
        let measured = super::one(&Guest { limit: GUEST_LIMIT, ..Guest::new(kernel, &initramfs, args) })?;
        for figure in &measured.figures {
            match figure {
                Figure::Million(million) => wrong += usize::from(!show(&kernel.release, million)),
                other => bail!("{}: {other:?}", kernel.release),
            }
        }
        if measured.figures.is_empty() {
            bail!("{} measured nothing", kernel.release);
        }
    }
    if wrong > 0 {
        bail!("{wrong} runs differ by more than ctwatch says");
    }
    Ok(())
}

/// How much ctwatch's memory may grow while 900,000 more flows come, KiB: a few pages that were not needed yet, and
/// nothing for each flow.
const GROWTH: u64 = 64;

/// Prints both sides; whether they are equal, or differ in sum by exactly what ctwatch knows it lost, and
/// memory did not grow.
fn show(release: &str, million: &Million) -> bool {
    println!(
        "{release} {}: 1,000,000 flows in {:.0} s, lost {}",
        million.observer, million.seconds, million.lost
    );
    for (name, ctwatch, witness) in &million.sides {
        let mark = if ctwatch == witness { "=" } else { "≠" };
        println!("  {name}: {ctwatch} {mark} {witness}");
    }
    let exact = holds(million);
    if !exact {
        println!("  NOT exact, and lost does not account for it");
    }
    let [early, late] = million.memory;
    let flat = late <= early + GROWTH;
    println!("  memory after 100,000 flows and at the end: {early} and {late} KiB");
    if !flat {
        println!("  NOT flat");
    }
    exact && flat
}

/// Every event is one of insert, drop or delete: the other comparisons look at parts of these.
fn holds(million: &Million) -> bool {
    let missing: u64 = million.sides.iter().map(|(_, ctwatch, witness)| ctwatch.abs_diff(*witness)).sum();
    missing == 0 && million.lost == 0 || {
        let whole = ["insert,", "drop, and what", "delete,"];
        let parts = million.sides.iter().filter(|(name, ..)| whole.iter().any(|part| name.starts_with(part)));
        let missing: u64 = parts.map(|(_, ctwatch, witness)| witness.saturating_sub(*ctwatch)).sum();
        missing == million.lost && million.sides.iter().all(|(_, ctwatch, witness)| ctwatch <= witness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn million(lost: u64, insert: (u64, u64), drop: (u64, u64), delete: (u64, u64)) -> Million {
        let side = |name: &str, (ctwatch, witness): (u64, u64)| (name.to_owned(), ctwatch, witness);
        Million {
            observer: String::new(),
            lost,
            sides: vec![
                side("insert, and what the senders could send", insert),
                side("drop, and what the senders were refused", drop),
                side("delete, and inserts less entries left", delete),
            ],
            seconds: 0.0,
            memory: [0; 2],
        }
    }

    #[test]
    fn a_difference_must_be_what_was_lost() {
        assert!(holds(&million(0, (9, 9), (1, 1), (5, 5))));
        assert!(holds(&million(2, (8, 9), (1, 1), (4, 5))));
        assert!(!holds(&million(0, (8, 9), (1, 1), (5, 5))));
        assert!(!holds(&million(1, (9, 9), (1, 1), (5, 5))));
        assert!(!holds(&million(1, (10, 9), (1, 1), (5, 5))));
    }
}
