//! What files say that connection tracking shall have: sysctl.d, sysctl.conf and modprobe.d, in the order of sysctl.d(5).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::doctor::facts::{Configured, Module};

/// A file of an earlier folder replaces one of the same name in a later one.
const SYSCTL: [&str; 5] =
    ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"];
/// procps reads it after all others. systemd does not read it, but Debian linked it as 99-sysctl.conf up to 12.
const SYSCTL_CONF: &str = "etc/sysctl.conf";
const MODULES: [&str; 5] = [
    "etc/modules-load.d",
    "run/modules-load.d",
    "usr/local/lib/modules-load.d",
    "usr/lib/modules-load.d",
    "lib/modules-load.d",
];
/// Files looked at in one folder, and bytes of one.
const MOST_FILES: usize = 256;
const MOST_BYTES: u64 = 1 << 16;
/// Settings kept, those that are applied last: of one sysctl the last stays.
const MOST_SETTINGS: usize = 256;

/// Settings of connection tracking in the order in which they are applied, and how many settings and files were left out.
pub fn settings(root: &Path, systemd: bool) -> (Vec<Configured>, u64) {
    let mut found = Vec::new();
    let (mut files, mut left_out) = in_order(root, &SYSCTL);
    if !systemd {
        files.push(root.join(SYSCTL_CONF));
    }
    for path in files {
        let Some((text, changed)) = read(&path) else { continue };
        let changed_s =
            changed.and_then(|at| SystemTime::now().duration_since(at).ok()).map(|age| age.as_secs());
        let file = shown(root, &path);
        let settings = text.lines().filter_map(parse);
        found.extend(settings.map(|(sysctl, value)| Configured {
            sysctl,
            value,
            file: file.clone(),
            changed_s,
        }));
        let more = found.len().saturating_sub(MOST_SETTINGS);
        found.drain(..more);
        left_out += more as u64;
    }
    (found, left_out)
}

/// Whether a file has nf_conntrack, or a module that needs it, loaded before sysctls are set.
pub fn loaded_early(root: &Path, modules: &[Module]) -> bool {
    let needs_it = |name: &str| {
        let name = name.replace('-', "_");
        name == "nf_conntrack"
            || modules.iter().any(|module| module.name == "nf_conntrack" && module.used_by.contains(&name))
    };
    let (mut files, _) = in_order(root, &MODULES);
    // Debian's older list, which systemd-modules-load reads by a link in modules-load.d.
    files.push(root.join("etc/modules"));
    files.iter().filter_map(|path| read(path)).any(|(text, _)| {
        text.lines().map(str::trim).any(|line| line.split_whitespace().next().is_some_and(needs_it))
    })
}

