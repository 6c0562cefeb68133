//! Giving rights up. A step that the kernel refuses is no error: a container may have taken the right to it, and `facts`
//! reports it.

use std::fs;
use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::{Work, filter};
use crate::kernel::held;

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restricted {
    /// Capabilities before that.
    pub given: CapabilitySet,
    /// What could not be given up.
    pub refused: Refused,
}

/// What could not be given up, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// That programs get rights from their files.
    pub new_privileges: Option<String>,
    /// Capabilities of the bounding set.
    pub bounding_set: Option<String>,
    /// The process's own capabilities.
    pub capabilities: Option<String>,
    /// System calls.
    pub seccomp: Option<String>,
}

/// Gives up all capabilities and system calls that this work does not take. To be called before any thread starts: a thread has its own.
/// A second call may give up more.
pub fn restrict(work: Work) -> Restricted {
    held::open(work.probes || work.facts);
    if work.probes {
        lift_memlock_limit();
    }
    let given = capabilities(None).map_or(CapabilitySet::empty(), |have| have.permitted);
    let kept = work.capabilities();
    let refused = Refused {
        new_privileges: set_no_new_privs(true).err().map(|error| error.to_string()),
        // First: it takes CAP_SETPCAP.
        bounding_set: lower_bounding_set(kept).err(),
        capabilities: lower_own(kept).err().map(|error| error.to_string()),
        seccomp: filter::install(work).err().map(|error| error.to_string()),
    };
    if refused != Refused::default() {
        log::debug!("kept: {refused:?}");
    }
    Restricted { given, refused }
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK; later kernels ignore it. Where it may not be lifted (it takes
/// CAP_SYS_RESOURCE), making a map says so.
fn lift_memlock_limit() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// What root's programs could get at most.
fn lower_bounding_set(kept: CapabilitySet) -> Result<(), String> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                Err(Errno::PERM) => return Err("it takes CAP_SETPCAP".to_owned()),
                Err(error) => return Err(error.to_string()),
            },
            Ok(_) => {}
            // The kernel has no more of them.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn lower_own(kept: CapabilitySet) -> io::Result<()> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(io::Error::other(format!("{threads} threads run already")));
    }
    let have = capabilities(None)?;
    let none = CapabilitySet::empty();
    let (effective, permitted) = (have.effective & kept, have.permitted & kept);
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: none })?;
    Ok(clear_ambient_capability_set()?)
}
