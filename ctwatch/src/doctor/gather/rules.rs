//! Which rules have to do with tracking. Asked of nft and iptables only where their kernel half is loaded already:
//! either would load it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use super::child::{self, run};
use super::system::Kernel;
use crate::doctor::command::Arg;
use crate::doctor::facts::{Listing, ListingState, Rule, RuleKind};

/// Matches and targets of xtables that take a reference on tracking (`nf_ct_netns_get` in their checkentry, 5.10 to 7.3).
const XT: [&str; 20] = [
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
];

/// nft statements that do the same.
const STATEMENTS: [&str; 10] = [
    "ct",
    "ct count",
    "ct helper",
    "ct timeout",
    "ct expectation",
    "masquerade",
    "snat",
    "dnat",
    "redirect",
    "synproxy",
];

/// nft's rules in the calling thread's namespace.
pub fn nft(kernel: Kernel) -> Listing {
    if !kernel.nf_tables {
        return Listing::default();
    }
    // Terse leaves out the elements of sets, of which there can be a million; nft before 0.9.1 does not know it.
    let list = |format: &str| {
        let nft = |args: &[&str]| run("nft", args, child::NFT);
        nft(&["-t", format, "list", "ruleset"]).or_else(|_| nft(&[format, "list", "ruleset"]))
    };
    let listed = list("-j")
        .and_then(|json| Ok((json, list("-a")?)))
        .and_then(|(json, text)| parse_nft(&json, &text).map_err(|error| format!("nft's JSON: {error}")));
    listed.unwrap_or_else(unreadable)
}

/// The older interface's rules; `names` is the file in which a namespace names its tables.
pub fn iptables(names: &str, family: &str, program: &str) -> Listing {
    let tables = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if tables.trim().is_empty() {
        return Listing::default();
    }
    let legacy = format!("{program}-legacy-save");
    let listed = match run(&legacy, &[], child::XTABLES) {
        Ok(text) => Ok(text),
        Err(legacy) => {
            let save = format!("{program}-save");
            // The nft flavour lists other rules, and would load nf_tables.
            match run(&save, &["-V"], child::NOTHING) {
                Ok(version) if !version.contains("nf_tables") => run(&save, &[], child::XTABLES),
                _ => Err(legacy),
            }
        }
    };
    listed.map_or_else(unreadable, |text| parse_iptables(&text, family))
}

fn unreadable(why: String) -> Listing {
    Listing { state: ListingState::Unreadable(why), ..Listing::default() }
}

/// The rules in what `nft -j list ruleset` printed, with their words from `nft -a list ruleset`.
pub fn parse_nft(json: &str, text: &str) -> Result<Listing, serde_json::Error> {
    let ruleset: Value = serde_json::from_str(json)?;
    let texts = nft_texts(text);
    let mut listing = Listing { state: ListingState::Listed, ..Listing::default() };
    for object in ruleset["nftables"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        for (kind, body) in object {
            listing.unquotable += u64::from(kind != "metainfo" && !reads_back(body));
            if kind == "chain" && body["policy"] == "drop" && body["type"] == "filter" {
                listing.drops_by_default = true;
            }
            listing.rules.extend(nft_object(kind, body, &texts));
        }
    }
    Ok(listing)
}

/// Whether nft would read an object back as it prints it: it escapes nothing.
fn reads_back(body: &Value) -> bool {
    let is_name = |key: &str| body[key].as_str().is_none_or(|name| Arg::nft_name(name).is_ok());
    ["table", "chain", "name"].into_iter().all(is_name) && no_text_breaks_out(body)
}

