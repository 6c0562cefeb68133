//! Shorter lives for the entries that fill a table.

use std::collections::BTreeMap;

use super::{Setting, settings_at_boot};
use crate::doctor::checks::configured;
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::Remedy;
use crate::doctor::text::{duration, percent, share, thousands};
use crate::doctor::timeouts::{self, Timeout};

/// A timeout that could be shorter, and what that would free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Which.
    pub timeout: &'static Timeout,
    /// Its value now.
    pub now: u64,
    /// Entries that would have been gone with the proposed value.
    pub freed: u64,
}

/// Those that would free at least a tenth of the table, the most first.
pub fn excesses(namespace: &Namespace) -> Vec<Excess> {
    let mut freed: BTreeMap<&str, Excess> = BTreeMap::new();
    for group in &namespace.table.groups {
        let Some(timeout) = timeouts::of(group.proto, &group.state) else { continue };
        let Some(now) = namespace.sysctl(timeout.sysctl) else { continue };
        let Some(cut) = now.checked_sub(timeout.proposed) else { continue };
        let gone = group.left.get(&cut).copied().unwrap_or(0);
        let excess = freed.entry(timeout.sysctl).or_insert(Excess { timeout, now, freed: 0 });
        excess.freed = excess.freed.saturating_add(gone);
    }
    let mut excesses: Vec<Excess> = freed
        .into_values()
        .filter(|excess| excess.freed > 0 && excess.freed.saturating_mul(10) >= namespace.table.total)
        .collect();
    excesses.sort_by_key(|excess| std::cmp::Reverse(excess.freed));
    excesses
}

/// The command for one of them.
pub fn shorten(facts: &Facts, namespace: &Namespace, excess: &Excess) -> Remedy {
    let Excess { timeout, now, freed } = *excess;
    let remedy = Remedy {
        id: "shorter-timeout",
        what: format!(
            "Let {} go after {} instead of {}: frees about {} entries ({}) once those now in the table have run out",
            timeout.sysctl,
            duration(timeout.proposed),
            duration(now),
            thousands(freed),
            percent(share(freed, namespace.table.total))
        ),
        price: timeout.price.into(),
        ..Remedy::default()
    };
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let proposed = Setting { sysctl: timeout.sysctl, value: timeout.proposed };
    let mut undo = vec![Setting { value: now, ..proposed }.apply(place.as_ref())];
    let (mut persist, mut left_out) = (Vec::new(), Vec::new());
    // Files of settings are read for the first namespace alone.
    if namespace.own && namespace.limit_writable {
        let (keep, forget) = settings_at_boot(facts, timeout.sysctl, &[proposed]);
        persist = keep;
        undo.extend(forget);
        left_out.extend(configured::left_to_kube_proxy(facts, timeout.sysctl, now));
    }
    Remedy { commands: vec![proposed.apply(place.as_ref())], persist, undo, left_out, ..remedy }
}
