//! What kube-proxy is told to set: by its configuration, else by its command line. Pure.
//!
//! kube-proxy sets the limit to so many entries for each CPU, and to a least number; since 1.36 to 1,048,576 at most. Nought
//! leaves a sysctl alone. It does so as it starts; some releases before 1.29, and the latest for the limit, only where
//! the kernel has less (`setIntSysCtl` and `SetSysctls` in its sources).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::text::thousands;

/// What kube-proxy takes where nobody says otherwise, and what it never goes beyond since 1.36.
const PER_CORE: u64 = 32_768;
const LEAST: u64 = 131_072;
const CAP: u64 = 1_048_576;
/// A longer value is none.
const LONGEST: usize = 64;
/// Numbers of kube-proxy's configuration are of 32 bits with a sign, and so are the kernel's sysctls.
const MOST: u64 = i32::MAX as u64;
/// A longer path is none (`PATH_MAX`, with the byte that ends it).
const LONGEST_PATH: usize = 4095;
/// So much of a path is told: whoever starts a process chooses it.
const TOLD_OF_PATH: usize = 128;

/// By the key in the file: the flag, the sysctl, how its value is written and what kube-proxy takes without either.
const KEYS: [(&str, &str, &str, Value, u64); 7] = [
    (MAX_PER_CORE, "conntrack-max-per-core", "", Value::Number, PER_CORE),
    (MIN, "conntrack-min", "", Value::Number, LEAST),
    (
        "tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
        "tcp_timeout_established",
        Value::Time,
        86_400,
    ),
    ("tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", "tcp_timeout_close_wait", Value::Time, 3_600),
    ("udpTimeout", "conntrack-udp-timeout", "udp_timeout", Value::Time, 0),
    ("udpStreamTimeout", "conntrack-udp-timeout-stream", "udp_timeout_stream", Value::Time, 0),
    ("tcpBeLiberal", "conntrack-tcp-be-liberal", "tcp_be_liberal", Value::Switch, 0),
];
const MAX_PER_CORE: &str = "maxPerCore";
const MIN: &str = "min";
/// What a configuration of kube-proxy calls itself; kube-proxy takes no other, and none without a name.
const KIND: &str = "KubeProxyConfiguration";

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// In digits, without quotes.
    Number,
    /// As Go writes it, `24h0m0s`.
    Time,
    /// `true` or `false`.
    Switch,
}

/// A kube-proxy that runs on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeProxy {
    /// The file that `--config` names; without it the command line counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Why it is not known what it sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
    /// What it is told, by the key of its configuration. What is not told has kube-proxy's default.
    #[serde(default)]
    pub told: BTreeMap<String, u64>,
}

/// Why a configuration tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unread {
    /// The file could not be opened, or not read.
    File,
    /// Where the process sees the path, nothing is.
    Missing,
    /// It is no regular file, or one that the kernel makes up.
    NotRegular,
    /// Nothing is in it.
    Empty,
    /// It is larger than what is read.
    TooLarge,
    /// Its path leads out of the process's root or folder, or through links that are not followed, or somebody denies it.
    NotAllowed,
    /// It did not come in time.
    Late,
    /// It is written in another form than the usual one.
    Form,
    /// It is a configuration of something else.
    NotProxy,
}

impl Unread {
    /// What is wrong, and how to mend it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::File => {
                "it could not be opened or read; look whether the process still runs, and whether its disk has errors"
            }
            Self::Missing => {
                "there is no such file where the process sees this path; name one with --config that is there, or put it back"
            }
            Self::NotRegular => {
                "it is no regular file; put the configuration into one, since a device, a pipe or a file that the kernel makes up is \
                 not opened"
            }
            Self::Empty => "it is empty; kube-proxy does not start with such a file, so look what emptied it",
            Self::TooLarge => {
                "it is larger than 64 KiB; keep the configuration of kube-proxy alone in it, without long comments"
            }
            Self::NotAllowed => {
                "doctor may not follow its path; run doctor as root of the host, and name the file with --config by an absolute path \
                 whose links stay inside the root of the process"
            }
            Self::Late => {
                "it did not come within two seconds; look whether the file system that it is on answers, and ask again"
            }
            Self::Form => {
                "it is written in a form that doctor does not read, or has a value with which kube-proxy does not start; write one \
                 plain key and value in each line below `conntrack:`, as kubeadm does, and numbers and times with units in flags"
            }
            Self::NotProxy => {
                "it is no KubeProxyConfiguration (its `kind:` says what it is); name the right file with --config"
            }
        }
    }
}

