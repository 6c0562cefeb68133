//! The filter of system calls (seccomp): what no process of ctwatch has a reason to do.
//!
//! It lists what is refused, not what is allowed: a C library may begin to use another harmless call at any time, and a
//! counter that fails at night is no gain. What would be the end of the machine's safety ends the process
//! (SECCOMP_RET_KILL_PROCESS, 4.14); all else fails with EPERM, as it would without the right to it.
//!
//! Landlock would be the better limit for files, but a process in a Landlock domain may not look at `/proc/PID/ns/net`
//! of any process outside (`hook_ptrace_access_check`, 5.13 to 7.3), by which namespaces are found.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, sock_filter,
};

use super::Work;

/// To run code of another's choosing, in the kernel or in another process, and to change what files are. These end the
/// process, except where doctor's children inherit the filter: for them they fail.
const TAKEOVER: &[c_long] = &[
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_reboot,
];

/// Programs. Only doctor runs any.
const PROGRAMS: &[c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// Changes to the machine, and ways around a filter.
const CHANGES: &[c_long] = &[
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
];
/// The same, of x86 alone.
#[cfg(target_arch = "x86_64")]
const CHANGES_HERE: &[c_long] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_mknod, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const CHANGES_HERE: &[c_long] = &[];

/// New processes and namespaces, and signals to others.
const PROCESSES: &[c_long] =
    &[libc::SYS_unshare, libc::SYS_pidfd_send_signal, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo];
/// Older calls for the same, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const PROCESSES_HERE: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSES_HERE: &[c_long] = &[];

/// Changes to files.
const FILES: &[c_long] = &[
    libc::SYS_openat2,
    libc::SYS_truncate,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];
/// Older calls for the same.
#[cfg(target_arch = "x86_64")]
const FILES_HERE: &[c_long] = &[
    libc::SYS_creat,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const FILES_HERE: &[c_long] = &[];

/// Programs in the kernel.
const PROBES: &[c_long] = &[libc::SYS_bpf, libc::SYS_perf_event_open];

type Error = Box<dyn std::error::Error>;
type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Installs it for this thread and those that it starts.
pub(super) fn install(work: Work) -> Result<(), Error> {
    apply_filter(&program(
        refused(work, std::process::id())?,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
    )?)?;
    // Of two filters the stricter answer counts.
    let ending = ending(work);
    if !ending.is_empty() {
        apply_filter(&program(ending, SeccompAction::KillProcess)?)?;
    }
    Ok(())
}

fn program(rules: Rules, action: SeccompAction) -> Result<BpfProgram, Error> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?;
    Ok([only_native(), BpfProgram::try_from(filter)?].concat())
}

fn whole(lists: &[&[c_long]]) -> Rules {
    lists.concat().into_iter().map(|call| (call, Vec::new())).collect()
}

/// What ends the process.
fn ending(work: Work) -> Rules {
    if work.rules { Rules::new() } else { whole(&[TAKEOVER, PROGRAMS]) }
}

/// What fails.
fn refused(work: Work, process: u32) -> Result<Rules, Error> {
    let mut rules = whole(&[CHANGES, CHANGES_HERE]);
    // Text pushed into the terminal would run in the shell that has it after us.
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        rules.entry(libc::SYS_ioctl).or_default().push(when(1, SeccompCmpOp::Eq, request)?);
    }
    if !work.probes {
        rules.extend(whole(&[PROBES]));
    }
    if work.rules {
        // The children run programs, open sockets and may be ended.
        rules.extend(whole(&[TAKEOVER]));
        return Ok(rules);
    }
    rules.extend(whole(&[PROCESSES, PROCESSES_HERE]));
    if !work.writes {
        rules.extend(whole(&[FILES, FILES_HERE]));
        // Files are opened for reading only.
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, writing(1)?);
        rules.insert(libc::SYS_openat, writing(2)?);
    }
    let mut conditions = vec![is(0, SeccompCmpOp::Ne, number(libc::AF_NETLINK))?];
    if work.serves {
        // The service manager is told by a Unix socket. Listening sockets are open by then.
        conditions.push(is(0, SeccompCmpOp::Ne, number(libc::AF_UNIX))?);
    }
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(conditions)?]);
    // A thread that stops itself names the process, as the main thread.
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_tkill] {
        rules.insert(call, vec![when(0, SeccompCmpOp::Ne, process.into())?]);
    }
    Ok(rules)
}

/// Flags with which an open may change a file.
fn writing(argument: u8) -> Result<Vec<SeccompRule>, Error> {
    let access = number(libc::O_ACCMODE);
    [
        (access, libc::O_WRONLY),
        (access, libc::O_RDWR),
        (number(libc::O_CREAT), libc::O_CREAT),
        (number(libc::O_TRUNC), libc::O_TRUNC),
    ]
    .into_iter()
    .map(|(mask, flags)| when(argument, SeccompCmpOp::MaskedEq(mask), number(flags)))
    .collect()
}

fn when(argument: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(vec![is(argument, how, value)?])?)
}

fn is(argument: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)?)
}

fn number(flags: libc::c_int) -> u64 {
    flags.cast_unsigned().into()
}

/// Refuses calls by the x32 interface, which have the numbers of x86-64 and one bit more: the filter would not know them.
#[cfg(target_arch = "x86_64")]
fn only_native() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    let number_of_call = 0; // seccomp_data.nr
    let step = |code: u32, jt, jf, k| sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number_of_call),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, X32_BIT),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn only_native() -> BpfProgram {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCHING: Work = Work { probes: true, ..Work::NOTHING };
    const DOCTOR: Work = Work { probes: true, namespaces: true, rules: true, ..Work::NOTHING };
    const SERVING: Work = Work { probes: true, serves: true, ..Work::NOTHING };
    const WRITING: Work = Work { probes: true, writes: true, ..Work::NOTHING };

    #[test]
    fn every_filter_fits_into_the_kernel() {
        for work in [Work::NOTHING, WATCHING, DOCTOR, SERVING, WRITING] {
            for (rules, least) in [(refused(work, 1).unwrap(), 30), (ending(work), 0)] {
                let length = program(rules, SeccompAction::KillProcess).unwrap().len();
                // BPF_MAXINSNS.
                assert!(length > least && length < 4096, "{work:?}: {length}");
            }
        }
    }

    #[test]
    fn what_the_work_takes_is_not_refused() {
        let has = |work, call: c_long| {
            refused(work, 1).unwrap().contains_key(&call) || ending(work).contains_key(&call)
        };
        assert!(!has(DOCTOR, libc::SYS_execve) && has(WATCHING, libc::SYS_execve));
        assert!(!has(WATCHING, libc::SYS_bpf) && has(Work::NOTHING, libc::SYS_bpf));
        assert!(!has(WRITING, libc::SYS_renameat2) && has(SERVING, libc::SYS_renameat2));
        for work in [Work::NOTHING, WATCHING, DOCTOR, SERVING, WRITING] {
            assert!(has(work, libc::SYS_finit_module) && has(work, libc::SYS_ptrace), "{work:?}");
            assert!(!has(work, libc::SYS_setns) && !has(work, libc::SYS_capset), "{work:?}");
        }
    }

    #[test]
    fn nothing_that_doctor_does_ends_a_process() {
        assert!(ending(DOCTOR).is_empty());
        assert!(ending(WATCHING).contains_key(&libc::SYS_execve));
    }
}
