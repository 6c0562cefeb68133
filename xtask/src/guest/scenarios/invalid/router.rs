//! A router that tracks, and what lies on both sides of it.

use std::fs;
use std::net::IpAddr;

use anyhow::Context as _;

use super::super::super::ctwatch::{Key, Totals};
use super::super::super::space::{Space, checked};
use super::super::super::traffic::crafted::{ACK, Crafted, SYN, Segment, Sender, host};
use super::super::super::traffic::{Family, backlog};
use super::super::super::witness::Stats;
use super::super::super::{modules, state};

/// Tracks, and counts invalid packets as a rule set would that drops them.
const RULES: &str = "table inet watched {
  chain forward { type filter hook forward priority 0; ct state invalid counter drop; }
}
";

/// The router's namespace, and the one of everybody else.
pub(in super::super) struct Router {
    router: Space,
    outside: Space,
}

impl Router {
    /// A router with an empty table.
    pub(in super::super) fn new() -> anyhow::Result<Self> {
        modules::load()?;
        // Limit and buckets are one for all namespaces: an earlier scenario may have left few.
        state::fresh(&Space::init())?;
        let made = Self { router: Space::create("router")?, outside: Space::create("outside")? };
        let ip =
            |space: &Space, line: &str| checked(space.command("ip").args(line.split_whitespace())).map(drop);
        for (name, side) in [("side1", 1), ("side2", 2)] {
            let address = |own: u8| format!("02:77:00:00:0{side}:0{own}");
            let (near, far) = (address(1), address(2));
            ip(
                &made.router,
                &format!(
                    "link add name {name} address {near} type veth peer name {name} address {far} netns outside"
                ),
            )?;
            for (space, own) in [(&made.router, 1), (&made.outside, 2)] {
                ip(space, &format!("addr add 10.77.{side}.{own}/24 dev {name}"))?;
                ip(space, &format!("-6 addr add fd00:77:{side}::{own}/64 dev {name} nodad"))?;
                ip(space, &format!("link set dev {name} up"))?;
                // Packets that wait for a neighbour's address come late, and beyond some 300 not at all.
                let other = 3 - own;
                let lladdr = address(other);
                for neighbour in [format!("10.77.{side}.{other}"), format!("fd00:77:{side}::{other}")] {
                    ip(
                        space,
                        &format!("neigh replace {neighbour} lladdr {lladdr} nud permanent dev {name}"),
                    )?;
                }
            }
            ip(&made.router, &format!("route add 10.{}.0.0/16 via 10.77.{side}.2", 96 + side))?;
            ip(&made.router, &format!("-6 route add fd00:99:{side}::/48 via fd00:77:{side}::2"))?;
            // What is for the one side goes in at the other.
            let other = 3 - side;
            ip(&made.outside, &format!("route add 10.{}.0.0/16 via 10.77.{side}.1", 96 + other))?;
            ip(&made.outside, &format!("-6 route add fd00:99:{other}::/48 via fd00:77:{side}::1"))?;
        }
        made.router.enter(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").context("IPv6 forwarding")
        })?;
        state::fresh(&made.router)?;
        state::rules(&made.router, RULES)?;
        Ok(made)
    }

    pub(in super::super) fn inode(&self) -> u64 {
        self.router.inode
    }

    /// Sets a conntrack sysctl of the router.
    pub(super) fn set(&self, name: &str, value: u32) -> anyhow::Result<()> {
        self.router.enter(|| state::set(name, value))
    }

    /// Other rules.
    pub(in super::super) fn rules(&self, rules: &str) -> anyhow::Result<()> {
        state::rules(&self.router, rules)
    }

    /// Sends packets from outside, until the router has taken in the last.
    pub(in super::super) fn send(&self, packets: &[Crafted]) -> anyhow::Result<()> {
        self.outside.enter(|| {
            let sender = Sender::new()?;
            packets.chunks(backlog::BATCH).try_for_each(|batch| {
                batch.iter().try_for_each(|packet| sender.send(packet))?;
                backlog::drain()
            })
        })
    }

    /// One healthy UDP packet of each of so many flows.
    pub(super) fn flood(&self, family: Family, flows: u32) -> anyhow::Result<()> {
        let packet = |number: u32| {
            let client = host(family, false, 1000 + u16::try_from(number % 200)?);
            let port = u16::try_from(1000 + number / 200)?;
            Ok(Crafted::udp(client, host(family, true, 1000), (port, 53), 16))
        };
        self.send(&(0..flows).map(packet).collect::<anyhow::Result<Vec<_>>>()?)
    }

    /// What opens a TCP connection: the client's next sequence number is 1001, the server's 5001.
    pub(super) fn handshake((client, server): (IpAddr, IpAddr), ports: (u16, u16)) -> [Crafted; 3] {
        let segment = |seq, ack, flags| Segment { seq, ack, flags, length: 0 };
        [
            Crafted::tcp(client, server, ports, segment(1000, 0, SYN)),
            Crafted::tcp(server, client, (ports.1, ports.0), segment(5000, 1001, SYN | ACK)),
            Crafted::tcp(client, server, ports, segment(1001, 5001, ACK)),
        ]
    }

    /// Invalid packets by the kernel's counters, ICMP messages included.
    pub(super) fn invalid(&self) -> anyhow::Result<u64> {
        let stats = Stats::read(&self.router)?;
        let get = |name| stats.get(name).with_context(|| format!("no {name} in conntrack -S: {stats}"));
        Ok(get("invalid")? + get("error")?)
    }

    /// Failed inserts by the kernel's counter.
    pub(in super::super) fn failed(&self) -> anyhow::Result<u64> {
        self.stat("insert_failed")
    }

    /// One of the kernel's counters.
    pub(in super::super) fn stat(&self, name: &str) -> anyhow::Result<u64> {
        Stats::read(&self.router)?.get(name).with_context(|| format!("no {name} in conntrack -S"))
    }

    /// Runs something on the router.
    pub(in super::super) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.router.enter(work)
    }

    /// A command to run on the router.
    pub(in super::super) fn command(&self, program: &str) -> std::process::Command {
        self.router.command(program)
    }

    /// Invalid packets by the rule.
    pub(super) fn rule(&self) -> anyhow::Result<u64> {
        let text = checked(self.router.command("nft").args(["list", "chain", "inet", "watched", "forward"]))?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words.next().and_then(|word| word.parse().ok()).with_context(|| format!("nft counter: {text}"))
    }

    /// A count of one flow type here.
    pub(super) fn get(&self, totals: &Totals, family: Family, proto: u8, field: &str) -> u64 {
        totals.get(&Key { netns: self.inode(), family: family.name().to_owned(), proto }, field)
    }
}
