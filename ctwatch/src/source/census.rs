//! What the tables hold, counted once by flow type through ctnetlink, where that loads no module.

use std::collections::BTreeMap;

use ctwatch_ebpf::FlowType;

use super::netlink::presence;
use super::netlink::table::Spaces;
use super::tables::Tables;
use crate::model::Filter;
use crate::model::live::Dump;

/// A larger table is not read: it would cost the machine a noticeable part of a second.
const MOST_ENTRIES: u64 = 500_000;

/// Reads the tables; `None` where that would load a module, or nothing could be read. It takes its time.
pub fn take(filter: &Filter) -> Option<Dump> {
    presence::check().ok()?;
    let spaces = Spaces::find(filter).ok()?;
    let tables = Tables::new(filter.netns).ok()?.read([]);
    let small = |netns: &u32| {
        tables
            .iter()
            .find(|table| table.netns == *netns)
            .and_then(|table| table.count)
            .is_some_and(|count| count <= MOST_ENTRIES)
    };
    let mut dump = Dump { filtered: *filter != Filter::default(), ..Dump::default() };
    for netns in spaces.inodes().filter(small) {
        let mut entries: BTreeMap<FlowType, u64> = BTreeMap::new();
        let walked = spaces.walk(netns, filter, |entry| {
            let flow = FlowType { netns, family: entry.tuple.family, proto: entry.tuple.proto };
            *entries.entry(flow).or_default() += 1;
        });
        // Where the hash table was resized meanwhile, entries were skipped or told twice.
        if walked.is_ok_and(|walked| !walked.interrupted) {
            dump.namespaces.insert(netns);
            dump.entries.extend(entries);
        }
    }
    (!dump.namespaces.is_empty()).then_some(dump)
}
