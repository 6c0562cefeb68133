//! The pure middle: flow types, samples, their difference, rates, totals and peaks.
//!
//! Nothing here reads a clock, a file or the kernel.

pub mod diff;
pub mod filter;
pub mod protocol;
pub mod sample;

pub use diff::{CostReport, Flow, Rates, Report, Tracker};
pub use filter::{Filter, Protocols};
pub use sample::{Cost, Sample, SourceInfo, SourceKind, Table};

use ctwatch_ebpf::{AF_INET, AF_INET6, FlowType};

/// The address family's name; the overflow row has family `other`.
pub const fn family_name(family: u8) -> &'static str {
    match family {
        AF_INET => "ipv4",
        AF_INET6 => "ipv6",
        _ => "other",
    }
}

/// The protocol's name as shown to users; the overflow row is `overflow`.
pub fn protocol_name(flow: FlowType) -> std::borrow::Cow<'static, str> {
    if flow == FlowType::OVERFLOW { "overflow".into() } else { protocol::name(flow.proto) }
}
