//! Captured facts as files: where a stranger may have put one, or chosen what lies at its path.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::libc;

/// The most bytes of a captured file that are read. A capture with thousands of rules has a few MiB.
const LONGEST: u64 = 16 << 20;
/// How many names are tried for the new file.
const TRIES: u32 = 16;

/// The text of a file; `-` is stdin. Only regular files are read by name: a FIFO would wait, a device has no end.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return bounded(io::stdin().lock(), LONGEST).context("cannot read stdin");
    }
    let name = path.display();
    // Without O_NONBLOCK opening a FIFO would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.with_context(|| format!("cannot read {name}"))?;
    let regular = file.metadata().with_context(|| format!("cannot read {name}"))?.is_file();
    ensure!(regular, "cannot read {name}: not a regular file (for a pipe, use `--from -`)");
    bounded(file, LONGEST).with_context(|| format!("cannot read {name}"))
}

fn bounded(from: impl Read, longest: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(longest + 1).read_to_end(&mut bytes)?;
    ensure!(
        u64::try_from(bytes.len()).is_ok_and(|length| length <= longest),
        "it has more than the {} MiB that are read at most",
        LONGEST >> 20
    );
    Ok(String::from_utf8(bytes)?)
}

/// Writes a file that only its owner may read, in place of one that is there. A link or a device is refused. What is there
/// is replaced and never written to, so no link that appears in between leads anywhere.
pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    refuse(path)?;
    replace(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether [`write`] may succeed, for a text that takes long to make.
pub(super) fn ready(path: &Path) -> anyhow::Result<()> {
    refuse(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let there = fs::metadata(parent).with_context(|| format!("cannot write {}", path.display()))?;
    ensure!(there.is_dir(), "cannot write {}: {} is no directory", path.display(), parent.display());
    Ok(())
}

fn refuse(path: &Path) -> anyhow::Result<()> {
    let name = path.display();
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => {
            anyhow::bail!("cannot write {name}: it is a symbolic link, which is not followed");
        }
        Ok(there) => {
            ensure!(there.is_file(), "cannot write {name}: not a regular file (for stdout, use `-`)");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context(format!("cannot write {name}")),
    }
    Ok(())
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (new, mut file) = create_beside(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written
}

fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let last = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let mut error = io::ErrorKind::AlreadyExists.into();
    for number in 0..TRIES {
        let new = path.with_file_name(format!(".{last}.{}-{number}", std::process::id()));
        // A new file only: O_EXCL follows no link either.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new) {
            Ok(file) => return Ok((new, file)),
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => error = why,
            Err(why) => return Err(why),
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn a_link_is_refused_and_a_file_gets_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("open"), "old").unwrap();
        fs::hard_link(at("open"), at("other")).unwrap();
        symlink(at("open"), at("link")).unwrap();
        let refused = write(&at("link"), "new").unwrap_err().to_string();
        assert!(refused.contains("symbolic link"), "{refused}");
        assert!(write(directory.path(), "new").unwrap_err().to_string().contains("not a regular file"));
        for name in ["open", "fresh"] {
            write(&at(name), "new").unwrap();
            assert_eq!(fs::metadata(at(name)).unwrap().mode() & 0o777, 0o600, "{name}");
            assert_eq!(fs::read_to_string(at(name)).unwrap(), "new");
        }
        assert_eq!(fs::read_to_string(at("other")).unwrap(), "old", "the file itself was written to");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4, "something is left behind");
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "old").unwrap();
        assert!(ready(&at("file")).is_ok() && ready(&at("new")).is_ok() && ready(Path::new("new")).is_ok());
        for wrong in [at("none/new"), at("file/new"), directory.path().to_owned()] {
            assert!(ready(&wrong).is_err(), "{}", wrong.display());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "something is left behind");
    }

    #[test]
    fn names_that_others_took_are_passed_by() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: String| directory.path().join(name);
        for number in 0..3 {
            symlink("/nowhere", at(format!(".c.{}-{number}", std::process::id()))).unwrap();
        }
        write(&at("c".into()), "new").unwrap();
        assert_eq!(fs::read_to_string(at("c".into())).unwrap(), "new");
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), directory.path(), Path::new("/dev/zero")] {
            let refused = read(path).unwrap_err().to_string();
            assert!(refused.contains("not a regular file"), "{refused}");
        }
        assert!(bounded(io::repeat(b' '), 100).unwrap_err().to_string().contains("at most"));
        assert_eq!(bounded(&b"abc"[..], 3).unwrap(), "abc");
    }
}
