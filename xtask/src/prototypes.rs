//! `cargo xtask prototypes`: what each hook relies on, against every kernel of the matrix.
//!
//! A file in `ctwatch-ebpf/src/hooks` opens with `//! match-proto: <C prototype>`. Where kernels differ, more lines
//! say for which a prototype holds: `//! match-proto 5.10: …`, `//! match-proto 6.12 7.3: …`; the line without a
//! kernel is for all others. The witnesses are bpftool's dump of the kernel's types, `/proc/kallsyms`, and for the
//! offsets of members also the numbers below, so that a mistake common to ctwatch and bpftool shows too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::bench;
use crate::bench::figure::{Figure, KernelTypes};
use crate::paths;
use crate::step::Step;
use crate::vm;
use crate::vm::boot::Guest;
use crate::vm::kernels::{self, MATRIX};

/// Offsets in bytes as read off the kernels' sources and running kernels by hand, per kernel of the matrix.
const OFFSETS: [(&str, [u32; 4]); 8] = [
    ("CONN_TIMEOUT", [8, 8, 8, 8]),
    ("CONN_TUPLE", [32, 32, 32, 32]),
    ("CONN_STATUS", [128, 128, 128, 128]),
    ("CONN_NET", [144, 136, 136, 136]),
    ("TUPLE_L3NUM", [18, 18, 18, 18]),
    ("TUPLE_PROTONUM", [38, 38, 38, 38]),
    ("NET_INUM", [144, 144, 136, 280]),
    ("SKB_NFCT", [104, 104, 104, 104]),
];

/// What one hook file says it relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    file: String,
    /// Kernels of the matrix; empty for all that no other line of the file names.
    kernels: Vec<String>,
    prototype: String,
}

