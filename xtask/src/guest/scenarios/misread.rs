//! The kernel's machine code is misread: what it seemed to say is given up at the first contradiction, and what was not
//! counted meanwhile is reported as lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::Context;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;

use super::super::ctwatch::{self, Watch};
use super::super::traffic::{Family, Flows, udp};
use super::super::trial::equal;
use super::super::witness::{self, Stats};
use super::super::{modules, state};
use super::{Scenario, Skip, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("misread::tuple", || registers(Change::Tuple)),
    scenario("misread::namespace", || registers(Change::Namespace)),
    scenario("misread::no_caller", no_caller),
    scenario("misread::other_caller", other_caller),
];

const CODE: &str = "/proc/kcore";
const FALSE_CODE: &str = "/tmp/false-kcore";
const ALLOC: &str = "__nf_conntrack_alloc";
const DELETE: &str = "nf_ct_delete";
/// What asks for an eviction: the second is called by the first where the compiler has left it a function.
const EVICTS: [&str; 2] = ["early_drop_list", "early_drop"];
/// Around the function, so that all of the module is there.
const BEFORE: u64 = 0x8_0000;
const LENGTH: usize = 0x10_0000;
/// Within so many bytes of its entry a function saves its arguments and makes its frame.
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

    /// Exchanges one register for another where the function saves its arguments.
    fn make(self, code: &mut [u8]) -> anyhow::Result<()> {
        let other = self.other();
        let (net, exchanged) = (saved(code, RDI)?, saved(code, other)?);
        (code[net], code[exchanged]) = (with(code[net], other), with(code[exchanged], RDI));
        Ok(())
    }
}

/// Sources of `mov REG, SOURCE` as x86-64 encodes them: `48 89` or `49 89`, and the source in bits 3 to 5.
const RDI: u8 = 7;
const RSI: u8 = 6;
const RDX: u8 = 2;

/// False code lies where the kernel's memory was, until this is dropped.
struct Falsified;

