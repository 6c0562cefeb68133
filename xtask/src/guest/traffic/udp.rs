//! UDP: one datagram is one flow.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;

use super::{Flows, PORT, Sent};

/// Sends one datagram to each destination from one socket.
pub(in super::super) fn send(flows: Flows) -> anyhow::Result<Sent> {
    send_from(flows, 0)
}

/// The same from this port, so that the flows of two calls are the same.
pub(in super::super) fn send_from(flows: Flows, port: u16) -> anyhow::Result<Sent> {
    let _sink = sink(flows)?;
    let socket = UdpSocket::bind((flows.family.home(), port)).context("bind the sender")?;
    let mut sent = Sent::default();
    for number in flows.numbers() {
        one(&socket, SocketAddr::new(flows.family.target(number), PORT), &mut sent)?;
    }
    Ok(sent)
}

/// Sends one datagram to each destination from this port, to as many ports in turn, from [`PORT`] on. Nobody listens:
/// the caller has what comes in thrown away.
pub(in super::super) fn send_to_ports(flows: Flows, port: u16, ports: u16) -> anyhow::Result<Sent> {
    let socket = UdpSocket::bind((flows.family.home(), port)).context("bind the sender")?;
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let port = PORT + u16::try_from(number % u32::from(ports))?;
        one(&socket, SocketAddr::new(flows.family.target(number), port), &mut sent)?;
    }
    Ok(sent)
}

/// Sends one datagram to one destination from as many source ports as there are flows.
pub(in super::super) fn send_from_ports(flows: Flows) -> anyhow::Result<Sent> {
    let _sink = sink(flows)?;
    let target = SocketAddr::new(flows.family.home(), PORT);
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let port = u16::try_from(10_000 + number).context("more flows than ports")?;
        let socket = UdpSocket::bind((flows.family.home(), port)).context("bind a source port")?;
        one(&socket, target, &mut sent)?;
    }
    Ok(sent)
}

/// One datagram and its answer for each flow: entries that have seen a reply.
pub(in super::super) fn ask_and_answer(flows: Flows) -> anyhow::Result<Sent> {
    let server = UdpSocket::bind((flows.family.home(), 0)).context("bind the server")?;
    let target = server.local_addr()?;
    let mut sent = Sent::default();
    let mut buffer = [0; 16];
    // Kept open, so that no port is handed out twice.
    let mut clients = Vec::new();
    for _ in flows.numbers() {
        let socket = UdpSocket::bind((flows.family.home(), 0)).context("bind a client")?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        one(&socket, target, &mut sent)?;
        let (length, from) = server.recv_from(&mut buffer).context("the server's datagram")?;
        server.send_to(&buffer[..length], from).context("answer")?;
        socket.recv_from(&mut buffer).context("the answer")?;
        clients.push(socket);
    }
    Ok(sent)
}

/// Sends one datagram to `target`, counting it as passed or refused.
pub(super) fn one(socket: &UdpSocket, target: SocketAddr, sent: &mut Sent) -> anyhow::Result<()> {
    match socket.send_to(b"ctwatch", target) {
        Ok(_) => sent.passed += 1,
        // What NF_DROP on the output path becomes.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => sent.refused += 1,
        Err(error) => return Err(error).with_context(|| format!("send to {target}")),
    }
    Ok(())
}

/// A receiver, so that the kernel does not answer with unreachable messages. Nobody reads: what does not fit its
/// buffer is thrown away behind conntrack.
fn sink(flows: Flows) -> anyhow::Result<UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, setsockopt, socket, sockopt};
    use std::os::fd::AsRawFd;

    let (family, address) = match flows.family {
        super::Family::V4 => (AddressFamily::Inet, flows.family.any()),
        super::Family::V6 => (AddressFamily::Inet6, flows.family.any()),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("make a sink")?;
    if flows.family == super::Family::V6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // Several generators at once each bring their own.
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    setsockopt(&socket, sockopt::RcvBuf, &1)?;
    let address: nix::sys::socket::SockaddrStorage = SocketAddr::new(address, PORT).into();
    bind(socket.as_raw_fd(), &address).context("bind a sink")?;
    Ok(socket.into())
}
