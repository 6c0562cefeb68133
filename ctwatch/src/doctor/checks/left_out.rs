//! What doctor did not look at, although it is there: a limit of its own was reached.

use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, Status};
use crate::doctor::text::thousands;

pub fn check(facts: &Facts) -> Vec<Finding> {
    namespaces(facts).into_iter().collect()
}

fn namespaces(facts: &Facts) -> Option<Finding> {
    let left_out = facts.namespaces_left_out;
    let looked_at = facts.namespaces.len() as u64;
    (left_out > 0).then(|| {
        Finding::new(
            "namespaces-left-out",
            Status::Unknown,
            format!(
                "{} of {} network namespaces were not looked at",
                thousands(left_out),
                thousands(left_out.saturating_add(looked_at))
            ),
            "Their tables may be full: nothing here says anything about them. To look at one of them, name it with --netns.",
        )
        .seen("left_out", left_out, "the search for namespaces")
        .seen("looked_at", looked_at, "the search for namespaces")
    })
}
