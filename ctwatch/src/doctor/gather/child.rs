//! Other programs that doctor asks. The caller of ctwatch has no say in which file runs, and a child gets nothing that it
//! does not need: no variable, descriptor or capability of ctwatch's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_no_new_privs,
};

use crate::source::namespaces;

/// Where programs are looked for, in this order: directories that only root changes. The caller's PATH may name others,
/// and `/usr/local` has another group on some distributions.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The first descriptor after stdin, stdout and stderr.
const FIRST_OTHER: i32 = 3;

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

/// What a program writes to stdout, run in the calling thread's network namespace with at most these capabilities.
pub fn run(name: &str, args: &[&str], needs: CapabilitySet) -> Result<String, String> {
    let file = find(name).ok_or_else(|| format!("{name} is not installed in {}", DIRECTORIES.join(", ")))?;
    // A child inherits from the thread that starts it, so that thread gives up first what the child must not have.
    let ran = namespaces::apart(|| restrict(needs).and_then(|()| output(&file, args)));
    let output = ran.and_then(|output| output).map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name}: {}", told.lines().next().unwrap_or("failed without a word").trim()))
}

fn output(file: &Path, args: &[&str]) -> io::Result<Output> {
    Command::new(file)
        .args(args)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
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
        run(program, args, NOTHING).unwrap()
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
        let status = run("cat", &["/proc/self/status"], NFT).unwrap();
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
        assert_eq!(
            run("no-such-program", &[], NOTHING),
            Err("no-such-program is not installed in /usr/sbin, /usr/bin, /sbin, /bin".into())
        );
        assert!(run("cat", &["/no/such/file"], NOTHING).unwrap_err().contains("No such file"));
        assert_eq!(run("false", &[], NOTHING), Err("false: failed without a word".into()));
    }
}
