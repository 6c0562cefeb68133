//! Two packets of one new flow at once, from two CPUs: the race that conntrack has to resolve.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::Context;

use super::{Family, Flows, PORT, Sent, pin, raw, udp};

/// One datagram from each of two CPUs, from one socket, to each destination: both see a flow that is not there yet.
pub(in super::super) fn udp_pairs(flows: Flows) -> anyhow::Result<Sent> {
    let socket = UdpSocket::bind((flows.family.home(), 0)).context("bind the sender")?;
    pairs(flows, |_, number, tally| {
        udp::one(&socket, SocketAddr::new(flows.family.target(number), PORT), tally)
    })
}

/// The same with TCP SYNs by raw socket. TCP allows no resolution: of two that race, one is dropped.
pub(in super::super) fn tcp_pairs(flows: Flows, port: u16) -> anyhow::Result<Sent> {
    anyhow::ensure!(flows.family == Family::V4, "the checksum is made for IPv4 only");
    // One for each racer: the kernel holds a raw socket's lock for as long as its packet is on the way.
    let sockets: [OwnedFd; 2] = [raw::raw_socket(flows.family, 6)?, raw::raw_socket(flows.family, 6)?];
    let mut syn = Vec::new();
    syn.extend(4444_u16.to_be_bytes());
    syn.extend(port.to_be_bytes());
    syn.extend(1_u32.to_be_bytes());
    syn.extend([0; 4]);
    // Five words long, SYN, window 1024. The checksum stays 0: conntrack looks at it on the way in only.
    syn.extend([0x50, 0x02, 4, 0, 0, 0, 0, 0]);
    pairs(flows, |cpu, number, tally| raw::one(&sockets[cpu], flows.family.target(number), &syn, tally))
}

fn pairs(
    flows: Flows,
    send: impl Fn(usize, u32, &mut Sent) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Sent> {
    let arrived = AtomicU32::new(0);
    let failed = AtomicU32::new(0);
    let racer = |cpu| {
        pin(cpu)?;
        let mut mine = Sent::default();
        for (round, number) in flows.numbers().enumerate() {
            let all = u32::try_from(2 * (round + 1))?;
            arrived.fetch_add(1, Ordering::AcqRel);
            let mut spins = 0_u32;
            while arrived.load(Ordering::Acquire) < all && failed.load(Ordering::Acquire) == 0 {
                // A guest's CPU may itself be off its host CPU for a while.
                spins += 1;
                if spins.is_multiple_of(1 << 16) {
                    thread::yield_now();
                }
            }
            if let Err(error) = send(cpu, number, &mut mine) {
                failed.store(1, Ordering::Release);
                return Err(error);
            }
        }
        Ok(mine)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| racer(1));
        let mut both = racer(0)?;
        both += other.join().map_err(|_| anyhow::anyhow!("a racer panicked"))??;
        Ok(both)
    })
}
