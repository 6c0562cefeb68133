//! What this kernel is: facts read once, and what follows from them.

pub mod arch;
pub mod bpf;
pub mod btf;
pub mod facts;
pub mod held;
pub mod hooks;
pub mod kallsyms;
pub mod kcore;
mod lookup;
pub mod module_symbols;
pub mod obstacles;
pub mod plan;
mod plan_kprobe;
pub mod plan_latency;
pub mod plan_trace;
mod preemption;
