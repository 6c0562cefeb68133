//! What a guest measures: the lines between the bench on the host and its half in the guest.

use serde::{Deserialize, Serialize};

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Figure {
    /// The cost of new flows under one observer.
    Cost(Cost),
    /// The share of each program in that cost, from the kernel's own statistics.
    Hooks(Hooks),
    /// What an observer's own process does, outside the flows.
    Process(Process),
    /// How many of the events an observer has told of.
    Told(Told),
    /// A burst of flows that is listened to.
    Burst(Burst),
    /// One million flows: both sides of each comparison.
    Million(Million),
    /// A whole command that shows what fills the table.
    Listing(Listing),
    /// What the kernel says of the hooked functions.
    Kernel(Box<KernelTypes>),
    /// An observer that cannot run on this kernel.
    Absent {
        /// Which.
        observer: String,
        /// Why not.
        why: String,
    },
}

/// Instructions of new flows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The traffic and the state of the table.
    pub scenario: String,
    /// Who watched.
    pub observer: String,
    /// Flows in each window.
    pub flows: u64,
    /// Instructions per flow of each window.
    pub windows: Vec<f64>,
    /// Flows that were refused, per flow.
    pub refusals: f64,
    /// Entries that left the table, per flow.
    pub deletes: f64,
    /// The kernel's early_drop, per flow.
    pub early_drops: f64,
}

impl Cost {
    /// The second lowest window: what the kernel does in the background only ever adds to one.
    pub(crate) fn instructions(&self) -> f64 {
        let mut sorted = self.windows.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(1).copied().unwrap_or(f64::NAN)
    }

    /// What an observer adds to what the same flows cost under nobody. Each window has the same flows under every observer,
    /// and is compared with its own: windows of other flows differ by more than the observer may grow, since hashes decide
    /// which flow evicts another, and in whose bucket an expired entry is removed. The median counts.
    pub(crate) fn added_to(&self, nobody: &Self) -> f64 {
        let mut added: Vec<f64> =
            self.windows.iter().zip(&nobody.windows).map(|(with, without)| with - without).collect();
        added.sort_by(f64::total_cmp);
        added.get(added.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Where an observer's instructions go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hooks {
    /// The traffic and the state of the table.
    pub scenario: String,
    /// Who watched.
    pub observer: String,
    /// Flows during which it was counted.
    pub flows: u64,
    /// Each program.
    pub programs: Vec<Program>,
}

/// One program's share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Its name, as far as the kernel keeps it.
    pub name: String,
    /// Runs during these flows.
    pub runs: u64,
    /// Instructions in them, with the kernel's own measuring (the floor's programs show how much that is) and
    /// without what calls the program.
    pub instructions: u64,
}

/// A process beside the flows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Which.
    pub observer: String,
    /// Instructions of its own from its start until it is attached.
    pub attach: u64,
    /// Time in the guest from its start until it is attached, waiting included, in nanoseconds.
    pub elapsed: u64,
    /// Instructions of one report, kernel's part included.
    pub report: u64,
    /// `VmHWM`: the most memory it had resident, in KiB.
    pub resident: u64,
}

/// How complete an observer's account is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Who watched.
    pub observer: String,
    /// Events that happened: inserts, deletes and refusals.
    pub happened: u64,
    /// Events among them that it gave an account of.
    pub accounted: u64,
}

/// A burst of new flows under one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Burst {
    /// Who listened.
    pub observer: String,
    /// Flows that were made.
    pub sent: u64,
    /// Flows that it heard of.
    pub heard: u64,
    /// What it says that it missed; `None` where it has no number.
    pub lost: Option<u64>,
    /// Its own processor time, from before the burst until it had taken all that came, nanoseconds.
    pub process_ns: u64,
    /// How long the making took, nanoseconds; the kernel's part of announcing is in it.
    pub elapsed_ns: u64,
}

/// One million flows on two CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Million {
    /// Who watched.
    pub observer: String,
    /// What ctwatch knows that it missed.
    pub lost: u64,
    /// Name, ctwatch's side, the witness's side.
    pub sides: Vec<(String, u64, u64)>,
    /// How long the traffic took, in seconds of the guest.
    pub seconds: f64,
    /// ctwatch's anonymous memory after a tenth of the flows, and after all, KiB.
    pub memory: [u64; 2],
}

/// A command that shows what fills the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// As it is typed.
    pub command: String,
    /// Entries in the table.
    pub entries: u64,
    /// Instructions of each run, from its start to its end, all its processes and the kernel.
    pub runs: Vec<u64>,
    /// The most memory it had resident, in KiB; of a pipeline nobody asked.
    pub resident: Option<u64>,
}

impl Listing {
    /// The lowest run.
    pub(crate) fn instructions(&self) -> u64 {
        self.runs.iter().copied().min().unwrap_or(0)
    }
}

/// A kernel's own account of functions and members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct KernelTypes {
    /// `ctwatch facts`.
    pub facts: serde_json::Value,
    /// Functions of `/proc/kallsyms` whose name begins like a hooked one's.
    pub symbols: Vec<String>,
    /// Prototypes as bpftool's dump tells them; empty without BTF of the functions.
    pub prototypes: std::collections::BTreeMap<String, String>,
    /// Member offsets in bytes as bpftool's dump tells them, as `structure.member`.
    pub offsets: std::collections::BTreeMap<String, u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(windows: &[f64]) -> Cost {
        Cost {
            scenario: "udp-ports".to_owned(),
            observer: "ctwatch-fexit".to_owned(),
            flows: 6000,
            windows: windows.to_vec(),
            refusals: 0.0,
            deletes: 1.0,
            early_drops: 0.0,
        }
    }

    #[test]
    fn windows_are_compared_one_by_one() {
        // The third window of both met dearer flows; a timer fell into the second of the observer.
        let nobody = cost(&[12_000.0, 11_900.0, 12_400.0]);
        let observer = cost(&[12_500.0, 13_000.0, 12_900.0]);
        assert!((observer.added_to(&nobody) - 500.0).abs() < 1e-9);
    }
}
