//! When somebody last set a limit, as far as the kernel keeps it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The same two numbers under the names that people write to.
const FILES: [(&str, &str); 4] = [
    ("nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("nf_conntrack_max", "/proc/sys/net/nf_conntrack_max"),
    ("nf_conntrack_expect_max", "/proc/sys/net/netfilter/nf_conntrack_expect_max"),
    ("nf_conntrack_buckets", "/proc/sys/net/netfilter/nf_conntrack_buckets"),
];

/// Milliseconds since each was last written, where that is known.
pub fn ages() -> std::collections::BTreeMap<String, u64> {
    let mut ages = std::collections::BTreeMap::new();
    for (name, file) in FILES {
        if let Some(age) = age(Path::new(file)) {
            let least: &mut u64 = ages.entry(name.to_owned()).or_insert(age);
            *least = age.min(*least);
        }
    }
    ages
}

/// A file under /proc/sys is born with all its times the same when it is first looked at, and reading changes none. Opening
/// it for writing truncates it, as `sysctl -w` and `>` do, and that sets the time of its contents (`proc_sys_setattr`, 5.10
/// to 7.3). So a later time of the contents is the time of a write; a file that the kernel has forgotten since has none.
fn age(file: &Path) -> Option<u64> {
    let file = fs::metadata(file).ok()?;
    let modified = (file.mtime(), file.mtime_nsec());
    if modified <= (file.atime(), file.atime_nsec()) {
        return None;
    }
    let since_epoch = Duration::new(u64::try_from(modified.0).ok()?, u32::try_from(modified.1).ok()?);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + since_epoch).ok()?;
    u64::try_from(age.as_millis()).ok()
}
