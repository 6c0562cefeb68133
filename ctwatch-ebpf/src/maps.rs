//! Every map: who writes it, who reads it, how large it is, and what happens when it is full.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use ctwatch_ebpf::{
    Counters, HealthCounters, ROWS,
    entry::TraceEntries,
    invalid::{Key, Words},
    loss::{Budget, TraceFilter},
    tally::{Addresses, Deletes, DropPorts, Inserts},
};

use crate::{
    packet::Headers,
    slot::{CONTEXTS, Context},
};

/// Inserts by flow type and port. Written by the insert hook on its own CPU, summed by userspace;
/// one entry of 28 KiB a CPU; what finds no place counts in `COUNTERS`.
#[map]
pub static INSERTS: PerCpuArray<Inserts> = PerCpuArray::with_max_entries(1, 0);

/// Removals by flow type and cause, evictions by port. Written by the delete hook on its own CPU,
/// summed by userspace; one entry of 28 KiB a CPU; what finds no place counts in `COUNTERS`.
#[map]
pub static DELETES: PerCpuArray<Deletes> = PerCpuArray::with_max_entries(1, 0);

/// Refused flows by port. Written by the hooks of a refusal on their own CPU, summed by userspace;
/// one entry of 12 KiB a CPU; who gets no place in it is counted all the same, but not ranked.
#[map]
pub static DROP_PORTS: PerCpuArray<DropPorts> = PerCpuArray::with_max_entries(1, 0);

/// Inserts by address, where that was asked for: as `INSERTS`, 20 KiB a CPU.
#[map]
pub static INSERT_ADDRESSES: PerCpuArray<Addresses> = PerCpuArray::with_max_entries(1, 0);

/// Evictions by address: as `DELETES`, 20 KiB a CPU.
#[map]
pub static EVICTION_ADDRESSES: PerCpuArray<Addresses> = PerCpuArray::with_max_entries(1, 0);

/// Refused flows by address: as `DROP_PORTS`, 20 KiB a CPU.
#[map]
pub static DROP_ADDRESSES: PerCpuArray<Addresses> = PerCpuArray::with_max_entries(1, 0);

/// Invalid packets by flow type and the kernel's words. A hash map because both are few and far apart. Written by the
/// hooks that see such packets, read by userspace; what finds it full counts in `COUNTERS` as `invalid.other`.
#[map]
pub static INVALIDS: HashMap<Key, u64> = HashMap::with_max_entries(2048, 0);

/// The kernel's words by their address, of which a kernel has some 40. Written by the hook that first meets an address,
/// read by userspace; words that find it full are unknown ones.
#[map]
pub static INVALID_WORDS: HashMap<u64, Words> = HashMap::with_max_entries(256, 0);

/// What is read of the packet at hand, which has no room on the stack. Written by the hooks that see invalid packets, on
/// their own CPU: they are kprobe programs, of which the kernel does not let one nest in another on a CPU.
#[map]
pub static INVALID_PACKET: PerCpuArray<Headers> = PerCpuArray::with_max_entries(1, 0);

/// Invalid packets by port: as `DROP_PORTS`.
#[map]
pub static INVALID_PORTS: PerCpuArray<DropPorts> = PerCpuArray::with_max_entries(1, 0);

/// Invalid packets by address: as `DROP_ADDRESSES`.
#[map]
pub static INVALID_ADDRESSES: PerCpuArray<Addresses> = PerCpuArray::with_max_entries(1, 0);

/// Counters of each row: rare events, and what found no place in the tables above. Written by
/// every hook on its own CPU, summed by userspace; one entry a row, about 190 KiB a CPU; cannot
/// fill, since what finds no row counts on the overflow row.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(ROWS, 0);

/// The packed flow type of each row, 0 where free. Written once a row by the hook that claimed it
/// in `ROW_OWNERS`, read by every hook; as many entries as there are rows.
#[map]
pub static ROW_KEYS: Array<u64> = Array::with_max_entries(ROWS, 0);

/// Row number to packed flow type. A hash map because inserting with `BPF_NOEXIST` is the one
/// atomic claim that 5.10 offers (BPF compare-and-exchange came with 5.12). Written by the first
/// hook that meets a flow type, read by userspace, which learns from it which rows are in use;
/// when all rows near a flow type's place are taken, it counts on the overflow row.
#[map]
pub static ROW_OWNERS: HashMap<u32, u64> = HashMap::with_max_entries(ROWS, 0);

/// What one execution context carries from a function's entry to its return. Written and read by
/// the hooks; one slot a CPU for softirqs, the rest shared by tasks through a hash. Two tasks
/// that meet in one slot while both are inside a watched function are counted as lost.
#[map]
pub static CONTEXT: Array<Context> = Array::with_max_entries(CONTEXTS, 0);

/// Not 0 once registers or the stack were caught with something else than the kernel's machine code seemed to say. Written
/// by the hooks that ask them and by userspace, read by the hooks on refusals and removals; one entry.
#[map]
pub static DISBELIEVED: Array<u32> = Array::with_max_entries(1, 0);

/// Not 0 while `__nf_conntrack_alloc` is watched, or is about to be: its return needs to know which flows were refused.
/// Written by userspace, read by the hook on refusals; one entry.
#[map]
pub static ALLOC_WATCHED: Array<u32> = Array::with_max_entries(1, 0);

/// What the programs know they missed. Written by every hook on its own CPU, summed by
/// userspace; one entry.
#[map]
pub static HEALTH: PerCpuArray<HealthCounters> = PerCpuArray::with_max_entries(1, 0);

/// Single events, while they are asked for. Written by the hooks, read by userspace as they come;
/// userspace sets its size (a page while nothing is asked for); what finds it full is counted in
/// `TRACE_BUDGET` as suppressed.
#[map]
pub static TRACE_RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// How many events each CPU handed over in this second, and held back since the start. Written by
/// every hook on its own CPU, summed by userspace; one entry.
#[map]
pub static TRACE_BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);

/// Ports and networks that flows must have. Written once by userspace before anything is
/// attached, read by the hooks; one entry that holds them all.
#[map]
pub static TRACE_FILTERS: Array<TraceFilter> = Array::with_max_entries(1, 0);

/// What entries must have beyond that for their events to be handed over. Written once by userspace before anything is
/// attached, read by the hooks where single events are asked for; one entry that holds it all.
#[map]
pub static TRACE_ENTRIES: Array<TraceEntries> = Array::with_max_entries(1, 0);
