//! What to do: commands for this machine, how they last, how they are undone, what they cost. Pure; nothing is run.

pub mod limit;
pub mod notrack;
pub mod switch_off;
pub mod timeouts;

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

/// A file of settings under [`SYSCTL_DIRECTORY`]: the command that writes it, and the one that removes it.
fn sysctl_file(name: &str, settings: &[(String, u64)]) -> (String, String) {
    let file = format!("{SYSCTL_DIRECTORY}/{name}");
    let lines: String = settings.iter().map(|(key, value)| format!("{key} = {value}\\n")).collect();
    (format!("printf '{lines}' > {file}"), format!("rm -f {file}"))
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