fn no_text_breaks_out(value: &Value) -> bool {
    // U+FFFD stands for bytes that were no UTF-8.
    let harmless = |text: &str| !text.contains(|char: char| char.is_control() || "\"\u{fffd}".contains(char));
    match value {
        Value::String(text) => harmless(text),
        Value::Array(items) => items.iter().all(no_text_breaks_out),
        Value::Object(fields) => fields.iter().all(|(key, inner)| harmless(key) && no_text_breaks_out(inner)),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

type Texts = BTreeMap<(String, String, u64), String>;

fn nft_object(kind: &str, body: &Value, texts: &Texts) -> Option<Rule> {
    let word = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let handle = body["handle"].as_u64();
    let text = texts.get(&(word("family"), word("table"), handle?)).cloned();
    let mut needs = BTreeSet::new();
    let kind = match kind {
        "rule" => {
            let mut notrack = false;
            nft_needs(&body["expr"], &mut needs, &mut notrack);
            // An xtables CT target hides its arguments from JSON; the text has them.
            let text_says = text.as_ref().is_some_and(|text| text.contains("notrack"));
            if notrack || text_says && needs.iter().all(|need| ["CT", "NOTRACK"].contains(&need.as_str())) {
                RuleKind::Notrack
            } else if needs.is_empty() {
                return None;
            } else {
                RuleKind::Rule
            }
        }
        "chain" if body["type"] == "nat" => {
            needs.insert("nat".into());
            RuleKind::NatChain
        }
        "flowtable" => {
            needs.insert("flow offload".into());
            RuleKind::Flowtable
        }
        "ct helper" | "ct timeout" | "ct expectation" | "synproxy" => {
            needs.insert(kind.into());
            RuleKind::Object(kind.into())
        }
        _ => return None,
    };
    let chain =
        if kind == RuleKind::Rule || kind == RuleKind::Notrack { word("chain") } else { word("name") };
    let text = text.unwrap_or_else(|| chain.clone());
    Some(Rule {
        kind,
        family: word("family"),
        table: word("table"),
        chain,
        handle,
        number: None,
        text,
        needs: needs.into_iter().collect(),
    })
}

fn nft_needs(value: &Value, needs: &mut BTreeSet<String>, notrack: &mut bool) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| nft_needs(item, needs, notrack)),
        Value::Object(fields) => {
            for (key, inner) in fields {
                match key.as_str() {
                    "notrack" => *notrack = true,
                    "flow" => drop(needs.insert("flow offload".into())),
                    "xt" => {
                        let name = inner["name"].as_str().unwrap_or_default();
                        if XT.contains(&name) {
                            needs.insert(name.into());
                        }
                    }
                    "ct" => {
                        let key = inner["key"].as_str().unwrap_or_default();
                        needs.insert(format!("ct {key}").trim_end().into());
                    }
                    statement if STATEMENTS.contains(&statement) => drop(needs.insert(statement.into())),
                    _ => {}
                }
                nft_needs(inner, needs, notrack);
            }
        }
        _ => {}
    }
}

/// Each line that ends in a handle, under its table.
fn nft_texts(text: &str) -> Texts {
    let mut texts = Texts::new();
    let mut table = (String::new(), String::new());
    for line in text.lines() {
        let Some((body, handle)) = line.rsplit_once("# handle ") else { continue };
        let Ok(handle) = handle.trim().parse() else { continue };
        let body = body.trim().trim_end_matches('{').trim_end();
        if line.starts_with("table ") {
            let mut words = body.split_whitespace().skip(1).map(str::to_owned);
            table = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        } else {
            texts.insert((table.0.clone(), table.1.clone(), handle), body.to_owned());
        }
    }
    texts
}

/// The rules in what `iptables-save` printed.
pub fn parse_iptables(save: &str, family: &str) -> Listing {
    let mut listing = Listing { state: ListingState::Listed, ..Listing::default() };
    let mut table = "";
    let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
    let mut rest = save;
    while !rest.is_empty() {
        let line;
        (line, rest) = xt_line(rest);
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
            numbers.clear();
        } else if let Some(chain) = line.strip_prefix(':') {
            listing.drops_by_default |= table == "filter" && chain.split_whitespace().nth(1) == Some("DROP");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = xt_words(rule);
            let chain = words.first().copied().unwrap_or_default();
            let number = numbers.entry(chain).or_default();
            *number += 1;
            listing.unquotable +=
                u64::from(rule.contains(|char: char| char.is_control() || char == '\u{fffd}'));
            let named = words.windows(2).filter(|pair| ["-m", "-j"].contains(&pair[0])).map(|pair| pair[1]);
            let needs: BTreeSet<String> = named.filter(|name| XT.contains(name)).map(str::to_owned).collect();
            let notrack = words.contains(&"--notrack") || words.ends_with(&["-j", "NOTRACK"]);
            if needs.is_empty() {
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
