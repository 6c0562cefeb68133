//! Which functions of the programs the verifier checks once and by themselves: it reads that from type information (BTF)
//! that is loaded with them. Of the object's own, which Rust's types fill, only this much is needed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya_obj::{
    btf::{Btf, BtfParam, BtfType, Func, FuncLinkage, FuncProto, Int, IntEncoding},
    generated::{BPF_PSEUDO_CALL, bpf_cmd, bpf_func_info, bpf_insn},
};
use ctwatch_ebpf::GLOBAL_FUNCTIONS;

use super::sys::{bpf_fd, zeroed};

/// The type information of all functions, and where each type is in it.
pub(super) struct FunctionTypes {
    btf: Btf,
    word: u32,
    argument: u32,
    globals: HashMap<&'static str, u32>,
    other: u32,
    loaded: Option<OwnedFd>,
}

impl FunctionTypes {
    pub(super) fn new() -> Self {
        let mut btf = Btf::new();
        let name = btf.add_string("u64");
        let word = btf.add_type(BtfType::Int(Int::new(name, 8, IntEncoding::None, 0)));
        let argument = btf.add_string("argument");
        let mut all = Self { btf, word, argument, globals: HashMap::new(), other: 0, loaded: None };
        for (name, arguments) in GLOBAL_FUNCTIONS {
            let id = all.add(name, arguments, FuncLinkage::Global);
            all.globals.insert(name, id);
        }
        all.other = all.add("ctwatch", 0, FuncLinkage::Static);
        all
    }

    fn add(&mut self, name: &str, arguments: u32, linkage: FuncLinkage) -> u32 {
        let name = self.btf.add_string(name);
        let parameter = |_| BtfParam { name_offset: self.argument, btf_type: self.word };
        let proto = FuncProto::new((0..arguments).map(parameter).collect(), self.word);
        let proto = self.btf.add_type(BtfType::FuncProto(proto));
        self.btf.add_type(BtfType::Func(Func::new(name, proto, linkage)))
    }

    /// The functions of a program and their types, the program's own first; nothing where none of them is checked by
    /// itself. `names` has the names of functions by where they begin, as far as they are known.
    pub(super) fn of(
        &mut self,
        program: &str,
        code: &[bpf_insn],
        names: &BTreeMap<u32, String>,
    ) -> Vec<bpf_func_info> {
        let global = |at: &u32| names.get(at).and_then(|name| self.globals.get(name.as_str()).copied());
        let called: Vec<(u32, Option<u32>)> = called(code).iter().map(|at| (*at, global(at))).collect();
        if called.iter().all(|(_, global)| global.is_none()) {
            return Vec::new();
        }
        // The kernel's lists show a program by the name of its first function.
        let own = bpf_func_info { insn_off: 0, type_id: self.add(program, 0, FuncLinkage::Static) };
        let info = |(at, global): (u32, Option<u32>)| bpf_func_info {
            insn_off: at,
            type_id: global.unwrap_or(self.other),
        };
        [own].into_iter().chain(called.into_iter().map(info)).collect()
    }

    /// The kernel's copy, once every program's functions are known.
    pub(super) fn fd(&mut self) -> Result<i32> {
        if self.loaded.is_none() {
            let bytes = self.btf.to_bytes();
            let mut attr = zeroed();
            // SAFETY: the variant for BPF_BTF_LOAD; every byte of it was set to zero.
            let load = unsafe { &mut attr.__bindgen_anon_7 };
            load.btf = bytes.as_ptr() as u64;
            load.btf_size = u32::try_from(bytes.len())?;
            // SAFETY: the bytes live until the call returns, which opens a descriptor.
            let fd = unsafe { bpf_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr) };
            self.loaded = Some(fd.context("the kernel does not accept the functions' types")?);
        }
        Ok(self.loaded.as_ref().context("just loaded")?.as_raw_fd())
    }
}

/// Where the functions of a program begin that it calls.
fn called(code: &[bpf_insn]) -> BTreeSet<u32> {
    /// `BPF_JMP | BPF_CALL`.
    const CALL: u8 = 0x85;
    let target = |(at, insn): (i64, &bpf_insn)| {
        let is_call = insn.code == CALL && u32::from(insn.src_reg()) == BPF_PSEUDO_CALL;
        is_call.then(|| u32::try_from(at + 1 + i64::from(insn.imm)).ok())?
    };
    (0..).zip(code).filter_map(target).collect()
}
