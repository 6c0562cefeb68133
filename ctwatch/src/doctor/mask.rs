//! Takes addresses and names out of captured facts, so that they can be shown to strangers.

use std::net::IpAddr;

use super::facts::{Facts, Listing};

/// What may tell who the machine is or whom it talks to.
pub fn mask(facts: &mut Facts) {
    for namespace in &mut facts.namespaces {
        for listing in [&mut namespace.nft, &mut namespace.iptables, &mut namespace.ip6tables] {
            mask_listing(listing);
        }
    }
}

fn mask_listing(listing: &mut Listing) {
    for rule in &mut listing.rules {
        rule.text = mask_text(&rule.text);
    }
}

/// Every address and prefix becomes a word; quoted text, which is people's own, goes.
fn mask_text(text: &str) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    let mut quoted = false;
    for char in text.chars() {
        if char == '"' {
            quoted = !quoted;
            if quoted {
                flush(&mut word, &mut masked);
                masked.push_str("\"…\"");
            }
            continue;
        }
        if quoted {
            continue;
        }
        if char.is_ascii_alphanumeric() || ".:_".contains(char) {
            word.push(char);
        } else {
            flush(&mut word, &mut masked);
            masked.push(char);
        }
    }
    flush(&mut word, &mut masked);
    masked
}

fn flush(word: &mut String, masked: &mut String) {
    // With a port after it, as nft writes `dnat to 10.0.0.1:80`.
    let host = word.rsplit_once(':').map_or(word.as_str(), |(host, _)| host);
    if word.contains(['.', ':']) && (word.parse::<IpAddr>().is_ok() || host.parse::<IpAddr>().is_ok()) {
        masked.push_str("ADDRESS");
    } else {
        masked.push_str(word);
    }
    word.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_and_rules_stay_readable() {
        for (text, masked) in [
            ("ip saddr 10.1.2.3 ct state new accept", "ip saddr ADDRESS ct state new accept"),
            ("ip6 daddr fe80::1/64 drop", "ip6 daddr ADDRESS/64 drop"),
            (
                "ip daddr { 10.0.0.1, 10.0.0.2-10.0.0.9 } accept",
                "ip daddr { ADDRESS, ADDRESS-ADDRESS } accept",
            ),
            ("tcp dport 80 dnat to 10.0.0.1:8080", "tcp dport 80 dnat to ADDRESS"),
            (
                "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
                "POSTROUTING -s ADDRESS/16 ! -o docker0 -j MASQUERADE",
            ),
            (
                "iifname \"eth0.17\" ct state established comment \"for Ada\"",
                "iifname \"…\" ct state established comment \"…\"",
            ),
            (
                "udp dport 6881 limit rate 10/second burst 5 packets",
                "udp dport 6881 limit rate 10/second burst 5 packets",
            ),
            ("meta mark set 0x1", "meta mark set 0x1"),
        ] {
            assert_eq!(mask_text(text), masked);
        }
    }
}
