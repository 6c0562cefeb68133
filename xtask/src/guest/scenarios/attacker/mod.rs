//! A user without privileges on the same machine, in namespaces of their own: ctwatch lives and counts exactly.

mod capture;
mod characters;
mod crowd;
mod facts;
mod names;
mod netlink;
mod path;
mod rules;

use super::{Scenario, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("attacker::facts", facts::no_addresses),
    scenario("attacker::netlink", netlink::forged_messages),
    scenario("attacker::counting", netlink::while_counting),
    scenario("attacker::nft_names", names::nft_names),
    scenario("attacker::xt_comment", names::xt_comment),
    scenario("attacker::another_namespace", names::another_namespace),
    scenario("attacker::characters", characters::in_every_name),
    scenario("attacker::capture_files", capture::into_files),
    scenario("attacker::capture_masked", capture::masked),
    scenario("attacker::child_path", path::of_the_caller),
    scenario("attacker::child_rights", path::of_a_child),
    scenario("attacker::child_reaches_rules", path::of_a_strangers_namespace),
    scenario("attacker::many_rules", rules::many_rules),
];

/// The kernel takes minutes to take so many namespaces down.
pub(super) const SCENARIOS_LAST: &[Scenario] =
    &[scenario("attacker::many_namespaces", crowd::many_namespaces)];
