//! What a table holds: by protocol and state, how many would go with a shorter timeout, and by destination port.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use ctwatch_ebpf::loss::has_ports;

use super::translations::Translations;
use crate::doctor::facts::{Group, Port, TableView};
use crate::doctor::timeouts::{self, TIMEOUTS, Timeout};
use crate::model::held::{Reading, held};
use crate::model::state::State;
use crate::source::netlink::entry::{self, L4, status};
use crate::source::netlink::message::CT_GET;
use crate::source::netlink::socket::{Dumped, Requests};
use crate::source::netlink::statistics;

/// How many ports are kept.
const PORTS: usize = 10;

/// What one entry says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// L4 protocol number.
    pub proto: u8,
    /// The tracker's state, where the protocol has one.
    pub state: Option<&'a str>,
    /// Whether an answer was seen.
    pub replied: bool,
    /// Whether `early_drop` must leave it alone.
    pub assured: bool,
    /// Seconds to live; an offloaded entry has none.
    pub left: Option<u64>,
    /// Destination port of the original direction.
    pub port: Option<u16>,
}

/// Adds entries up; bounded by protocols times ports.
#[derive(Debug)]
pub struct Collector {
    /// Of each timeout that could be shortened: between how many seconds left an entry would be gone.
    cuts: BTreeMap<&'static str, Cut>,
    groups: BTreeMap<(u8, String), Group>,
    ports: BTreeMap<(u8, u16), Port>,
    translations: Translations,
    total: u64,
}

/// Which entries a shorter timeout would have ended, by the seconds that each has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// With no more than this, another timeout may be the one in force, and the entry goes that soon anyway.
    above: u64,
    /// With less than this it would be gone.
    below: u64,
}

impl Cut {
    /// What an entry of another timeout than its state's can have left at most. A TCP entry in whatever state lives by the
    /// shorter ones while data is not acknowledged, after too many retransmissions, and where no answer was ever seen
    /// (`nf_conntrack_tcp_packet`, 5.10 to 7.3; which of these it was is in no list).
    fn new(
        timeout: &Timeout,
        sysctls: &BTreeMap<String, u64>,
        policies: bool,
    ) -> Option<(&'static str, Self)> {
        let sysctl = |name: &str| sysctls.get(&format!("nf_conntrack_{name}")).copied();
        let now = sysctl(timeout.sysctl)?;
        let shorter = ["tcp_timeout_unacknowledged", "tcp_timeout_max_retrans"]
            .into_iter()
            .filter(|_| timeout.proto == TCP)
            .filter_map(sysctl)
            .filter(|shorter| *shorter < now);
        let above = shorter.chain(policies.then_some(u64::MAX)).max().unwrap_or(0);
        Some((timeout.sysctl, Self { above, below: now.checked_sub(timeout.proposed)? }))
    }

    const fn takes(self, left: u64) -> bool {
        // Nothing else is in force where nothing is above.
        (self.above == 0 || left > self.above) && left < self.below
    }
}

const TCP: u8 = 6;

impl Collector {
    /// With the timeouts in force, by the sysctl's full name, and whether rules give some entries others.
    pub fn new(sysctls: &BTreeMap<String, u64>, policies: bool) -> Self {
        let cuts = TIMEOUTS.iter().filter_map(|timeout| Cut::new(timeout, sysctls, policies));
        Self {
            cuts: cuts.collect(),
            groups: BTreeMap::new(),
            ports: BTreeMap::new(),
            translations: Translations::default(),
            total: 0,
        }
    }

    /// Counts translated flows, too.
    #[must_use]
    pub fn with_translations(mut self, translations: Translations) -> Self {
        self.translations = translations;
        self
    }

