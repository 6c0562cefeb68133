//! What a view needs from a source. It names no view, no format and no flag.

use crate::model::{By, Filter};

use super::probe::{Addresses, Mechanism};

/// Which source may count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceChoice {
    /// The best that this kernel allows.
    #[default]
    Auto,
    /// BPF trampolines.
    Fexit,
    /// Kprobes and kretprobes.
    Kprobe,
    /// Ctnetlink events and the kernel's statistics.
    Netlink,
}

impl SourceChoice {
    /// How its programs may be attached; `None` for the netlink source, which has none.
    pub const fn mechanism(self) -> Option<Mechanism> {
        match self {
            Self::Auto => Some(Mechanism::Best),
            Self::Fexit => Some(Mechanism::Trampolines),
            Self::Kprobe => Some(Mechanism::Kprobes),
            Self::Netlink => None,
        }
    }
}

/// What to count, and what to deliver beside the counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// Which source may count.
    pub source: SourceChoice,
    /// Which flows are counted.
    pub filter: Filter,
    /// What is ranked. Destination ports always are.
    pub by: Vec<By>,
    /// Whether the log of the kernel programs is read.
    pub verbose: bool,
    /// Whether the kernel measures the time that the programs take.
    pub cost: bool,
    /// Whether losses are delivered one by one, too.
    pub losses: bool,
}

impl Needs {
    /// Counts of all flows that pass the filter, with the cost of counting them.
    pub fn counts(source: SourceChoice, filter: Filter) -> Self {
        Self { source, filter, by: vec![By::Dport], verbose: false, cost: true, losses: false }
    }

    /// Which addresses are ranked.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses { src: self.by.contains(&By::Src), dst: self.by.contains(&By::Dst) }
    }
}