impl Falsified {
    /// Changes the beginning of a function.
    fn put(function: &str, change: impl FnOnce(&mut [u8]) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let code = Code::of(function)?.with_context(|| format!("{function} is no symbol"))?;
        code.falsify(change)?;
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

/// The kernel's memory around a function.
struct Code {
    /// The ELF header and the segments.
    headers: [(u64, Vec<u8>); 2],
    /// Where in the file the memory lies.
    offset: u64,
    memory: Vec<u8>,
    /// Where in the memory the function begins.
    entry: usize,
}

impl Code {
    /// Reads it; `None` where the kernel has no such function.
    fn of(function: &str) -> anyhow::Result<Option<Self>> {
        let symbols = fs::read_to_string("/proc/kallsyms")?;
        let line = symbols.lines().find(|line| line.split_whitespace().nth(2) == Some(function));
        let Some(line) = line else { return Ok(None) };
        let address = u64::from_str_radix(line.split_whitespace().next().context("an empty line")?, 16)?;
        let file = File::open(CODE)?;
        let mut header = vec![0; 64];
        file.read_exact_at(&mut header, 0)?;
        let word = |bytes: &[u8], at: usize| -> anyhow::Result<u64> {
            Ok(u64::from_le_bytes(bytes.get(at..at + 8).context("a short header")?.try_into()?))
        };
        let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (first, size, count) = (word(&header, 32)?, half(54), half(56));
        let mut segments = vec![0; size * count];
        file.read_exact_at(&mut segments, first)?;
        for segment in segments.chunks_exact(size) {
            let (offset, from, length) = (word(segment, 8)?, word(segment, 16)?, word(segment, 40)?);
            if segment[0] != 1 || !(from..from.saturating_add(length)).contains(&address) {
                continue;
            }
            let start = address.saturating_sub(BEFORE).max(from);
            let mut memory = vec![0; LENGTH];
            let read = file.read_at(&mut memory, offset + (start - from))?;
            memory.truncate(read);
            let (offset, entry) = (offset + (start - from), usize::try_from(address - start)?);
            return Ok(Some(Self { headers: [(0, header), (first, segments)], offset, memory, entry }));
        }
        anyhow::bail!("no segment of {CODE} has {address:#x}")
    }

    /// Writes a copy of the file with these parts of it, in which the function begins otherwise.
    fn falsify(mut self, change: impl FnOnce(&mut [u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        change(self.memory.get_mut(self.entry..self.entry + PROLOGUE).context("the code is not all there")?)?;
        fs::write(FALSE_CODE, "")?;
        let copy = File::options().write(true).open(FALSE_CODE)?;
        for (offset, bytes) in &self.headers {
            copy.write_all_at(bytes, *offset)?;
        }
        Ok(copy.write_all_at(&self.memory, self.offset)?)
    }

    /// How many bytes of the stack the function takes before its first branch.
    fn frame(&self) -> anyhow::Result<u32> {
        let code = self.memory.get(self.entry..).context("the code is not all there")?;
        let mut bytes = 0;
        let before = |instruction: &Instruction| {
            // The first may call the function tracer.
            matches!(instruction.flow_control(), FlowControl::Next | FlowControl::Call)
        };
        for instruction in Decoder::new(64, code, DecoderOptions::NONE).into_iter().take_while(before) {
            let of_stack = instruction.op0_register() == Register::RSP;
            match instruction.mnemonic() {
                Mnemonic::Push => bytes += 8,
                Mnemonic::Sub if of_stack => bytes += u32::try_from(instruction.immediate(1))?,
                _ => {}
            }
        }
        Ok(bytes)
    }
}

/// Takes more of the stack at the beginning of a function, where its tracer's call is or was.
fn deepen(code: &mut [u8], bytes: u32) -> anyhow::Result<()> {
    let at = if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4 } else { 0 };
    let bytes = u8::try_from(bytes).ok().filter(|bytes| *bytes < 128).context("a frame too large")?;
    // sub rsp, bytes; nop
    code[at..at + 5].copy_from_slice(&[0x48, 0x83, 0xec, bytes, 0x90]);
    Ok(())
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

fn fact(name: &str) -> anyhow::Result<Value> {
    Ok(ctwatch::facts()?[name].clone())
}

/// Waits until it says that it no longer believes the kernel's code.
fn wait_disbelief(watch: &mut Watch) -> anyhow::Result<()> {
    watch.wait_object("reason why the kernel's code is not believed", |object| {
        object["source"]["why"].as_str().is_some_and(|why| why.contains("did not hold"))
    })?;
    Ok(())
}

fn prepare() -> anyhow::Result<()> {
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source reads no code".to_owned()).into());
    }
    modules::load()
}

fn registers(change: Change) -> anyhow::Result<()> {
    const FLOWS: u32 = 3000;
    prepare()?;
    let right = fact("newcomer")?;
    anyhow::ensure!(right.is_object(), "the code says nothing here: {right}");
    let falsified = Falsified::put(ALLOC, |code| change.make(code))?;
    let wrong = fact("newcomer")?;
    equal("where the namespace seems to be", &wrong["net"], &right[change.name()])?;
    equal("and what was exchanged with it", &wrong[change.name()], &right["net"])?;
    let space = init();
    state::fresh(&space)?;
    state::set("nf_conntrack_max", 200)?;
    let before = Stats::read(&space)?;
    let mut watch = Watch::start(&[])?;
    udp::send(Flows::new(Family::V4, FLOWS))?;
    wait_disbelief(&mut watch)?;
    // It may have come before the last of these flows.
    watch.catch_up()?;
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

/// What lies beside the return address of `nf_ct_delete` is a register that its caller has saved, or a variable.
fn no_caller() -> anyhow::Result<()> {
    prepare()?;
    evictions(8)
}

/// Behind the frame of who asks for an eviction lies an address of the kernel's code, too.
fn other_caller() -> anyhow::Result<()> {
    prepare()?;
    for function in EVICTS {
        if let Some(code) = Code::of(function)? {
            return evictions(8 + code.frame()?);
        }
    }
    Err(Skip("the compiler has made the eviction a part of another function".to_owned()).into())
}

/// The code seems to say that who asked for a removal is found so many bytes above where it is.
fn evictions(above: u32) -> anyhow::Result<()> {
    const FLOWS: u32 = 4000;
    let right = fact("delete_frame")?;
    let Some(distance) = right.as_u64() else {
        return Err(Skip("the code does not say where the caller of a removal is found".to_owned()).into());
    };
    let falsified = Falsified::put(DELETE, |code| deepen(code, above))?;
    equal("where it seems to be", fact("delete_frame")?.as_u64(), Some(distance + u64::from(above)))?;
    let space = init();
    state::fresh(&space)?;
    state::buckets(1024)?;
    state::set("nf_conntrack_max", 1000)?;
    let mut watch = Watch::start(&[])?;
    let mut sent = udp::send(Flows::new(Family::V4, FLOWS))?;
    wait_disbelief(&mut watch)?;
    // It may have come before the last of these flows.
    watch.catch_up()?;
    let (kernel, counted) = (Stats::read(&space)?, watch.sum("delete.early_drop")?);
    sent += udp::send(Flows::new(Family::V4, FLOWS).from(FLOWS))?;
    let least = sent.passed - witness::count(&space)?;
    let totals = watch.stop()?;
    drop(falsified);
    let after = Stats::read(&space)?;
    let evicted = |since: &Stats| after.since(since).get("early_drop").unwrap_or(0);
    anyhow::ensure!(evicted(&kernel) > 1000, "only {} were evicted afterwards", evicted(&kernel));
    let told = totals.sum("delete.early_drop");
    equal("evictions after the contradiction", told - counted, evicted(&kernel))?;
    let (unknown, lost) = (totals.sum("delete.other"), totals.lost()?);
    anyhow::ensure!(unknown > 0, "nothing contradicted the code");
    anyhow::ensure!(lost >= unknown, "{unknown} removals have no cause, and only {lost} are said to be lost");
    // Under pressure the kernel's worker removes entries too, which its counter of evictions leaves out, and goes on when
    // ctwatch has ended: 51 of 7051 on 6.1 on a busy host.
    let removed = told + unknown + totals.sum("delete.pressure");
    let most = sent.passed - witness::count(&space)?;
    anyhow::ensure!(
        (least..=most).contains(&removed),
        "{least} to {most} entries are gone, and {removed} were removed: {totals}"
    );
    state::fresh(&space)
}