    /// Counts one entry.
    pub fn add(&mut self, entry: Entry<'_>) {
        let state = entry.state.unwrap_or(match (entry.assured, entry.replied) {
            (true, _) => "assured",
            (false, true) => "replied",
            (false, false) => "unreplied",
        });
        self.total += 1;
        let group = self.groups.entry((entry.proto, state.to_owned())).or_insert_with(|| Group {
            proto: entry.proto,
            state: state.to_owned(),
            ..Group::default()
        });
        group.count += 1;
        group.unreplied += u64::from(!entry.replied);
        group.assured += u64::from(entry.assured);
        let cut = timeouts::of(entry.proto, state).and_then(|timeout| self.cuts.get(timeout.sysctl));
        if let (Some(cut), Some(left)) = (cut, entry.left) {
            *group.left.entry(cut.below).or_default() += u64::from(cut.takes(left));
        }
        // GRE's keys look like ports.
        if let Some(port) = entry.port.filter(|_| has_ports(entry.proto)) {
            let sum = self.ports.entry((entry.proto, port)).or_insert_with(|| Port {
                proto: entry.proto,
                port,
                ..Port::default()
            });
            sum.count += 1;
            sum.unreplied += u64::from(!entry.replied);
        }
    }

    /// The sums, read from there.
    pub fn finish(self, from: &str) -> TableView {
        let (translated, stale) = (self.translations.fullest(), self.translations.stale());
        let mut groups: Vec<Group> = self.groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        let mut ports: Vec<Port> = self.ports.into_values().collect();
        ports.sort_by_key(|port| std::cmp::Reverse(port.count));
        ports.truncate(PORTS);
        TableView {
            translated,
            stale,
            unseen: None,
            from: from.to_owned(),
            total: self.total,
            counted: None,
            held: None,
            groups,
            ports,
        }
    }
}

/// Reads the calling thread's namespace from procfs; `None` where the kernel has no such file
/// (CONFIG_NF_CONNTRACK_PROCFS).
pub fn from_procfs(mut collector: Collector) -> io::Result<Option<TableView>> {
    const FILE: &str = "/proc/thread-self/net/nf_conntrack";
    let file = match File::open(Path::new(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if let Some(entry) = parse(&line) {
            collector.add(entry);
        }
        line.clear();
    }
    Ok(Some(collector.finish("/proc/net/nf_conntrack")))
}

/// Dumps the calling thread's namespace over ctnetlink, which must be there already: asking would load it.
pub fn from_netlink(mut collector: Collector) -> io::Result<TableView> {
    let mut requests = Requests::open()?;
    let before = statistics::entries(&mut requests).ok();
    let dumped = requests.dump(CT_GET, 0, |message| {
        if let Some(entry) = entry::Entry::parse(message) {
            collector.translations.add(&entry);
            collector.add(Entry {
                proto: entry.original.proto,
                state: entry.state.and_then(|number| state_name(entry.original.proto, number)),
                replied: entry.status & status::SEEN_REPLY != 0,
                assured: entry.status & status::ASSURED != 0,
                left: entry.timeout.map(u64::from),
                port: match entry.original.l4 {
                    L4::Ports { dst, .. } => Some(dst),
                    L4::Icmp { .. } | L4::None => None,
                },
            });
        }
        ControlFlow::Continue(())
    })?;
    let mut view = collector.finish("dump by ctnetlink");
    if let (Some(before), Ok(after), Dumped::Complete) = (before, statistics::entries(&mut requests), dumped)
    {
        let first = Reading { before, listed: view.total, after };
        let readings = match first.missing() {
            0 => vec![first],
            _ => vec![first, count_again(&mut requests, after)?],
        };
        view.counted = Some(after);
        view.held = held(&readings);
    }
    Ok(view)
}

/// Walks the table once more, only to count.
fn count_again(requests: &mut Requests, before: u64) -> io::Result<Reading> {
    let mut listed = 0;
    requests.dump(CT_GET, 0, |_| {
        listed += 1;
        ControlFlow::Continue(())
    })?;
    Ok(Reading { before, listed, after: statistics::entries(requests)? })
}

/// The state behind a tracker's number, by the name that procfs writes.
fn state_name(proto: u8, number: u8) -> Option<&'static str> {
    Some(State::tracked(proto, number)).filter(|state| *state != State::Unknown).map(State::name)
}

