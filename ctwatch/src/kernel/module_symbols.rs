//! The symbols of loaded modules, read from kernel memory.
//!
//! `/proc/kallsyms` begins with all symbols of the kernel image. To make their lines takes the kernel 0.2 (6.1) to 0.5
//! (7.3) billion instructions, more than all else at the start but the verifier. A module's own table has a thousand
//! symbols: `struct module` points to it (kernel/module/kallsyms.c, 5.2 to 7.3), and sysfs shows where that lies.

use std::io::{self, Read as _};

use super::btf::Btf;
use super::{held, kcore};

/// More symbols, or a longer table of their names, than any module has: such a table was misread.
const MOST: usize = 1 << 16;
const LONGEST: usize = 4 << 20;
/// `MODULE_NAME_LEN` on 64 bits (5.10 to 7.3).
const NAME: usize = 56;
/// `KSYM_NAME_LEN`, the larger one (since 6.1).
const SYMBOL: usize = 512;
/// Bytes of an `Elf64_Sym`.
const ENTRY: usize = 24;

/// The structures and members that lead to the table.
pub(super) const STRUCTURES: [&str; 2] = ["module", "mod_kallsyms"];

/// Where the members lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    name: usize,
    kallsyms: usize,
    symtab: usize,
    num_symtab: usize,
    strtab: usize,
    typetab: usize,
}

impl Layout {
    /// `None` where this kernel does not have all of them.
    pub(super) fn of(btf: &Btf<'_>) -> Option<Self> {
        let [module, table] = STRUCTURES;
        let at = |structure, member| btf.member(structure, &[member]).ok().flatten().map(|at| at as usize);
        Some(Self {
            name: at(module, "name")?,
            kallsyms: at(module, "kallsyms")?,
            symtab: at(table, "symtab")?,
            num_symtab: at(table, "num_symtab")?,
            strtab: at(table, "strtab")?,
            typetab: at(table, "typetab")?,
        })
    }
}

/// A module's table.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    entries: Vec<u8>,
    kinds: Vec<u8>,
    names: Vec<u8>,
}

/// Reads the tables of the modules that were there when rights were given up, in the order of their names. An error where
/// one of them cannot be read: then they are not what they should be, or a module is leaving.
pub(super) fn read(layout: &Layout) -> io::Result<Vec<Module>> {
    let mut modules = Vec::new();
    for (name, mut section) in held::modules()? {
        let mut text = String::new();
        section.read_to_string(&mut text)?;
        let address =
            u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(io::Error::other)?;
        modules.push(Module::read(name, address, layout)?);
    }
    Ok(modules)
}

impl Module {
    /// The module whose `struct module` lies at this address.
    fn read(name: String, address: u64, layout: &Layout) -> io::Result<Self> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let found = bytes(address, layout.name, NAME)?;
        if !found.starts_with(name.as_bytes()) || found.get(name.len()) != Some(&0) {
            return Err(wrong());
        }
        let table = word(&bytes(address, layout.kallsyms, 8)?).ok_or_else(wrong)?;
        let pointer = |at| bytes(table, at, 8).and_then(|bytes| word(&bytes).ok_or_else(wrong));
        let count = bytes(table, layout.num_symtab, 4)?;
        let count = u32::from_ne_bytes(count.try_into().map_err(|_| wrong())?) as usize;
        if count > MOST {
            return Err(wrong());
        }
        let entries = bytes(pointer(layout.symtab)?, 0, count * ENTRY)?;
        let kinds = bytes(pointer(layout.typetab)?, 0, count)?;
        let last = entries.chunks_exact(ENTRY).filter_map(name_at).max().unwrap_or(0);
        if last > LONGEST {
            return Err(wrong());
        }
        let names = bytes(pointer(layout.strtab)?, 0, last + SYMBOL)?;
        Ok(Self { name, entries, kinds, names })
    }

    /// Its functions. Damaged entries are left out.
    pub fn functions(&self) -> impl Iterator<Item = Function<'_>> {
        functions(&self.entries, &self.kinds, &self.names)
    }
}

/// A function in a module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Where it begins.
    pub address: u64,
    /// In bytes; 0 where the table does not have it.
    pub size: u64,
    /// Its symbol.
    pub name: &'a [u8],
}

/// The functions of a table: its entries (`Elf64_Sym`), the kind of each as `/proc/kallsyms` shows it, and names that end
/// with a zero.
pub fn functions<'a>(
    entries: &'a [u8],
    kinds: &'a [u8],
    names: &'a [u8],
) -> impl Iterator<Item = Function<'a>> {
    let is_function = |(_, kind): &(&[u8], &u8)| matches!(kind, b't' | b'T' | b'w' | b'W');
    entries.chunks_exact(ENTRY).zip(kinds).filter(is_function).filter_map(|(entry, _)| {
        let name = names.get(name_at(entry)?..)?;
        let end = name.iter().position(|byte| *byte == 0).filter(|end| *end > 0)?;
        Some(Function { address: word(&entry[8..])?, size: word(&entry[16..])?, name: &name[..end] })
    })
}

/// Where an entry's name begins.
fn name_at(entry: &[u8]) -> Option<usize> {
    Some(u32::from_ne_bytes(*entry.first_chunk()?) as usize)
}

fn word(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.first_chunk()?))
}

/// Kernel memory from a place behind an address.
fn bytes(address: u64, at: usize, length: usize) -> io::Result<Vec<u8>> {
    let start = address.checked_add(at as u64);
    let range = start.and_then(|start| Some((start, start.checked_add(length as u64)?)));
    let (start, end) = range.ok_or(io::ErrorKind::InvalidData)?;
    kcore::read(start, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: u32, address: u64) -> Vec<u8> {
        [&name.to_ne_bytes()[..], &[0; 4], &address.to_ne_bytes(), &64_u64.to_ne_bytes()].concat()
    }

    #[test]
    fn functions_have_an_address_a_kind_and_a_name() {
        let names = b"\0gc_worker\0data\0early_drop\0cut";
        let entries = [
            entry(0, 0),
            entry(1, 0x1000),
            entry(11, 0x9000),
            entry(16, 0x2000),
            entry(27, 0x3000),
            entry(1000, 0x4000),
        ]
        .concat();
        let found: Vec<_> = functions(&entries, b"ttdttt", names).collect();
        let function = |address, name| Function { address, size: 64, name };
        assert_eq!(found, [function(0x1000, &b"gc_worker"[..]), function(0x2000, b"early_drop")]);
        assert_eq!(functions(&entries[..30], b"tt", names).count(), 0, "only whole entries");
        assert_eq!(functions(&entries, b"", names).count(), 0);
    }
}
