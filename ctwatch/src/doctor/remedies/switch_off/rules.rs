//! Taking away the rules that need tracking, one namespace at a time.

use std::collections::BTreeSet;

use crate::doctor::command::{Arg, Call, Command, Place, Refused};
use crate::doctor::facts::{Listing, Namespace, Rule, RuleKind};
use crate::doctor::text::short;

/// More handles than these are looked up by a person anyway.
const NAMED: usize = 8;

/// Commands, what undoes them, and what they leave.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) commands: Vec<Command>,
    pub(super) undo: Vec<Command>,
    pub(super) left_out: Vec<String>,
}

impl Steps {
    /// All rules of a namespace, or the reason why they are left.
    pub(super) fn add(&mut self, namespace: &Namespace) {
        let kinds: [(&str, &Listing, Write); 3] = [
            ("nft", &namespace.nft, nft),
            ("iptables", &namespace.iptables, |namespace, place, steps| {
                legacy(&LEGACY[0], namespace, place, steps)
            }),
            ("ip6tables", &namespace.ip6tables, |namespace, place, steps| {
                legacy(&LEGACY[1], namespace, place, steps)
            }),
        ];
        for (tool, listing, write) in kinds {
            let Listing { rules, left_out, unquotable, .. } = listing;
            if rules.is_empty() && *left_out == 0 {
                continue;
            }
            let mut steps = Self::default();
            let written = match namespace.place() {
                _ if *left_out > 0 => Err(Refused("there are more than ctwatch keeps")),
                _ if *unquotable > 0 => Err(Refused(
                    "names or comments there have characters that would not be read back as they are printed",
                )),
                Ok(place) => write(namespace, place.as_ref(), &mut steps),
                Err(why) => Err(why),
            };
            match written {
                Ok(()) => {
                    self.commands.extend(steps.commands);
                    self.undo.extend(steps.undo);
                }
                Err(why) => self.left_out.push(format!(
                    "{tool} rules of namespace {} (inode {}): {why}. They are {}",
                    namespace.name,
                    namespace.netns,
                    references(rules, *left_out)
                )),
            }
        }
    }
}

type Write = fn(&Namespace, Option<&Place>, &mut Steps) -> Result<(), Refused>;

/// What to look for in a listing with handles or numbers.
fn references(rules: &[Rule], left_out: u64) -> String {
    let mut named: Vec<String> = rules.iter().take(NAMED).map(reference).collect();
    let more = rules.len().saturating_sub(NAMED) as u64 + left_out;
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

fn reference(rule: &Rule) -> String {
    let kind = match &rule.kind {
        RuleKind::Rule | RuleKind::Notrack => "rule",
        RuleKind::NatChain => "chain",
        RuleKind::Flowtable => "flowtable",
        RuleKind::Object(_) => "object",
    };
    match (rule.handle, rule.number) {
        (Some(handle), _) => format!("{kind} handle {handle} ({})", rule.family),
        (None, Some(number)) => format!("{kind} {number} of a chain of table {}", short(&rule.table)),
        (None, None) => format!("a {kind} of unknown number"),
    }
}

fn family(rule: &Rule) -> Result<&'static str, Refused> {
    let known = ["ip", "ip6", "inet", "arp", "bridge", "netdev"];
    known.into_iter().find(|known| rule.family == *known).ok_or(Refused("its family is unknown"))
}

fn place_of(rule: &Rule) -> (&str, &str, &str) {
    (&rule.family, &rule.table, &rule.chain)
}

