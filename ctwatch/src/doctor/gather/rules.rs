//! Which rules have to do with tracking. Asked of nft and iptables only where their kernel half is loaded already:
//! either would load it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::ops::ControlFlow;

use super::budget::{Budget, MOST_TEXT};
use super::child::{self, WhyNot};
use super::dropped::{self, Chain};
use super::nft::Collector;
use super::system::Kernel;
use crate::doctor::facts::{Listing, ListingState, Rule, RuleKind};
use crate::source::netlink::socket::Requests;

/// Matches and targets of xtables that take a reference on tracking (`nf_ct_netns_get` in their checkentry, 5.10 to 7.3).
pub(super) const XT: [&str; 21] = [
    "conntrack",
    "state",
    "connmark",
    "connlimit",
    "connbytes",
    "connlabel",
    "helper",
    "cluster",
    "CONNMARK",
    "CONNSECMARK",
    "SNAT",
    "DNAT",
    "MASQUERADE",
    "REDIRECT",
    "NETMAP",
    "SYNPROXY",
    "CT",
    "NOTRACK",
    "nat",
    "FLOWOFFLOAD",
    // IPv4 only, and in older kernels only.
    "CLUSTERIP",
];

/// nft's rules in the calling thread's namespace.
pub fn nft(kernel: Kernel, budget: &Budget) -> Listing {
    if !kernel.nf_tables {
        return Listing::default();
    }
    if !has_tables().unwrap_or(true) {
        return Listing { state: ListingState::Listed, ..Listing::default() };
    }
    let mut collector = Collector::new(budget);
    let listed = list(budget, "-j", |json| collector.read_json(json).map_err(|error| error.to_string()))
        .and_then(|()| {
            list(budget, "-a", |text| collector.read_text(text).map_err(|error| error.to_string()))
        });
    with_state(collector.finish(), listed)
}

/// Terse leaves out the elements of sets, of which there can be a million; nft before 0.9.1 does not know it.
fn list(
    budget: &Budget,
    format: &str,
    mut take: impl FnMut(&mut dyn Read) -> Result<(), String> + Send,
) -> Result<(), WhyNot> {
    let mut nft = |args: &[&str]| child::read("nft", args, child::NFT, budget, &mut take);
    match nft(&["-t", format, "list", "ruleset"]) {
        Err(WhyNot::Failed(_)) => nft(&[format, "list", "ruleset"]),
        other => other,
    }
}

/// Whether the calling thread's namespace has any table of nft: to ask the kernel costs far less than to start nft.
fn has_tables() -> io::Result<bool> {
    /// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`.
    const GET_TABLES: u16 = 10 << 8 | 1;
    let mut any = false;
    Requests::open()?.dump(GET_TABLES, 0, |_| {
        any = true;
        ControlFlow::Break(())
    })?;
    Ok(any)
}

/// The older interface's rules; `names` is the file in which a namespace names its tables.
pub fn iptables(names: &str, family: &str, program: &str, budget: &Budget) -> Listing {
    let tables = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if tables.trim().is_empty() {
        return Listing::default();
    }
    let run = |program: &str, args: &[&str], needs| child::run(program, args, needs, budget);
    let legacy = format!("{program}-legacy-save");
    let listed = match run(&legacy, &[], child::XTABLES) {
        Err(WhyNot::Failed(legacy)) => {
            let save = format!("{program}-save");
            // The nft flavour lists other rules, and would load nf_tables.
            match run(&save, &["-V"], child::NOTHING) {
                Ok(version) if !version.contains("nf_tables") => run(&save, &[], child::XTABLES),
                _ => Err(WhyNot::Failed(legacy)),
            }
        }
        other => other,
    };
    match listed {
        Ok(text) => parse_iptables(&text, family, budget),
        Err(why) => with_state(Listing::default(), Err(why)),
    }
}

/// The rules in what `nft -j list ruleset` printed, with their words from `nft -a list ruleset`.
pub fn parse_nft(json: impl Read, text: impl Read, budget: &Budget) -> Result<Listing, String> {
    let mut collector = Collector::new(budget);
    collector.read_json(json).map_err(|error| error.to_string())?;
    collector.read_text(text).map_err(|error| error.to_string())?;
    Ok(Listing { state: ListingState::Listed, ..collector.finish() })
}

fn with_state(listing: Listing, listed: Result<(), WhyNot>) -> Listing {
    let cut = matches!(listed, Err(WhyNot::Bound(_)));
    let state = listed.map_or_else(|why| ListingState::Unreadable(why.text()), |()| ListingState::Listed);
    Listing { state, cut, ..listing }
}

/// The rules in what `iptables-save` printed.
pub fn parse_iptables(save: &str, family: &str, budget: &Budget) -> Listing {
    let mut listing = Listing { state: ListingState::Listed, ..Listing::default() };
    let mut table = "";
    let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
    let mut input = Chain::default();
    let mut rest = save;
    while !rest.is_empty() {
        let line;
        (line, rest) = xt_line(rest);
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
            numbers.clear();
            input = Chain::of_xtables(table, "INPUT");
        } else if let Some(chain) = line.strip_prefix(':') {
            listing.drops_by_default |= table == "filter" && chain.split_whitespace().nth(1) == Some("DROP");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = xt_words(rule);
            let chain = words.first().copied().unwrap_or_default();
            let number = numbers.entry(chain).or_default();
            *number += 1;
            if table == "filter" && dropped::all_by_iptables(&words) {
                dropped::note_chain(chain, &mut listing);
            }
            if chain == "INPUT" {
                input.rule(family, dropped::by_iptables(&words), &mut listing);
            }
            listing.unquotable +=
                u64::from(rule.contains(|char: char| char.is_control() || char == '\u{fffd}'));
            let named = words.windows(2).filter(|pair| ["-m", "-j"].contains(&pair[0])).map(|pair| pair[1]);
            let needs: BTreeSet<String> = named.filter(|name| XT.contains(name)).map(str::to_owned).collect();
            listing.policies |= words.contains(&"--timeout");
            let notrack = words.contains(&"--notrack") || words.ends_with(&["-j", "NOTRACK"]);
            if needs.is_empty() {
                continue;
            }
            if rule.len() > MOST_TEXT || !budget.takes_rule(listing.rules.len()) {
                listing.left_out += 1;
                continue;
            }
            listing.rules.push(Rule {
                kind: if notrack { RuleKind::Notrack } else { RuleKind::Rule },
                family: family.into(),
                table: table.into(),
                chain: chain.into(),
                handle: None,
                number: Some(*number),
                text: rule.to_owned(),
                needs: needs.into_iter().collect(),
            });
        }
    }
    listing
}

/// The first line of a saved ruleset and what comes after it. A comment may hold a line's end, between quotes
/// (`xtables_save_string`); only rules hold comments.
fn xt_line(text: &str) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    let rule = text.starts_with("-A ");
    let end = text.find(|char| {
        let literal = std::mem::take(&mut escaped);
        match char {
            '\n' => return !quoted,
            '"' if rule && !literal => quoted = !quoted,
            '\\' if quoted && !literal => escaped = true,
            _ => {}
        }
        false
    });
    end.map_or((text, ""), |end| (&text[..end], &text[end + 1..]))
}

/// The words of a rule; what stands between quotes is one of them, quotes included.
fn xt_words(rule: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let words = rule.split(|char: char| {
        let literal = std::mem::take(&mut escaped);
        match char {
            '"' if !literal => quoted = !quoted,
            '\\' if quoted && !literal => escaped = true,
            _ => {}
        }
        !quoted && char.is_whitespace()
    });
    words.filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
