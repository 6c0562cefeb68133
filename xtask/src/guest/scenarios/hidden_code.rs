//! The same counts where the kernel's machine code cannot be read, as in a container whose `/proc/kcore` is masked:
//! other hooks then count what the code would have shown. The same symbols too: without that file they are read from
//! `/proc/kallsyms`.

use std::fs;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount, umount};

use super::super::ctwatch;
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
    scenario("hidden_code::symbols", symbols),
];

const CODE: &str = "/proc/kcore";
const SYMBOLS: &str = "/proc/kallsyms";

/// Nothing is where this file was, until this is dropped.
struct Hidden(&'static str);

impl Hidden {
    fn hide(file: &'static str) -> anyhow::Result<Self> {
        let nothing: Option<&str> = None;
        mount(Some("/dev/null"), file, nothing, MsFlags::MS_BIND, nothing)
            .with_context(|| format!("hide {file}"))?;
        Ok(Self(file))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // What fails here fails again, and is told, where the next one hides it.
        let _ = umount(self.0);
    }
}

/// The modules' own tables, read while `/proc/kallsyms` is hidden, have the same symbols as its text, read while kernel
/// memory is. That text is the witness of where functions end.
fn symbols() -> anyhow::Result<()> {
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source needs no symbols".to_owned()).into());
    }
    super::super::modules::load()?;
    let text = fs::read_to_string(SYMBOLS).context(SYMBOLS)?;
    let functions: Vec<(u64, &str)> = text.lines().filter_map(function).collect();
    if !functions.iter().any(|(_, name)| *name == "bpf_kallsyms_lookup_name") {
        return Err(Skip("programs look up no symbols on this kernel (before 5.16)".to_owned()).into());
    }
    let by_text = {
        let _hidden = Hidden::hide(CODE)?;
        ctwatch::facts()?
    };
    let by_tables = {
        let _hidden = Hidden::hide(SYMBOLS)?;
        ctwatch::facts()?
    };
    equal("symbols", &by_tables["symbols"], &by_text["symbols"])?;
    let callers = by_tables["symbols"]["callers"].as_array().context("callers")?;
    anyhow::ensure!(callers.len() > 5, "{callers:?}");
    for caller in callers {
        let symbol = caller["symbol"].as_str().context("a symbol")?;
        let number = |name: &str| caller[name].as_u64().context("an address");
        let size = number("end")? - number("start")?;
        let begins = functions.iter().filter(|(_, name)| *name == symbol).map(|(address, _)| *address);
        let sizes: Vec<u64> = begins
            .filter_map(|begin| {
                functions.iter().map(|(next, _)| *next).filter(|next| *next > begin).min()?.checked_sub(begin)
            })
            .collect();
        anyhow::ensure!(sizes.contains(&size), "{symbol} has {size} bytes, in {SYMBOLS} {sizes:?}");
    }
    Ok(())
}

/// Address and name of a function, from its line in `/proc/kallsyms`.
fn function(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?;
    let name = words.next()?;
    ["t", "T", "w", "W"].contains(&kind).then_some((address, name))
}

fn hidden(scenario: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source reads no code".to_owned()).into());
    }
    super::super::modules::load()?;
    let _hidden = Hidden::hide(CODE)?;
    let facts = ctwatch::facts()?;
    equal(
        "what the code tells",
        (&facts["newcomer"], &facts["delete_frame"]),
        (&serde_json::Value::Null, &serde_json::Value::Null),
    )?;
    scenario()
}