/// Boots every kernel of the matrix and compares.
pub(crate) fn run() -> Result<()> {
    let expected = read_hooks()?;
    let initramfs = vm::prepare()?;
    let functions: BTreeSet<String> =
        expected.iter().filter_map(|one| function(&one.prototype)).map(str::to_owned).collect();
    let kernels = MATRIX.iter().map(|entry| kernels::ensure(entry.name)).collect::<Result<Vec<_>>>()?;
    let mut args = vec!["prototypes".to_owned()];
    args.extend(functions);
    let step = Step::begin("comparing prototypes and offsets with each kernel");
    let mut told = Vec::new();
    for pair in kernels.chunks(2) {
        told.extend(thread::scope(|scope| {
            let guest = |kernel| Guest::new(kernel, &initramfs, args.clone());
            let ask = |kernel| scope.spawn(move || bench::one(&guest(kernel)));
            let guests: Vec<_> = pair.iter().map(ask).collect();
            let end = |guest: thread::ScopedJoinHandle<'_, _>| {
                guest.join().unwrap_or_else(|_| bail!("a thread that asks a guest panicked"))
            };
            guests.into_iter().map(end).collect::<Result<Vec<_>>>()
        })?);
    }
    step.end();
    let mut problems = Vec::new();
    for (index, ((entry, kernel), measured)) in MATRIX.iter().zip(&kernels).zip(told).enumerate() {
        let [Figure::Kernel(types)] = &measured.figures[..] else {
            bail!("{} told nothing of its types", kernel.release);
        };
        let offsets = OFFSETS.iter().map(|(name, values)| ((*name).to_owned(), values[index])).collect();
        let found = compare(entry.name, &expected, &offsets, types);
        println!(
            "{}: {} prototypes and {} offsets compared, {} symbols, {} problems",
            kernel.release,
            types.prototypes.len(),
            types.offsets.len(),
            types.symbols.len(),
            found.len()
        );
        problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", entry.name)));
    }
    if !problems.is_empty() {
        bail!("hooks rely on what is not so:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

fn read_hooks() -> Result<Vec<Expected>> {
    let directory = paths::root().join("ctwatch-ebpf/src/hooks");
    let mut all = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if file == "mod" {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let found = header(&file, &text);
        if found.is_empty() {
            bail!("{} does not open with a match-proto line", path.display());
        }
        all.extend(found);
    }
    Ok(all)
}

/// The match-proto lines that a file opens with.
fn header(file: &str, text: &str) -> Vec<Expected> {
    let lines = text.lines().map_while(|line| line.strip_prefix("//! match-proto"));
    let parsed = lines.filter_map(|line| {
        let (kernels, prototype) = line.split_once(':')?;
        Some(Expected {
            file: file.to_owned(),
            kernels: kernels.split_whitespace().map(str::to_owned).collect(),
            prototype: prototype.trim().to_owned(),
        })
    });
    parsed.collect()
}

/// The name of the function in a prototype.
fn function(prototype: &str) -> Option<&str> {
    let (before, _) = prototype.split_once('(')?;
    before.rsplit([' ', '*']).next()
}

/// A prototype's types alone: what it returns, then each parameter.
fn types(prototype: &str) -> Option<Vec<String>> {
    let (before, parameters) = prototype.split_once('(')?;
    let parameters = parameters.trim_end().strip_suffix(')')?;
    let mut types = vec![without_name(before)];
    if parameters.trim() != "void" {
        types.extend(parameters.split(',').map(without_name));
    }
    Some(types)
}

/// A declaration less the name at its end, in one spelling.
fn without_name(declaration: &str) -> String {
    let spread = declaration.replace('*', " * ");
    let mut words: Vec<&str> = spread.split_whitespace().collect();
    words.pop();
    words.join(" ")
}

/// Everything in which a kernel differs from what is relied on.
fn compare(
    kernel: &str,
    expected: &[Expected],
    offsets: &BTreeMap<String, u32>,
    actual: &KernelTypes,
) -> Vec<String> {
    let mut problems = Vec::new();
    let names_kernel = |one: &&Expected| one.kernels.iter().any(|name| name == kernel);
    // Where the module has no types (5.10), those of vmlinux are there all the same.
    let module_types = actual.facts["module_btf"] == "present";
    for one in expected {
        let special = expected.iter().filter(names_kernel).any(|other| other.file == one.file);
        if if special { !names_kernel(&one) } else { !one.kernels.is_empty() } {
            continue;
        }
        let Some(name) = function(&one.prototype) else {
            problems.push(format!("{}: {:?} is no prototype", one.file, one.prototype));
            continue;
        };
        if !actual.symbols.iter().any(|symbol| symbol.split('.').next() == Some(name)) {
            problems.push(format!("{}: the kernel has no symbol {name}", one.file));
        }
        let by_ctwatch = actual.facts["prototypes"][name].as_str();
        let by_bpftool = actual.prototypes.get(name).map(String::as_str);
        if !module_types && by_ctwatch.is_none() && by_bpftool.is_none() {
            continue;
        }
        for (witness, prototype) in [("bpftool", by_bpftool), ("ctwatch facts", by_ctwatch)] {
            if prototype.and_then(types) != types(&one.prototype) {
                let found = prototype.unwrap_or("nothing");
                problems.push(format!("{}: relied on {}; {witness} has {found}", one.file, one.prototype));
            }
        }
    }
    for (name, value) in offsets {
        let by_ctwatch = actual.facts["offsets"][name].as_u64();
        let by_bpftool = actual.offsets.get(name).copied();
        if by_ctwatch != Some((*value).into()) || by_bpftool != Some(*value) {
            problems.push(format!(
                "offset {name}: expected {value}, bpftool has {by_bpftool:?}, ctwatch facts has {by_ctwatch:?}"
            ));
        }
    }
    for (name, offset) in actual.facts["offsets"].as_object().into_iter().flatten() {
        if let Some(witness) = actual.offsets.get(name)
            && offset.as_u64() != Some((*witness).into())
        {
            problems.push(format!("offset {name}: bpftool has {witness}, ctwatch facts has {offset}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOOK: &str = "//! match-proto: bool gone(struct nf_conn *ct, u32 portid)\n\
        //! match-proto 5.10 6.1: void left(const struct nf_conn *ct)\n//!\n//! match-proto: not in the header\n";

    fn actual(prototype: &str) -> KernelTypes {
        KernelTypes {
            facts: json!({
                "module_btf": "present", "prototypes": { "gone": prototype }, "offsets": { "A": 8 }
            }),
            symbols: vec!["gone.part.0".to_owned()],
            prototypes: BTreeMap::from([("gone".to_owned(), prototype.to_owned())]),
            offsets: BTreeMap::from([("A".to_owned(), 8)]),
        }
    }

    fn problems(kernel: &str, actual: &KernelTypes, offset: u32) -> usize {
        compare(kernel, &header("gone", HOOK), &BTreeMap::from([("A".to_owned(), offset)]), actual).len()
    }

    #[test]
    fn a_header_names_its_kernels() {
        let all = header("gone", HOOK);
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].kernels, ["5.10", "6.1"]);
        assert_eq!(function(&all[0].prototype), Some("gone"));
    }

    #[test]
    fn spelling_and_names_do_not_matter() {
        assert_eq!(
            types("struct a *f(const struct b *c, u32 d)"),
            types("struct a * f(const struct b * x, u32 y)")
        );
        assert_ne!(types("struct a *f(u32 d)"), types("struct a *f(u32 d, u32 e)"));
        assert_ne!(types("struct a *f(u32 d)"), types("struct a *f(unsigned int d)"));
        assert_eq!(types("int f(void)"), Some(vec!["int".to_owned()]));
    }

    #[test]
    fn every_difference_is_a_problem() {
        let right = "bool gone(struct nf_conn * a, u32 b)";
        assert_eq!(problems("7.3", &actual(right), 8), 0);
        assert_eq!(problems("7.3", &actual(right), 16), 1);
        // Both witnesses.
        assert_eq!(problems("7.3", &actual("bool gone(struct nf_conn * a, int b)"), 8), 2);
        // On these another function is relied on, which is neither a symbol nor in the types.
        assert_eq!(problems("6.1", &actual(right), 8), 3);
        let without_types = KernelTypes {
            facts: json!({ "module_btf": "absent", "offsets": { "A": 8 } }),
            prototypes: BTreeMap::new(),
            ..actual(right)
        };
        assert_eq!(problems("5.10", &without_types, 8), 1);
        assert_eq!(problems("7.3", &without_types, 8), 0);
    }
}
