//! What this kernel offers, read once and kept as plain data: plans are made from it, users put
//! it into bug reports, tests hold facts captured from real kernels.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    btf::Btf,
    held,
    hooks::functions,
    kallsyms::{self, Newcomer, Symbols},
    module_symbols::{self, Layout},
    preemption,
};

/// Everything a plan depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`; empty in facts that were captured before it was asked for.
    #[serde(default)]
    pub machine: String,
    /// Whether connection tracking is there at all.
    pub conntrack: Presence,
    /// What this process could do when it started.
    pub capabilities: Capabilities,
    /// Whether kprobes can be made through perf events (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS).
    pub kprobes: bool,
    /// `none`, `integrity` or `confidentiality`; `None` where the kernel has no lockdown.
    pub lockdown: Option<String>,
    /// How kernel code is preempted: `none`, `voluntary`, `full`, `lazy`, `rt`; `None` where no source says it.
    pub preemption: Option<String>,
    /// The source that said it.
    #[serde(default)]
    pub preemption_from: Option<String>,
    /// Type information of vmlinux: absent, or why it could not be read.
    pub btf: Availability,
    /// Type information of nf_conntrack where it is a module.
    pub module_btf: Availability,
    /// Functions and callers.
    pub symbols: Symbols,
    /// Member offsets in bytes, by the name of the programs' global.
    pub offsets: BTreeMap<String, u32>,
    /// Whether hash chains are limited (`ip_conntrack_stat.chaintoolong`).
    pub chaintoolong: bool,
    /// Bytes on the stack from the entry of `__nf_ct_delete_from_lists` to the return address of
    /// `nf_ct_delete`, where its code could be read and followed.
    #[serde(default)]
    pub delete_frame: Option<u32>,
    /// Where the flow that a full table refuses can be read at the call of `net_ratelimit`.
    #[serde(default)]
    pub newcomer: Option<Newcomer>,
    /// Prototypes of the watched functions, from BTF.
    pub prototypes: BTreeMap<String, String>,
    /// Their numbers in the BTF that holds them.
    pub functions: BTreeMap<String, u32>,
    /// How many types vmlinux's BTF has: a module's go on from there. 0 where it was not read.
    #[serde(default)]
    pub vmlinux_types: u32,
}

/// Whether connection tracking is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Neither loaded nor built in.
    #[default]
    Absent,
    /// A loaded module.
    Module,
    /// Part of the kernel image.
    BuiltIn,
}

/// Whether something could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It does not exist.
    #[default]
    Absent,
    /// It was read.
    Present,
    /// It exists, but could not be used.
    Unreadable(String),
}

/// The capabilities that matter, from the effective set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "one bit each, as the kernel has them")]
pub struct Capabilities {
    /// Load BPF programs (5.8).
    pub bpf: bool,
    /// Attach them to kernel functions (5.8).
    pub perfmon: bool,
    /// Read another namespace's state.
    pub net_admin: bool,
    /// All of the above before 5.8.
    pub sys_admin: bool,
    /// See kernel addresses.
    pub syslog: bool,
}

impl Capabilities {
    /// From the text of `/proc/self/status`.
    pub fn parse(status: &str) -> Self {
        let bits = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        // Numbers of uapi/linux/capability.h.
        let has = |bit: u32| bits >> bit & 1 != 0;
        Self { net_admin: has(12), sys_admin: has(21), syslog: has(34), perfmon: has(38), bpf: has(39) }
    }
}

/// A program's global, the structure and the member whose offset it holds.
const OFFSETS: [(&str, &str, &[&str]); 10] = [
    ("CONN_TIMEOUT", "nf_conn", &["timeout"]),
    ("CONN_TUPLE", "nf_conn", &["tuplehash", "tuple"]),
    ("CONN_STATUS", "nf_conn", &["status"]),
    ("CONN_NET", "nf_conn", &["ct_net", "net"]),
    ("TUPLE_L3NUM", "nf_conntrack_tuple", &["src", "l3num"]),
    ("TUPLE_DST_PART", "nf_conntrack_tuple", &["dst", "u"]),
    ("TUPLE_PROTONUM", "nf_conntrack_tuple", &["dst", "protonum"]),
    ("NET_INUM", "net", &["ns", "inum"]),
    ("SKB_NFCT", "sk_buff", &["_nfct"]),
    ("TASK_STACK", "task_struct", &["stack"]),
];