impl KubeProxy {
    /// What it sets a sysctl to; `None` where it leaves it alone, or nobody knows. The name is without `nf_conntrack_`.
    pub fn sets(&self, sysctl: &str, cpus: u32, in_force: u64) -> Option<u64> {
        if self.unread.is_some() || sysctl.is_empty() {
            return None;
        }
        let value = if sysctl == "max" {
            match self.value(MAX_PER_CORE)?.saturating_mul(u64::from(cpus)) {
                0 => 0,
                scaled if scaled > CAP && in_force == CAP => CAP,
                scaled => scaled.max(self.value(MIN)?),
            }
        } else {
            self.value(KEYS.iter().find(|(_, _, set, ..)| *set == sysctl)?.0)?
        };
        // More than the kernel takes is refused by it: what was in force stays.
        Some(value).filter(|value| (1..=MOST).contains(value))
    }

    /// Whether it is told so, and does not go by its default.
    pub fn is_told(&self, sysctl: &str) -> bool {
        let of_max = |key: &str| sysctl == "max" && [MAX_PER_CORE, MIN].contains(&key);
        KEYS.iter().any(|(key, _, set, ..)| (of_max(key) || *set == sysctl) && self.told.contains_key(*key))
    }

    /// Whether a configuration has this key.
    pub fn has_key(key: &str) -> bool {
        KEYS.iter().any(|(known, ..)| *known == key)
    }

    fn value(&self, key: &str) -> Option<u64> {
        let default = KEYS.iter().find(|(known, ..)| *known == key)?.4;
        Some(self.told.get(key).copied().unwrap_or(default))
    }

    /// What to write, and where, so that it leaves this sysctl alone.
    pub fn left_alone(&self, sysctl: &str) -> String {
        let wanted = if sysctl == "max" { MAX_PER_CORE } else { "" };
        let (key, flag, ..) =
            KEYS.into_iter().find(|(key, _, set, ..)| *key == wanted || *set == sysctl).unwrap_or(KEYS[0]);
        let nought = match (key, self.file.is_some()) {
            ("tcpBeLiberal", _) => "false",
            (MAX_PER_CORE, _) | (_, false) => "0",
            _ => "0s",
        };
        match self.told_file() {
            Some(file) => format!(
                "{file}, which decides again when kube-proxy starts next: write `{key}: {nought}` under `conntrack:` there, so that kube-proxy leaves nf_conntrack_{sysctl} alone; where \
                 kubeadm made the cluster, `kubectl -n kube-system edit configmap kube-proxy` does it for all nodes, and `kubectl \
                 -n kube-system rollout restart daemonset kube-proxy` starts it anew"
            ),
            None => format!(
                "the command line of kube-proxy, which decides again when it starts next: add `--{flag}={nought}`, so that it leaves nf_conntrack_{sysctl} alone, and start \
                 it anew"
            ),
        }
    }

    /// The file's path, as far as it can be told in a sentence.
    pub fn told_file(&self) -> Option<String> {
        let file = self.file.as_deref()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:=,".contains(&byte);
        Some(match file.bytes().all(plain) {
            true if file.len() <= TOLD_OF_PATH => file.to_owned(),
            // Words and signs in it could pass for words of doctor's own.
            true => format!("{}… (a path of {} bytes)", &file[..TOLD_OF_PATH], file.len()),
            false => "a file whose path has unusual characters".to_owned(),
        })
    }

    /// How it comes to its limit: `maxPerCore 32,768 for each of 2 CPUs, min 131,072`.
    pub fn rule(&self, sysctl: &str, cpus: u32) -> Option<String> {
        (sysctl == "nf_conntrack_max").then_some(())?;
        Some(format!(
            "{MAX_PER_CORE} {} for each of {cpus} CPUs, {MIN} {}",
            thousands(self.value(MAX_PER_CORE)?),
            thousands(self.value(MIN)?)
        ))
    }
}

/// The file that the command line names, if any, and what its other flags say: they count only without a file.
pub fn by_command_line(words: &[&str]) -> (Option<String>, KubeProxy) {
    let mut proxy = KubeProxy::default();
    let mut file = None;
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        let known = KEYS.iter().find(|(_, known, ..)| *known == name);
        if name != "config" && known.is_none() {
            continue;
        }
        // A switch takes no word after it.
        let switch = known.is_some_and(|(_, _, _, form, _)| *form == Value::Switch);
        let value = value.or_else(|| if switch { Some("true") } else { words.next().copied() });
        match (known, value) {
            (None, Some(value)) if value.len() <= LONGEST_PATH => {
                file = (!value.is_empty()).then(|| value.to_owned());
            }
            (Some((key, _, _, form, _)), Some(value)) if let Some(number) = form.read(value) => {
                proxy.told.insert((*key).into(), number);
            }
            _ => proxy.unread = Some(Unread::Form),
        }
    }
    (file, proxy)
}

