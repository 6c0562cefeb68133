//! What to do: commands for this machine, how they last, how they are undone, what they cost. Pure; nothing is run.

pub mod limit;
pub mod notrack;
pub mod resolver;
pub mod switch_off;
pub mod timeouts;

use super::facts::Facts;
use crate::kernel::facts::Presence;

/// Every remedy there is. Captured machines (`tests/machines`) print them all, and a guest scenario runs what is
/// printed for these machines.
pub const IDS: [&str; 7] = [
    "raise-limit",
    "more-buckets",
    "shorter-timeout",
    "notrack-nft",
    "notrack-iptables",
    "one-query",
    "switch-off",
];

/// Where commands that are only for one boot are repeated from at the next.
const SYSCTL_DIRECTORY: &str = "/etc/sysctl.d";

/// A word for the shell.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Commands that make settings last, and those that undo that. The name is the remedy's own, so that undoing one leaves
/// another's files alone.
fn settings_at_boot(facts: &Facts, name: &str, settings: &[(String, u64)]) -> (Vec<String>, Vec<String>) {
    let file = format!("{SYSCTL_DIRECTORY}/90-ctwatch-{name}.conf");
    let lines: Vec<String> = settings.iter().map(|(key, value)| format!("{key} = {value}\\n")).collect();
    let mut persist = vec![format!("printf '{}' > {file}", lines.concat())];
    let mut undo = vec![format!("rm -f {file}")];
    if facts.conntrack == Presence::Module {
        // Settings are applied early in the boot, when the module's sysctls do not exist yet.
        let modules = format!("/etc/modules-load.d/ctwatch-{name}.conf");
        persist.push(format!("echo nf_conntrack > {modules}"));
        undo.push(format!("rm -f {modules}"));
    }
    (persist, undo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_gets_one_word() {
        assert_eq!(quote("udp_timeout=10"), "udp_timeout=10");
        assert_eq!(quote("my chain"), "'my chain'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("$(reboot)"), "'$(reboot)'");
        assert_eq!(quote(""), "''");
    }
}
