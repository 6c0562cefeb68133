//! The pure middle: flow types, samples, their difference, rates, totals and peaks.
//!
//! Nothing here reads a clock, a file or the kernel.

pub mod compare;
pub mod diff;
pub mod entry;
pub mod entry_filter;
pub mod filter;
pub mod forecast;
pub mod group_by;
pub mod held;
pub mod history;
pub mod holding;
pub mod incident;
pub mod invalid;
pub mod live;
pub mod protocol;
pub mod ranking;
pub mod sample;
pub mod series;
pub mod state;
pub mod table;
pub mod trace;
pub mod verdict;

pub use diff::{CostReport, Flow, Rates, Report, Tracker};
pub use filter::{Filter, Protocols};
pub use ranking::By;
pub use sample::{Cost, Sample, SourceInfo, SourceKind, Table};

use ctwatch_ebpf::{AF_INET, AF_INET6, FlowType};

/// The row of a namespace that counts what a source cannot give to a flow type, such as the kernel's own statistics,
/// which have none. Family and protocol are 0 and read `any`; the overflow row is the one of namespace 0.
pub const fn any_flow(netns: u32) -> FlowType {
    FlowType { netns, family: 0, proto: 0 }
}

/// The address family's name; rows without one, the overflow row among them, have family `any`.
pub const fn family_name(family: u8) -> &'static str {
    match family {
        AF_INET => "ipv4",
        AF_INET6 => "ipv6",
        0 => "any",
        _ => "other",
    }
}

/// The protocol's name as shown to users; the overflow row is `overflow`.
pub fn protocol_name(flow: FlowType) -> std::borrow::Cow<'static, str> {
    match flow {
        FlowType::OVERFLOW => "overflow".into(),
        FlowType { family: 0, .. } => "any".into(),
        _ => protocol::name(flow.proto),
    }
}
