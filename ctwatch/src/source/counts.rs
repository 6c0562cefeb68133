//! Reads what the programs counted: rows by flow type, rankings, misses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use ctwatch_ebpf::loss::has_ports;
use ctwatch_ebpf::tally::{AddressKey, Addresses, Deletes, DropPorts, Inserts, Place, PortKey};
use ctwatch_ebpf::{Counters, Event, FlowType, Health, HealthCounters, OVERFLOW_ROW, ROWS};

use super::invalid::{Invalid, Invalids};
use super::object::Object;
use super::reader::{Hash, PerCpu, Reader};
use crate::model::filter::ip;
use crate::model::ranking::{By, Top};

/// The maps that the programs count in.
pub(super) struct Counts {
    reader: Reader,
    owners: Hash<u32, u64>,
    shared: PerCpu<Counters>,
    inserts: PerCpu<Inserts>,
    deletes: PerCpu<Deletes>,
    drop_ports: PerCpu<DropPorts>,
    invalid_ports: PerCpu<DropPorts>,
    addresses: [PerCpu<Addresses>; 4],
    invalids: Invalids,
    health: PerCpu<HealthCounters>,
    admitted: Admitted,
}

/// One reading.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) rows: BTreeMap<FlowType, Counters>,
    pub(super) top: Vec<Top>,
    pub(super) invalid: Invalid,
}

/// Counts of one key: inserts, evictions, refusals, invalid packets.
type Ranks<K> = BTreeMap<K, [u64; 4]>;

impl Counts {
    /// The object's maps, made now where they were not yet.
    pub(super) fn new(object: &mut Object) -> anyhow::Result<Self> {
        Ok(Self {
            reader: Reader::new()?,
            owners: Hash::new(object, "ROW_OWNERS")?,
            shared: PerCpu::new(object, "COUNTERS")?,
            inserts: PerCpu::new(object, "INSERTS")?,
            deletes: PerCpu::new(object, "DELETES")?,
            drop_ports: PerCpu::new(object, "DROP_PORTS")?,
            invalid_ports: PerCpu::new(object, "INVALID_PORTS")?,
            addresses: [
                PerCpu::new(object, "INSERT_ADDRESSES")?,
                PerCpu::new(object, "EVICTION_ADDRESSES")?,
                PerCpu::new(object, "DROP_ADDRESSES")?,
                PerCpu::new(object, "INVALID_ADDRESSES")?,
            ],
            invalids: Invalids::new(object)?,
            health: PerCpu::new(object, "HEALTH")?,
            admitted: Admitted::default(),
        })
    }

    /// Everything counted since the maps were made. Ports are ranked always, addresses where `by` names them.
    pub(super) fn read(&mut self, by: &[By]) -> anyhow::Result<Reading> {
        let mut rows = BTreeMap::new();
        let mut ports: Ranks<PortKey> = BTreeMap::new();
        // Inserts come first and what ctnetlink inserted, which is subtracted from them, last: an entry of ctnetlink's
        // that comes in between must not look like a packet's, since a count that was shown is not taken back.
        let inserts = self.reader.element(&self.inserts, 0).context("cannot read map INSERTS")?;
        for cpu in inserts {
            for row in cpu.flows.iter().filter(|row| row.flow != 0) {
                *self.admitted.count(&mut rows, row.flow, Event::Insert)? += row.counts[0];
            }
            collect(&mut ports, &cpu.ports, 0);
        }
        let deletes = self.reader.element(&self.deletes, 0).context("cannot read map DELETES")?;
        for cpu in deletes {
            for row in cpu.flows.iter().filter(|row| row.flow != 0) {
                for (event, count) in Event::DELETES.into_iter().zip(row.counts) {
                    *self.admitted.count(&mut rows, row.flow, event)? += count;
                }
            }
            collect(&mut ports, &cpu.ports, 1);
        }
        let drops = self.reader.element(&self.drop_ports, 0).context("cannot read map DROP_PORTS")?;
        for cpu in drops {
            collect(&mut ports, cpu, 2);
        }
        let invalid = self.reader.element(&self.invalid_ports, 0).context("cannot read map INVALID_PORTS")?;
        for cpu in invalid {
            collect(&mut ports, cpu, 3);
        }
        self.add_shared(&mut rows)?;
        let counted = self.health()?.0[Health::Invalid as usize];
        let invalid = self.invalids.read(&mut self.reader, counted)?.clone();
        for ((flow, event), count) in &invalid.rows {
            rows.entry(self.admitted.row(*flow)).or_default().0[*event as usize] += count;
        }
        let mut top: Vec<Top> =
            ports.into_iter().filter_map(|(key, counts)| port_line(key, counts)).collect();
        if by.iter().any(|by| *by != By::Dport) {
            let mut addresses: Ranks<AddressKey> = BTreeMap::new();
            for (which, map) in self.addresses.iter().enumerate() {
                let table = self.reader.element(map, 0).context("cannot read a map of addresses")?;
                for cpu in table {
                    collect(&mut addresses, cpu, which);
                }
            }
            top.extend(addresses.into_iter().filter_map(|(key, counts)| address_line(key, counts)));
        }
        Ok(Reading { rows, top, invalid })
    }

