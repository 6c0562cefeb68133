//! Other programs that doctor asks. The caller of ctwatch has no say in which file runs, and a child gets nothing that it
//! does not need: no variable, descriptor or capability of ctwatch's own.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_no_new_privs,
};

use super::budget::{Budget, MOST_BYTES};
use super::output::{Bounded, Lossy};
use crate::source::namespaces;

/// Where programs are looked for, in this order: directories that only root changes. The caller's PATH may name others,
/// and `/usr/local` has another group on some distributions.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The first descriptor after stdin, stdout and stderr.
const FIRST_OTHER: i32 = 3;

/// What a program may say on stderr.
const MOST_SAID: u64 = 1 << 16;

/// What nft needs to list rules: NFNETLINK asks for it, whatever the request.
pub const NFT: CapabilitySet = CapabilitySet::NET_ADMIN;
/// What the older interface needs: a raw socket, the right to ask it, and to read the names of tables, a file which
/// belongs to the user who made the namespace (5.10 to 7.3).
pub const XTABLES: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::DAC_READ_SEARCH);
/// For what only prints its version.
pub const NOTHING: CapabilitySet = CapabilitySet::empty();

/// The file of a program, where one is installed.
pub fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES.into_iter().map(|directory| Path::new(directory).join(name)).find(|file| file.is_file())
}

/// Why there is nothing of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// It is not there, or it failed.
    Failed(String),
    /// One of our bounds was reached.
    Bound(String),
}

impl WhyNot {
    /// In words.
    pub fn text(self) -> String {
        match self {
            Self::Failed(text) | Self::Bound(text) => text,
        }
    }
}

/// What a program writes to stdout, run in the calling thread's network namespace with at most these capabilities.
pub fn run(name: &str, args: &[&str], needs: CapabilitySet, budget: &Budget) -> Result<String, WhyNot> {
    read(name, args, needs, budget, |output| {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text).map_err(|error| error.to_string())
    })
}

/// The same, taken as it comes.
pub fn read<T: Send>(
    name: &str,
    args: &[&str],
    needs: CapabilitySet,
    budget: &Budget,
    take: impl FnOnce(&mut dyn Read) -> Result<T, String> + Send,
) -> Result<T, WhyNot> {
    let failed = |why: &dyn Display| WhyNot::Failed(format!("{name}: {why}"));
    let bound = |why: &dyn Display| WhyNot::Bound(format!("{name}: {why}"));
    let file = find(name)
        .ok_or_else(|| WhyNot::Failed(format!("{name} is not installed in {}", DIRECTORIES.join(", "))))?;
    let until = budget.deadline().map_err(|why| bound(&why))?;
    // A child inherits from the thread that starts it, so that thread gives up first what the child must not have.
    let taken = namespaces::apart(|| {
        restrict(needs)?;
        let mut child = start(&file, args)?;
        let taken = take_output(&mut child, until, take);
        if matches!(taken, Ok(Taken { reached: Some(_), .. }) | Err(_)) {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
        }
        let status = child.wait()?;
        taken.map(|taken| (taken, status))
    });
    let (taken, status) = taken.and_then(|taken| taken).map_err(|error| failed(&error))?;
    if let Some(why) = taken.reached {
        return Err(bound(&why));
    }
    if !status.success() {
        return Err(failed(&taken.said.lines().next().unwrap_or("failed without a word").trim()));
    }
    taken.output.map_err(|error| failed(&error))
}

/// What came of a child.
struct Taken<T> {
    output: Result<T, String>,
    said: String,
    /// The bound that ended it.
    reached: Option<&'static str>,
}

