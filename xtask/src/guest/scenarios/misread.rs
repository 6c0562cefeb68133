//! The kernel's machine code is misread: what it seemed to say is given up at the first contradiction, and what was not
//! counted meanwhile is reported as lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::Context;
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;

use super::super::ctwatch::{self, Watch};
use super::super::space::checked;
use super::super::traffic::{Family, Flows, udp};
use super::super::trial::equal;
use super::super::witness::Stats;
use super::super::{modules, state};
use super::{Scenario, Skip, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("misread::tuple", || misread(Change::Tuple)),
    scenario("misread::namespace", || misread(Change::Namespace)),
];

const CODE: &str = "/proc/kcore";
const FALSE_CODE: &str = "/tmp/false-kcore";
const FUNCTION: &str = "__nf_conntrack_alloc";
/// Around the function, so that all of the module is there.
const BEFORE: u64 = 0x8_0000;
const LENGTH: usize = 0x10_0000;
/// Within so many bytes of its entry a function saves its arguments.
const PROLOGUE: usize = 160;

/// What the falsified code says.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Namespace and tuple are exchanged: what is taken for a tuple is none.
    Tuple,
    /// Namespace and zone are exchanged, and the tuple is right.
    Namespace,
}

impl Change {
    /// What is exchanged with the namespace: the register that the function gets it in.
    const fn other(self) -> u8 {
        match self {
            Self::Tuple => RDX,
            Self::Namespace => RSI,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tuple => "orig",
            Self::Namespace => "zone",
        }
    }
}

/// Sources of `mov REG, SOURCE` as x86-64 encodes them: `48 89` or `49 89`, and the source in bits 3 to 5.
const RDI: u8 = 7;
const RSI: u8 = 6;
const RDX: u8 = 2;

/// False code lies where the kernel's memory was, until this is dropped.
struct Falsified;

impl Falsified {
    fn put(change: Change) -> anyhow::Result<Self> {
        fs::write(FALSE_CODE, "")?;
        falsify(change)?;
        let nothing: Option<&str> = None;
        mount(Some(FALSE_CODE), CODE, nothing, MsFlags::MS_BIND, nothing).context("replace /proc/kcore")?;
        Ok(Self)
    }
}

impl Drop for Falsified {
    fn drop(&mut self) {
        // What fails here fails again, and is reported, where the next one is put there.
        let _ = umount(CODE);
        let _ = fs::remove_file(FALSE_CODE);
    }
}

/// Copies the ELF header, its segments and the module's code, with one register for another.
fn falsify(change: Change) -> anyhow::Result<()> {
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let line = symbols.lines().find(|line| line.split_whitespace().nth(2) == Some(FUNCTION));
    let address = line.and_then(|line| line.split_whitespace().next()).context(FUNCTION)?;
    let address = u64::from_str_radix(address, 16)?;
    let (real, copy) = (File::open(CODE)?, File::options().write(true).open(FALSE_CODE)?);
    let mut header = [0; 64];
    real.read_exact_at(&mut header, 0)?;
    let word = |bytes: &[u8], at: usize| -> anyhow::Result<u64> {
        Ok(u64::from_le_bytes(bytes.get(at..at + 8).context("a short header")?.try_into()?))
    };
    let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (first, size, count) = (word(&header, 32)?, half(54), half(56));
    let mut segments = vec![0; size * count];
    real.read_exact_at(&mut segments, first)?;
    copy.write_all_at(&header, 0)?;
    copy.write_all_at(&segments, first)?;
    for segment in segments.chunks_exact(size) {
        let (offset, from, length) = (word(segment, 8)?, word(segment, 16)?, word(segment, 40)?);
        if segment[0] != 1 || !(from..from.saturating_add(length)).contains(&address) {
            continue;
        }
        let start = address.saturating_sub(BEFORE).max(from);
        let mut code = vec![0; LENGTH];
        let length = real.read_at(&mut code, offset + (start - from))?;
        code.truncate(length);
        let entry = usize::try_from(address - start)?;
        let prologue = code.get_mut(entry..entry + PROLOGUE).context("the code is not all there")?;
        let other = change.other();
        let (net, exchanged) = (saved(prologue, RDI)?, saved(prologue, other)?);
        (prologue[net], prologue[exchanged]) = (with(prologue[net], other), with(prologue[exchanged], RDI));
        copy.write_all_at(&code, offset + (start - from))?;
        return Ok(());
    }
    anyhow::bail!("no segment of {CODE} has {address:#x}")
}

/// Where the operands of the first `mov` from this register are.
fn saved(code: &[u8], source: u8) -> anyhow::Result<usize> {
    let is_it = |bytes: &[u8]| matches!(bytes, [0x48 | 0x49, 0x89, operands] if operands >> 6 == 3 && operands >> 3 & 7 == source);
    let at = code.windows(3).position(is_it).with_context(|| format!("register {source} is not saved"))?;
    Ok(at + 2)
}

const fn with(operands: u8, source: u8) -> u8 {
    operands & !(7 << 3) | source << 3
}

fn newcomer() -> anyhow::Result<Value> {
    let facts = checked(std::process::Command::new(ctwatch::program()).arg("facts"))?;
    let facts: Value = serde_json::from_str(&facts).context("ctwatch facts")?;
    Ok(facts["newcomer"].clone())
}

fn misread(change: Change) -> anyhow::Result<()> {
    const FLOWS: u32 = 3000;
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source reads no code".to_owned()).into());
    }
    modules::load()?;
    let right = newcomer()?;
    anyhow::ensure!(right.is_object(), "the code says nothing here: {right}");
    let falsified = Falsified::put(change)?;
    let wrong = newcomer()?;
    equal("where the namespace seems to be", &wrong["net"], &right[change.name()])?;
    equal("and what was exchanged with it", &wrong[change.name()], &right["net"])?;
    let space = init();
    state::fresh(&space)?;
    state::set("nf_conntrack_max", 200)?;
    let before = Stats::read(&space)?;
    let mut watch = Watch::start(&[])?;
    udp::send(Flows::new(Family::V4, FLOWS))?;
    watch.wait_object("reason why registers are not believed", |object| {
        object["source"]["why"].as_str().is_some_and(|why| why.contains("registers did not hold"))
    })?;
    let (kernel, counted) = (Stats::read(&space)?, watch.sum("drop.table_full")?);
    udp::send(Flows::new(Family::V4, FLOWS).from(FLOWS))?;
    let totals = watch.stop()?;
    drop(falsified);
    let after = Stats::read(&space)?;
    let dropped = |since: &Stats| after.since(since).get("drop").unwrap_or(0);
    let refused = dropped(&kernel);
    anyhow::ensure!(refused > 1000, "only {refused} were refused: the table was hardly full");
    let told = totals.sum("drop.table_full");
    equal("refusals after the contradiction", told - counted, refused)?;
    let lost = totals.lost()?;
    anyhow::ensure!(lost > 0, "nothing was lost before it");
    equal("refusals, counted and lost", told + lost, dropped(&before))?;
    let strange = totals.rows.keys().find(|key| key.netns != space.inode && totals.get(key, "drop") > 0);
    anyhow::ensure!(strange.is_none(), "refusals of a namespace that does not exist: {strange:?}");
    state::fresh(&space)
}
