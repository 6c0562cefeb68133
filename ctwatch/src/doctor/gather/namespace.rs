//! What concerns one network namespace, read by a thread that is in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::budget::Budget;
use super::places::Place;
use super::system::Kernel;
use super::table::Collector;
use super::translations::Translations;
use super::{reach, rules, table, waiting};
use crate::doctor::facts::{Namespace, TableView};
use crate::source::netlink::message::{CT_GET_STATS_CPU, EXPECT_GET};
use crate::source::netlink::socket::Requests;
use crate::source::proc_stat::Statistics;

const SYSCTLS: &str = "/proc/sys/net/netfilter";
const STATS: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// All of a namespace but what comes after the sample.
pub fn read(place: &Place, kernel: Kernel, budget: &Budget) -> Namespace {
    let sysctls = sysctls();
    let count = sysctls.get("nf_conntrack_count").copied();
    let mut namespace = Namespace {
        netns: place.netns,
        name: place.name.clone(),
        own: place.own,
        enter: place.enter.clone(),
        count,
        count_after: None,
        expectations: expectations(kernel),
        limit_writable: writable("nf_conntrack_max"),
        stats: stats(kernel),
        stats_after: BTreeMap::new(),
        ipvs_conntrack: fs::read_to_string("/proc/sys/net/ipv4/vs/conntrack")
            .is_ok_and(|on| on.trim() == "1"),
        bridged: reach::bridged(),
        nft: rules::nft(kernel, budget),
        iptables: rules::iptables("ip_tables_names", "ip", "iptables", budget),
        ip6tables: rules::iptables("ip6_tables_names", "ip6", "ip6tables", budget),
        waiting: waiting::read(),
        table: TableView::default(),
        forwards: None,
        local_ports: None,
        sysctls,
    };
    reach::read(&mut namespace);
    if count.is_some_and(|count| count > 0) {
        namespace.table = look_into_table(&namespace, kernel);
    }
    namespace
}

/// How many there are; at most `nf_conntrack_expect_max`.
fn expectations(kernel: Kernel) -> Option<u64> {
    let mut count = 0;
    if let Ok(file) = fs::File::open("/proc/thread-self/net/nf_conntrack_expect") {
        for line in BufReader::new(file).split(b'\n') {
            line.ok()?;
            count += 1;
        }
        return Some(count);
    }
    // Kernels without CONFIG_NF_CONNTRACK_PROCFS have no such file.
    let mut requests = kernel.ctnetlink.then(Requests::open)?.ok()?;
    let dumped = requests.dump(EXPECT_GET, 0, |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    dumped.ok().map(|_| count)
}

/// Count and statistics, once more.
pub fn read_again(kernel: Kernel) -> (Option<u64>, BTreeMap<String, u64>) {
    (number("nf_conntrack_count"), stats(kernel))
}

fn sysctls() -> BTreeMap<String, u64> {
    let files = fs::read_dir(SYSCTLS).into_iter().flatten().flatten();
    let names = files
        .filter_map(|file| file.file_name().into_string().ok())
        .filter(|name| name.starts_with("nf_conntrack_"));
    names.filter_map(|name| Some((name.clone(), number(&name)?))).collect()
}

fn number(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new(SYSCTLS).join(name)).ok()?.trim().parse().ok()
}

/// The kernel takes the write bits away in all but the first namespace; containers mount /proc/sys read-only.
fn writable(name: &str) -> bool {
    let path = Path::new(SYSCTLS).join(name);
    let owner_may_write = fs::metadata(&path).is_ok_and(|file| file.mode() & 0o200 != 0);
    owner_may_write && statvfs(&path).is_ok_and(|system| !system.flags().contains(FsFlags::ST_RDONLY))
}

/// Summed over CPUs; empty where nothing tells.
fn stats(kernel: Kernel) -> BTreeMap<String, u64> {
    match fs::read_to_string(STATS) {
        Ok(text) => Statistics::parse(&text).map_or_else(BTreeMap::new, |statistics| {
            statistics.iter().map(|(title, sum)| (title.to_owned(), sum)).collect()
        }),
        Err(_) if kernel.ctnetlink => stats_by_netlink().unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    }
}

/// The same by ctnetlink, under the titles that procfs gives them.
fn stats_by_netlink() -> io::Result<BTreeMap<String, u64>> {
    /// `CTA_STATS_…` that are not always 0.
    const KINDS: [(u16, &str); 10] = [
        (2, "found"),
        (4, "invalid"),
        (8, "insert"),
        (9, "insert_failed"),
        (10, "drop"),
        (11, "early_drop"),
        (12, "icmp_error"),
        (13, "search_restart"),
        (14, "clashres"),
        (15, "chainlength"),
    ];
    let mut sums = BTreeMap::new();
    Requests::open()?.dump(CT_GET_STATS_CPU, 0, |message| {
        for attribute in message.attributes() {
            if let Some((_, title)) = KINDS.iter().find(|(kind, _)| *kind == attribute.kind) {
                *sums.entry((*title).to_owned()).or_default() += u64::from(attribute.u32().unwrap_or(0));
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(sums)
}

fn look_into_table(namespace: &Namespace, kernel: Kernel) -> TableView {
    let collector = || {
        let translations = Translations::new(namespace);
        Collector::new(&namespace.sysctls, namespace.has_policies()).with_translations(translations)
    };
    let by_netlink = kernel.ctnetlink.then(|| table::from_netlink(collector())).and_then(Result::ok);
    if let Some(view) = by_netlink {
        return view;
    }
    let why = match table::from_procfs(collector()) {
        Ok(Some(view)) => return view,
        Ok(None) if kernel.ctnetlink => {
            "ctnetlink did not answer, and the kernel has no /proc/net/nf_conntrack".to_owned()
        }
        Ok(None) => {
            "the kernel has no /proc/net/nf_conntrack, and nf_conntrack_netlink is not loaded".to_owned()
        }
        Err(error) => format!("/proc/net/nf_conntrack: {error}"),
    };
    TableView { unseen: Some(why), ..TableView::default() }
}
