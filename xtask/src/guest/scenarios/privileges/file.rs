//! Without root: capabilities of the file, which one group may run.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use nix::libc;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::super::super::ctwatch::{Running, program};
use super::super::super::processes;
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::trial::equal;
use super::super::super::{modules, state, wait};
use super::super::init;
use super::{check, of_names, threads};

const PLACE: &str = "/opt/group";
const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
const GROUP: u32 = 4300;
const USER: u32 = 65_534;
/// As the advice in ctwatch's errors gives them.
const GIVEN: &[&str] = &["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYSLOG"];
/// What it keeps of them: the kernel's symbols are open by then.
const KEPT: &[&str] = &["CAP_BPF", "CAP_PERFMON"];
const KEPT_FOR_NAMESPACES: &[&str] = &["CAP_NET_ADMIN"];

/// A user of the group counts all the same, with no right beyond those that the advice gives.
pub(super) fn one_group() -> anyhow::Result<()> {
    modules::load()?;
    state::fresh(&init())?;
    fs::create_dir_all(PLACE)?;
    // The guest's first file system may have no extended attributes.
    mount(Some("none"), PLACE, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("a place for it")?;
    // Debian's kernels ask for CAP_SYS_ADMIN where this is more than 2, and have 3.
    let before = fs::read_to_string(PARANOID).context("kernel.perf_event_paranoid")?;
    let result = fs::write(PARANOID, "2").map_err(anyhow::Error::from).and_then(|()| counts());
    fs::write(PARANOID, before.trim())?;
    // The second process has its program there, and ends a moment after the first.
    wait::until("the end of all that runs there", super::PATIENCE, || {
        Ok(umount(PLACE).map_err(|errno| errno.to_string()))
    })?;
    result
}

fn counts() -> anyhow::Result<()> {
    let file = Path::new(PLACE).join("ctwatch");
    fs::copy(program(), &file)?;
    chown(&file, Some(0), Some(GROUP))?;
    fs::set_permissions(&file, Permissions::from_mode(0o750))?;
    give(&file)?;
    let stranger = Command::new(&file).arg("--version").uid(USER).gid(USER).output();
    anyhow::ensure!(
        stranger.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied),
        "who is not of the group ran it: {stranger:?}"
    );
    let mut command = Command::new(&file);
    command.args(["live", "--json", "--interval", "0.5"]).uid(USER).gid(GROUP);
    // Before 5.11 maps count against the limit, and only root may raise it. Children inherit it.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    let mut running = Running::spawn(&mut command)?;
    let first = running.next(super::PATIENCE)?.context("no first object")?;
    equal("the source", &first["source"]["kind"], &serde_json::Value::from("kprobe"))?;
    // The bounding set stays: lowering it needs CAP_SETPCAP, and no program gets anything by it.
    let pid = running.pid()?;
    check(pid, of_names(KEPT)?, bounding_here()?)?;
    let keeper = *processes::children(pid)?.first().context("no second process")?;
    check(keeper, of_names(KEPT_FOR_NAMESPACES)?, bounding_here()?).context("ctwatch-netns")?;
    let sent = udp::send(Flows::new(Family::V4, 700))?.passed;
    running.signal(nix::sys::signal::Signal::SIGINT)?;
    let ended = running.end()?;
    anyhow::ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    let end = ended.objects.last().context("no last object")?;
    let lost = end["source"]["lost"].as_u64().context("what it lost")?;
    let rows = end["flows"].as_array().context("flows")?;
    let inserts: u64 = rows.iter().filter_map(|row| row["total"]["insert"].as_u64()).sum();
    anyhow::ensure!(
        inserts <= sent && inserts + lost >= sent && lost * 100 <= sent,
        "counted {inserts} of {sent} and lost {lost}"
    );
    Ok(())
}

/// What `setcap` writes: `struct vfs_cap_data` of the second revision, with the bit for effective ones.
fn give(file: &Path) -> anyhow::Result<()> {
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    let bits = of_names(GIVEN)?.bits();
    let (low, high) = (u32::try_from(bits & 0xffff_ffff)?, u32::try_from(bits >> 32)?);
    let data: Vec<u8> =
        [REVISION_2_EFFECTIVE, low, 0, high, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    let path = std::ffi::CString::new(file.as_os_str().as_bytes())?;
    // SAFETY: both names end with a zero, and the value has the length that is given.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), data.as_ptr().cast(), data.len(), 0)
    };
    anyhow::ensure!(result == 0, "setcap: {}", std::io::Error::last_os_error());
    Ok(())
}

fn bounding_here() -> anyhow::Result<threads::Capabilities> {
    threads::Capabilities::parse(&processes::status(nix::unistd::getpid(), "CapBnd")?)
}
