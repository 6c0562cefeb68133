//! What nft lists, read as it comes: only rules that have to do with tracking are kept, and of these not all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::budget::{Budget, MOST_TEXT};
use super::dropped::{self, Chain};
use super::rules::XT;
use crate::doctor::command::Arg;
use crate::doctor::facts::{Listing, Rule, RuleKind};

/// nft statements that take a reference on tracking.
const STATEMENTS: [&str; 9] = [
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
/// A line of nft's text that is longer is not looked at.
const MOST_LINE: u64 = 1 << 16;

/// A listing in the making.
#[derive(Debug)]
pub struct Collector<'a> {
    budget: &'a Budget,
    listing: Listing,
    /// Rules that hold something of xtables, by their place: JSON hides its arguments.
    hidden: BTreeSet<usize>,
}

impl<'a> Collector<'a> {
    /// Nothing yet.
    pub fn new(budget: &'a Budget) -> Self {
        Self { budget, listing: Listing::default(), hidden: BTreeSet::new() }
    }

    /// Reads `nft -j list ruleset`. What was read before an error stays.
    pub fn read_json(&mut self, json: impl Read) -> Result<(), serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(json));
        Ruleset(self).deserialize(&mut deserializer)?;
        deserializer.end()
    }

    /// Reads `nft -a list ruleset`: the rules' texts, under their tables and handles.
    pub fn read_text(&mut self, text: impl Read) -> io::Result<()> {
        let rules = self.listing.rules.iter().enumerate();
        let key = |rule: &Rule| Some((rule.family.clone(), rule.table.clone(), rule.handle?));
        let places: BTreeMap<(String, String, u64), usize> =
            rules.filter_map(|(place, rule)| Some((key(rule)?, place))).collect();
        let mut table = (String::new(), String::new());
        let (mut chain, mut chain_name) = (Chain::default(), String::new());
        let mut lines = BufReader::new(text);
        while let Some(line) = next_line(&mut lines)? {
            let Some((body, handle)) = line.rsplit_once("# handle ") else {
                chain.line(&line);
                continue;
            };
            let Ok(handle) = handle.trim().parse() else { continue };
            let body = body.trim().trim_end_matches('{').trim_end();
            if line.starts_with("table ") || body.starts_with("chain ") {
                chain = Chain::default();
                body.strip_prefix("chain ").unwrap_or_default().clone_into(&mut chain_name);
            } else {
                if dropped::FAMILIES.contains(&table.0.as_str()) && dropped::all_by_nft(body) {
                    dropped::note_chain(&chain_name, &mut self.listing);
                }
                chain.rule(&table.0, dropped::by_nft(body), &mut self.listing);
            }
            if line.starts_with("table ") {
                let mut words = body.split_whitespace().skip(1).map(str::to_owned);
                table = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            } else if let Some(place) = places.get(&(table.0.clone(), table.1.clone(), handle)) {
                self.take_text(*place, body);
            }
        }
        Ok(())
    }

    fn take_text(&mut self, place: usize, text: &str) {
        let rule = &mut self.listing.rules[place];
        let only_hidden = rule.needs.iter().all(|need| ["CT", "NOTRACK"].contains(&need.as_str()));
        if self.hidden.contains(&place) && only_hidden && text.contains("notrack") {
            rule.kind = RuleKind::Notrack;
        }
        text[..text.floor_char_boundary(MOST_TEXT)].clone_into(&mut rule.text);
    }

    /// What was read.
    pub fn finish(mut self) -> Listing {
        // What holds something of xtables, but nothing of tracking, was kept for its text.
        self.listing.rules.retain(|rule| rule.kind != RuleKind::Rule || !rule.needs.is_empty());
        self.listing
    }

    fn take(&mut self, kind: &str, body: Body) {
        let harmless = body.harmless && body.names().all(|name| Arg::nft_name(name).is_ok());
        self.listing.unquotable += u64::from(kind != "metainfo" && !harmless);
        let is = |field: &Option<String>, value: &str| field.as_deref() == Some(value);
        if kind == "chain" && is(&body.policy, "drop") && is(&body.kind, "filter") {
            self.listing.drops_by_default = true;
        }
        // Its timeouts are not read, so nothing is promised of entries that may be under it.
        self.listing.policies |= kind == "ct timeout";
        let Some((kind, needs)) = body.rule_kind(kind) else { return };
        if !self.budget.takes_rule(self.listing.rules.len()) {
            self.listing.left_out += 1;
            return;
        }
        if body.holds_xt {
            self.hidden.insert(self.listing.rules.len());
        }
        let in_chain = matches!(kind, RuleKind::Rule | RuleKind::Notrack);
        let chain = if in_chain { body.chain } else { body.name }.unwrap_or_default();
        self.listing.rules.push(Rule {
            kind,
            family: body.family.unwrap_or_default(),
            table: body.table.unwrap_or_default(),
            handle: body.handle,
            number: None,
            text: chain.clone(),
            chain,
            needs: needs.into_iter().collect(),
        });
    }
}

