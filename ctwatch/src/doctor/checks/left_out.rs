//! What doctor did not look at, although it is there: a limit of its own was reached.

use crate::doctor::facts::{Facts, Listing, ListingState, Namespace};
use crate::doctor::finding::{Finding, Status};
use crate::doctor::text::thousands;

/// So many listings are named, the rest counted.
const NAMED: usize = 8;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    namespaces(facts).into_iter().chain(rules(facts)).collect()
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

/// Rules that were read and only counted leave the status ok. A listing that was ended makes it unknown.
fn rules(facts: &Facts) -> Option<Finding> {
    let tools = ["nft", "iptables", "ip6tables"];
    let listings = || {
        let of =
            |namespace| tools.into_iter().zip(Namespace::listings(namespace)).map(move |of| (namespace, of));
        facts.namespaces.iter().flat_map(of)
    };
    let cut = listings().filter(|(_, (_, listing))| listing.cut).map(|(namespace, (_, listing))| {
        format!("namespace {} (inode {}): {}", namespace.name, namespace.netns, why(listing))
    });
    let cut: Vec<String> = cut.collect();
    let counted = listings().filter(|(_, (_, listing))| listing.left_out > 0);
    let counted: Vec<String> = counted
        .map(|(namespace, (tool, listing))| {
            format!(
                "namespace {} (inode {}): {tool}: {} rules kept, {} counted only",
                namespace.name,
                namespace.netns,
                listing.rules.len(),
                listing.left_out
            )
        })
        .collect();
    let (status, what) = match (cut.len(), counted.len()) {
        (0, 0) => return None,
        (0, _) => (Status::Ok, "there are more rules that need tracking than ctwatch keeps".to_owned()),
        (1, _) => (Status::Unknown, format!("not all rules could be read: {}", cut[0])),
        (many, _) => (Status::Unknown, format!("not all rules could be read: {many} listings were ended")),
    };
    Some(
        Finding::new(
            "rules-left-out",
            status,
            what,
            "What keeps tracking on is known in part only, so there is no list of commands that switches it off. Counts and \
             limits are not affected.",
        )
        .seen("not_read", shortened(cut), "listing the rules")
        .seen("counted", shortened(counted), "listing the rules"),
    )
}

fn why(listing: &Listing) -> &str {
    match &listing.state {
        ListingState::Unreadable(why) => why,
        _ => "the listing was ended",
    }
}

fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(NAMED);
    lines.truncate(NAMED);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}
