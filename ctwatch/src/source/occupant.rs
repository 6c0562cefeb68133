//! What a network namespace without a name of its own is called: a process in it, and that process's cgroup.

use std::fs;
use std::path::Path;

/// How much of a container's id is shown: what its runtime's own tools show.
const ID: usize = 12;
/// Longer ones are somebody's joke.
const LONGEST: usize = 48;

/// The process that only holds a pod's namespace: whoever shares it tells more.
const HOLDER: &str = "pause";

/// Who is in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occupant {
    comm: String,
    /// The last element of its cgroup's path, shortened.
    cgroup: Option<String>,
}

impl Occupant {
    /// The process at `/proc/PID`; `None` where it ended or may not be looked at.
    pub(super) fn read(process: &Path) -> Option<Self> {
        let comm = fs::read_to_string(process.join("comm")).ok()?;
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        Some(Self { comm: tidy(comm.trim_end_matches('\n')), cgroup: unit(&cgroup) })
    }

    /// Whether another process would tell more.
    pub(super) fn is_holder(&self) -> bool {
        self.comm == HOLDER
    }

    /// `nginx (docker-3f2a1b0c9d8e)`.
    pub(super) fn name(&self) -> String {
        match &self.cgroup {
            Some(cgroup) => format!("{} ({cgroup})", self.comm),
            None => self.comm.clone(),
        }
    }
}

/// The last element of a process's cgroup, from the text of `/proc/PID/cgroup`; `None` for the root.
///
/// Version 2 has one line, `0::PATH`; on version 1 systemd's own hierarchy, `N:name=systemd:PATH`, tells most.
fn unit(text: &str) -> Option<String> {
    let lines = || text.lines().filter_map(|line| line.splitn(3, ':').collect::<Vec<_>>().try_into().ok());
    let told = |wanted: fn(&[&str; 3]) -> bool| {
        lines().filter(wanted).find_map(|[_, _, path]: [&str; 3]| {
            let last = path.rsplit('/').next().unwrap_or_default();
            (!last.is_empty()).then_some(last)
        })
    };
    let last = told(|[_, controllers, _]| *controllers == "name=systemd")
        .or_else(|| told(|[number, controllers, _]| *number == "0" && controllers.is_empty()))
        .or_else(|| told(|_| true))?;
    Some(tidy(&short(last.strip_suffix(".scope").unwrap_or(last))))
}

/// Ids of containers, 64 hexadecimal digits, are cut as their runtimes cut them.
fn short(unit: &str) -> String {
    let (runtime, id) = match unit.rsplit_once('-') {
        Some((runtime, id)) => (Some(runtime), id),
        None => (None, unit),
    };
    if id.len() < 2 * ID || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return unit.to_owned();
    }
    match runtime {
        Some(runtime) => format!("{runtime}-{}", &id[..ID]),
        None => id[..ID].to_owned(),
    }
}

/// Processes and cgroups are named by whoever made them.
fn tidy(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a";

    #[test]
    fn cgroups_of_containers_and_services() {
        for (text, unit_told) in [
            (format!("0::/system.slice/docker-{ID}.scope\n"), Some("docker-3f2a1b0c9d8e")),
            (format!("0::/kubepods/burstable/pod12ab/{ID}\n"), Some("3f2a1b0c9d8e")),
            (format!("0::/machine.slice/libpod-{ID}.scope/container\n"), Some("container")),
            ("0::/system.slice/nginx.service\n".into(), Some("nginx.service")),
            ("0::/user.slice/user-1000.slice/session-3.scope\n".into(), Some("session-3")),
            (
                format!("12:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/{ID}\n0::/else\n"),
                Some("3f2a1b0c9d8e"),
            ),
            ("9:memory:/lxc/web\n".into(), Some("web")),
            ("0::/\n".into(), None),
            ("nonsense\n::\n".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(unit(&text).as_deref(), unit_told, "{text}");
        }
    }

    #[test]
    fn a_process_without_a_cgroup_has_its_name() {
        let process = tempfile::tempdir().unwrap();
        assert_eq!(Occupant::read(process.path()), None);
        fs::write(process.path().join("comm"), "evil\x1b[2J\n").unwrap();
        assert_eq!(Occupant::read(process.path()).unwrap().name(), "evil?[2J");
        fs::write(process.path().join("cgroup"), format!("0::/a/docker-{ID}.scope\n")).unwrap();
        assert_eq!(Occupant::read(process.path()).unwrap().name(), "evil?[2J (docker-3f2a1b0c9d8e)");
    }
}
