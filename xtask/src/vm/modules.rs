//! The modules a guest may need, unpacked and indexed for `modprobe` and for the kernel's own requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;

/// What is kept, by path under `kernel/`; what these depend on comes with them. A kernel kept under another
/// selection is unpacked again.
pub(crate) const SELECTION: &[&str] = &[
    // libcrc32c asks for it by an alias, which `depends` does not show. Cloud kernels have it built in.
    "crypto/crc32c_generic.ko",
    "drivers/net/dummy.ko",
    "drivers/net/ifb.ko",
    "drivers/net/veth.ko",
    "drivers/net/tun.ko",
    "net/bridge/",
    "net/core/",
    "net/dccp/",
    "net/ipv4/fou.ko",
    "net/ipv4/gre.ko",
    "net/ipv4/ip_gre.ko",
    "net/ipv4/ipip.ko",
    "net/ipv4/netfilter/",
    "net/ipv6/ip6_gre.ko",
    "net/ipv6/netfilter/",
    "net/netfilter/",
    "net/openvswitch/",
    "net/sched/act_ct.ko",
    "net/sched/cls_flower.ko",
    "net/sched/sch_ingress.ko",
    "net/sched/sch_netem.ko",
    "net/sctp/",
    "net/unix/",
];

/// What a module says about itself in its `.modinfo` section.
#[derive(Debug, Default)]
struct Info {
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Copies the selected modules and what they depend on, uncompressed, and writes the indices that modprobe reads.
pub(crate) fn extract(from: &Path, to: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    walk(&from.join("kernel"), &mut |path| {
        if let Some(name) = module_name(path) {
            found.insert(name, path.to_path_buf());
        }
    })?;
    let chosen = |path: &Path| {
        let under = path.strip_prefix(from.join("kernel")).unwrap_or(path).to_string_lossy().into_owned();
        SELECTION.iter().any(|part| under.starts_with(part))
    };
    let mut waiting: BTreeSet<String> =
        found.iter().filter(|(_, path)| chosen(path)).map(|(name, _)| name.clone()).collect();
    if waiting.is_empty() {
        bail!("{} has none of the modules that guests need", from.display());
    }
    let mut kept: BTreeMap<String, (PathBuf, Info)> = BTreeMap::new();
    // By rounds, since compressed modules tell what they depend on only once unpacked.
    while !waiting.is_empty() {
        let round: Vec<(String, PathBuf)> = std::mem::take(&mut waiting)
            .into_iter()
            .filter_map(|name| found.get(&name).map(|path| (name, path.clone())))
            .collect();
        let mut copies = Vec::new();
        for (_, path) in &round {
            let copy = to.join(path.strip_prefix(from)?);
            fs::create_dir_all(copy.parent().unwrap_or(to))?;
            fs::copy(path, &copy).with_context(|| format!("copying {}", path.display()))?;
            copies.push(copy);
        }
        unpack(&copies)?;
        for ((name, _), copy) in round.into_iter().zip(copies) {
            let copy = plain(&copy);
            let info = info(&fs::read(&copy).with_context(|| format!("reading {}", copy.display()))?)
                .with_context(|| format!("{} is not a module", copy.display()))?;
            waiting.extend(info.depends.iter().cloned());
            kept.insert(name, (copy, info));
        }
        waiting.retain(|name| !kept.contains_key(name));
    }
    write_indices(&kept, to)?;
    let builtin = from.join("modules.builtin");
    if builtin.exists() {
        fs::copy(builtin, to.join("modules.builtin"))?;
    }
    Ok(())
}

fn write_indices(kept: &BTreeMap<String, (PathBuf, Info)>, to: &Path) -> Result<()> {
    let (mut dep, mut alias) = (String::new(), String::new());
    for (name, (path, info)) in kept {
        let mut order = Vec::new();
        load_order(name, kept, &mut order)?;
        order.pop();
        // modprobe loads from the end of the line to its beginning.
        order.reverse();
        write!(dep, "{}:", path.strip_prefix(to)?.display())?;
        for needed in order {
            write!(dep, " {}", kept[needed].0.strip_prefix(to)?.display())?;
        }
        dep.push('\n');
        for pattern in &info.aliases {
            writeln!(alias, "alias {pattern} {name}")?;
        }
    }
    fs::write(to.join("modules.dep"), dep)?;
    fs::write(to.join("modules.alias"), alias)?;
    fs::write(to.join("modules.symbols"), "")?;
    Ok(())
}

/// Everything a module needs, then itself, in the order of loading.
fn load_order<'a>(
    name: &str,
    kept: &'a BTreeMap<String, (PathBuf, Info)>,
    order: &mut Vec<&'a str>,
) -> Result<()> {
    if order.contains(&name) {
        return Ok(());
    }
    let Some((name, (_, info))) = kept.get_key_value(name) else {
        bail!("a module depends on {name}, which the packages do not hold");
    };
    for needed in &info.depends {
        load_order(needed, kept, order)?;
    }
    order.push(name);
    Ok(())
}

fn unpack(files: &[PathBuf]) -> Result<()> {
    for (extension, program, options) in
        [("xz", "xz", ["-d", "-f"]), ("zst", "zstd", ["-dq", "--rm"]), ("gz", "gzip", ["-d", "-f"])]
    {
        let packed: Vec<&PathBuf> =
            files.iter().filter(|file| file.extension().is_some_and(|found| found == extension)).collect();
        if !packed.is_empty() {
            step::run(Command::new(program).args(options).args(packed))?;
        }
    }
    Ok(())
}

/// The path of a module once unpacked.
fn plain(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|extension| extension == "ko") {
        path.to_path_buf()
    } else {
        path.with_extension("")
    }
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, visit)?;
        } else {
            visit(&path);
        }
    }
    Ok(())
}

/// Reads `.modinfo` of an ELF64 little-endian file: strings `key=value`, each ended by a NUL.
fn info(elf: &[u8]) -> Option<Info> {
    let at = |offset: usize, size: usize| -> Option<usize> {
        let mut word = [0; 8];
        word[..size].copy_from_slice(elf.get(offset..offset.checked_add(size)?)?);
        usize::try_from(u64::from_le_bytes(word)).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count, names) = (at(0x28, 8)?, at(0x3a, 2)?, at(0x3c, 2)?, at(0x3e, 2)?);
    let section = |index: usize| -> Option<(usize, &[u8])> {
        let header = table.checked_add(index.checked_mul(size)?)?;
        let (offset, length) = (at(header + 0x18, 8)?, at(header + 0x20, 8)?);
        Some((at(header, 4)?, elf.get(offset..offset.checked_add(length)?).unwrap_or_default()))
    };
    let (_, names) = section(names)?;
    let modinfo = (0..count)
        .filter_map(section)
        .find_map(|(name, bytes)| names.get(name..)?.starts_with(b".modinfo\0").then_some(bytes))?;
    let mut info = Info::default();
    for entry in modinfo.split(|&byte| byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        match entry.split_once('=') {
            Some(("depends", list)) => {
                info.depends = list
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(|name| name.replace('-', "_"))
                    .collect();
            }
            Some(("alias", pattern)) => info.aliases.push(pattern.to_owned()),
            _ => {}
        }
    }
    Some(info)
}
