//! `bpf(2)` where aya offers nothing, or does more than is wanted.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::generated::{
    bpf_btf_info, bpf_cmd, bpf_link_info, bpf_link_type, bpf_perf_event_type, bpf_prog_info,
};

pub(super) use crate::kernel::bpf::{bpf, bpf_fd, zeroed};

/// What the kernel says of a program's runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramStats {
    /// The program's number in the kernel.
    pub id: u32,
    /// Nanoseconds spent in it while statistics were on (5.1).
    pub run_ns: u64,
    /// Runs while statistics were on.
    pub runs: u64,
    /// Runs skipped because another program ran on that CPU (trampolines 5.12, kprobes 6.7).
    pub missed: u64,
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a program.
pub(super) fn program_stats(program: BorrowedFd<'_>) -> io::Result<ProgramStats> {
    // SAFETY: the kernel's plain data; all zeroes asks for no arrays.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    // SAFETY: the structure asks for no arrays.
    unsafe { object_info(program, &mut info) }?;
    Ok(ProgramStats {
        id: info.id,
        run_ns: info.run_time_ns,
        runs: info.run_cnt,
        missed: info.recursion_misses,
    })
}

/// How often a kprobe, attached by a link, could not run at all: it was hit inside another kprobe,
/// or no instance was free to catch the return.
///
/// The kernel tells since 6.7. Before, the count of a probe made through perf events can be read
/// nowhere: `/sys/kernel/tracing/kprobe_profile` lists those of trace events only
/// (`create_local_trace_kprobe`, 5.10 to 6.6). So 0 may mean that nobody knows.
pub(super) fn kprobe_missed(link: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: the kernel's plain data; all zeroes asks for no strings.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    // SAFETY: the structure asks for no strings.
    unsafe { object_info(link, &mut info) }?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_PERF_EVENT as u32 {
        return Ok(0);
    }
    // SAFETY: the variant of a perf link; a kernel that does not fill it (before 6.6) leaves zeroes.
    let event = unsafe { info.__bindgen_anon_1.perf_event };
    let kprobes = [bpf_perf_event_type::BPF_PERF_EVENT_KPROBE, bpf_perf_event_type::BPF_PERF_EVENT_KRETPROBE];
    if !kprobes.iter().any(|kind| *kind as u32 == event.type_) {
        return Ok(0);
    }
    // SAFETY: the variant of a kprobe.
    Ok(unsafe { event.__bindgen_anon_1.kprobe.missed })
}

/// Whether a BTF object describes the kernel or one of its modules, and its name.
pub(super) fn btf_name(btf: BorrowedFd<'_>) -> io::Result<(bool, Vec<u8>)> {
    let mut name = [0_u8; 64];
    // SAFETY: plain data of the kernel's interface.
    let mut info: bpf_btf_info = unsafe { mem::zeroed() };
    info.name = name.as_mut_ptr() as u64;
    info.name_len = u32::try_from(name.len()).unwrap_or(0);
    // SAFETY: the name that it points to lives until the call returns.
    unsafe { object_info(btf, &mut info) }?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    Ok((info.kernel_btf != 0, name[..end].to_vec()))
}

/// # Safety
///
/// `info` must be the kernel's structure for this kind of object, and every address in it valid.
unsafe fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = zeroed();
    attr.info.bpf_fd = object.as_raw_fd().cast_unsigned();
    attr.info.info = (&raw mut *info) as u64;
    attr.info.info_len = u32::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: attr describes a live buffer of the length it gives; an older kernel fills less of
    // it, and a newer one no more than asked.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// Makes a map without type information.
pub(super) fn create_map(name: &str, map: &aya_obj::Map) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: the variant for BPF_MAP_CREATE; every byte of it was set to zero.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = map.map_type();
    create.key_size = map.key_size();
    create.value_size = map.value_size();
    create.max_entries = map.max_entries();
    create.map_flags = map.map_flags();
    set_name(&mut create.map_name, name);
    // SAFETY: attr holds numbers and a name, no address.
    unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr) }
}

/// Writes the one element of an array that holds a section of data.
pub(super) fn write_section(map: BorrowedFd<'_>, data: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut attr = zeroed();
    // SAFETY: the variant for BPF_MAP_UPDATE_ELEM; every byte of it was set to zero.
    let update = unsafe { &mut attr.__bindgen_anon_2 };
    update.map_fd = map.as_raw_fd().cast_unsigned();
    update.key = (&raw const key) as u64;
    update.__bindgen_anon_1.value = data.as_ptr() as u64;
    // SAFETY: key and data live until the call returns; the map's value is as long as the data.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Makes a map read-only for userspace, which lets the verifier take its contents for constants.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    // SAFETY: attr holds a descriptor and nothing else.
    unsafe { bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr) }.map(drop)
}

/// `BPF_OBJ_NAME_LEN` is 16 with its terminator; the rest stays zero.
pub(super) fn set_name(field: &mut [std::ffi::c_char; 16], name: &str) {
    for (to, from) in field.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
}