fn take_output<T>(
    child: &mut Child,
    until: Instant,
    take: impl FnOnce(&mut dyn Read) -> Result<T, String>,
) -> io::Result<Taken<T>> {
    let missing = || io::Error::other("a child without pipes");
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let mut stdout = Bounded::new(stdout, MOST_BYTES, until);
    let output = take(&mut Lossy::new(&mut stdout));
    let mut said = String::new();
    let mut reached = stdout.reached();
    if reached.is_none() {
        // What was not wanted of it is taken too: a program whose reader goes away fails.
        let _ = io::copy(&mut stdout, &mut io::sink());
        let mut stderr = Bounded::new(stderr, MOST_SAID, until);
        let _ = Lossy::new(&mut stderr).read_to_string(&mut said);
        reached = stdout.reached().or(stderr.reached());
    }
    Ok(Taken { output, said, reached })
}

fn start(file: &Path, args: &[&str]) -> io::Result<Child> {
    Command::new(file)
        .args(args)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Takes from the calling thread all descriptors but the first three, and all capabilities but these.
fn restrict(needs: CapabilitySet) -> io::Result<()> {
    close_all_others()?;
    let keep = capabilities(None)?.permitted & needs;
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })?;
    for capability in keep.iter() {
        // For all users but root, who gets the permitted ones without. Where securebits forbid it the child has less.
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    // Without it root would get all capabilities back when the program starts.
    Ok(set_no_new_privs(true)?)
}

/// Ours close by themselves when a program starts; those that ctwatch's caller left open may not.
fn close_all_others() -> io::Result<()> {
    // From here on the table is this thread's own: other threads keep their descriptors.
    unshare(CloneFlags::CLONE_FILES)?;
    let open: Vec<i32> = fs::read_dir("/proc/thread-self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor >= FIRST_OTHER) {
        // The one that listed them is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(program: &str, args: &[&str]) -> String {
        run(program, args, NOTHING, &Budget::start()).unwrap()
    }

    #[test]
    fn a_child_has_no_rights_and_cannot_get_any() {
        let status = asked("cat", &["/proc/self/status"]);
        for line in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{line}:\t0000000000000000")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }

    #[test]
    fn what_a_child_needs_it_keeps_where_there_is_something_to_keep() {
        let have = capabilities(None).unwrap().permitted & NFT;
        let status = run("cat", &["/proc/self/status"], NFT, &Budget::start()).unwrap();
        assert!(status.contains(&format!("CapEff:\t{:016x}", have.bits())), "{status}");
        let again = capabilities(None).unwrap().permitted & NFT;
        assert_eq!(again, have, "the thread that asked has lost nothing");
    }

    #[test]
    fn a_child_gets_nothing_of_the_caller() {
        let (_end, other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::empty()).unwrap();
        assert_eq!(asked("env", &[]), "LC_ALL=C\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n");
        assert_eq!(asked("readlink", &["/proc/self/cwd"]), "/\n");
        // The last is the directory that `ls` reads.
        assert_eq!(asked("ls", &["/proc/self/fd"]), "0\n1\n2\n3\n");
        assert_eq!(asked("cat", &[]), "", "stdin is empty");
        rustix::io::write(&other, b"still open").unwrap();
    }

    #[test]
    fn errors_say_what_failed() {
        let why = |program: &str, args: &[&str]| run(program, args, NOTHING, &Budget::start()).unwrap_err();
        assert_eq!(
            why("no-such-program", &[]),
            WhyNot::Failed("no-such-program is not installed in /usr/sbin, /usr/bin, /sbin, /bin".into())
        );
        assert!(why("cat", &["/no/such/file"]).text().contains("No such file"));
        assert_eq!(why("false", &[]), WhyNot::Failed("false: failed without a word".into()));
    }

    #[test]
    fn a_child_without_end_is_ended() {
        let why = |program: &str, args: &[&str]| run(program, args, NOTHING, &Budget::start()).unwrap_err();
        assert_eq!(why("yes", &[]), WhyNot::Bound("yes: it wrote too much".into()));
        assert_eq!(why("sleep", &["30"]), WhyNot::Bound("sleep: it took too long".into()));
    }
}
