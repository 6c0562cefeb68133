//! What concerns the whole machine: modules, programs, configuration, memory.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use super::child;
use crate::doctor::facts::{Module, Program, Slab, Tools};
use crate::source::netlink::presence;

/// Programs by the kernel's 15-byte name for them, and why they matter here.
pub const PROGRAMS: [(&str, &str); 24] = [
    ("dockerd", "publishes ports and masquerades containers with NAT rules"),
    ("kube-proxy", "turns services into NAT rules or IPVS"),
    ("k3s-server", "contains kube-proxy: turns services into NAT rules"),
    ("k3s-agent", "contains kube-proxy: turns services into NAT rules"),
    ("kubelet", "keeps iptables chains for pods"),
    ("cilium-agent", "may masquerade pods with NAT rules"),
    ("calico-node", "writes policies as stateful rules"),
    ("flanneld", "masquerades pods with NAT rules"),
    ("antrea-agent", "writes policies as Open vSwitch ct() flows"),
    ("ovs-vswitchd", "Open vSwitch: flows with ct() track"),
    ("ovn-controller", "writes Open vSwitch ct() flows"),
    ("firewalld", "writes stateful rules and NAT"),
    ("libvirtd", "masquerades its networks with NAT rules"),
    ("virtnetworkd", "masquerades its networks with NAT rules"),
    ("NetworkManager", "masquerades shared connections with NAT rules"),
    ("systemd-network", "masquerades where a .network file asks for it"),
    ("lxd", "masquerades its bridges with NAT rules"),
    ("incusd", "masquerades its bridges with NAT rules"),
    ("tailscaled", "writes stateful rules and NAT"),
    ("conntrackd", "listens to connection tracking: it loads nf_conntrack_netlink and asks for events"),
    ("conntrack", "listens to connection tracking: the kernel prepares events for it"),
    ("keepalived", "may set up IPVS, which can track"),
    ("fail2ban-server", "writes rules that may be stateful"),
    ("crowdsec-firewa", "writes rules that may be stateful"),
];

/// Which kernel parts are there, so that asking them loads nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    /// nf_tables, which `nft` would load.
    pub nf_tables: bool,
    /// nf_conntrack_netlink, which a ctnetlink socket would load.
    pub ctnetlink: bool,
}

impl Kernel {
    /// Loaded modules show in /sys/module; what is built in shows by its symbols.
    pub fn read() -> Self {
        let live = |module: &str| {
            let state = fs::read_to_string(format!("/sys/module/{module}/initstate"));
            state.is_ok_and(|state| state.trim() == "live")
        };
        let mut kernel = Self { nf_tables: live("nf_tables"), ctnetlink: presence::check().is_ok() };
        if !kernel.nf_tables {
            let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
            // A module's symbols carry its name in brackets, from before it is usable until after it is gone.
            kernel.nf_tables =
                symbols.lines().any(|line| line.split_whitespace().skip(2).eq(["nf_tables_newrule"]));
        }
        kernel
    }
}

/// The tools at hand.
pub fn tools() -> Tools {
    Tools {
        nft: child::find("nft").is_some(),
        iptables: child::find("iptables").is_some(),
        conntrack: child::find("conntrack").is_some(),
        systemd: Path::new("/run/systemd/system").is_dir(),
    }
}

/// Modules that filter packets, and all that use nf_conntrack.
pub fn modules() -> Vec<Module> {
    parse_modules(&fs::read_to_string("/proc/modules").unwrap_or_default())
}

/// Prefixes of the modules that filter packets.
pub const FILTERS: [&str; 10] = [
    "nf_",
    "nft_",
    "nfnetlink",
    "xt_",
    "x_tables",
    "ip_tables",
    "ip6_tables",
    "iptable_",
    "ip6table_",
    "ip_vs",
];

/// The modules of tracking in the text of `/proc/modules`.
pub fn parse_modules(text: &str) -> Vec<Module> {
    let all: Vec<Module> = text.lines().filter_map(parse_module).collect();
    let mut kept = BTreeSet::from(["nf_conntrack"]);
    loop {
        let before = kept.len();
        for module in &all {
            if kept.contains(module.name.as_str()) {
                kept.extend(module.used_by.iter().map(String::as_str));
            }
        }
        if kept.len() == before {
            break;
        }
    }
    all.iter()
        .filter(|module| {
            kept.contains(module.name.as_str())
                || FILTERS.iter().any(|filter| module.name.starts_with(filter))
        })
        .cloned()
        .collect()
}

