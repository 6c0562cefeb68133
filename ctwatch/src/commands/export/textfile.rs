//! A file for node_exporter's textfile collector.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The file, and the one beside it that takes its place.
#[derive(Debug)]
pub(super) struct Textfile {
    path: PathBuf,
    /// No name that the collector reads (`*.prom`).
    next: PathBuf,
}

impl Textfile {
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let mut next = name.to_owned();
        next.push(format!(".{}.tmp", std::process::id()));
        Ok(Self { path: path.to_owned(), next: path.with_file_name(next) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Readers see the old text or the new one, whole.
    pub(super) fn replace(&mut self, text: &[u8]) -> anyhow::Result<()> {
        let replaced = self.write(text).and_then(|()| fs::rename(&self.next, &self.path));
        replaced.or_else(|error| {
            let _ = fs::remove_file(&self.next);
            Err(error).with_context(|| format!("cannot replace {}", self.path.display()))
        })
    }

    fn write(&self, text: &[u8]) -> std::io::Result<()> {
        // Left by a killed run that had our number, or put there by somebody else: a link is not followed.
        let _ = fs::remove_file(&self.next);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&self.next)?;
        file.write_all(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctwatch.prom");
        let mut file = Textfile::new(&path).unwrap();
        file.replace(b"one\n").unwrap();
        let old = fs::File::open(&path).unwrap();
        file.replace(b"two\n").unwrap();
        assert_eq!(std::io::read_to_string(old).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_its_way_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let mut file = Textfile::new(&directory.path().join("m.prom")).unwrap();
        std::os::unix::fs::symlink(&victim, &file.next).unwrap();
        file.replace(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let mut file = Textfile::new(Path::new("/no-such-directory/m.prom")).unwrap();
        let error = format!("{:#}", file.replace(b"").unwrap_err());
        assert!(error.contains("cannot replace /no-such-directory/m.prom"), "{error}");
        assert!(Textfile::new(Path::new("..")).is_err());
    }
}