/// The same for what counting can do without.
const OPTIONAL_OFFSETS: [(&str, &str, &[&str]); 13] = [
    ("ITER_PORTID", "nf_ct_iter_data", &["portid"]),
    ("TUPLE_SRC", "nf_conntrack_tuple", &["src", "u3"]),
    ("TUPLE_SRC_PART", "nf_conntrack_tuple", &["src", "u"]),
    ("TUPLE_DST", "nf_conntrack_tuple", &["dst", "u3"]),
    ("CONN_ZONE", "nf_conn", &["zone"]),
    ("CONN_MARK", "nf_conn", &["mark"]),
    ("ZONE_ID", "nf_conntrack_zone", &["id"]),
    ("TASK_FLAGS", "task_struct", &["flags"]),
    ("SKB_HEAD", "sk_buff", &["head"]),
    ("SKB_TAIL", "sk_buff", &["tail"]),
    ("SKB_NETWORK", "sk_buff", &["network_header"]),
    ("STATE_PF", "nf_hook_state", &["pf"]),
    ("STATE_NET", "nf_hook_state", &["net"]),
];

/// One direction of an entry, with its place in the table.
const DIRECTION: &str = "nf_conntrack_tuple_hash";

/// What a CPU's conntrack statistics are.
const STATISTICS: &str = "ip_conntrack_stat";

/// The kernel gives a page of `/proc/kallsyms` at a time, whatever is asked for (5.10 to 7.3).
const KALLSYMS_BUFFER: usize = 4096;

/// The globals that hold offsets.
pub fn offset_names() -> impl Iterator<Item = &'static str> {
    OFFSETS.iter().map(|(global, ..)| *global)
}

/// Where connection tracking is, without causing it to be loaded: only /sys and /proc are read.
pub fn presence() -> Presence {
    let module = Path::new("/sys/module/nf_conntrack");
    let state = module.join("initstate");
    if state.exists() {
        return by_state(fs::read_to_string(state).ok().as_deref());
    }
    if module.exists() {
        let listed = fs::read_to_string("/proc/modules").is_ok_and(|modules| lists(&modules, "nf_conntrack"));
        return without_state(listed, module.exists());
    }
    if Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        Presence::BuiltIn
    } else {
        Presence::Absent
    }
}

/// `coming` until its init function has returned, `going` while it leaves.
fn by_state(state: Option<&str>) -> Presence {
    if state.map(str::trim) == Some("live") { Presence::Module } else { Presence::Absent }
}

/// A directory without a state is what built-in code has that takes parameters. A module has it too for a moment while
/// it comes or goes, but is listed then, or gone (`mod_sysfs_setup` and `free_module`, 5.10 to 7.3).
const fn without_state(listed: bool, still_there: bool) -> Presence {
    if listed || !still_there { Presence::Absent } else { Presence::BuiltIn }
}

/// Whether `/proc/modules` lists it, in whatever state.
fn lists(modules: &str, name: &str) -> bool {
    modules.lines().any(|line| line.split(' ').next() == Some(name))
}

