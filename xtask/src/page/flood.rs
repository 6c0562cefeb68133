//! A recording of the demonstration's flood, made in a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step::tail;

const KERNEL: &str = "6.12";
const BEGIN: &str = "recording begins";
const END: &str = "recording ends";
/// Long enough for all parts of the demonstration. The recording comes out through the guest's terminal.
const COMMAND: &str = "ctwatch record /tmp/flood.ctw -i 0.2 & recorder=$!; \
    /init guest demo --seconds 8 -- --plain >/dev/null; \
    kill -INT $recorder; wait $recorder && echo recording begins && base64 /tmp/flood.ctw && echo recording ends";

/// Boots a guest, and leaves the recording in `scratch`.
pub(super) fn record(scratch: &Path) -> Result<PathBuf> {
    let xtask = std::env::current_exe().context("cannot find xtask")?;
    let ended =
        Command::new(xtask).args(["vm", KERNEL, "--", COMMAND]).output().context("cannot start xtask")?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let encoded = said.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let Some((encoded, _)) = encoded.filter(|_| ended.status.success()) else {
        bail!(
            "no recording came out of the guest: {}\n{}",
            tail(&said, 10),
            String::from_utf8_lossy(&ended.stderr)
        );
    };
    let recording = scratch.join("guest.ctw");
    decode(encoded, &recording)?;
    Ok(recording)
}

/// From base64 to a file.
pub(super) fn decode(encoded: &str, file: &Path) -> Result<()> {
    let text = file.with_extension("base64");
    // A terminal ends its lines with CR LF.
    fs::write(&text, encoded.replace('\r', ""))?;
    let to = fs::File::create(file)?;
    let status = Command::new("base64").arg("--decode").arg(&text).stdout(to).status();
    let status = status.context("cannot start base64")?;
    fs::remove_file(&text)?;
    ensure!(status.success(), "base64: {status}");
    Ok(())
}