fn nft(namespace: &Namespace, place: Option<&Place>, steps: &mut Steps) -> Result<(), Refused> {
    let nft = || Call::new("nft").at(place);
    let saved = Arg::joined(["/root/ctwatch-ruleset-".into(), namespace.file_word(), ".nft".into()]);
    steps.commands.push(Command::Both {
        first: Call::new("echo").args(["flush", "ruleset"]),
        second: nft().args(["list", "ruleset"]),
        file: saved.clone(),
    });
    // A notrack rule holds nft_ct, and with it nf_conntrack, as any other.
    let mut sorted: Vec<&Rule> = namespace.nft.rules.iter().collect();
    let nat_chains: BTreeSet<(&str, &str, &str)> =
        sorted.iter().filter(|rule| rule.kind == RuleKind::NatChain).map(|rule| place_of(rule)).collect();
    sorted.sort_by_key(|rule| match rule.kind {
        RuleKind::Rule | RuleKind::Notrack => 0,
        RuleKind::NatChain => 1,
        RuleKind::Flowtable | RuleKind::Object(_) => 2,
    });
    for rule in sorted {
        let named = |call: Call| -> Result<Call, Refused> {
            Ok(call.arg(family(rule)?).arg(Arg::nft_name(&rule.table)?).arg(Arg::nft_name(&rule.chain)?))
        };
        match &rule.kind {
            RuleKind::Rule | RuleKind::Notrack if nat_chains.contains(&place_of(rule)) => {}
            RuleKind::Rule | RuleKind::Notrack => {
                if let Some(handle) = rule.handle {
                    let call = named(nft().args(["delete", "rule"]))?;
                    steps.commands.push(call.arg("handle").arg(handle).into());
                }
            }
            RuleKind::NatChain => {
                steps.commands.push(named(nft().args(["flush", "chain"]))?.into());
                steps.commands.push(named(nft().args(["delete", "chain"]))?.into());
            }
            RuleKind::Flowtable => steps.commands.push(named(nft().args(["delete", "flowtable"]))?.into()),
            RuleKind::Object(kind) => {
                steps.commands.push(named(nft().arg("delete").args(object(kind)?.iter().copied()))?.into());
            }
        }
    }
    steps.undo.push(nft().arg("-f").arg(saved).into());
    Ok(())
}

fn object(kind: &str) -> Result<&'static [&'static str], Refused> {
    Ok(match kind {
        "ct helper" => &["ct", "helper"],
        "ct timeout" => &["ct", "timeout"],
        "ct expectation" => &["ct", "expectation"],
        "synproxy" => &["synproxy"],
        _ => return Err(Refused("it is of a kind that is unknown")),
    })
}

/// The programs of one family of the older interface.
struct Legacy {
    act: &'static str,
    save: &'static str,
    restore: &'static str,
    rules: fn(&Namespace) -> &[Rule],
}

const LEGACY: [Legacy; 2] = [
    Legacy {
        act: "iptables-legacy",
        save: "iptables-legacy-save",
        restore: "iptables-legacy-restore",
        rules: |namespace| &namespace.iptables.rules,
    },
    Legacy {
        act: "ip6tables-legacy",
        save: "ip6tables-legacy-save",
        restore: "ip6tables-legacy-restore",
        rules: |namespace| &namespace.ip6tables.rules,
    },
];

/// By number, since a rule's text is no list of arguments; each only where that number still shows that text.
fn legacy(
    programs: &Legacy,
    namespace: &Namespace,
    place: Option<&Place>,
    steps: &mut Steps,
) -> Result<(), Refused> {
    let saved =
        Arg::joined(["/root/ctwatch-".into(), programs.act.into(), "-".into(), namespace.file_word()]);
    steps.commands.push(Call::new(programs.save).at(place).into_file(saved.clone()).into());
    // The last first, so that the numbers of the others stay.
    let mut rules: Vec<&Rule> = (programs.rules)(namespace).iter().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.number));
    for rule in rules {
        let number = rule.number.ok_or(Refused("their numbers were not captured"))?;
        let chain = Arg::xt_chain(&rule.chain)?;
        let table = xt_table(rule)?;
        let on = |action: &'static str| {
            Call::new(programs.act).at(place).args(["-t", table, action]).arg(chain.clone()).arg(number)
        };
        steps.commands.push(Command::WhereShown {
            show: on("-S"),
            text: Arg::xt_rule(&rule.text)?,
            then: on("-D"),
        });
    }
    steps.undo.push(Call::new(programs.restore).at(place).from_file(saved).into());
    Ok(())
}

fn xt_table(rule: &Rule) -> Result<&'static str, Refused> {
    let known = ["filter", "nat", "mangle", "raw", "security"];
    known.into_iter().find(|known| rule.table == *known).ok_or(Refused("its table is unknown"))
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
