//! What this kernel says of the hooked functions, twice: by ctwatch's own reading of BTF, and by bpftool's dump of it
//! as a witness that shares no code with ctwatch.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;

use super::report::Report;
use super::space::checked;
use super::{ctwatch, modules};
use crate::bench::figure::{Figure, KernelTypes};

/// Members by the name that ctwatch gives their offset.
const MEMBERS: [(&str, &str, &[&str]); 9] = [
    ("CONN_TIMEOUT", "nf_conn", &["timeout"]),
    ("CONN_TUPLE", "nf_conn", &["tuplehash", "tuple"]),
    ("CONN_STATUS", "nf_conn", &["status"]),
    ("CONN_NET", "nf_conn", &["ct_net", "net"]),
    ("TUPLE_L3NUM", "nf_conntrack_tuple", &["src", "l3num"]),
    ("TUPLE_PROTONUM", "nf_conntrack_tuple", &["dst", "protonum"]),
    ("NET_INUM", "net", &["ns", "inum"]),
    ("SKB_NFCT", "sk_buff", &["_nfct"]),
    ("TASK_STACK", "task_struct", &["stack"]),
];

/// Reports on the functions with these names.
pub(super) fn run(functions: &[String], results: &Path) -> anyhow::Result<ExitCode> {
    let mut report = Report::open(results)?;
    modules::load()?;
    let facts = ctwatch::facts()?;
    let kallsyms = fs::read_to_string("/proc/kallsyms").context("read /proc/kallsyms")?;
    let wanted = |symbol: &&str| {
        let base = symbol.split('.').next().unwrap_or(symbol);
        functions.iter().any(|function| function == base)
    };
    let symbols = kallsyms.lines().filter_map(|line| line.split_whitespace().nth(2)).filter(wanted);
    let mut types = Types::default();
    types.add(&checked(Command::new("bpftool").args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux"]))?)?;
    if Path::new("/sys/kernel/btf/nf_conntrack").exists() {
        let base = ["-B", "/sys/kernel/btf/vmlinux", "btf", "dump", "file", "/sys/kernel/btf/nf_conntrack"];
        types.add(&checked(Command::new("bpftool").args(base))?)?;
    }
    let offset = |(name, structure, path): &(&str, &str, &[&str])| {
        types.offset(structure, path).map(|bits| ((*name).to_owned(), bits / 8))
    };
    let prototype = |name: &String| types.prototype(name).map(|text| (name.clone(), text));
    report.figure(&Figure::Kernel(Box::new(KernelTypes {
        facts,
        symbols: symbols.map(str::to_owned).collect(),
        prototypes: functions.iter().filter_map(prototype).collect::<BTreeMap<_, _>>(),
        offsets: MEMBERS.iter().filter_map(offset).collect(),
    })))?;
    report.end(0)?;
    Ok(ExitCode::SUCCESS)
}

/// Types as `bpftool btf dump` prints them.
#[derive(Debug, Default)]
struct Types(HashMap<u32, Type>);

#[derive(Debug, Default)]
struct Type {
    kind: String,
    name: String,
    /// What it refers to, or a function returns.
    target: u32,
    /// Members or parameters: name, type, bits from the beginning.
    members: Vec<(String, u32, u32)>,
}

impl Types {
    /// Reads `[1] KIND 'name' key=value …`, and lines of members that begin with a tab.
    fn add(&mut self, dump: &str) -> anyhow::Result<()> {
        let mut last = None;
        for line in dump.lines() {
            let unreadable = || format!("bpftool btf dump: {line}");
            let name = line.split('\'').nth(1).unwrap_or_default().to_owned();
            let field = |key: &str| -> Option<u32> {
                let value = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
                value.parse().ok()
            };
            if let Some(rest) = line.strip_prefix('[') {
                let (id, rest) = rest.split_once("] ").with_context(unreadable)?;
                let id: u32 = id.parse().with_context(unreadable)?;
                let kind = rest.split(' ').next().unwrap_or_default().to_owned();
                let target = field("type_id=").or_else(|| field("ret_type_id=")).unwrap_or(0);
                let name = if name == "(anon)" { String::new() } else { name };
                self.0.insert(id, Type { kind, name, target, members: Vec::new() });
                last = Some(id);
            } else if let (Some(id), Some(target)) = (last, field("type_id=")) {
                let name = if name == "(anon)" { String::new() } else { name };
                let bits = field("bits_offset=").unwrap_or(0);
                let holder = self.0.get_mut(&id).with_context(unreadable)?;
                holder.members.push((name, target, bits));
            }
        }
        anyhow::ensure!(last.is_some(), "bpftool printed no types");
        Ok(())
    }

    fn named(&self, kind: &str, name: &str) -> Option<&Type> {
        self.0.values().find(|found| found.kind == kind && found.name == name)
    }

    fn prototype(&self, function: &str) -> Option<String> {
        let proto = self.0.get(&self.named("FUNC", function)?.target)?;
        let parameters: Vec<String> =
            proto.members.iter().map(|(name, target, _)| format!("{} {name}", self.text(*target))).collect();
        let parameters = if parameters.is_empty() { "void".to_owned() } else { parameters.join(", ") };
        Some(format!("{} {function}({parameters})", self.text(proto.target)))
    }

    fn text(&self, id: u32) -> String {
        let Some(found) = self.0.get(&id) else { return "void".to_owned() };
        match found.kind.as_str() {
            "PTR" => format!("{} *", self.text(found.target)),
            "CONST" => format!("const {}", self.text(found.target)),
            "VOLATILE" => format!("volatile {}", self.text(found.target)),
            "TYPE_TAG" | "RESTRICT" => self.text(found.target),
            "STRUCT" | "FWD" => format!("struct {}", found.name),
            "UNION" => format!("union {}", found.name),
            // Whatever it takes and gives: a pointer to it is passed on, never called.
            "FUNC_PROTO" => "fn".to_owned(),
            "ENUM" | "ENUM64" => format!("enum {}", found.name),
            _ => found.name.clone(),
        }
    }

    /// Bits from the beginning of `structure` to the member at the end of `path`.
    fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut at = self.named("STRUCT", structure)?;
        let mut bits = 0;
        for name in path {
            let (target, more) = self.member(at, name)?;
            bits += more;
            at = self.structure(target).unwrap_or(at);
        }
        Some(bits)
    }

    /// A member, looked for in nameless structures and unions too.
    fn member(&self, holder: &Type, name: &str) -> Option<(u32, u32)> {
        holder.members.iter().find_map(|(found, target, bits)| {
            if found == name {
                return Some((*target, *bits));
            }
            let inner = found.is_empty().then(|| self.structure(*target)).flatten()?;
            self.member(inner, name).map(|(target, more)| (target, bits + more))
        })
    }

    /// The structure behind type definitions, arrays and qualifiers.
    fn structure(&self, id: u32) -> Option<&Type> {
        let found = self.0.get(&id)?;
        match found.kind.as_str() {
            "STRUCT" | "UNION" => Some(found),
            "TYPEDEF" | "ARRAY" | "CONST" | "VOLATILE" => self.structure(found.target),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Types;

    const DUMP: &str = "[1] INT 'unsigned int' size=4 bits_offset=0 nr_bits=32 encoding=(none)
[2] STRUCT 'nf_conn' size=32 vlen=2
\t'timeout' type_id=1 bits_offset=64
\t'(anon)' type_id=3 bits_offset=128
[3] UNION '(anon)' size=8 vlen=1
\t'ct_net' type_id=4 bits_offset=32
[4] TYPEDEF 'possible_net_t' type_id=5
[5] STRUCT '(anon)' size=8 vlen=1
\t'net' type_id=6 bits_offset=0
[6] PTR '(anon)' type_id=7
[7] CONST '(anon)' type_id=2
[8] FUNC_PROTO '(anon)' ret_type_id=0 vlen=2
\t'ct' type_id=6
\t'hash' type_id=1
[9] FUNC 'insert' type_id=8 linkage=static
";

    #[test]
    fn a_dump_is_read() {
        let mut types = Types::default();
        types.add(DUMP).unwrap();
        assert_eq!(
            types.prototype("insert").as_deref(),
            Some("void insert(const struct nf_conn * ct, unsigned int hash)")
        );
        assert_eq!(types.offset("nf_conn", &["timeout"]), Some(64));
        assert_eq!(types.offset("nf_conn", &["ct_net", "net"]), Some(160));
        assert_eq!(types.offset("nf_conn", &["gone"]), None);
    }
}
