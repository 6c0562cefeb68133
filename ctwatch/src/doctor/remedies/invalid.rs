//! What to do about invalid packets that a rule drops.

use std::collections::BTreeMap;

use ctwatch_ebpf::Event;

use super::{Setting, settings_at_boot};
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::Remedy;

/// By reason, the one that concerns most packets first.
pub fn remedies(facts: &Facts, namespace: &Namespace, reasons: &BTreeMap<Event, u64>) -> Vec<Remedy> {
    let count = |event: Event| reasons.get(&event).copied().unwrap_or(0);
    let mut found: Vec<(u64, Remedy)> = Vec::new();
    let window = count(Event::InvalidOutOfWindow);
    if window > 0 && namespace.sysctl("tcp_be_liberal") == Some(0) {
        let setting = Setting { sysctl: "tcp_be_liberal", value: 1 };
        let remedy = Remedy {
            id: "tcp-be-liberal",
            what: "Let tracking accept TCP segments outside the window".into(),
            price: "resets outside the window stay invalid, all other segments of a known connection pass, forged ones too; \
                    if the two directions of a connection take different routes, or a card merges segments (ethtool -k: \
                    generic-receive-offload, large-receive-offload), mend that first"
                .into(),
            ..Remedy::default()
        };
        found.push((window, set(facts, namespace, setting, 0, remedy)));
    }
    let sums = count(Event::InvalidBadChecksum);
    if sums > 0 && namespace.sysctl("checksum") == Some(1) {
        let setting = Setting { sysctl: "checksum", value: 0 };
        let remedy = Remedy {
            id: "no-checksums",
            what: "Leave checksums to the receiver: tracking does not look at them".into(),
            price: "damaged packets may open entries; a sender or a virtual network card that leaves checksums to hardware \
                    (ethtool -k: tx-checksumming) is the usual cause, and the better place to mend it"
                .into(),
            ..Remedy::default()
        };
        found.push((sums, set(facts, namespace, setting, 1, remedy)));
    }
    let strangers = count(Event::InvalidOther).saturating_add(count(Event::InvalidBadState));
    if strangers > 0 && namespace.sysctl("tcp_loose") == Some(0) {
        let setting = Setting { sysctl: "tcp_loose", value: 1 };
        let remedy = Remedy {
            id: "tcp-loose",
            what:
                "Let tracking pick up TCP connections in the middle, as after a reboot or a change of route"
                    .into(),
            price: "a bare segment opens an entry, so scans fill the table faster; SYNPROXY needs it off"
                .into(),
            ..Remedy::default()
        };
        found.push((strangers, set(facts, namespace, setting, 0, remedy)));
    }
    found.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    found.into_iter().map(|(_, remedy)| remedy).collect()
}

fn set(facts: &Facts, namespace: &Namespace, setting: Setting, now: u64, remedy: Remedy) -> Remedy {
    let place = match namespace.place() {
        Ok(place) => place,
        Err(why) => return remedy.without(namespace, why),
    };
    let mut undo = vec![Setting { value: now, ..setting }.apply(place.as_ref())];
    let mut persist = Vec::new();
    // Files of settings are read for the first namespace alone.
    if namespace.own && namespace.limit_writable {
        let (keep, forget) = settings_at_boot(facts, setting.sysctl, &[setting]);
        persist = keep;
        undo.extend(forget);
    }
    Remedy { commands: vec![setting.apply(place.as_ref())], persist, undo, ..remedy }
}
