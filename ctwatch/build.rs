//! Puts the eBPF object, built beforehand by `cargo xtask build`, where the crate embeds it.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CTWATCH_EBPF_OBJECT");
    let object = env::var_os("CTWATCH_EBPF_OBJECT")
        .map(PathBuf::from)
        .ok_or("CTWATCH_EBPF_OBJECT is not set: build inside the checkout, by `cargo xtask build`")?;
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).map_err(|error| {
        format!("no eBPF object at {} ({error}): run `cargo xtask build` first", object.display())
    })?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    fs::write(out.join("ctwatch-ebpf"), bytes)?;
    Ok(())
}
