//! How kernel code is preempted, from the source that is nearest to the running kernel.

use std::fs;

use super::{held, kcore};

/// How this kernel preempts its own code, and where that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Preemption {
    /// `none`, `voluntary`, `full`, `lazy`, or `rt` (PREEMPT_RT).
    pub(super) mode: String,
    /// The source, for people.
    pub(super) from: &'static str,
}

/// What the sources said. `None` stands for a source that could not be read.
#[derive(Clone, Debug, Default)]
struct Sources {
    /// `/proc/version`. It names a model that was fixed when the kernel was built.
    version: String,
    /// `/sys/kernel/debug/sched/preempt` (5.12, needs debugfs). Brackets mark the mode in force.
    debugfs: Option<String>,
    /// The variable `preempt_dynamic_mode` (kernel/sched/core.c, 5.12 to 7.3).
    memory: Option<i32>,
    /// `/proc/cmdline`.
    command_line: String,
    /// The configuration that the kernel was built with.
    configuration: Option<String>,
}

/// Reads the sources. `variable` is the address of `preempt_dynamic_mode`, where the kernel has it and shows it.
pub(super) fn read(release: &str, variable: Option<u64>) -> Option<Preemption> {
    let text = |path: &str| fs::read_to_string(path).ok();
    decide(&Sources {
        version: text("/proc/version").unwrap_or_default(),
        debugfs: held::preemption(),
        memory: variable.and_then(number_at),
        command_line: text("/proc/cmdline").unwrap_or_default(),
        configuration: [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")]
            .iter()
            .find_map(|path| text(path)),
    })
}

fn number_at(address: u64) -> Option<i32> {
    let bytes = kcore::read(address, address.checked_add(4)?).ok()?;
    Some(i32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The first source that knows the mode. The kernel's own memory goes before what it was asked for at boot.
fn decide(sources: &Sources) -> Option<Preemption> {
    let found = |mode: &str, from| Some(Preemption { mode: mode.to_owned(), from });
    let model = sources.version.split_ascii_whitespace().find(|word| word.starts_with("PREEMPT"));
    // Before all others: a PREEMPT_RT kernel may be called lazy or full as well (6.12).
    if model == Some("PREEMPT_RT") {
        return found("rt", "kernel version");
    }
    if let Some(mode) = sources.debugfs.as_deref().and_then(in_force) {
        return found(mode, "debugfs");
    }
    if let Some(mode) = sources.memory.and_then(by_number) {
        return found(mode, "kernel memory");
    }
    let asked = sources.command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix("preempt="));
    // The kernel ignores a word that it does not know (setup_preempt_mode, 5.12 to 7.3).
    if let Some(mode) = asked.and_then(|word| (0..4).filter_map(by_number).find(|mode| *mode == word)) {
        return found(mode, "command line");
    }
    if let Some(mode) = sources.configuration.as_deref().and_then(configured) {
        return found(mode, "kernel configuration");
    }
    match model {
        None if !sources.version.is_empty() => found("voluntary", "kernel version"),
        Some("PREEMPT") => found("full", "kernel version"),
        Some("PREEMPT_LAZY") => found("lazy", "kernel version"),
        _ => None,
    }
}

fn in_force(text: &str) -> Option<&str> {
    let (mode, _) = text.split_once('(')?.1.split_once(')')?;
    Some(mode)
}

/// The numbers of `preempt_dynamic_mode` (kernel/sched/core.c, 5.12 to 7.3; `lazy` since 6.13). -1 is undefined.
const fn by_number(number: i32) -> Option<&'static str> {
    Some(match number {
        0 => "none",
        1 => "voluntary",
        2 => "full",
        3 => "lazy",
        _ => return None,
    })
}

/// The mode of a configuration. Where `CONFIG_PREEMPT_DYNAMIC` leaves it open, this is the default.
fn configured(configuration: &str) -> Option<&'static str> {
    let options = [
        ("CONFIG_PREEMPT_RT=y", "rt"),
        ("CONFIG_PREEMPT_LAZY=y", "lazy"),
        ("CONFIG_PREEMPT=y", "full"),
        ("CONFIG_PREEMPT_VOLUNTARY=y", "voluntary"),
        ("CONFIG_PREEMPT_NONE=y", "none"),
    ];
    options
        .iter()
        .find_map(|(option, mode)| configuration.lines().any(|line| line == *option).then_some(*mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &str = "Linux version 6.1.0-56-cloud-amd64 #1 SMP PREEMPT_DYNAMIC Debian";
    const REAL_TIME: &str = "Linux version 6.12.118+deb13-rt-amd64 #1 SMP PREEMPT_RT Debian";

    fn decided(sources: &Sources) -> Option<(String, &'static str)> {
        decide(sources).map(|found| (found.mode, found.from))
    }

    fn dynamic() -> Sources {
        Sources { version: DYNAMIC.to_owned(), ..Sources::default() }
    }

    #[test]
    fn the_source_nearest_to_the_running_kernel_decides() {
        let mut sources = Sources {
            debugfs: Some("none (voluntary) full \n".into()),
            memory: Some(2),
            command_line: "quiet preempt=none".into(),
            configuration: Some("CONFIG_PREEMPT_LAZY=y\n".into()),
            ..dynamic()
        };
        assert_eq!(decided(&sources), Some(("voluntary".to_owned(), "debugfs")));
        sources.debugfs = None;
        assert_eq!(decided(&sources), Some(("full".to_owned(), "kernel memory")));
        sources.memory = Some(-1);
        assert_eq!(decided(&sources), Some(("none".to_owned(), "command line")));
        sources.command_line = "preempt=whatever".into();
        assert_eq!(decided(&sources), Some(("lazy".to_owned(), "kernel configuration")));
        // A configuration names the options that are off, too.
        let voluntary = "CONFIG_PREEMPT_BUILD=y\nCONFIG_PREEMPT_VOLUNTARY=y\n# CONFIG_PREEMPT is not set\n";
        sources.configuration = Some(voluntary.into());
        assert_eq!(decided(&sources), Some(("voluntary".to_owned(), "kernel configuration")));
        sources.configuration = None;
        assert_eq!(decided(&sources), None);
    }

    #[test]
    fn a_real_time_kernel_is_one_whatever_else_it_says() {
        let sources = Sources {
            version: REAL_TIME.into(),
            debugfs: Some("full (lazy) laziest \n".into()),
            memory: Some(3),
            ..Sources::default()
        };
        assert_eq!(decided(&sources), Some(("rt".to_owned(), "kernel version")));
    }

    #[test]
    fn a_model_fixed_at_build_time_is_in_the_version() {
        let version = |text: &str| Sources { version: text.to_owned(), ..Sources::default() };
        assert_eq!(
            decided(&version("Linux version 5.10 #1 SMP Debian")),
            Some(("voluntary".to_owned(), "kernel version"))
        );
        assert_eq!(
            decided(&version("Linux version 6.1 #1 SMP PREEMPT Debian")),
            Some(("full".to_owned(), "kernel version"))
        );
        assert_eq!(decided(&version("")), None);
    }

    #[test]
    fn numbers_that_no_kernel_has_are_no_mode() {
        assert_eq!([-1, 4, i32::MAX].map(by_number), [None; 3]);
        assert_eq!([0, 1, 2, 3].map(by_number), ["none", "voluntary", "full", "lazy"].map(Some));
    }
}