    /// What the programs know of their own work, all CPUs together.
    pub(super) fn health(&mut self) -> anyhow::Result<HealthCounters> {
        let mut sum = HealthCounters::default();
        for cpu in self.reader.element(&self.health, 0).context("cannot read map HEALTH")? {
            sum.add(cpu);
        }
        Ok(sum)
    }

    /// What all CPUs count in rows of the same number.
    fn add_shared(&mut self, rows: &mut BTreeMap<FlowType, Counters>) -> anyhow::Result<()> {
        let owners = self.reader.entries(&self.owners).context("cannot read map ROW_OWNERS")?;
        let owned = owners.into_iter().map(|(row, key)| (row, FlowType::unpack(key)));
        for (row, flow) in owned.chain([(OVERFLOW_ROW, FlowType::OVERFLOW)]) {
            let mut sum = Counters::default();
            for cpu in self.reader.element(&self.shared, row).context("cannot read map COUNTERS")? {
                sum.add(cpu);
            }
            if flow != FlowType::OVERFLOW || sum != Counters::default() {
                rows.entry(self.admitted.row(flow)).or_default().add(&sum);
            }
        }
        Ok(())
    }
}

/// The flow types that have a row of their own, first come, first served: the tables of many CPUs together may know
/// more than there shall be rows.
///
/// Who has one keeps it. When each reading chose anew, a flow type that lost its row was in the totals twice: once by
/// its name, and once more on the overflow row.
#[derive(Debug, Default)]
struct Admitted(BTreeSet<FlowType>);

impl Admitted {
    /// Where a flow type is counted.
    fn row(&mut self, flow: FlowType) -> FlowType {
        if self.0.contains(&flow) {
            return flow;
        }
        if flow == FlowType::OVERFLOW || self.0.len() >= ROWS as usize {
            return FlowType::OVERFLOW;
        }
        self.0.insert(flow);
        flow
    }

    /// One count of the flow type that a map knows as `key`.
    fn count<'a>(
        &mut self,
        rows: &'a mut BTreeMap<FlowType, Counters>,
        key: u64,
        event: Event,
    ) -> anyhow::Result<&'a mut u64> {
        let flow = FlowType::unpack(key);
        anyhow::ensure!(flow.pack() == key, "a map holds the impossible flow type {key:#x}");
        Ok(&mut rows.entry(self.row(flow)).or_default().0[event as usize])
    }
}

fn collect<K: Copy + Ord>(ranks: &mut Ranks<K>, places: &[Place<K>], which: usize) {
    for place in places.iter().filter(|place| place.count != 0) {
        ranks.entry(place.key).or_default()[which] += place.count;
    }
}

fn port_line(key: PortKey, counts: [u64; 4]) -> Option<Top> {
    let (flow, port) = key.parts();
    has_ports(flow.proto).then(|| line(By::Dport, flow, port.to_string(), counts))
}

fn address_line(key: AddressKey, counts: [u64; 4]) -> Option<Top> {
    let (flow, destination) = key.parts();
    let address = ip(flow.family, key.address)?;
    Some(line(if destination { By::Dst } else { By::Src }, flow, address.to_string(), counts))
}

fn line(by: By, flow: FlowType, key: String, [insert, early_drop, drop, invalid]: [u64; 4]) -> Top {
    let FlowType { netns, family, proto } = flow;
    Top { by, netns, family, proto, key, insert, early_drop, drop, invalid }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(netns: u32) -> FlowType {
        FlowType { netns, family: 2, proto: 17 }
    }

    fn counted(admitted: &mut Admitted, flows: impl Iterator<Item = u32>) -> BTreeMap<FlowType, Counters> {
        let mut rows = BTreeMap::new();
        for netns in flows {
            *admitted.count(&mut rows, flow(netns).pack(), Event::Insert).unwrap() += 1;
        }
        rows
    }

    #[test]
    fn a_flow_type_that_has_a_row_keeps_it_whoever_comes_first_in_a_later_reading() {
        let mut admitted = Admitted::default();
        let early = counted(&mut admitted, 100..=ROWS);
        assert!(!early.contains_key(&FlowType::OVERFLOW));
        let all = 3 * ROWS;
        let later = counted(&mut admitted, 1..=all);
        assert!(early.iter().all(|(flow, row)| later.get(flow) == Some(row)));
        assert_eq!(later.len(), ROWS as usize + 1, "so many rows, and one for the rest");
        let sum: u64 = later.values().map(|row| row.get(Event::Insert)).sum();
        assert_eq!(sum, u64::from(all));
        assert_eq!(counted(&mut admitted, (1..=all).rev()), later);
    }

    #[test]
    fn a_key_that_no_program_writes_is_refused() {
        let mut rows = BTreeMap::new();
        assert!(Admitted::default().count(&mut rows, 1 << 20, Event::Insert).is_err());
        assert!(rows.is_empty());
    }
}
