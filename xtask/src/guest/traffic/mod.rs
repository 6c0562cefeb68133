//! Exact, bounded traffic: each generator makes the flows it was asked for and says how many there were.

pub(super) mod backlog;
pub(super) mod clash;
pub(super) mod crafted;
pub(super) mod raw;
pub(super) mod spoofed;
pub(super) mod tcp;
pub(super) mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;

use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The port that the generators send to.
pub(super) const PORT: u16 = 6881;

/// Address family of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4 in 127.0.0.0/8.
    V4,
    /// IPv6 in the prefix that `state::fresh` makes local.
    V6,
}

impl Family {
    /// Both, for scenarios that treat them alike.
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// As ctwatch and `conntrack -f` call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The source of all flows.
    pub(super) fn home(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// Any local address.
    pub(super) fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The destination of flow `number`: local, and another one for each flow.
    pub(super) fn target(self, number: u32) -> IpAddr {
        match self {
            // 127.64.0.0 and up leaves 127.0.0.1 to whoever wants it for something else.
            Self::V4 => Ipv4Addr::from(0x7f40_0000 + number).into(),
            Self::V6 => {
                Ipv6Addr::from(0xfd00_00c7_0000_0000_0000_0000_0000_0000_u128 + 0x1_0000 + u128::from(number))
                    .into()
            }
        }
    }
}

/// The flows of one call: distinct destinations, numbered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flows {
    /// Family of all of them.
    pub(super) family: Family,
    /// Number of the first one.
    pub(super) first: u32,
    /// How many.
    pub(super) count: u32,
}

impl Flows {
    /// `count` flows, numbered from 0.
    pub(super) fn new(family: Family, count: u32) -> Self {
        Self { family, first: 0, count }
    }

    /// The same many, numbered from `first`.
    pub(super) fn from(self, first: u32) -> Self {
        Self { first, ..self }
    }

    fn numbers(self) -> std::ops::Range<u32> {
        self.first..self.first + self.count
    }

    /// One share for each CPU, without overlap.
    fn shares(self, cpus: u32) -> Vec<Self> {
        let cut = |n: u32| {
            u32::try_from(u64::from(self.count) * u64::from(n) / u64::from(cpus)).unwrap_or(self.count)
        };
        (0..cpus)
            .map(|cpu| Self {
                family: self.family,
                first: self.first + cut(cpu),
                count: cut(cpu + 1) - cut(cpu),
            })
            .collect()
    }
}

/// What became of the first packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Flows whose first packet the stack took.
    pub(super) passed: u64,
    /// Flows whose first packet netfilter refused (EPERM at the sender).
    pub(super) refused: u64,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.refused += other.refused;
    }
}

/// Runs `generator` on as many CPUs as `cpus` says at once, each with its own share.
pub(super) fn spread(
    flows: Flows,
    cpus: u32,
    generator: impl Fn(Flows) -> anyhow::Result<Sent> + Sync,
) -> anyhow::Result<Sent> {
    let generator = &generator;
    thread::scope(|scope| {
        let threads: Vec<_> = flows
            .shares(cpus)
            .into_iter()
            .zip(0..)
            .map(|(share, cpu)| {
                scope.spawn(move || {
                    pin(cpu)?;
                    generator(share)
                })
            })
            .collect();
        let mut sum = Sent::default();
        for thread in threads {
            sum += thread.join().map_err(|_| anyhow::anyhow!("a generator panicked"))??;
        }
        Ok(sum)
    })
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin a thread to CPU {cpu}"))
}
