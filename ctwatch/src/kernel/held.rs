//! What is opened and read once, at the start, while ctwatch still has all its rights.
//!
//! The kernel checks rights to these files when they are opened, not when they are read: `kallsyms_open` asks for
//! CAP_SYSLOG, `open_kcore` for CAP_SYS_RAWIO (5.10 to 7.3). So both rights can be given up, and a module that is loaded
//! again later can still be looked at. The kernel image does not change, so its symbols are looked up here.

use std::fs::{self, File};
use std::io::{self, Seek as _};
use std::sync::OnceLock;

use super::kallsyms::{self, Image};

static HELD: OnceLock<Held> = OnceLock::new();

#[derive(Debug)]
struct Held {
    status: Option<String>,
    kallsyms: Option<File>,
    kcore: Option<File>,
    preemption: Option<String>,
    modules: Option<Vec<(String, File)>>,
    image: Option<Image>,
}

const STATUS: &str = "/proc/self/status";
const KALLSYMS: &str = "/proc/kallsyms";
const KCORE: &str = "/proc/kcore";
const PREEMPTION: &str = "/sys/kernel/debug/sched/preempt";
const MODULES: &str = "/sys/module";
/// The section that is a module's `struct module`, in whose file sysfs shows its address (`module_sect_read`, 5.10 to 7.3).
const THIS_MODULE: &str = "sections/.gnu.linkonce.this_module";

/// Opens what may be opened. To be called before rights are given up; a second call changes nothing.
pub fn open(memory: bool) {
    let file = |path: &str| memory.then(|| File::open(path).ok()).flatten();
    HELD.get_or_init(|| Held {
        status: fs::read_to_string(STATUS).ok(),
        kallsyms: file(KALLSYMS),
        kcore: file(KCORE),
        // As text: an open file would keep debugfs from being unmounted.
        preemption: memory.then(|| fs::read_to_string(PREEMPTION).ok()).flatten(),
        modules: memory.then(|| open_modules().ok()).flatten(),
        image: memory.then(|| Image::look_up().ok()).flatten(),
    });
}

fn open_modules() -> io::Result<Vec<(String, File)>> {
    let mut modules = Vec::new();
    for entry in fs::read_dir(MODULES)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let section = format!("{MODULES}/{name}/{THIS_MODULE}");
        // What is built in has no sections.
        if kallsyms::is_ours(&name) && fs::exists(&section)? {
            modules.push((name, File::open(section)?));
        }
    }
    modules.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(modules)
}

/// The modules of connection tracking that were loaded at the start, each with the file that shows where its
/// `struct module` lies. Reading that of a module that has gone is an error.
pub(super) fn modules() -> io::Result<Vec<(String, File)>> {
    let Some(held) = HELD.get() else { return open_modules() };
    let modules = held.modules.iter().flatten().map(|(name, file)| {
        let mut file = file.try_clone()?;
        file.rewind()?;
        Ok((name.clone(), file))
    });
    modules.collect()
}

/// Symbols of the kernel image.
pub(super) fn image() -> io::Result<Image> {
    match HELD.get() {
        Some(held) => held.image.ok_or_else(|| io::ErrorKind::PermissionDenied.into()),
        None => Image::look_up(),
    }
}

/// `/proc/self/status` as it was at the start.
pub(super) fn status() -> io::Result<String> {
    match HELD.get().and_then(|held| held.status.clone()) {
        Some(status) => Ok(status),
        None => fs::read_to_string(STATUS),
    }
}

/// `/proc/kallsyms`, from its beginning. All readers share one position: one at a time.
pub(super) fn kallsyms() -> io::Result<File> {
    let mut file = opened(|held| held.kallsyms.as_ref(), KALLSYMS)?;
    file.rewind()?;
    Ok(file)
}

/// `/proc/kcore`.
pub(super) fn kcore() -> io::Result<File> {
    opened(|held| held.kcore.as_ref(), KCORE)
}

/// debugfs's word on preemption. Users other than root take CAP_DAC_READ_SEARCH to read it, so for them it is what it was at
/// the start.
pub(super) fn preemption() -> Option<String> {
    fs::read_to_string(PREEMPTION).ok().or_else(|| HELD.get()?.preemption.clone())
}

fn opened(of: impl Fn(&Held) -> Option<&File>, path: &str) -> io::Result<File> {
    match HELD.get().and_then(of) {
        Some(file) => file.try_clone(),
        None => File::open(path),
    }
}
