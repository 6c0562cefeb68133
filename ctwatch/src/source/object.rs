//! The eBPF object: its programs, and the maps that they share.
//!
//! Not aya's own loader, for three reasons: it parses all of vmlinux's BTF, which took longer than
//! everything else together; it (through 0.16) attaches fentry and fexit programs to functions of
//! vmlinux only; and it makes every map, used or not. Parsing and relocating are aya-obj's, and so
//! are the maps' types aya's.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::CString,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, MapError};
use aya_obj::{
    EbpfSectionKind,
    generated::{
        BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE, bpf_attr, bpf_cmd, bpf_func_info, bpf_insn, bpf_prog_type,
    },
};

use ctwatch_ebpf::field::Field;

use super::global_functions::FunctionTypes;
use super::sys::{bpf_fd, create_map, freeze, set_name, write_section, zeroed};

/// The object that was built into this binary.
#[cfg(not(feature = "object-from-file"))]
fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ctwatch-ebpf"))
}

/// The object from a file, in a build that only tests of the tests use: `cargo xtask mutants` tries many objects with
/// one binary.
#[cfg(feature = "object-from-file")]
fn object() -> &'static [u8] {
    static OBJECT: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| std::fs::read("/ctwatch-ebpf").unwrap_or_default());
    &OBJECT
}

/// `BPF_LD | BPF_DW | BPF_IMM`: the instruction that names a map.
const LOAD_ADDRESS: u8 = 0x18;

/// `BPF_LDX | BPF_MEM`, without a size: the instructions that load from memory.
const LOAD_MEMORY: u8 = 0x61;

/// Read-only values for the programs, by the name of the global (a name that the object does not
/// have, or a value of another size, is an error), and the members that they load.
#[derive(Clone, Debug, Default)]
pub struct Globals {
    values: BTreeMap<String, Vec<u8>>,
    fields: BTreeMap<Field, u32>,
}

impl Globals {
    /// Sets one, in the machine's byte order.
    pub fn set(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.values.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a member's offset in bytes.
    pub fn field(&mut self, field: Field, offset: u32) -> &mut Self {
        self.fields.insert(field, offset);
        self
    }
}

/// What a program is loaded for.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A kprobe or kretprobe.
    Kprobe,
    /// A BPF trampoline.
    Trampoline {
        /// `BPF_TRACE_FENTRY` or `BPF_TRACE_FEXIT`.
        attach_type: u32,
        /// The function's number in its BTF.
        function: u32,
        /// The BTF object of the module that holds the function; `None` for vmlinux.
        module: Option<BorrowedFd<'a>>,
    },
}

/// The object, ready to give programs and maps. A map is made when the first program that uses it
/// is loaded, or when it is asked for.
pub struct Object {
    license: CString,
    /// By name.
    programs: HashMap<String, Program>,
    types: FunctionTypes,
    maps: Vec<MapOf>,
}

struct Program {
    /// Where it names a map, it is by its place in [`Object::maps`].
    code: Vec<bpf_insn>,
    functions: Vec<bpf_func_info>,
}

#[derive(Debug)]
struct MapOf {
    name: String,
    definition: aya_obj::Map,
    made: Option<OwnedFd>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("maps", &self.maps).finish_non_exhaustive()
    }
}

impl Object {
    /// Parses the object and sets its globals.
    pub fn parse(globals: &Globals) -> Result<Self> {
        let mut object = aya_obj::Object::parse(object()).context("cannot parse the eBPF object")?;
        let values = globals.values.iter().map(|(name, value)| (name.as_str(), (value.as_slice(), true)));
        object.patch_map_data(values.collect()).context("cannot set the programs' constants")?;
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        let places = (0..).zip(&maps).map(|(place, (name, map))| (name.as_str(), place, map));
        object.relocate_maps(places, &text).context("cannot relocate map references")?;
        let names: HashMap<u32, String> = object
            .functions
            .values()
            .filter_map(|function| {
                Some((function.func_info.func_info.first()?.type_id, function.name.clone()))
            })
            .collect();
        object.relocate_calls(&text).context("cannot relocate calls")?;
        let mut types = FunctionTypes::new();
        let mut programs = HashMap::new();
        for (name, program) in &object.programs {
            let function = object
                .functions
                .remove(&program.function_key())
                .with_context(|| format!("no code of {name}"))?;
            let mut code = function.instructions;
            write_fields(&mut code, &globals.fields).with_context(|| format!("in program {name}"))?;
            let name_of = |info: &bpf_func_info| Some((info.insn_off, names.get(&info.type_id)?.clone()));
            let names_here = function.func_info.func_info.iter().filter_map(name_of).collect();
            let functions = types.of(name, &code, &names_here);
            programs.insert(name.clone(), Program { code, functions });
        }
        let map = |(name, definition)| MapOf { name, definition, made: None };
        Ok(Self { license: object.license, programs, types, maps: maps.into_iter().map(map).collect() })
    }

    /// Sets a map's size, before it is made.
    pub fn resize(&mut self, map: &str, entries: u32) -> Result<()> {
        self.find(map)?.definition.set_max_entries(entries);
        Ok(())
    }

    /// A map as one of aya's types.
    pub fn map<T: TryFrom<Map, Error = MapError>>(&mut self, name: &str) -> Result<T> {
        let (fd, _) = self.map_fd(name)?;
        let map = MapData::from_fd(fd).and_then(Map::from_map_data).and_then(T::try_from);
        map.with_context(|| format!("map {name} is not what it should be"))
    }

