//! Rows of objects as ctwatch prints them, summed, with what its source cannot tell.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde_json::Value;

/// A flow type as ctwatch's rows name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Key {
    /// Inode of the namespace.
    pub(in super::super) netns: u64,
    /// `ipv4` or `ipv6`.
    pub(in super::super) family: String,
    /// L4 protocol number.
    pub(in super::super) proto: u8,
}

/// The sums of one flow type's counts; nested ones are named with a dot, as in `delete.timeout`.
pub(in super::super) type Counts = BTreeMap<String, u64>;

/// What a source says that it cannot tell: these fields are `null`, and only these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Silence {
    /// Which source it was.
    pub(in super::super) kind: String,
    /// In every row.
    pub(in super::super) unknown: BTreeSet<String>,
    /// In every row but the one for any flow type, where the whole namespace is counted.
    pub(in super::super) by_namespace: BTreeSet<String>,
}

/// The family of rows that stand for all flow types of a namespace.
pub(super) const ANY: &str = "any";

impl Silence {
    pub(super) fn of(object: &Value) -> Self {
        let source = &object["source"];
        let unknown = source["unknown"].as_object().into_iter().flatten();
        let by_namespace = source["by_namespace"].as_array().into_iter().flatten();
        Self {
            kind: source["kind"].as_str().unwrap_or_default().to_owned(),
            unknown: unknown.map(|(field, _)| field.clone()).collect(),
            by_namespace: by_namespace.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    /// What a source may leave unknown, and must. `told_apart` says that the kernel announces whether an entry that
    /// left had time left; `by_type` that only some flow types were asked for.
    pub(in super::super) fn expected(kind: &str, told_apart: bool, by_type: bool) -> Self {
        const FAILED: [&str; 4] = [
            "insert_failed.clash",
            "insert_failed.chaintoolong",
            "insert_failed.dying",
            "insert_failed.other",
        ];
        if kind != "netlink" {
            return Self { kind: kind.to_owned(), ..Self::default() };
        }
        let mut unknown = vec!["clash_reply_only", "delete.closed", "delete.pressure", "delete.cleanup"];
        unknown.extend(["delete.tc", "delete.openvswitch", "delete.ipvs"]);
        unknown.extend(["drop.no_memory", "insert_failed.clash", "insert_failed.dying"]);
        unknown.extend(["invalid.out_of_window", "invalid.bad_state", "invalid.bad_checksum"]);
        unknown.extend(["invalid.malformed", "invalid.unrelated"]);
        let statistics = ["clash_resolve", "drop.table_full", FAILED[1], FAILED[3], "invalid.other"];
        if !told_apart {
            unknown.push("delete.timeout");
        }
        if by_type {
            unknown.push("delete.early_drop");
            unknown.extend(statistics);
        }
        let by_namespace = if by_type { &[][..] } else { &statistics };
        let set = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
        Self { kind: kind.to_owned(), unknown: set(&unknown), by_namespace: set(by_namespace) }
    }

    /// Whether it tells this field in any row at all.
    pub(in super::super) fn tells_somewhere(&self, field: &str) -> bool {
        self.tells(ANY, field)
    }

    /// Whether it tells this field in rows of this family.
    pub(in super::super) fn tells(&self, family: &str, field: &str) -> bool {
        // An eviction stands in a row twice.
        let field = if field == "early_drop" { "delete.early_drop" } else { field };
        !self.unknown.contains(field) && (family == ANY || !self.by_namespace.contains(field))
    }
}

pub(super) fn sum_of(rows: &BTreeMap<Key, Counts>, field: &str) -> u64 {
    rows.values().map(|counts| field_of(counts, field)).sum()
}

/// A field by its full name, or the sum of everything below it.
pub(super) fn field_of(counts: &Counts, field: &str) -> u64 {
    counts.iter().filter(|(name, _)| is_part(name, field)).map(|(_, count)| count).sum()
}

pub(super) fn is_part(name: &str, field: &str) -> bool {
    name.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

pub(super) fn rows_of(objects: &[Value]) -> anyhow::Result<BTreeMap<Key, Counts>> {
    let mut rows: BTreeMap<Key, Counts> = BTreeMap::new();
    for object in objects {
        let flows = object["flows"].as_array().with_context(|| format!("no flows in {object}"))?;
        let silence = Silence::of(object);
        for row in flows {
            let key = key_of(row)?;
            let tells = |field: &str| silence.tells(&key.family, field);
            let counts = rows.entry(key.clone()).or_default();
            for (field, value) in row.as_object().context("a row")? {
                if !matches!(
                    field.as_str(),
                    "netns" | "family" | "proto" | "rate" | "total" | "name" | "unknown" | "at_least"
                ) {
                    flatten(field, value, &tells, counts).with_context(|| format!("row {row}"))?;
                }
            }
        }
    }
    Ok(rows)
}

/// A field that the source does not tell has to be `null`, every other one a number.
pub(super) fn flatten(
    name: &str,
    value: &Value,
    tells: &impl Fn(&str) -> bool,
    into: &mut Counts,
) -> anyhow::Result<()> {
    if let Value::Object(fields) = value {
        return fields
            .iter()
            .try_for_each(|(field, value)| flatten(&format!("{name}.{field}"), value, tells, into));
    }
    if !tells(name) {
        anyhow::ensure!(value.is_null(), "{name} is {value}, and said to be unknown");
        return Ok(());
    }
    let count = value.as_u64().with_context(|| format!("{name} is no count: {value}"))?;
    *into.entry(name.to_owned()).or_default() += count;
    Ok(())
}

pub(super) fn key_of(row: &Value) -> anyhow::Result<Key> {
    let key = || {
        Some(Key {
            netns: row["netns"].as_u64()?,
            family: row["family"].as_str()?.to_owned(),
            proto: proto_of(&row["proto"])?,
        })
    };
    key().with_context(|| format!("no flow type in {row}"))
}

fn proto_of(value: &Value) -> Option<u8> {
    let Some(name) = value.as_str() else { return u8::try_from(value.as_u64()?).ok() };
    Some(match name {
        ANY | "overflow" => 0,
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "gre" => 47,
        "icmpv6" => 58,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Key, rows_of, sum_of};
    use serde_json::json;

    #[test]
    fn intervals_add_up() {
        let row = |insert: u64, timeout: u64| {
            json!({"flows": [{"netns": 7, "family": "ipv4", "proto": "udp", "insert": insert,
                "delete": {"timeout": timeout, "closed": 1}, "rate": {"insert": 0.5}, "total": {"insert": 9}}]})
        };
        let rows = rows_of(&[row(3, 4), row(6, 0)]).expect("rows");
        let key = Key { netns: 7, family: "ipv4".to_owned(), proto: 17 };
        assert_eq!(rows[&key]["insert"], 9);
        assert_eq!(rows[&key]["delete.timeout"], 4);
        assert_eq!(sum_of(&rows, "delete"), 6);
    }

    #[test]
    fn unknown_is_not_zero() {
        let object = |source: &serde_json::Value, family: &str, insert: &serde_json::Value| json!({"source": source, "flows": [{"netns": 7, "family": family, "proto": "253", "insert": insert}]});
        let (known, unknown) = (json!({}), json!({"unknown": {"insert": "why"}}));
        let by_namespace = json!({"by_namespace": ["insert"]});
        let fits = |source, family, insert| rows_of(&[object(source, family, &insert)]).is_ok();
        assert!(fits(&known, "ipv4", json!(1)) && !fits(&known, "ipv4", json!(null)));
        assert!(fits(&unknown, "any", json!(null)) && !fits(&unknown, "any", json!(0)));
        assert!(fits(&by_namespace, "ipv4", json!(null)) && !fits(&by_namespace, "ipv4", json!(0)));
        assert!(fits(&by_namespace, "any", json!(3)) && !fits(&by_namespace, "any", json!(null)));
    }
}