/// A line such as `ipv4 2 tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=… src=… [ASSURED] mark=0 use=2`.
fn parse(line: &str) -> Option<Entry<'_>> {
    let mut words = line.split_whitespace().skip(3);
    let proto = words.next()?.parse().ok()?;
    let mut words = words.peekable();
    let left = words.peek().and_then(|word| word.parse().ok());
    if left.is_some() {
        words.next();
    }
    let state = words.peek().copied().filter(|word| !word.contains('=') && !word.starts_with('['));
    let mut entry = Entry { proto, state, replied: true, assured: false, left, port: None };
    for word in words {
        match word {
            "[UNREPLIED]" => entry.replied = false,
            "[ASSURED]" => entry.assured = true,
            _ => {
                if entry.port.is_none() {
                    entry.port = word.strip_prefix("dport=").and_then(|port| port.parse().ok());
                }
            }
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_procfs_are_understood() {
        let tcp = "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=443 \
                   src=10.0.0.2 dst=10.0.0.1 sport=443 dport=40000 [ASSURED] mark=0 zone=0 use=2";
        let expected = Entry {
            proto: 6,
            state: Some("ESTABLISHED"),
            replied: true,
            assured: true,
            left: Some(431_999),
            port: Some(443),
        };
        assert_eq!(parse(tcp), Some(expected));
        let udp = "ipv6     10 udp      17 29 src=::1 dst=::1 sport=5 dport=6881 [UNREPLIED] src=::1 dst=::1 sport=6881 dport=5 mark=0 use=2";
        let expected = Entry {
            proto: 17,
            state: None,
            replied: false,
            assured: false,
            left: Some(29),
            port: Some(6881),
        };
        assert_eq!(parse(udp), Some(expected));
        let offloaded = "ipv4     2 tcp      6 src=1.1.1.1 dst=2.2.2.2 sport=5 dport=6 src=2.2.2.2 dst=1.1.1.1 sport=6 dport=5 [OFFLOAD] mark=0 use=3";
        let parsed = parse(offloaded).unwrap();
        assert_eq!((parsed.left, parsed.state, parsed.port), (None, None, Some(6)));
        let icmp = "ipv4     2 icmp     1 29 src=1.1.1.1 dst=2.2.2.2 type=8 code=0 id=7 src=2.2.2.2 dst=1.1.1.1 type=0 code=0 id=7 mark=0 use=2";
        assert_eq!(parse(icmp).unwrap().port, None);
        assert_eq!(parse("nonsense"), None);
    }

    /// Bare segments of unknown connections are ESTABLISHED, and live by another timeout.
    #[test]
    fn entries_of_another_timeout_are_not_freed() {
        let timeouts = [("established", 432_000), ("unacknowledged", 300), ("max_retrans", 300)];
        let sysctls =
            timeouts.map(|(name, seconds)| (format!("nf_conntrack_tcp_timeout_{name}"), seconds)).into();
        let freed = |policies: bool| {
            let mut collector = Collector::new(&sysctls, policies);
            for left in [1, 299, 300, 301, 3600, 3601, 424_559, 424_560, 431_000] {
                let entry = Entry {
                    proto: 6,
                    state: Some("ESTABLISHED"),
                    replied: false,
                    assured: false,
                    left: Some(left),
                    port: None,
                };
                collector.add(entry);
            }
            collector.finish("here").groups[0].left[&424_560]
        };
        assert_eq!([freed(false), freed(true)], [4, 0]);
    }

    #[test]
    fn what_a_shorter_timeout_frees_is_counted_exactly() {
        let sysctls = BTreeMap::from([("nf_conntrack_udp_timeout".to_owned(), 30)]);
        let mut collector = Collector::new(&sysctls, false);
        for left in [1, 19, 20, 29] {
            let entry = Entry {
                proto: 17,
                state: None,
                replied: false,
                assured: false,
                left: Some(left),
                port: Some(53),
            };
            collector.add(entry);
        }
        let view = collector.finish("here");
        assert_eq!(view.groups[0].left, BTreeMap::from([(20, 2)]));
        assert_eq!(view.ports, [Port { proto: 17, port: 53, count: 4, unreplied: 4 }]);
    }
}
