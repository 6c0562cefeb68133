#![no_main]
//! See `kube_proxy` in `targets.rs`.

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::kube_proxy(data));
