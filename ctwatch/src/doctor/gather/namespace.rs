//! What concerns one network namespace, read by a thread that is in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::places::Place;
use super::system::Kernel;
use super::{rules, table};
use crate::doctor::facts::{Namespace, TableView};

const SYSCTLS: &str = "/proc/sys/net/netfilter";
const STATS: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// All of a namespace but what comes after the sample.
pub fn read(place: &Place, kernel: &Kernel) -> Namespace {
    let sysctls = sysctls();
    let count = sysctls.get("nf_conntrack_count").copied();
    Namespace {
        netns: place.netns,
        name: place.name.clone(),
        own: place.own,
        enter: place.enter.clone(),
        count,
        count_after: None,
        limit_writable: writable("nf_conntrack_max"),
        stats: stats(),
        stats_after: BTreeMap::new(),
        ipvs_conntrack: fs::read_to_string("/proc/sys/net/ipv4/vs/conntrack").is_ok_and(|on| on.trim() == "1"),
        nft: rules::nft(kernel),
        iptables: rules::iptables("ip_tables_names", "ip", "iptables"),
        ip6tables: rules::iptables("ip6_tables_names", "ip6", "ip6tables"),
        table: if count.is_some_and(|count| count > 0) { look_into_table(&sysctls, kernel) } else { TableView::default() },
        sysctls,
    }
}

/// Count and statistics, once more.
pub fn read_again() -> (Option<u64>, BTreeMap<String, u64>) {
    (number("nf_conntrack_count"), stats())
}

fn sysctls() -> BTreeMap<String, u64> {
    let files = fs::read_dir(SYSCTLS).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok()).filter(|name| name.starts_with("nf_conntrack_"));
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

fn stats() -> BTreeMap<String, u64> {
    parse_stats(&fs::read_to_string(STATS).unwrap_or_default())
}

/// Hexadecimal columns, a line for each CPU; all add up but `entries`, which each line repeats.
fn parse_stats(text: &str) -> BTreeMap<String, u64> {
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let mut sums = BTreeMap::new();
    for line in lines {
        for (title, word) in titles.iter().zip(line.split_whitespace()) {
            let Ok(value) = u64::from_str_radix(word, 16) else { continue };
            let sum: &mut u64 = sums.entry((*title).to_owned()).or_default();
            *sum = if *title == "entries" { value } else { *sum + value };
        }
    }
    sums
}

fn look_into_table(sysctls: &BTreeMap<String, u64>, kernel: &Kernel) -> TableView {
    let unseen = |why: String| TableView { unseen: Some(why), ..TableView::default() };
    match table::from_procfs(sysctls) {
        Ok(Some(view)) => view,
        Ok(None) if kernel.ctnetlink => unseen("this version of ctwatch reads tables from procfs, which this kernel lacks".into()),
        Ok(None) => unseen("the kernel has no /proc/net/nf_conntrack, and nf_conntrack_netlink is not loaded".into()),
        Err(error) => unseen(format!("/proc/net/nf_conntrack: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_hexadecimal_and_add_up_over_cpus() {
        let text = "entries  drop early_drop icmp_error  expect_new\n000000ff  00000001 00000010 0 0\n000000ff  00000002 00000001 0 0\n";
        let stats = parse_stats(text);
        assert_eq!((stats["entries"], stats["drop"], stats["early_drop"]), (255, 3, 17));
        assert!(parse_stats("").is_empty());
    }
}
