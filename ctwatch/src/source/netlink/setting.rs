//! Whether the kernel makes events in a namespace (`nf_conntrack_events`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

/// Whether the kernel makes events in a namespace (`nf_conntrack_events`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// For every entry, or since 5.19 for those made while somebody listens.
    On,
    /// Switched off.
    Off,
    /// The kernel was built without CONFIG_NF_CONNTRACK_EVENTS.
    Never,
}

/// The setting of one namespace, kept open: the file stays that of the namespace it was opened in.
#[derive(Debug)]
pub(super) enum Setting {
    File(File),
    /// A namespace that hides its settings (an unprivileged user's may) is taken to have the default.
    Fixed(Announced),
}

impl Setting {
    /// The calling thread's namespace.
    pub(super) fn here() -> Self {
        const DIRECTORY: &str = "/proc/sys/net/netfilter";
        match File::open(format!("{DIRECTORY}/nf_conntrack_events")) {
            Ok(file) => Self::File(file),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && fs::exists(format!("{DIRECTORY}/nf_conntrack_count")).unwrap_or(false) =>
            {
                Self::Fixed(Announced::Never)
            }
            Err(_) => Self::Fixed(Announced::On),
        }
    }

    pub(super) fn read(&self) -> Announced {
        let file = match self {
            Self::Fixed(announced) => return *announced,
            Self::File(file) => file,
        };
        let mut text = [0; 8];
        match file.read_at(&mut text, 0) {
            Ok(length) if text[..length].trim_ascii() == b"0" => Announced::Off,
            // Unreadable once the namespace or the module is gone, which is seen elsewhere.
            _ => Announced::On,
        }
    }
}