    /// A map, and how it was made.
    pub fn map_fd(&mut self, name: &str) -> Result<(OwnedFd, &aya_obj::Map)> {
        let map = self.find(name)?;
        Ok((map.make()?.try_clone_to_owned()?, &map.definition))
    }

    fn find(&mut self, name: &str) -> Result<&mut MapOf> {
        let found = self.maps.iter_mut().find(|map| map.name == name);
        found.with_context(|| format!("the object has no map {name}"))
    }

    /// Whether a program refers to a map.
    pub fn uses(&self, program: &str, map: &str) -> bool {
        let code = self.programs.get(program).map_or(&[][..], |program| &program.code);
        references(code).any(|(_, place)| self.maps.get(place).is_some_and(|used| used.name == map))
    }

    /// Loads a program, with the maps that it uses.
    pub fn load(&mut self, program: &str, target: Target<'_>) -> Result<OwnedFd> {
        let found = self.programs.get(program);
        let Program { code, functions } =
            found.with_context(|| format!("the object has no program {program}"))?;
        let mut code = code.clone();
        if let Some(field) = code.iter().copied().find_map(noted) {
            bail!("where {field:?} lies on this kernel is not known");
        }
        let references: Vec<(usize, usize)> = references(&code).collect();
        for (at, place) in references {
            let map = self.maps.get_mut(place).context("the object refers to a map that it does not have")?;
            code[at].imm = map.make()?.as_raw_fd();
        }
        let mut attr = zeroed();
        // SAFETY: the variant for BPF_PROG_LOAD; every byte of it was set to zero.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.insns = code.as_ptr() as u64;
        load.insn_cnt = u32::try_from(code.len())?;
        load.license = self.license.as_ptr() as u64;
        set_name(&mut load.prog_name, program);
        if !functions.is_empty() {
            load.prog_btf_fd = self.types.fd()?.cast_unsigned();
            load.func_info = functions.as_ptr() as u64;
            load.func_info_cnt = u32::try_from(functions.len())?;
            load.func_info_rec_size = u32::try_from(size_of::<bpf_func_info>())?;
        }
        match target {
            Target::Kprobe => load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32,
            Target::Trampoline { attach_type, function, module } => {
                load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
                load.expected_attach_type = attach_type;
                load.attach_btf_id = function;
                if let Some(module) = module {
                    load.__bindgen_anon_1.attach_btf_obj_fd = module.as_raw_fd().cast_unsigned();
                }
            }
        }
        let others = match target {
            Target::Kprobe => "--source netlink",
            Target::Trampoline { .. } => "--source kprobe or netlink",
        };
        // SAFETY: the code, its functions and the licence that attr points to live until the call returns.
        unsafe { load_program(&mut attr, others) }
            .with_context(|| format!("the kernel does not accept program {program}"))
    }
}

impl MapOf {
    fn make(&mut self) -> Result<BorrowedFd<'_>> {
        if self.made.is_none() {
            let Self { name, definition, .. } = &*self;
            let fd = create_map(name, definition).with_context(|| format!("cannot make map {name}"))?;
            if !definition.data().is_empty() {
                write_section(fd.as_fd(), definition.data())
                    .with_context(|| format!("cannot fill {name}"))?;
            }
            if definition.section_kind() == EbpfSectionKind::Rodata {
                freeze(fd.as_fd()).with_context(|| format!("cannot freeze {name}"))?;
            }
            self.made = Some(fd);
        }
        Ok(self.made.as_ref().context("just made")?.as_fd())
    }
}

/// The member whose offset has still to be written into an instruction.
fn noted(insn: bpf_insn) -> Option<Field> {
    const MODE_AND_CLASS: u8 = 0xe7;
    (insn.code & MODE_AND_CLASS == LOAD_MEMORY).then(|| Field::noted(insn.off))?
}

/// Writes the offsets that are known.
fn write_fields(code: &mut [bpf_insn], fields: &BTreeMap<Field, u32>) -> Result<()> {
    for insn in code {
        if let Some(field) = noted(*insn)
            && let Some(offset) = fields.get(&field)
        {
            insn.off = Field::written(*offset)
                .with_context(|| format!("{field:?} lies too far behind: at {offset}"))?;
        }
    }
    Ok(())
}

/// The instructions that name a map, and the map's place.
fn references(code: &[bpf_insn]) -> impl Iterator<Item = (usize, usize)> {
    let names_map = |insn: &bpf_insn| {
        insn.code == LOAD_ADDRESS
            && [BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE].contains(&u32::from(insn.src_reg()))
    };
    let found = code.iter().enumerate().filter(move |(_, insn)| names_map(insn));
    found.filter_map(|(at, insn)| Some((at, usize::try_from(insn.imm).ok()?)))
}

/// Loads once in silence; if that fails, again with the verifier's log, whose end names the fault.
/// `others` is what to try where the kernel refuses such programs.
///
/// # Safety
///
/// `attr` must be filled for BPF_PROG_LOAD, with valid addresses.
unsafe fn load_program(attr: &mut bpf_attr, others: &str) -> Result<OwnedFd> {
    // SAFETY: the caller answers for the addresses.
    let first = match unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, attr) } {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0_u8; 256 << 10];
    // SAFETY: the variant for BPF_PROG_LOAD, as the caller filled it.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = u32::try_from(log.len())?;
    // SAFETY: as above; the log lives until the call returns.
    if let Ok(fd) = unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, attr) } {
        return Ok(fd);
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    // The verifier gives a reason for what it rejects; a kernel that allows no such program gives none.
    if tail.is_empty() {
        return Err(first)
            .with_context(|| format!("it refuses programs of this type altogether; use {others}"));
    }
    Err(first).context(tail)
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