/// A line without its end; one that is too long comes empty.
fn next_line(lines: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if lines.by_ref().take(MOST_LINE).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.last() != Some(&b'\n') && bytes.len() as u64 == MOST_LINE {
        lines.skip_until(b'\n')?;
        bytes.clear();
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// What is used of an object.
#[derive(Debug, Default)]
struct Body {
    family: Option<String>,
    table: Option<String>,
    chain: Option<String>,
    name: Option<String>,
    kind: Option<String>,
    policy: Option<String>,
    handle: Option<u64>,
    needs: BTreeSet<String>,
    notrack: bool,
    holds_xt: bool,
    /// Whether nft would read back all texts as it prints them: it escapes nothing.
    harmless: bool,
}

impl Body {
    fn names(&self) -> impl Iterator<Item = &str> {
        [&self.table, &self.chain, &self.name].into_iter().flatten().map(String::as_str)
    }

    fn rule_kind(&self, kind: &str) -> Option<(RuleKind, BTreeSet<String>)> {
        let object = |need: &str, kind| Some((kind, BTreeSet::from([need.to_owned()])));
        match kind {
            // Without a handle no text is found, and no command could name it.
            _ if self.handle.is_none() => None,
            "rule" if self.notrack => Some((RuleKind::Notrack, self.needs.clone())),
            "rule" if self.needs.is_empty() && !self.holds_xt => None,
            "rule" => Some((RuleKind::Rule, self.needs.clone())),
            "chain" if self.kind.as_deref() == Some("nat") => object("nat", RuleKind::NatChain),
            "flowtable" => object("flow offload", RuleKind::Flowtable),
            "ct helper" | "ct timeout" | "ct expectation" | "synproxy" => {
                object(kind, RuleKind::Object(kind.into()))
            }
            _ => None,
        }
    }

    fn look_at(&mut self, text: &str) {
        // U+FFFD stands for bytes that were no UTF-8.
        self.harmless &= !text.contains(|char: char| char.is_control() || "\"\u{fffd}".contains(char));
    }
}

struct Ruleset<'c, 'b>(&'c mut Collector<'b>);

impl<'de> DeserializeSeed<'de> for Ruleset<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Ruleset<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nft's ruleset")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "nftables" {
                map.next_value_seed(Objects(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The list of objects, and one of them.
struct Objects<'c, 'b>(&'c mut Collector<'b>);

impl<'de> DeserializeSeed<'de> for Objects<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Objects<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects of nft")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<(), A::Error> {
        while objects.next_element_seed(Objects(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(kind) = map.next_key::<String>()? {
            let mut body = Body { harmless: true, ..Body::default() };
            map.next_value_seed(Walk { body: &mut body, inside: Inside::Object })?;
            self.0.take(&kind, body);
        }
        Ok(())
    }
}

/// Where in an object a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// It is the object.
    Object,
    /// A field that asks for nothing.
    Field,
    /// A rule's expressions.
    Expression,
    /// What follows `xt`.
    Xt,
    /// What follows `ct`.
    Ct,
}

/// Looks at a value of any depth without keeping it.
struct Walk<'b> {
    body: &'b mut Body,
    inside: Inside,
}

/// A value, as far as somebody wants it.
enum Seen {
    Text(String),
    Number(u64),
    Map,
    Other,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Seen;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Seen, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Seen, E> {
        self.body.look_at(text);
        Ok(Seen::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Seen, E> {
        Ok(Seen::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Seen, A::Error> {
        let inside = if self.inside == Inside::Field { Inside::Field } else { Inside::Expression };
        while items.next_element_seed(Walk { body: &mut *self.body, inside })?.is_some() {}
        Ok(Seen::Other)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Seen, A::Error> {
        let mut ct_key = String::new();
        while let Some(key) = map.next_key::<String>()? {
            self.body.look_at(&key);
            let below = self.below(&key);
            let value = map.next_value_seed(Walk { body: &mut *self.body, inside: below })?;
            match (self.inside, value) {
                (Inside::Object, value) => self.body.take(&key, value),
                (Inside::Xt, Seen::Text(name)) if key == "name" && XT.contains(&name.as_str()) => {
                    self.body.needs.insert(name);
                }
                (Inside::Ct, Seen::Text(text)) if key == "key" => ct_key = text,
                (_, Seen::Map) => {}
                _ if below == Inside::Ct => drop(self.body.needs.insert("ct".into())),
                _ => {}
            }
        }
        if self.inside == Inside::Ct {
            self.body.needs.insert(format!("ct {ct_key}").trim_end().into());
        }
        Ok(Seen::Map)
    }
}

impl Walk<'_> {
    /// Where the value of this key stands, and what the key itself asks for.
    fn below(&mut self, key: &str) -> Inside {
        match (self.inside, key) {
            (Inside::Object, "expr") => return Inside::Expression,
            (Inside::Object | Inside::Field, _) => return Inside::Field,
            (_, "ct") => return Inside::Ct,
            (_, "xt") => {
                self.body.holds_xt = true;
                return Inside::Xt;
            }
            (_, "notrack") => self.body.notrack = true,
            (_, "flow") => drop(self.body.needs.insert("flow offload".into())),
            (_, statement) if STATEMENTS.contains(&statement) => {
                self.body.needs.insert(statement.into());
            }
            _ => {}
        }
        Inside::Expression
    }
}

impl Body {
    fn take(&mut self, key: &str, value: Seen) {
        let field = match key {
            "family" => &mut self.family,
            "table" => &mut self.table,
            "chain" => &mut self.chain,
            "name" => &mut self.name,
            "type" => &mut self.kind,
            "policy" => &mut self.policy,
            "handle" => {
                self.handle = if let Seen::Number(number) = value { Some(number) } else { None };
                return;
            }
            _ => return,
        };
        if let Seen::Text(text) = value {
            *field = Some(text);
        }
    }
}

#[cfg(test)]
#[path = "nft_tests.rs"]
mod tests;