impl Facts {
    /// Reads this machine.
    pub fn read() -> anyhow::Result<Self> {
        let uname = nix::sys::utsname::uname()?;
        let mut facts = Self {
            release: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            conntrack: presence(),
            capabilities: Capabilities::parse(&held::status()?),
            kprobes: Path::new("/sys/bus/event_source/devices/kprobe/type").exists(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
                .ok()
                .and_then(|text| lockdown(&text)),
            ..Self::default()
        };
        let layout = facts.read_btf(Path::new("/sys/kernel/btf"));
        facts.symbols = symbols(layout.filter(|_| facts.conntrack == Presence::Module));
        if let Some(found) = preemption::read(&facts.release, facts.symbols.preemption_variable()) {
            facts.preemption = Some(found.mode);
            facts.preemption_from = Some(found.from.to_owned());
        }
        facts.delete_frame = facts.symbols.delete_frame();
        facts.newcomer = facts.symbols.newcomer();
        Ok(facts)
    }

    /// How many bytes of an entry the programs read at once: up to the end of the last member that they need.
    ///
    /// PREEMPT_RT and lock debugging make the lock at the beginning of `nf_conn` larger.
    pub fn conn_length(&self) -> usize {
        // The tuple's part that is needed ends with `dir`, 40 bytes in (5.10 to 7.3); a pointer and a u32 have their size.
        [("CONN_TUPLE", 40), ("CONN_NET", 8), ("CONN_TIMEOUT", 4)]
            .iter()
            .filter_map(|(name, size)| Some(*self.offsets.get(*name)? as usize + size))
            .max()
            .unwrap_or(0)
            .next_multiple_of(8)
    }

    /// Whether a function, by its number in BTF, lives in the module of connection tracking.
    pub fn in_module(&self, function: u32) -> bool {
        self.conntrack == Presence::Module && function >= self.vmlinux_types
    }

    /// Gives where a module's symbols lie as well, where this kernel's types say it.
    fn read_btf(&mut self, directory: &Path) -> Option<Layout> {
        self.read_vmlinux(directory).unwrap_or_else(|why| {
            self.btf = Availability::Unreadable(why);
            None
        })
    }

    fn read_vmlinux(&mut self, directory: &Path) -> Result<Option<Layout>, String> {
        let path = directory.join("vmlinux");
        let Some(bytes) = blob(&path)? else { return Ok(None) };
        let wanted = wanted();
        let base = parsed(&path, &bytes, None, &wanted)?;
        self.btf = Availability::Present;
        self.vmlinux_types = base.end();
        let path = directory.join("nf_conntrack");
        let bytes = blob(&path);
        let module = match &bytes {
            Ok(Some(bytes)) => parsed(&path, bytes, Some(&base), &wanted).map(Some),
            Ok(None) => Ok(None),
            Err(why) => Err(why.clone()),
        };
        self.module_btf = match &module {
            Ok(Some(_)) => Availability::Present,
            Ok(None) => Availability::Absent,
            Err(why) => Availability::Unreadable(why.clone()),
        };
        self.note(module.ok().flatten().as_ref().unwrap_or(&base));
        Ok(Layout::of(&base))
    }

    fn note(&mut self, btf: &Btf<'_>) {
        for (global, structure, path) in OFFSETS.into_iter().chain(OPTIONAL_OFFSETS) {
            if let Ok(Some(offset)) = btf.member(structure, path) {
                self.offsets.insert(global.to_owned(), offset);
            }
        }
        // The second of two in an array.
        if let (Ok(Some(original)), Ok(Some(size))) =
            (btf.member("nf_conn", &["tuplehash", "tuple"]), btf.size(DIRECTION))
        {
            self.offsets.insert("CONN_REPLY".to_owned(), original.saturating_add(size));
        }
        let [extensions, numbers, times] = TIMES;
        // Either all that leads to an entry's time, or nothing of it.
        if let (Ok(Some(ext)), Ok(Some(offsets)), Ok(Some(tstamp)), Ok(Some(start))) = (
            btf.member("nf_conn", &["ext"]),
            btf.member(extensions, &["offset"]),
            btf.constant(numbers, "NF_CT_EXT_TSTAMP"),
            btf.member(times, &["start"]),
        ) {
            // Extensions are found by one byte each.
            let offsets = [("CONN_EXT", ext), ("EXT_TSTAMP", offsets + tstamp), ("TSTAMP_START", start)];
            self.offsets.extend(offsets.map(|(global, offset)| (global.to_owned(), offset)));
        }
        self.chaintoolong = matches!(btf.member(STATISTICS, &["chaintoolong"]), Ok(Some(_)));
        for function in functions() {
            if let Ok(Some(prototype)) = btf.prototype(function) {
                self.prototypes.insert(function.to_owned(), prototype);
            }
            if let Ok(Some(number)) = btf.function(function) {
                self.functions.insert(function.to_owned(), number);
            }
        }
    }
}

/// Functions and callers: the short way where `layout` leads to the module's own symbols, else from `/proc/kallsyms`.
fn symbols(layout: Option<Layout>) -> Symbols {
    let short = |layout| kallsyms::gather(&module_symbols::read(&layout).ok()?, held::image().ok()?);
    let text = || {
        let text = io::BufReader::with_capacity(KALLSYMS_BUFFER, held::kallsyms().ok()?);
        kallsyms::read(text).ok()
    };
    layout.and_then(short).or_else(text).unwrap_or_default()
}

/// An entry's extensions, their numbers, and the one that holds when the entry came in.
const TIMES: [&str; 3] = ["nf_ct_ext", "nf_ct_ext_id", "nf_conn_tstamp"];

/// The structures, enumerations and functions that are looked for in BTF.
fn wanted() -> Vec<&'static str> {
    let structures = OFFSETS.into_iter().chain(OPTIONAL_OFFSETS).map(|(_, structure, _)| structure);
    let mut names: Vec<&str> = structures
        .chain(TIMES)
        .chain([STATISTICS, DIRECTION])
        .chain(module_symbols::STRUCTURES)
        .chain(functions())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn blob(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn parsed<'a>(
    path: &Path,
    bytes: &'a [u8],
    base: Option<&'a Btf<'a>>,
    wanted: &'a [&'a str],
) -> Result<Btf<'a>, String> {
    Btf::parse(bytes, base, wanted).map_err(|error| format!("{}: {error:#}", path.display()))
}