fn parse_module(line: &str) -> Option<Module> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let refs = words.nth(1)?.parse().ok()?;
    // A list ends in a comma, none is a dash, and `[permanent]` may stand in it.
    let users =
        words.next()?.split(',').filter(|user| !user.is_empty() && *user != "-" && !user.starts_with('['));
    Some(Module { name, refs, used_by: users.map(str::to_owned).collect() })
}

/// Programs running that are known to use tracking.
pub fn programs() -> Vec<Program> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let running: BTreeSet<String> = processes
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|entry| Some(fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned()))
        .collect();
    let known = PROGRAMS.iter().filter(|(name, _)| running.contains(*name));
    known.map(|(name, uses)| Program { name: (*name).into(), uses: (*uses).into() }).collect()
}

/// Lines of modprobe's configuration that are kept, and bytes read of one file.
const MOST_LINES: usize = 64;
const MOST_BYTES: u64 = 1 << 16;

/// What modprobe's configuration says of nf_conntrack.
pub fn modprobe() -> Vec<String> {
    let mut lines = BTreeSet::new();
    for directory in [
        "/etc/modprobe.d",
        "/run/modprobe.d",
        "/usr/local/lib/modprobe.d",
        "/usr/lib/modprobe.d",
        "/lib/modprobe.d",
    ] {
        for file in fs::read_dir(directory).into_iter().flatten().flatten() {
            // modprobe reads no other files (`modprobe.d(5)`): copies of them do nothing.
            if file.path().extension().is_none_or(|end| end != "conf") {
                continue;
            }
            let text = regular(&file.path()).unwrap_or_default();
            let named = text.lines().map(str::trim).filter(|line| {
                !line.starts_with('#')
                    && line.split_whitespace().nth(1).is_some_and(|name| name == "nf_conntrack")
            });
            lines.extend(named.map(|line| format!("{}: {line}", file.file_name().to_string_lossy())));
        }
    }
    let boot = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let refused = boot.split_whitespace().filter(|word| {
        word.split_once('=').is_some_and(|(key, value)| {
            ["module_blacklist", "modprobe.blacklist"].contains(&key)
                && value.split(',').any(|name| name == "nf_conntrack")
        })
    });
    lines.extend(refused.map(|word| format!("kernel command line: {word}")));
    let more = lines.len().saturating_sub(MOST_LINES);
    let mut lines: Vec<String> = lines.into_iter().take(MOST_LINES).collect();
    if more > 0 {
        lines.push(format!("({more} more lines)"));
    }
    lines
}

/// The beginning of a regular file.
fn regular(path: &Path) -> Option<String> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The slab of entries; the file is root's.
pub fn slab() -> Option<Slab> {
    parse_slab(&fs::read_to_string("/proc/slabinfo").ok()?)
}

/// The slab of entries in the text of `/proc/slabinfo`.
pub fn parse_slab(text: &str) -> Option<Slab> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some("nf_conntrack"))?;
    let mut numbers = line.split_whitespace().skip(1).map(|word| word.parse().ok());
    Some(Slab { active: numbers.next()??, objects: numbers.next()??, size: numbers.next()?? })
}

/// Bytes of memory.
pub fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Seconds since boot by the clock that stamps the kernel's log, which stands still during suspend.
pub fn uptime() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_kept_with_all_that_hold_them() {
        let text = "nft_masq 16384 1 - Live 0x0\n\
                    nft_ct 24576 2 - Live 0x0\n\
                    openvswitch 1 3 - Live 0x0\n\
                    nf_nat 1 2 nft_masq,openvswitch, Live 0x0\n\
                    nf_conntrack 172032 4 nf_nat,nft_ct,openvswitch, Live 0x0\n\
                    nf_defrag_ipv4 1 1 nf_conntrack, Live 0x0\n\
                    ext4 1 1 - Live 0x0\n\
                    act_x 1 0 [permanent], Live 0x0\n";
        let names: Vec<String> = parse_modules(text).into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["nft_masq", "nft_ct", "openvswitch", "nf_nat", "nf_conntrack", "nf_defrag_ipv4"]);
        let module = parse_module("nf_conntrack 172032 4 nf_nat,nft_ct, Live 0x0").unwrap();
        assert_eq!((module.refs, module.used_by), (4, vec!["nf_nat".to_owned(), "nft_ct".to_owned()]));
    }

    #[test]
    fn the_slab_of_expectations_is_another() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n\
                    nf_conntrack_expect      0      0    208   19    1 : tunables    0    0    0\n\
                    nf_conntrack        1020   1056    256   16    1 : tunables    0    0    0\n";
        assert_eq!(parse_slab(text), Some(Slab { active: 1020, objects: 1056, size: 256 }));
        assert_eq!(parse_slab(""), None);
    }
}
