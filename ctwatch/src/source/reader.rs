//! Reading whole maps at each report: few calls, and one buffer for all of them.
//!
//! aya's maps ask for each entry of a hash map twice and copy each per-CPU value twice, into memory
//! allocated anew.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd as _, OwnedFd},
    slice,
};

use anyhow::{Result, anyhow, ensure};
use aya::{Pod, util::nr_cpus};
use aya_obj::generated::bpf_cmd;
use nix::libc;

use super::{
    object::Object,
    sys::{bpf, zeroed},
};

/// A per-CPU array.
#[derive(Debug)]
pub struct PerCpu<V> {
    map: OwnedFd,
    value: PhantomData<V>,
}

/// A hash map.
#[derive(Debug)]
pub struct Hash<K, V> {
    map: OwnedFd,
    entries: u32,
    entry: PhantomData<(K, V)>,
}

/// Reads maps, one after the other, into its buffer.
#[derive(Debug)]
pub struct Reader {
    cpus: usize,
    /// The kernel rounds values up to 8 bytes.
    buffer: Vec<u64>,
}

impl<V: Pod> PerCpu<V> {
    /// The object's map of this name, made now where it was not yet.
    pub fn new(object: &mut Object, name: &str) -> Result<Self> {
        const { assert!(size_of::<V>().is_multiple_of(8) && align_of::<V>() <= 8) };
        let (map, definition) = object.map_fd(name)?;
        ensure!(definition.value_size() as usize == size_of::<V>(), "map {name} has values of another size");
        Ok(Self { map, value: PhantomData })
    }
}

impl<K: Pod, V: Pod> Hash<K, V> {
    /// The object's map of this name, made now where it was not yet.
    pub fn new(object: &mut Object, name: &str) -> Result<Self> {
        const { assert!(align_of::<K>() <= 8 && size_of::<V>().is_multiple_of(8) && align_of::<V>() <= 8) };
        let (map, definition) = object.map_fd(name)?;
        let sizes = (definition.key_size() as usize, definition.value_size() as usize);
        ensure!(sizes == (size_of::<K>(), size_of::<V>()), "map {name} has other entries");
        Ok(Self { map, entries: definition.max_entries(), entry: PhantomData })
    }
}

impl Reader {
    /// For this machine.
    pub fn new() -> Result<Self> {
        let cpus =
            nr_cpus().map_err(|(path, error)| anyhow!(error).context(format!("cannot read {path}")))?;
        Ok(Self { cpus, buffer: Vec::new() })
    }

    /// One element, each CPU's value.
    pub fn element<V: Pod>(&mut self, array: &PerCpu<V>, index: u32) -> io::Result<&[V]> {
        let words = self.cpus * size_of::<V>() / 8;
        let buffer = self.at_least(words);
        let mut attr = zeroed();
        // SAFETY: the variant for BPF_MAP_LOOKUP_ELEM; every byte of it was set to zero.
        let lookup = unsafe { &mut attr.__bindgen_anon_2 };
        lookup.map_fd = array.map.as_raw_fd().cast_unsigned();
        lookup.key = (&raw const index) as u64;
        lookup.__bindgen_anon_1.value = buffer.as_mut_ptr() as u64;
        // SAFETY: the key lives until the call returns, and the buffer has a value for each possible CPU.
        unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
        // SAFETY: so many values were written; any bytes are a value, and the buffer is aligned as one.
        Ok(unsafe { slice::from_raw_parts(self.buffer.as_ptr().cast(), self.cpus) })
    }

    /// All keys and values (`BPF_MAP_LOOKUP_BATCH`, 5.6).
    pub fn entries<K: Pod, V: Pod>(&mut self, hash: &Hash<K, V>) -> io::Result<Vec<(K, V)>> {
        let most = hash.entries as usize;
        let keys_words = (most * size_of::<K>()).div_ceil(8);
        let words = self.at_least(keys_words + most * size_of::<V>() / 8);
        let (keys, values) = words.split_at_mut(keys_words);
        // What the kernel keeps here is at most 8 bytes (`generic_map_lookup_batch`: a number of a bucket).
        let mut token = 0_u64;
        let mut attr = zeroed();
        attr.batch.map_fd = hash.map.as_raw_fd().cast_unsigned();
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = hash.entries;
        attr.batch.out_batch = (&raw mut token) as u64;
        // SAFETY: keys, values and token live until the call returns, and have room for all entries.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            // Not to be found is what comes after the last.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
        // SAFETY: the kernel has written the field, at the end too.
        let count = (unsafe { attr.batch.count } as usize).min(most);
        // SAFETY: the kernel wrote so many keys; any bytes are one, and the buffer is aligned as one.
        let keys: &[K] = unsafe { slice::from_raw_parts(keys.as_ptr().cast(), count) };
        // SAFETY: the same of values.
        let values: &[V] = unsafe { slice::from_raw_parts(values.as_ptr().cast(), count) };
        Ok(keys.iter().copied().zip(values.iter().copied()).collect())
    }

    fn at_least(&mut self, words: usize) -> &mut [u64] {
        if self.buffer.len() < words {
            self.buffer.resize(words, 0);
        }
        &mut self.buffer
    }
}
