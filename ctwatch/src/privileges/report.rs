//! What `facts` says of rights.

use std::collections::BTreeMap;

use rustix::thread::{CapabilitySet, no_new_privs};
use serde::Serialize;

use super::{Restricted, Work};

/// What the user has given, and what of it each command keeps after its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether no program that is run can get rights from its file (setuid, capabilities).
    pub no_new_privs: bool,
    /// Capabilities at the start.
    pub given: Vec<String>,
    /// By command, and for `ctwatch-netns`, the second process of `live`, `trace`, `export`, `record`,
    /// `report --live` and `doctor`: the
    /// capabilities kept, and what for.
    pub kept: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Why the bounding set could not be lowered; null where it was.
    pub bounding_set_refused: Option<String>,
    /// Why capabilities could not be given up; null where they were.
    pub capabilities_refused: Option<String>,
    /// Why there is no filter of system calls; null where there is one.
    pub seccomp_refused: Option<String>,
}

/// What the commands keep, without `--source netlink`, and with files only where the name says so.
const COMMANDS: [(&str, Work); 14] = [
    ("live", Work { probes: true, ..Work::NOTHING }),
    ("live --source netlink", Work::NOTHING),
    ("live on the screen", Work { probes: true, namespaces: true, ..Work::NOTHING }),
    ("trace", Work { probes: true, ..Work::NOTHING }),
    ("export", Work { probes: true, ..Work::NOTHING }),
    ("export to a file or Unix socket", Work { probes: true, writes: true, ..Work::NOTHING }),
    ("record", Work { probes: true, ..Work::NOTHING }),
    ("replay", Work::NOTHING),
    ("report", Work { writes: true, ..Work::NOTHING }),
    ("report --live", Work { probes: true, writes: true, ..Work::NOTHING }),
    ("table", Work { namespaces: true, ..Work::NOTHING }),
    ("doctor", Work { probes: true, namespaces: true, rules: true, ..Work::NOTHING }),
    ("facts", Work::NOTHING),
    ("ctwatch-netns", Work { namespaces: true, ..Work::NOTHING }),
];

/// What is kept of the given capabilities, by each command. `restricted` is what `facts` itself gave up.
pub fn report(restricted: Restricted) -> Report {
    let Restricted { given, refused } = restricted;
    Report {
        no_new_privs: no_new_privs().unwrap_or(false),
        given: names(given),
        kept: COMMANDS.into_iter().map(|(command, work)| (command, kept(work, given))).collect(),
        bounding_set_refused: refused.bounding_set,
        capabilities_refused: refused.capabilities,
        seccomp_refused: refused.seccomp,
    }
}

fn kept(work: Work, given: CapabilitySet) -> BTreeMap<String, String> {
    let mut all = BTreeMap::<String, String>::new();
    for (capability, why) in work.rights().filter(|(capability, _)| given.contains(*capability)) {
        for name in names(capability) {
            let reasons = all.entry(name).or_default();
            let between = if reasons.is_empty() { "" } else { "; " };
            *reasons = format!("{reasons}{between}{why}");
        }
    }
    all
}

/// As capabilities(7) has them.
fn names(set: CapabilitySet) -> Vec<String> {
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Refused;
    use super::*;

    #[test]
    fn what_was_not_given_is_not_kept() {
        let given = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
        let Report { given, kept, .. } = report(Restricted { given, refused: Refused::default() });
        assert_eq!(given, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
        let of = |command: &str| kept[command].keys().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of("live"), ["CAP_SYS_ADMIN"]);
        assert_eq!(of("ctwatch-netns"), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
        assert!(of("live --source netlink").is_empty() && of("facts").is_empty());
        assert_eq!(
            kept["doctor"]["CAP_SYS_ADMIN"],
            "finds the type information of modules, has the kernel time programs; enters network namespaces"
        );
    }
}
