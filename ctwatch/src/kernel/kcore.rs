//! Reading kernel memory through `/proc/kcore`, an ELF core file of the running kernel.

use std::io;
use std::os::unix::fs::FileExt as _;

use super::held;

/// Program headers that are looked at; the kernel has a few dozen.
const HEADERS: usize = 1024;

/// The bytes from `start` to `end`. An error where the file is missing or hidden (it needs
/// CAP_SYS_RAWIO and a kernel not locked down), or has no such memory.
pub fn read(start: u64, end: u64) -> io::Result<Vec<u8>> {
    let file = held::kcore()?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let [table, count] = table(&header).ok_or(io::ErrorKind::InvalidData)?;
    let mut headers = vec![0; usize::try_from(count).unwrap_or(HEADERS).min(HEADERS) * 56];
    file.read_exact_at(&mut headers, table)?;
    let offset = place(&headers, start, end).ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = vec![0; usize::try_from(end - start).map_err(|_| io::ErrorKind::InvalidInput)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Where the program headers lie and how many there are (`Elf64_Ehdr`).
pub fn table(header: &[u8; 64]) -> Option<[u64; 2]> {
    let little_endian_64 = header.starts_with(b"\x7fELF\x02\x01");
    let size = u16::from_le_bytes([header[54], header[55]]);
    let count = u16::from_le_bytes([header[56], header[57]]);
    (little_endian_64 && size == 56).then_some([word(header, 32)?, u64::from(count)])
}

/// Where in the file the memory from `start` to `end` lies (`Elf64_Phdr`).
pub fn place(headers: &[u8], start: u64, end: u64) -> Option<u64> {
    const PT_LOAD: u64 = 1;
    headers.chunks_exact(56).find_map(|header| {
        let (kind, offset) = (word(header, 0)? & 0xffff_ffff, word(header, 8)?);
        let (from, size) = (word(header, 16)?, word(header, 32)?);
        let inside = start >= from && start < end && end - from <= size;
        if kind == PT_LOAD && inside { offset.checked_add(start - from) } else { None }
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_address() {
        let mut headers = vec![0; 3 * 56];
        for (index, (kind, offset, from, size)) in [
            (4_u64, 0_u64, 0_u64, u64::MAX),
            (1, 0x1000, 0xffff_0000, 0x100),
            (1, 0x9000, 0xffff_c000, 0x800),
        ]
        .into_iter()
        .enumerate()
        {
            for (at, value) in [(0, kind), (8, offset), (16, from), (32, size)] {
                let at = index * 56 + at;
                headers[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        assert_eq!(place(&headers, 0xffff_c100, 0xffff_c200), Some(0x9100));
        assert_eq!(place(&headers, 0xffff_0000, 0xffff_0100), Some(0x1000));
        assert_eq!(place(&headers, 0xffff_00f0, 0xffff_0101), None, "beyond the end");
        assert_eq!(place(&headers, 0x1000, 0x2000), None);
        assert_eq!(place(&headers[..20], 0x1000, 0x2000), None);
    }

    #[test]
    fn only_a_64_bit_core_is_read() {
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[32] = 64;
        header[54] = 56;
        header[56] = 9;
        assert_eq!(table(&header), Some([64, 9]));
        header[4] = 1;
        assert_eq!(table(&header), None);
    }
}
