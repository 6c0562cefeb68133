//! Commands to paste: lists of checked arguments, quoted once, where they are printed.
//!
//! Nothing that a stranger chose becomes part of one unchecked: an [`Arg`] is made from text of our own, from a number, or
//! by one of the checks below, each for the grammar of the program that reads it.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

/// The shell's own limit for a name in a path (NAME_MAX).
const LONGEST_NAME: usize = 255;
/// A rule that is longer is looked at by a person.
const LONGEST_RULE: usize = 2000;
/// The kernel's limit for a module's name (MODULE_NAME_LEN, 5.10 to 7.3: 56 on 64 bits).
const LONGEST_MODULE: usize = 55;
/// XT_EXTENSION_MAXNAMELEN holds the 0 too.
const LONGEST_XT_CHAIN: usize = 28;

/// What rules match by that means the same in a command, in nft and in iptables.
const MATCHES: [&str; 39] = [
    "ip",
    "ip6",
    "saddr",
    "daddr",
    "oifname",
    "iifname",
    "oif",
    "iif",
    "tcp",
    "udp",
    "sctp",
    "dccp",
    "th",
    "sport",
    "dport",
    "meta",
    "l4proto",
    "nfproto",
    "ipv4",
    "ipv6",
    "protocol",
    "ct",
    "state",
    "new",
    "{",
    "}",
    "!=",
    "!",
    "-p",
    "-s",
    "-d",
    "-o",
    "-i",
    "-m",
    "--sport",
    "--dport",
    "--sports",
    "--dports",
    "multiport",
];

/// Runs in the namespace and looks where it is before it does anything: the way in may lead to another one by now. `$0` is
/// the inode.
const IF_STILL_THERE: &str = "[ \"$(readlink /proc/self/ns/net)\" = \"net:[$0]\" ] || \
     { echo \"not the namespace that doctor saw\" >&2; exit 1; }; exec \"$@\"";

/// Why a name is not put into a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// One argument, as the program gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg(Cow<'static, str>);

impl From<&'static str> for Arg {
    fn from(text: &'static str) -> Self {
        Self(text.into())
    }
}

impl From<u64> for Arg {
    fn from(number: u64) -> Self {
        Self(number.to_string().into())
    }
}

impl From<IpAddr> for Arg {
    fn from(address: IpAddr) -> Self {
        Self(address.to_string().into())
    }
}

impl Arg {
    /// One argument of several parts, each of which is safe by itself.
    pub fn joined(parts: impl IntoIterator<Item = Self>) -> Self {
        Self(parts.into_iter().map(|part| part.0).collect::<String>().into())
    }

    /// `KEY=VALUE`, as `sysctl -w` takes it.
    pub fn setting(key: &'static str, value: u64) -> Self {
        Self::joined([key.into(), "=".into(), value.into()])
    }

    /// A name in nft's grammar. nft joins its arguments and parses the result, so no quoting by the shell protects a name;
    /// its scanner takes `[a-zA-Z._][a-zA-Z0-9/\-_.]*` as one, and names have no quotes of their own (0.9 to 1.1).
    pub fn nft_name(name: &str) -> Result<Self, Refused> {
        let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
        if name.len() <= LONGEST_NAME && name.bytes().next().is_some_and(first) && name.bytes().all(rest) {
            Ok(Self(name.to_owned().into()))
        } else {
            Err(Refused("its name has characters that nft reads as more than a name"))
        }
    }

    /// A chain of the older interface, which takes its arguments as they are.
    pub fn xt_chain(name: &str) -> Result<Self, Refused> {
        // A dash begins a flag, an exclamation mark negates.
        if name.len() <= LONGEST_XT_CHAIN && !name.starts_with(['-', '!']) && printable(name) {
            Ok(Self(name.to_owned().into()))
        } else {
            Err(Refused("its chain has a name that iptables or the terminal would misread"))
        }
    }

    /// A rule as `iptables -S` writes it, to be compared and not to be run.
    pub fn xt_rule(text: &str) -> Result<Self, Refused> {
        if text.len() <= LONGEST_RULE && printable(text) {
            Ok(Self(format!("-A {text}").into()))
        } else {
            Err(Refused("the rule's text is too long, or has characters that are not plain ASCII"))
        }
    }

