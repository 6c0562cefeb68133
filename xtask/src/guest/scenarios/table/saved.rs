//! Lists that were saved: each form that the kernel and conntrack write is read as what it was written from.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use super::super::super::space::checked;
use super::super::super::state;
use super::super::super::traffic::{Family, Flows, tcp, udp};
use super::super::super::trial::equal;
use super::directions::{Accounting, RULES, translated};
use super::listed::compare;
use super::{both, fresh, init, objects};

/// Forms of `conntrack -L`.
const FORMS: [&[&str]; 4] =
    [&[], &["-o", "extended"], &["-o", "xml"], &["-o", "extended,id,labels,ktimestamp"]];
const BY: [&[&str]; 2] = [
    &["proto", "state", "assured", "src", "dst", "dport"],
    &["proto", "rsrc", "rsport", "rdst", "rdport", "nat", "zone", "mark", "offload"],
];

/// What each form says is what the table held; a list that was cut off has only whole entries.
pub(super) fn saved() -> anyhow::Result<()> {
    const FILE: &str = "/tmp/saved-list";
    let space = init();
    fresh(&[&space])?;
    let accounting = Accounting::on()?;
    state::rules(&space, RULES)?;
    let _held = translated()?;
    udp::send(Flows::new(Family::V6, 9))?;
    tcp::connections(Flows::new(Family::V6, 3), tcp::End::Close)?;
    let (texts, lines) = both(&[&space], || {
        let forms = FORMS.iter().map(|form| -> anyhow::Result<String> {
            let list = |family: Family| {
                checked(space.command("conntrack").args(["-L", "-f", family.name()]).args(*form))
            };
            Ok(list(Family::V4)? + &list(Family::V6)?)
        });
        let mut texts = forms.collect::<anyhow::Result<Vec<_>>>()?;
        let proc = Path::new("/proc/net/nf_conntrack");
        if proc.exists() {
            texts.push(fs::read_to_string(proc).context("read the kernel's own list")?);
        }
        Ok(texts)
    })?;
    let lines = &lines[0];
    for text in &texts {
        fs::write(FILE, text)?;
        let begin = text.lines().next().unwrap_or_default();
        for by in BY {
            let object = one(&["--from", FILE, "--by", &by.join(",")])?;
            compare(&object, lines, by).with_context(|| format!("the list that begins {begin}"))?;
            equal("listed", object["listed"].as_u64(), Some(lines.len() as u64))?;
            equal("unread lines", object["unread"]["lines"].as_u64(), Some(0))?;
        }
    }
    let cut = texts[0].trim_end();
    fs::write(FILE, &cut[..cut.len() - 20])?;
    let object = one(&["--from", FILE])?;
    equal("whole entries", object["total"].as_u64(), Some(lines.len() as u64 - 1))?;
    equal("the line that was cut", object["cut_line"].as_u64(), Some(lines.len() as u64))?;
    fs::remove_file(FILE)?;
    drop(accounting);
    fresh(&[&space])
}

fn one(args: &[&str]) -> anyhow::Result<Value> {
    let (mut objects, _) = objects(args)?;
    equal("objects", objects.len(), 1)?;
    Ok(objects.remove(0))
}
