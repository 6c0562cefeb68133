//! How a namespace is reached from the one doctor ran in.

use serde::{Deserialize, Serialize};

use super::command::{Arg, Place, Refused};
use super::facts::Namespace;

/// A way into a namespace. Captured as the words that ctwatch once printed before a command; only what has exactly that
/// form is taken from a capture, and nothing of it is printed as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Way {
    /// Doctor ran in it.
    #[default]
    Own,
    /// A name known to `ip netns`.
    Named(String),
    /// A process in it.
    Process(u32),
    /// No way that a command could take.
    Unknown,
}

const NAMED: (&str, &str) = ("ip netns exec ", " ");
const PROCESS: (&str, &str) = ("nsenter --net=/proc/", "/ns/net -- ");

impl From<String> for Way {
    fn from(text: String) -> Self {
        let within = |(before, after): (&str, &str)| text.strip_prefix(before)?.strip_suffix(after);
        if text.is_empty() {
            return Self::Own;
        }
        if let Some(pid) = within(PROCESS).and_then(|pid| pid.parse().ok()) {
            return Self::Process(pid);
        }
        match within(NAMED) {
            Some(name) if Arg::file_name(name).is_ok() => Self::Named(name.to_owned()),
            _ => Self::Unknown,
        }
    }
}

impl From<Way> for String {
    fn from(way: Way) -> Self {
        match way {
            Way::Own => Self::new(),
            Way::Named(name) => format!("{}{name}{}", NAMED.0, NAMED.1),
            Way::Process(pid) => format!("{}{pid}{}", PROCESS.0, PROCESS.1),
            Way::Unknown => "unknown".into(),
        }
    }
}

impl Namespace {
    /// Where a command has to run to run in this namespace; `None` is where it is typed.
    pub fn place(&self) -> Result<Option<Place>, Refused> {
        let way = match &self.enter {
            _ if self.own => return Ok(None),
            Way::Named(name) => Arg::joined(["/run/netns/".into(), Arg::file_name(name)?]),
            Way::Process(pid) => Arg::joined(["/proc/".into(), u64::from(*pid).into(), "/ns/net".into()]),
            Way::Own | Way::Unknown => {
                return Err(Refused("there is no way into it that a command could name safely"));
            }
        };
        Ok(Some(Place::new(way, self.netns)))
    }

    /// A word for the name of a file about this namespace: its own name where that is plain, else its inode.
    pub fn file_word(&self) -> Arg {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        match Arg::file_name(&self.name) {
            Ok(name) if self.name.bytes().all(plain) => name,
            _ => u64::from(self.netns).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_survives_capture_and_anything_else_is_none() {
        for way in [Way::Own, Way::Named("blue sky".into()), Way::Process(4711)] {
            assert_eq!(Way::from(String::from(way.clone())), way);
        }
        for text in [
            "touch /tmp/x; ",
            "ip netns exec a;reboot\n ",
            "ip netns exec ../../tmp/x ",
            "nsenter --net=/proc/1/ns/net -- sh -c reboot ",
            "nsenter --net=/proc/$(reboot)/ns/net -- ",
            "unknown",
        ] {
            assert_eq!(Way::from(text.to_owned()), Way::Unknown, "{text}");
        }
    }

    #[test]
    fn only_the_own_namespace_needs_no_way() {
        let mut namespace = Namespace { netns: 9, enter: Way::Own, ..Namespace::default() };
        assert!(namespace.place().is_err(), "a capture that says nothing of the way");
        namespace.own = true;
        assert_eq!(namespace.place(), Ok(None));
        namespace.name = "$(reboot)".into();
        assert_eq!(namespace.file_word().as_str(), "9");
    }
}