    /// A word of what a rule matches, as nft or iptables prints it: one of a few keywords, a number, an address, a network,
    /// a range or list of these, or an interface's name in quotes.
    pub fn match_word(word: &str) -> Result<Self, Refused> {
        if let Some(known) = MATCHES.into_iter().find(|known| word == *known) {
            return Ok(known.into());
        }
        if let Some(name) = word.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            return Ok(Self::joined(["\"".into(), Self::nft_name(name)?, "\"".into()]));
        }
        let one = |value: &str| value.parse::<u32>().is_ok() || value.parse::<IpAddr>().is_ok();
        let value = |value: &str| match value.split_once(['/', '-', ':']) {
            _ if one(value) => true,
            Some((first, rest)) if one(first) && one(rest) => true,
            // A network of IPv6, whose address has colons.
            _ => value.split_once('/').is_some_and(|(address, bits)| one(address) && one(bits)),
        };
        if word.len() <= LONGEST_NAME && word.strip_suffix(',').unwrap_or(word).split(',').all(value) {
            Ok(Self(word.to_owned().into()))
        } else {
            Err(Refused("it matches by something that is not put into a command unread"))
        }
    }

    /// A module of the kernel.
    pub fn module(name: &str) -> Result<Self, Refused> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !name.is_empty() && name.len() <= LONGEST_MODULE && name.bytes().all(plain) {
            Ok(Self(name.to_owned().into()))
        } else {
            Err(Refused("its name is none that the kernel gives a module"))
        }
    }

    /// A file's name without its folder.
    pub fn file_name(name: &str) -> Result<Self, Refused> {
        let misleads = name.contains('/') || [".", ".."].contains(&name);
        if name.len() <= LONGEST_NAME && !misleads && printable(name) {
            Ok(Self(name.to_owned().into()))
        } else {
            Err(Refused("its name has characters that are not plain ASCII"))
        }
    }

    /// The argument as the program gets it, unquoted.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A word for the shell.
impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,@%+".contains(&byte);
        if !self.0.is_empty() && self.0.bytes().all(plain) {
            f.write_str(&self.0)
        } else {
            write!(f, "'{}'", self.0.replace('\'', r"'\''"))
        }
    }
}

fn printable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// A network namespace other than the one in which the command is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A file that leads there.
    way: Arg,
    /// Which namespace must be found behind it.
    inode: u32,
}

impl Place {
    /// The namespace with this inode, by this file.
    pub const fn new(way: Arg, inode: u32) -> Self {
        Self { way, inode }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Into,
    Onto,
    From,
}

/// One call of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    place: Option<Place>,
    program: &'static str,
    args: Vec<Arg>,
    file: Option<(Stream, Arg)>,
}

impl Call {
    /// This program, without arguments yet.
    pub const fn new(program: &'static str) -> Self {
        Self { place: None, program, args: Vec::new(), file: None }
    }

    /// In that namespace; `None` is the one in which it is typed.
    #[must_use]
    pub fn at(mut self, place: Option<&Place>) -> Self {
        self.place = place.cloned();
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<Arg>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<Arg>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With its output written to a file.
    #[must_use]
    pub fn into_file(mut self, file: impl Into<Arg>) -> Self {
        self.file = Some((Stream::Into, file.into()));
        self
    }

    /// With its output added to a file.
    #[must_use]
    pub fn onto_file(mut self, file: impl Into<Arg>) -> Self {
        self.file = Some((Stream::Onto, file.into()));
        self
    }

    /// With a file as its input.
    #[must_use]
    pub fn from_file(mut self, file: impl Into<Arg>) -> Self {
        self.file = Some((Stream::From, file.into()));
        self
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { way, inode }) = &self.place {
            let way = Arg::joined(["--net=".into(), way.clone()]);
            write!(f, "nsenter {way} -- sh -c {} {inode} ", Arg::from(IF_STILL_THERE))?;
        }
        f.write_str(self.program)?;
        for arg in &self.args {
            write!(f, " {arg}")?;
        }
        match &self.file {
            Some((Stream::Into, file)) => write!(f, " > {file}"),
            Some((Stream::Onto, file)) => write!(f, " >> {file}"),
            Some((Stream::From, file)) => write!(f, " < {file}"),
            None => Ok(()),
        }
    }
}

/// One line to paste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// One call.
    Call(Call),
    /// What both print, one after the other, in one file; the second only where the first succeeded.
    Both {
        /// The first.
        first: Call,
        /// The second.
        second: Call,
        /// The file.
        file: Arg,
    },
    /// A call that is made only where another one prints what it printed for doctor.
    WhereShown {
        /// What shows it.
        show: Call,
        /// What it must print.
        text: Arg,
        /// What is then called.
        then: Call,
    },
}

impl From<Call> for Command {
    fn from(call: Call) -> Self {
        Self::Call(call)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(call) => call.fmt(f),
            Self::Both { first, second, file } => write!(f, "{{ {first} && {second}; }} > {file}"),
            Self::WhereShown { show, text, then } => write!(
                f,
                "if [ \"$({show})\" = {text} ]; then {then}; else echo 'this is another rule now' >&2; false; fi"
            ),
        }
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