/// Whether firewalld is told to unload the modules of packet filters when it stops: what comes then starts with the
/// kernel's defaults. It does not by default since 1.0.
pub fn firewalld_unloads(root: &Path) -> bool {
    let Some((text, _)) = read(&root.join("etc/firewalld/firewalld.conf")) else { return false };
    let mut told = text.lines().filter_map(|line| line.split_once('='));
    let last = told.rfind(|(key, _)| key.trim() == "CleanupModulesOnExit");
    last.is_some_and(|(_, value)| ["yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str()))
}

/// Files that end in `.conf`, by their names alone, without those that an earlier folder replaces; and how many were not
/// looked at.
fn in_order(root: &Path, folders: &[&str]) -> (Vec<PathBuf>, u64) {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut left_out = 0;
    for folder in folders {
        let mut entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        for entry in entries.by_ref().take(MOST_FILES) {
            let path = entry.path();
            if let Ok(name) = entry.file_name().into_string()
                && path.extension().is_some_and(|extension| extension == "conf")
            {
                files.entry(name).or_insert(path);
            }
        }
        left_out += entries.count() as u64;
    }
    (files.into_values().collect(), left_out)
}

/// The text of a regular file and when it was changed. A link to /dev/null stands for no file.
fn read(path: &Path) -> Option<(String, Option<SystemTime>)> {
    let status = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some((String::from_utf8_lossy(&bytes).into_owned(), status.modified().ok()))
}

/// The path as the machine has it.
fn shown(root: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(root).unwrap_or(path);
    format!("/{}", inside.display())
}

/// `net.netfilter.nf_conntrack_max = 4194304`, by the file's name under /proc/sys and the value. Slashes may stand for dots,
/// and a dash in front has errors ignored.
pub fn parse(line: &str) -> Option<(String, u64)> {
    let (key, value) = line.trim().split_once('=')?;
    if key.starts_with(['#', ';']) {
        return None;
    }
    let key = key.trim().trim_start_matches('-').trim().replace('/', ".");
    let name = match key.as_str() {
        // Another name of the same number.
        "net.nf_conntrack_max" => "nf_conntrack_max",
        key => key.strip_prefix("net.netfilter.").filter(|name| name.starts_with("nf_conntrack_"))?,
    };
    Some((name.to_owned(), value.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn lines_are_read_as_sysctl_reads_them() {
        for line in [
            "net.netfilter.nf_conntrack_max=4194304",
            " net/netfilter/nf_conntrack_max = 4194304 ",
            "-net.netfilter.nf_conntrack_max = 4194304",
            "net.nf_conntrack_max = 4194304",
        ] {
            assert_eq!(parse(line), Some(("nf_conntrack_max".into(), 4_194_304)), "{line}");
        }
        for line in ["", "# net.netfilter.nf_conntrack_max=1", "; net.netfilter.nf_conntrack_max=1"] {
            assert_eq!(parse(line), None, "{line}");
        }
        for line in
            ["net.ipv4.ip_forward=1", "net.netfilter.nf_log.2=NONE", "net.netfilter.nf_conntrack_max=many"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn files_come_in_the_order_of_their_names_and_etc_replaces_usr() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let max = |value: u64| format!("net.netfilter.nf_conntrack_max = {value}\n");
        write(root, "usr/lib/sysctl.d/50-vendor.conf", &max(1));
        write(root, "usr/lib/sysctl.d/95-late.conf", &max(2));
        write(root, "usr/lib/sysctl.d/60-replaced.conf", &max(3));
        write(root, "etc/sysctl.d/60-replaced.conf", "# nothing\n");
        write(root, "etc/sysctl.d/90-admin.conf", &max(4));
        write(root, "etc/sysctl.d/91-no-suffix", &max(5));
        write(root, "etc/sysctl.conf", &max(6));
        let found = |systemd| -> Vec<(u64, String)> {
            let (settings, left_out) = settings(root, systemd);
            assert_eq!(left_out, 0);
            settings.into_iter().map(|setting| (setting.value, setting.file)).collect()
        };
        let mut expected = vec![
            (1, "/usr/lib/sysctl.d/50-vendor.conf".to_owned()),
            (4, "/etc/sysctl.d/90-admin.conf".to_owned()),
            (2, "/usr/lib/sysctl.d/95-late.conf".to_owned()),
        ];
        assert_eq!(found(true), expected);
        expected.push((6, "/etc/sysctl.conf".to_owned()));
        assert_eq!(found(false), expected);
    }

    #[test]
    fn a_link_to_nothing_masks_a_file_and_a_large_one_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "usr/lib/sysctl.d/50-a.conf", "net.netfilter.nf_conntrack_max=1\n");
        fs::create_dir_all(root.join("etc/sysctl.d")).unwrap();
        std::os::unix::fs::symlink("/dev/null", root.join("etc/sysctl.d/50-a.conf")).unwrap();
        assert_eq!(settings(root, true), (Vec::new(), 0));
        write(root, "etc/sysctl.d/60-b.conf", &"net.netfilter.nf_conntrack_max=1\n".repeat(1_000));
        write(root, "etc/sysctl.d/61-c.conf", "net.netfilter.nf_conntrack_max=2\n");
        let (kept, left_out) = settings(root, true);
        assert_eq!((kept.len(), left_out), (MOST_SETTINGS, 1_001 - MOST_SETTINGS as u64));
        assert_eq!(kept.last().map(|setting| setting.value), Some(2), "the last one decides");
        for number in 0..MOST_FILES {
            write(root, &format!("etc/sysctl.d/{number}.conf"), "");
        }
        assert!(settings(root, true).1 >= 3, "files without room are counted");
    }

    #[test]
    fn firewalld_unloads_modules_where_it_is_told_to() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(!firewalld_unloads(root));
        for (text, unloads) in [
            ("# CleanupModulesOnExit=yes\n", false),
            ("CleanupModulesOnExit=no\nCleanupOnExit=yes\n", false),
            ("CleanupModulesOnExit=no\nCleanupModulesOnExit = Yes\n", true),
            ("CleanupModulesOnExit=true\n", true),
        ] {
            write(root, "etc/firewalld/firewalld.conf", text);
            assert_eq!(firewalld_unloads(root), unloads, "{text}");
        }
    }

    #[test]
    fn a_module_may_be_loaded_before_sysctls_are_set() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let tracking = Module { name: "nf_conntrack".into(), refs: 1, used_by: vec!["nf_nat".into()] };
        write(root, "etc/modules-load.d/a.conf", "# nf_conntrack\nbr_netfilter\n");
        assert!(!loaded_early(root, std::slice::from_ref(&tracking)));
        write(root, "etc/modules", "nf-nat\n");
        assert!(loaded_early(root, &[tracking]));
    }
}
