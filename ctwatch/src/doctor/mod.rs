//! Is connection tracking hurting this machine, why, and what to do about it.
//!
//! `gather` reads facts, `checks` turn them into findings, `remedies` write the commands. Only `gather` touches the
//! machine, and it changes nothing there.

pub mod checks;
pub mod command;
pub mod early;
pub mod explain;
pub mod facts;
pub mod finding;
pub mod gather;
pub mod kube_proxy;
pub mod latency;
pub mod mask;
pub mod nat;
pub mod recorded;
pub mod remedies;
pub mod text;
pub mod timeouts;
pub mod way;

pub use checks::diagnose;
pub use command::{Arg, Call, Command};
pub use facts::Facts;
pub use finding::{Diagnosis, Finding, Remedy, Status};

#[cfg(test)]
mod mutation_tests;
