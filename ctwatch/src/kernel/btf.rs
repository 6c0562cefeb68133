//! A reader of BTF, the kernel's own type information: member offsets and function prototypes.
//!
//! Reads what ctwatch asks for and no more: structures by name, members through anonymous
//! structures, functions. Split BTF of a module continues the numbering of vmlinux's. Every
//! access is checked, so that a damaged file gives an error. Format:
//! Documentation/bpf/btf.rst (5.10 to 7.3). It is our own because aya's reader knows no split
//! BTF and the fuller crates are LGPL or unkept.

mod prototype;

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// How deep types may nest before the data counts as damaged.
const MAX_DEPTH: u32 = 32;

/// So many types lie between two whose places are remembered: 2,000 places for a kernel's 130,000
/// types, and at most a few instructions for each type between.
const STRIDE: u32 = 64;

/// Type information of vmlinux, or of a module on top of it.
#[derive(Debug)]
pub struct Btf<'a> {
    base: Option<&'a Btf<'a>>,
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each [`STRIDE`]th type begins in `types`; the first is number `first`.
    places: Vec<u32>,
    first: u32,
    end: u32,
    strings_first: u32,
    /// The names under which structures and functions can be found.
    wanted: &'a [&'a str],
    /// Those that exist here, with their kind and number.
    found: Vec<(u32, &'a str, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    name: u32,
    kind: u32,
    flag: bool,
    /// The size, or the type referred to.
    word: u32,
    /// What follows the fixed part.
    rest: &'a [u8],
    count: u32,
}

/// Bytes from a place in the file, however damaged the numbers are that led there.
fn bytes_at(bytes: &[u8], at: usize, length: usize) -> Result<&[u8]> {
    let end = at.checked_add(length);
    end.and_then(|end| bytes.get(at..end)).context("BTF ends too early")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes_at(bytes, at, 2)?.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes_at(bytes, at, 4)?.try_into()?))
}

/// Bytes after the 12 of every type, for `count` members.
fn tail(kind: u32, count: usize) -> Result<usize> {
    Ok(match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
        | KIND_FLOAT | KIND_TYPE_TAG => 0,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
        KIND_ENUM | KIND_FUNC_PROTO => count * 8,
        other => bail!("BTF type kind {other} is not known to this version of ctwatch"),
    })
}

