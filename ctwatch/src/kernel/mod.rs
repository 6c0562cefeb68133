//! What this kernel is: facts read once, and what follows from them.

pub mod btf;
pub mod facts;
pub mod kallsyms;
pub mod plan;
pub mod plan_trace;
