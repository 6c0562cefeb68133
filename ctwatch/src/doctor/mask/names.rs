//! What stands for each name and address: the same one for the same, everywhere in a capture.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::doctor::command::Arg;

const NAME: &str = "name_";
const MAC: &str = "mac_";
/// Follows where the name had characters that no command takes.
const UNSAFE: char = '…';
/// A longer number is no mask.
const DIGITS: usize = 9;

/// Names that the kernel, iptables and ctwatch itself give, or that most rulesets have.
const KEPT: [&str; 19] = [
    "init",
    "lo",
    "filter",
    "nat",
    "mangle",
    "raw",
    "security",
    "INPUT",
    "OUTPUT",
    "FORWARD",
    "PREROUTING",
    "POSTROUTING",
    "input",
    "output",
    "forward",
    "prerouting",
    "postrouting",
    "ingress",
    "egress",
];

/// All masks given so far.
#[derive(Debug, Default)]
pub(super) struct Masks {
    names: BTreeMap<String, String>,
    macs: BTreeMap<String, String>,
    addresses: BTreeMap<IpAddr, IpAddr>,
    /// Numbers up to this one are taken by names that look like masks.
    taken: u64,
}

impl Masks {
    /// For a text in which some names may be masked already, or look as if they were.
    pub(super) fn beside(text: &str) -> Self {
        let numbers = text.split(NAME).skip(1).filter_map(|rest| {
            let end = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end.min(DIGITS)].parse().ok()
        });
        Self { taken: numbers.max().unwrap_or(0), ..Self::default() }
    }

    /// What stands for a name.
    pub(super) fn name(&mut self, name: &str) -> String {
        if name.is_empty() || KEPT.contains(&name) || is_mask(name) {
            return name.to_owned();
        }
        let number = self.taken + self.names.len() as u64 + 1;
        let mark = if Arg::nft_name(name).is_ok() { String::new() } else { UNSAFE.to_string() };
        self.names.entry(name.to_owned()).or_insert_with(|| format!("{NAME}{number}{mark}")).clone()
    }

    /// What stands for a MAC address.
    pub(super) fn mac(&mut self, mac: &str) -> String {
        let number = self.macs.len() + 1;
        self.macs.entry(mac.to_ascii_lowercase()).or_insert_with(|| format!("{MAC}{number}")).clone()
    }

    /// What stands for an address: one of a range that no machine has (0.0.0.0/8, and 100::/64 of RFC 6666).
    pub(super) fn address(&mut self, address: IpAddr) -> IpAddr {
        let says_nothing = match address {
            IpAddr::V4(v4) => v4 == Ipv4Addr::LOCALHOST || v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => {
                v6.is_loopback() || v6.is_unspecified() || v6.segments()[..4] == [0x100, 0, 0, 0]
            }
        };
        if says_nothing {
            return address;
        }
        let number = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
        *self.addresses.entry(address).or_insert(match address {
            IpAddr::V4(_) => Ipv4Addr::from_bits(number & 0x00ff_ffff).into(),
            IpAddr::V6(_) => {
                let prefix = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0).to_bits();
                Ipv6Addr::from_bits(prefix | u128::from(number)).into()
            }
        })
    }

    /// The mask of a name that was met before.
    pub(super) fn known(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(String::as_str)
    }

    /// Every name that has a mask, the longest first.
    pub(super) fn known_names(&self) -> Vec<(&str, &str)> {
        let mut names: Vec<(&str, &str)> =
            self.names.iter().map(|(name, mask)| (name.as_str(), mask.as_str())).collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        names
    }
}

fn is_mask(name: &str) -> bool {
    let number = [NAME, MAC].into_iter().find_map(|prefix| name.strip_prefix(prefix));
    number.map(|number| number.strip_suffix(UNSAFE).unwrap_or(number)).is_some_and(|number| {
        (1..=DIGITS).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}
