//! What is meant for bug reports gives nothing away.

use anyhow::Context;

use super::super::super::ctwatch::run;
use super::super::super::modules;

/// Where the kernel's half of the addresses begins, with 5-level page tables too.
const KERNEL: u64 = 0xff00_0000_0000_0000;

/// No number that `facts` prints is an address of the kernel, although it can see them.
pub(super) fn no_addresses() -> anyhow::Result<()> {
    modules::load()?;
    let output = run(&["facts"])?;
    anyhow::ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let facts: serde_json::Value = serde_json::from_str(&text)?;
    anyhow::ensure!(facts["symbols"]["hidden"] == false, "the kernel hides its addresses here");
    let callers = facts["symbols"]["callers"].as_array().context("callers")?;
    anyhow::ensure!(!callers.is_empty(), "no caller was found: {text}");
    let numbers = text.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok());
    let address = numbers.into_iter().find(|number: &u64| *number >= KERNEL);
    anyhow::ensure!(address.is_none(), "{address:x?} is an address of the kernel");
    Ok(())
}