/// What a configuration says in the form in which kubeadm and people write it: `conntrack:` at the beginning of a line, and
/// a key and a plain value in each line below it. Whatever else there is of YAML is refused where it could change that, and
/// so is what kube-proxy does not start with: it then runs by an older text.
pub fn by_configuration(text: &str) -> Result<BTreeMap<String, u64>, Unread> {
    let mut told = BTreeMap::new();
    let (mut seen, mut inside, mut indent, mut documents) = (false, false, 0, 0);
    let (mut begun, mut kind) = (false, None);
    for line in text.lines() {
        let bare = line.split(" #").next().unwrap_or_default().trim_end();
        let body = bare.trim_start();
        if body.is_empty() || body.starts_with('#') {
            continue;
        }
        let depth = bare.len() - body.len();
        if depth == 0 {
            inside = false;
            documents += usize::from(body == "---");
            // JSON, several documents, and keys that another name, a quote or a merge hides.
            let other = body.starts_with(['{', '[', '&', '*', '<', '?', '"', '\'', '\t', '%']);
            let ended = (body.starts_with("---") && begun) || body.starts_with("...");
            if other || documents > 1 || ended {
                return Err(Unread::Form);
            }
            begun = true;
            let Some((key, value)) = body.split_once(':') else { continue };
            let value = value.trim();
            match key.trim_end() {
                "kind" if kind.replace(unquoted(value)).is_some() => return Err(Unread::Form),
                "conntrack" => {
                    if seen || !NOTHING.contains(&value) {
                        return Err(Unread::Form);
                    }
                    (seen, inside, indent) = (true, value.is_empty(), 0);
                }
                _ => {}
            }
        } else if inside {
            if indent == 0 {
                indent = depth;
            }
            let (key, value) = body.split_once(':').ok_or(Unread::Form)?;
            if depth != indent || bare.as_bytes()[..depth].contains(&b'\t') {
                return Err(Unread::Form);
            }
            let Some((_, _, _, form, _)) = KEYS.iter().find(|(known, ..)| *known == key) else { continue };
            if told.contains_key(key) {
                return Err(Unread::Form);
            }
            // Without a value it is as if the key were not there.
            if !NOTHING.contains(&value.trim()) {
                told.insert(key.to_owned(), form.read_from_file(value.trim()).ok_or(Unread::Form)?);
            }
        } else if body.starts_with("conntrack:") {
            // A later version of the configuration has it below another key.
            return Err(Unread::Form);
        }
    }
    if kind == Some(KIND) { Ok(told) } else { Err(Unread::NotProxy) }
}

/// How YAML writes that there is no value.
const NOTHING: [&str; 3] = ["", "null", "~"];

fn unquoted(value: &str) -> &str {
    let between = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    between('"').or_else(|| between('\'')).unwrap_or(value)
}

impl Value {
    /// As YAML has it: quotes make a text of a number, and a time is a text with or without.
    fn read_from_file(self, value: &str) -> Option<u64> {
        match self {
            Self::Time if unquoted(value) == value && value == "0" => None,
            Self::Time => self.read(unquoted(value)),
            Self::Number | Self::Switch => self.read(value),
        }
    }

    /// What kube-proxy takes, a time in seconds. A negative one it refuses as it starts; a 0 in front would make it octal.
    fn read(self, value: &str) -> Option<u64> {
        if value.is_empty() || value.len() > LONGEST || !value.is_ascii() {
            return None;
        }
        match self {
            Self::Switch => match value {
                "true" => Some(1),
                "false" => Some(0),
                _ => None,
            },
            Self::Number => {
                let plain = value.bytes().all(|byte| byte.is_ascii_digit())
                    && (value.len() == 1 || !value.starts_with('0'));
                value.parse().ok().filter(|number| plain && *number <= MOST)
            }
            Self::Time if value == "0" => Some(0),
            Self::Time => time(value),
        }
    }
}

/// `24h0m0s`, in seconds.
fn time(value: &str) -> Option<u64> {
    let (mut rest, mut millis) = (value, 0_u64);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|char: char| char.is_ascii_digit()).len();
        let (count, after) = rest.split_at(digits);
        let unit = after.len() - after.trim_start_matches(|char: char| char.is_ascii_alphabetic()).len();
        let (unit, after) = after.split_at(unit);
        let each = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        millis = millis.checked_add(count.parse::<u64>().ok()?.checked_mul(each)?)?;
        rest = after;
    }
    Some(millis / 1_000).filter(|seconds| *seconds <= MOST)
}

#[cfg(test)]
#[path = "kube_proxy_tests.rs"]
mod tests;
