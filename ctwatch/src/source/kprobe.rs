//! Programs on kprobes and kretprobes, made through perf events: closed with their descriptors, so
//! that nothing is left behind however ctwatch ends.

use std::{
    ffi::CString,
    fs, io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};
use aya_obj::generated::{
    PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC, bpf_attach_type, bpf_cmd,
    perf_event_attr,
};
use nix::libc;

use super::sys::{bpf_fd, kprobe_missed, zeroed};

const DEVICE: &str = "/sys/bus/event_source/devices/kprobe";

/// An attached kprobe. Dropping it detaches.
#[derive(Debug)]
pub(super) struct Kprobe {
    /// Where the kernel has links of perf events (5.15). Declared first: it goes first.
    link: Option<OwnedFd>,
    _event: OwnedFd,
}

impl Kprobe {
    /// Attaches a program to a function's entry, or to its return.
    pub(super) fn attach(program: BorrowedFd<'_>, symbol: &str, at_return: bool) -> Result<Self> {
        let event = open(symbol, at_return)?;
        let mut attr = zeroed();
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
        attr.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd().cast_unsigned();
        attr.link_create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
        // SAFETY: attr holds two descriptors and a number, no address.
        let link = match unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) } {
            Ok(link) => Some(link),
            // Before 5.15 the kernel does not know this type of attaching.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                ioctl(&event, PERF_EVENT_IOC_SET_BPF, program.as_raw_fd())?;
                ioctl(&event, PERF_EVENT_IOC_ENABLE, 0)?;
                None
            }
            Err(error) => return Err(error).context("cannot link the program to the kprobe"),
        };
        Ok(Self { link, _event: event })
    }

    /// How often it is known not to have run, see [`kprobe_missed`].
    pub(super) fn missed(&self) -> io::Result<u64> {
        self.link.as_ref().map_or(Ok(0), |link| kprobe_missed(link.as_fd()))
    }
}

fn open(symbol: &str, at_return: bool) -> Result<OwnedFd> {
    let read = |name: &str| {
        let path = format!("{DEVICE}/{name}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}: a kernel without kprobes?"))
    };
    let symbol = CString::new(symbol)?;
    // SAFETY: plain data of the kernel's interface, in which zeroes mean nothing asked for.
    let mut attr: perf_event_attr = unsafe { mem::zeroed() };
    attr.size = u32::try_from(size_of::<perf_event_attr>())?;
    attr.type_ = read("type")?.trim().parse()?;
    if at_return {
        // A line like `config:0`: the bit that asks for the return.
        let text = read("format/retprobe")?;
        let bit: u32 = text.trim().trim_start_matches("config:").parse().context("format/retprobe")?;
        attr.config = 1_u64.checked_shl(bit).context("format/retprobe")?;
    }
    attr.__bindgen_anon_3.kprobe_func = symbol.as_ptr() as u64;
    // One CPU or one task must be named; a program on the probe runs wherever it is hit
    // (kprobe_perf_func, 5.10 to 7.3).
    let (pid, cpu, group) = (-1, 0, -1);
    // SAFETY: attr and the name that it points to live until the call returns.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw mut attr, pid, cpu, group, PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        // A patch of Debian's, for which CAP_PERFMON does not count (seen on its 6.12).
        let hint = if error.kind() == io::ErrorKind::PermissionDenied {
            " (where sysctl kernel.perf_event_paranoid is more than 2, as on Debian, it takes CAP_SYS_ADMIN)"
        } else {
            ""
        };
        return Err(error).with_context(|| format!("cannot make a kprobe{hint}"));
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd)?) })
}

fn ioctl(event: &OwnedFd, request: u32, argument: RawFd) -> Result<()> {
    // SAFETY: both requests take a number, no address.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), libc::Ioctl::from(request), argument) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot put the program on the kprobe");
    }
    Ok(())
}
