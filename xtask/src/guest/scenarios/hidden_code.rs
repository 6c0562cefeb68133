//! The same counts where the kernel's machine code cannot be read, as in a container whose `/proc/kcore` is masked:
//! other hooks do then what the code would have told.

use anyhow::Context as _;
use nix::mount::{MsFlags, mount, umount};

use super::super::ctwatch;
use super::super::space::checked;
use super::super::trial::equal;
use super::{Scenario, Skip, causes, full, scenario, trace};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("hidden_code::refusals", || hidden(|| full::unassured(1000, 10_000))),
    scenario("hidden_code::evictions", || hidden(full::few_buckets)),
    scenario("hidden_code::closed", || hidden(causes::tcp_refused)),
    scenario("hidden_code::netlink", || hidden(causes::netlink)),
    scenario("hidden_code::flush", || hidden(causes::flush)),
    scenario("hidden_code::timeout", || hidden(causes::timeout)),
    scenario("hidden_code::trace", || hidden(|| trace::burst("auto"))),
];

const CODE: &str = "/proc/kcore";

/// Nothing is where the kernel's memory was, until this is dropped.
struct Hidden;

impl Hidden {
    fn hide() -> anyhow::Result<Self> {
        let nothing: Option<&str> = None;
        mount(Some("/dev/null"), CODE, nothing, MsFlags::MS_BIND, nothing).context("hide /proc/kcore")?;
        Ok(Self)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // What fails here fails again, and is told, where the next one hides it.
        let _ = umount(CODE);
    }
}

fn hidden(scenario: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source reads no code".to_owned()).into());
    }
    super::super::modules::load()?;
    let _hidden = Hidden::hide()?;
    let facts = checked(std::process::Command::new(ctwatch::program()).arg("facts"))?;
    let facts: serde_json::Value = serde_json::from_str(&facts).context("ctwatch facts")?;
    equal(
        "what the code tells",
        (&facts["newcomer"], &facts["delete_frame"]),
        (&serde_json::Value::Null, &serde_json::Value::Null),
    )?;
    scenario()
}
