//! What to do: commands for this machine, how they last, how they are undone, what they cost. Pure; nothing is run.

pub mod early;
pub mod expectations;
pub mod invalid;
pub mod limit;
pub mod notrack;
pub mod resolver;
pub mod snat;
pub mod stale;
pub mod switch_off;
pub mod timeouts;

use super::command::{Arg, Call, Command, Place};
use super::facts::Facts;
use crate::kernel::facts::Presence;
use crate::model::protocol;

/// Every remedy there is. Captured machines (`tests/machines`) print them all, and a guest scenario runs what is
/// printed for these machines.
pub const IDS: [&str; 16] = [
    "raise-limit",
    "more-buckets",
    "apply-configured",
    "wider-range",
    "more-addresses",
    "delete-entries",
    "raise-expectations",
    "shorter-timeout",
    "drop-early",
    "notrack-nft",
    "notrack-iptables",
    "one-query",
    "tcp-be-liberal",
    "no-checksums",
    "tcp-loose",
    "switch-off",
];

/// A protocol that has ports, by the name that nft, iptables and conntrack know.
fn with_ports(number: u8) -> Option<&'static str> {
    let name = protocol::name(number);
    ["tcp", "udp", "sctp", "dccp", "udplite"].into_iter().find(|known| name == *known)
}

/// Where commands that are only for one boot are repeated from at the next.
const SYSCTL_DIRECTORY: &str = "/etc/sysctl.d";
/// Files of all directories are applied in the order of their names, and the last value stays (sysctl.d(5)). Distributions
/// number theirs up to 99 and link /etc/sysctl.conf as 99-sysctl.conf, so a number would not be enough.
const SYSCTL_FILE: &str = "/zz-ctwatch-";

/// A sysctl of connection tracking and a value for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name without `net.netfilter.nf_conntrack_`.
    pub sysctl: &'static str,
    /// The value.
    pub value: u64,
}

impl Setting {
    fn text(self, between: &'static str) -> Arg {
        Arg::joined([
            "net.netfilter.nf_conntrack_".into(),
            self.sysctl.into(),
            between.into(),
            self.value.into(),
        ])
    }

    /// What sets it, there.
    pub fn apply(self, place: Option<&Place>) -> Command {
        Call::new("sysctl").at(place).arg("-w").arg(self.text("=")).into()
    }
}

/// Commands that make settings last, and those that undo that. The name is the remedy's own, so that undoing one leaves
/// another's files alone.
fn settings_at_boot(facts: &Facts, name: &'static str, settings: &[Setting]) -> (Vec<Command>, Vec<Command>) {
    let file = Arg::joined([SYSCTL_DIRECTORY.into(), SYSCTL_FILE.into(), name.into(), ".conf".into()]);
    let lines = settings.iter().map(|setting| setting.text(" = "));
    let mut persist = vec![Call::new("printf").arg(r"%s\n").args(lines).into_file(file.clone()).into()];
    let mut undo = vec![Call::new("rm").arg("-f").arg(file).into()];
    if facts.conntrack == Presence::Module {
        // Settings are applied early in the boot, when the module's sysctls do not exist yet.
        let modules = Arg::joined(["/etc/modules-load.d/ctwatch-".into(), name.into(), ".conf".into()]);
        persist.push(Call::new("echo").arg("nf_conntrack").into_file(modules.clone()).into());
        undo.push(Call::new("rm").arg("-f").arg(modules).into());
    }
    (persist, undo)
}