impl<'a> Btf<'a> {
    /// Walks through a whole BTF blob once; `base` is vmlinux's where this is a module's.
    /// Structures, enumerations and functions can be asked for by the names `wanted`.
    pub fn parse(data: &'a [u8], base: Option<&'a Btf<'a>>, wanted: &'a [&'a str]) -> Result<Self> {
        ensure!(u16_at(data, 0)? == MAGIC, "not BTF of this machine's byte order");
        let header = u32_at(data, 4)? as usize;
        let section = |at: usize| -> Result<&'a [u8]> {
            let start = header.checked_add(u32_at(data, at)? as usize).context("BTF header is damaged")?;
            bytes_at(data, start, u32_at(data, at + 4)? as usize)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let first = base.map_or(1, Btf::end);
        let strings_first = match base {
            Some(base) => base
                .strings_first
                .checked_add(u32::try_from(base.strings.len())?)
                .context("BTF has too many strings")?,
            None => 0,
        };
        let mut btf = Self {
            base,
            types,
            strings,
            places: Vec::with_capacity(types.len() / (20 * STRIDE as usize)),
            first,
            end: first,
            strings_first,
            wanted,
            found: Vec::new(),
        };
        let mut at = 0;
        while at < types.len() {
            if (btf.end - first).is_multiple_of(STRIDE) {
                btf.places.push(u32::try_from(at)?);
            }
            let (kind, size) = btf.shape(at)?;
            if matches!(kind, KIND_STRUCT | KIND_ENUM | KIND_FUNC) {
                btf.note(kind, u32_at(types, at)?);
            }
            btf.end = btf.end.checked_add(1).context("BTF has too many types")?;
            at += size;
        }
        ensure!(at == types.len(), "BTF ends inside a type");
        Ok(btf)
    }

    /// The kind of the type at this place, and how many bytes it has.
    fn shape(&self, at: usize) -> Result<(u32, usize)> {
        let info = u32_at(self.types, at + 4)?;
        let kind = info >> 24 & 0x1f;
        Ok((kind, 12 + tail(kind, (info & 0xffff) as usize)?))
    }

    /// Remembers the type number `end` where its name is wanted; the first of a name counts.
    fn note(&mut self, kind: u32, name: u32) {
        // Nearly all names differ in the first byte, which spares the comparison.
        let first = self.bytes(name).first();
        let mut alike = self.wanted.iter().filter(|wanted| wanted.as_bytes().first() == first);
        let wanted = alike.find(|wanted| self.name_is(name, wanted));
        if let Some(wanted) = wanted
            && !self.found.iter().any(|(other, name, _)| *other == kind && name == wanted)
        {
            self.found.push((kind, wanted, self.end));
        }
    }

    /// One past the last type number, with which a module's numbering goes on.
    pub fn end(&self) -> u32 {
        self.end
    }

    fn get(&self, id: u32) -> Result<Type<'_>> {
        if id < self.first {
            return match self.base {
                Some(base) => base.get(id),
                None => bail!("BTF type {id} does not exist"),
            };
        }
        ensure!(id < self.end, "BTF type {id} does not exist");
        let index = id - self.first;
        let mut at = self.places[(index / STRIDE) as usize] as usize;
        for _ in 0..index % STRIDE {
            at += self.shape(at)?.1;
        }
        let info = u32_at(self.types, at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
        Ok(Type {
            name: u32_at(self.types, at)?,
            kind,
            flag: info >> 31 != 0,
            word: u32_at(self.types, at + 8)?,
            rest: bytes_at(self.types, at + 12, tail(kind, count as usize)?)?,
            count,
        })
    }

    /// The strings from this offset on.
    fn bytes(&self, offset: u32) -> &[u8] {
        if offset < self.strings_first {
            return self.base.map_or(&[], |base| base.bytes(offset));
        }
        self.strings.get((offset - self.strings_first) as usize..).unwrap_or_default()
    }

    fn string(&self, offset: u32) -> &str {
        let bytes = self.bytes(offset);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        self.bytes(offset).strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The number of the type with this kind and name, in this BTF or else its base.
    fn find(&self, kind: u32, name: &str) -> Result<Option<u32>> {
        ensure!(self.wanted.contains(&name), "BTF was not searched for {name}");
        let found = self.found.iter().find(|(other, found, _)| *other == kind && *found == name);
        match (found, self.base) {
            (Some((.., number)), _) => Ok(Some(*number)),
            (None, Some(base)) => base.find(kind, name),
            (None, None) => Ok(None),
        }
    }

    /// The type number of a function, for programs that attach by BTF.
    pub fn function(&self, name: &str) -> Result<Option<u32>> {
        self.find(KIND_FUNC, name)
    }

    /// The value of a named enumeration's constant. `None` where either does not exist.
    pub fn constant(&self, enumeration: &str, name: &str) -> Result<Option<u32>> {
        let Some(id) = self.find(KIND_ENUM, enumeration)? else {
            return Ok(None);
        };
        for constant in self.get(id)?.rest.chunks_exact(8) {
            if self.name_is(u32_at(constant, 0)?, name) {
                return u32_at(constant, 4).map(Some);
            }
        }
        Ok(None)
    }

    /// A structure's member by path (`["src", "l3num"]`), in bytes from its start. `None` where
    /// the structure or the member does not exist; arrays on the way stand for their first element.
    pub fn member(&self, structure: &str, path: &[&str]) -> Result<Option<u32>> {
        let Some(mut id) = self.find(KIND_STRUCT, structure)? else {
            return Ok(None);
        };
        let mut bits = 0_u32;
        for name in path {
            let Some((member, at)) = self.member_of(self.resolve(id)?, name, 0)? else {
                return Ok(None);
            };
            bits = bits.checked_add(at).context("BTF structures are too large")?;
            id = member;
        }
        ensure!(bits.is_multiple_of(8), "{structure}.{} is a bit field", path.join("."));
        Ok(Some(bits / 8))
    }

    /// How many bytes a structure has; `None` where there is none of that name.
    pub fn size(&self, structure: &str) -> Result<Option<u32>> {
        self.find(KIND_STRUCT, structure)?.map(|id| Ok(self.get(id)?.word)).transpose()
    }

    /// Through typedefs, qualifiers and arrays to what is underneath.
    fn resolve(&self, mut id: u32) -> Result<Type<'_>> {
        for _ in 0..MAX_DEPTH {
            let found = self.get(id)?;
            id = match found.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => found.word,
                KIND_ARRAY => u32_at(found.rest, 0)?,
                _ => return Ok(found),
            };
        }
        bail!("BTF types refer to each other in a circle")
    }

    fn member_of(&self, outer: Type<'_>, name: &str, depth: u32) -> Result<Option<(u32, u32)>> {
        ensure!(depth < MAX_DEPTH, "BTF structures nest without end");
        if !matches!(outer.kind, KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        for member in outer.rest.chunks_exact(12) {
            let (member_name, id, word) = (u32_at(member, 0)?, u32_at(member, 4)?, u32_at(member, 8)?);
            let bits = if outer.flag { word & 0x00ff_ffff } else { word };
            if self.name_is(member_name, name) && !name.is_empty() {
                return Ok(Some((id, bits)));
            }
            if member_name == 0
                && let Some((id, inner)) = self.member_of(self.resolve(id)?, name, depth + 1)?
            {
                return Ok(Some((id, bits.checked_add(inner).context("BTF structures are too large")?)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
