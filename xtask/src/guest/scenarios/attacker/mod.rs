//! A user without privileges on the same machine, in namespaces of their own: ctwatch lives and counts exactly.

mod facts;
mod netlink;

use super::{Scenario, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("attacker::facts", facts::no_addresses),
    scenario("attacker::netlink", netlink::forged_messages),
];