/// The mode in force, which the file marks with brackets.
fn lockdown(text: &str) -> Option<String> {
    let (mode, _) = text.split_once('[')?.1.split_once(']')?;
    Some(mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        assert_eq!(lockdown("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(lockdown(""), None);
    }

    #[test]
    fn a_module_that_comes_or_goes_is_not_built_in() {
        assert_eq!(by_state(Some("live\n")), Presence::Module);
        assert_eq!(by_state(Some("coming\n")), Presence::Absent);
        assert_eq!(by_state(None), Presence::Absent);
        let modules = "nf_conntrack_netlink 53248 0 - Live 0x0\nnf_conntrack 172032 1 - Loading 0x0\n";
        assert!(lists(modules, "nf_conntrack") && !lists(modules, "nf_conn") && !lists("", "nf_conntrack"));
        assert_eq!(without_state(true, true), Presence::Absent);
        assert_eq!(without_state(false, false), Presence::Absent);
        assert_eq!(without_state(false, true), Presence::BuiltIn);
    }

    #[test]
    fn a_modules_functions_are_numbered_after_those_of_vmlinux() {
        let mut facts = Facts { conntrack: Presence::Module, vmlinux_types: 100, ..Facts::default() };
        assert!(!facts.in_module(99));
        assert!(facts.in_module(100));
        facts.conntrack = Presence::BuiltIn;
        assert!(!facts.in_module(100));
    }

    #[test]
    fn capabilities_come_from_the_effective_set() {
        let root = Capabilities::parse("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n");
        assert!(root.bpf && root.perfmon && root.net_admin && root.sys_admin && root.syslog);
        let nobody = Capabilities::parse("CapEff:\t0000000000000000\n");
        assert_eq!(nobody, Capabilities::default());
        let bpf_only = Capabilities::parse("CapEff:\t0000008000000000\n");
        assert!(bpf_only.bpf && !bpf_only.perfmon);
    }
}
