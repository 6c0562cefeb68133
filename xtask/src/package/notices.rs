//! Licences of what is linked into the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::step;

/// What may be linked in.
const ACCEPTED: [&str; 9] =
    ["MIT", "MIT-0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "MPL-2.0"];

/// Names under which packages keep the texts.
const TEXTS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

const BESIDE: &str = "Beside these crates the binary holds the Rust standard library (MIT OR Apache-2.0) and the GNU C \
                      library (LGPL-2.1-or-later), linked statically. Whoever wants to link it with another version of \
                      that library builds it from ctwatch's source; Debian has the source of both.\n";

/// All of them with their texts; an error where a licence is not accepted.
pub(super) fn text() -> Result<String> {
    let metadata = step::read(build::cargo().args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().context("its packages")?;
    let linked = linked(&metadata["resolve"]["nodes"], packages)?;
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for package in packages.iter().filter(|package| linked.contains(string(package, "id"))) {
        let name = format!("{} {}", string(package, "name"), string(package, "version"));
        let licence = string(package, "license");
        if !accepts(licence) {
            bail!("{name} is licensed under {licence:?}, which is not accepted");
        }
        writeln!(list, "- {name}: {licence}")?;
        let directory = Path::new(string(package, "manifest_path")).parent().context("its directory")?;
        for text in texts_in(directory)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let mut all = format!("Third-party software in this binary\n\n{list}\n{BESIDE}");
    for (text, names) in texts {
        write!(all, "\n----------\n{}:\n\n{}\n", names.join(", "), text.trim())?;
    }
    Ok(all)
}

/// The packages that ctwatch's binary is made of: what it depends on, but for builds and tests.
fn linked(nodes: &Value, packages: &[Value]) -> Result<BTreeSet<String>> {
    let nodes: BTreeMap<&str, &Value> =
        nodes.as_array().context("the nodes")?.iter().map(|node| (string(node, "id"), node)).collect();
    let own = packages.iter().filter(|package| package["source"].is_null());
    let own: BTreeMap<&str, &str> =
        own.map(|package| (string(package, "id"), string(package, "name"))).collect();
    let first = own.iter().find(|(_, name)| **name == "ctwatch").context("no package ctwatch")?.0;
    let mut waiting = vec![*first];
    let mut met = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !met.insert(id.to_owned()) {
            continue;
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
        let normal = dependencies.filter(|dependency| {
            dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
        });
        waiting.extend(normal.map(|dependency| string(dependency, "pkg")));
    }
    met.retain(|id| !own.contains_key(id.as_str()));
    Ok(met)
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn texts_in(directory: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if TEXTS.iter().any(|text| name.starts_with(text)) && entry.file_type()?.is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).with_context(|| path.display().to_string())).collect()
}

/// Whether of each part of an SPDX expression one alternative is accepted. `/` is an old way to write OR.
fn accepts(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    plain.split(" AND ").all(|part| part.split(" OR ").any(|name| ACCEPTED.contains(&name.trim())))
}

#[cfg(test)]
mod tests {
    use super::accepts;

    #[test]
    fn one_alternative_of_each_part_is_enough() {
        for good in ["MIT", "MIT/Apache-2.0", "GPL-2.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            assert!(accepts(good), "{good}");
        }
        for bad in ["", "GPL-2.0", "MIT AND GPL-2.0", "LGPL-2.1-or-later"] {
            assert!(!accepts(bad), "{bad}");
        }
    }

    #[test]
    fn everything_linked_is_accepted_and_listed() {
        let text = super::text().unwrap();
        for name in ["- hyper ", "- aya ", "- prometheus-client ", "GNU C"] {
            assert!(text.contains(name), "{name}");
        }
        assert!(!text.contains("- proptest ") && !text.contains("- ctwatch "), "not linked");
    }
}
