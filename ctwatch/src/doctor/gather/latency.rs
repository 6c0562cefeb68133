//! Timing tracking, where somebody asked for it.

use super::{Presence, Wishes};
use crate::doctor::latency::{Latency, Receive};
use crate::source::latency::measure;

/// Times for as long as wished; what keeps it from that is told, and no error.
pub async fn read(wishes: &Wishes, conntrack: Presence) -> Option<Latency> {
    let length = wishes.latency?;
    if conntrack == Presence::Absent {
        return Some(Latency::default());
    }
    let announce = || (wishes.announce)(&format!("timing packets for {} s", length.as_secs_f64()));
    Some(match measure(length, wishes.source, announce).await {
        Err(error) => Latency { refused: Some(format!("{error:#}")), ..Latency::default() },
        Ok(measured) => Latency {
            refused: None,
            source: Some(measured.kind),
            why: measured.why,
            seconds: measured.seconds,
            tracking: (&measured.tracking).into(),
            confirm: (&measured.confirm).into(),
            floor: (&measured.floor).into(),
            receive: measured
                .receive
                .map(|receive| Receive { total_ns: receive.total_ns, tracking_ns: receive.tracking_ns }),
        },
    })
}
