//! TCP over loopback: whole connections, one flow each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::{Family, Flows, Sent};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum End {
    /// Both sides close: FIN, FIN.
    Close,
    /// The client resets it.
    Reset,
}

/// Connections that stay open until dropped; each one's entry is ASSURED.
#[derive(Debug, Default)]
pub(in super::super) struct Held(Vec<(TcpStream, TcpStream)>);

/// Opens and ends one connection to each destination.
pub(in super::super) fn connections(flows: Flows, end: End) -> anyhow::Result<Sent> {
    let listener = listen(flows.family)?;
    let port = listener.local_addr()?.port();
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let (client, server) = open(&listener, SocketAddr::new(flows.family.target(number), port))?;
        finish(client, server, end)?;
        sent.passed += 1;
    }
    Ok(sent)
}

/// Opens one connection to each destination and keeps it.
pub(in super::super) fn hold(flows: Flows, held: &mut Held) -> anyhow::Result<Sent> {
    let listener = listen(flows.family)?;
    let port = listener.local_addr()?.port();
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let (mut client, mut server) = open(&listener, SocketAddr::new(flows.family.target(number), port))?;
        // Data both ways: ASSURED needs an acknowledgement that conntrack has seen after the handshake.
        let mut byte = [0];
        client.write_all(b"x")?;
        server.read_exact(&mut byte)?;
        server.write_all(b"y")?;
        client.read_exact(&mut byte)?;
        held.0.push((client, server));
        sent.passed += 1;
    }
    Ok(sent)
}

/// Connects to destinations where nobody listens: the RST makes conntrack remove the entry at once.
pub(in super::super) fn refused(flows: Flows) -> anyhow::Result<Sent> {
    // Bound and not listening: no other process can take the port meanwhile.
    let reserved = bound(flows.family, 0)?;
    let port = port_of(&reserved)?;
    let mut sent = Sent::default();
    for number in flows.numbers() {
        let target = SocketAddr::new(flows.family.target(number), port);
        match TcpStream::connect(target) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sent.passed += 1,
            other => anyhow::bail!("connect to the closed {target}: {other:?}"),
        }
    }
    Ok(sent)
}

/// Opens, resets and opens again the very same tuple. The second SYN makes conntrack remove the old entry and make
/// a new one: two flows and one removal for each number.
pub(in super::super) fn reopened(flows: Flows) -> anyhow::Result<Sent> {
    let listener = listen(flows.family)?;
    let target = listener.local_addr()?.port();
    let target = SocketAddr::new(flows.family.home(), target);
    let mut sent = Sent::default();
    for number in flows.numbers() {
        // Below the range that connect() takes ports from.
        let port = u16::try_from(10_000 + number).context("more flows than ports")?;
        for _ in 0..2 {
            let client = bound(flows.family, port)?;
            connect(client.as_raw_fd(), &SockaddrStorage::from(target)).context("connect")?;
            let (server, _) = listener.accept().context("accept")?;
            finish(client.into(), server, End::Reset)?;
            sent.passed += 1;
        }
    }
    Ok(sent)
}

fn open(listener: &TcpListener, target: SocketAddr) -> anyhow::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect_timeout(&target, Duration::from_secs(10))
        .with_context(|| format!("connect to {target}"))?;
    let (server, _) = listener.accept().context("accept")?;
    Ok((client, server))
}

fn finish(client: TcpStream, mut server: TcpStream, end: End) -> anyhow::Result<()> {
    if end == End::Reset {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&client, sockopt::Linger, &linger).context("ask for a reset")?;
    }
    drop(client);
    // Returns only once the FIN or RST came through, so the client's side is over for conntrack too.
    match server.read(&mut [0]) {
        Ok(0) if end == End::Close => Ok(()),
        Err(error) if end == End::Reset && error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => anyhow::bail!("{end:?}: the server read {other:?}"),
    }
}

fn listen(family: Family) -> anyhow::Result<TcpListener> {
    TcpListener::bind((family.any(), 0)).context("listen")
}

fn bound(family: Family, port: u16) -> anyhow::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let fd = socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("make a socket")?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let address: SockaddrStorage =
        SocketAddr::new(if port == 0 { family.any() } else { family.home() }, port).into();
    bind(fd.as_raw_fd(), &address).map_err(|errno: Errno| anyhow::anyhow!("bind port {port}: {errno}"))?;
    Ok(fd)
}

fn port_of(fd: &OwnedFd) -> anyhow::Result<u16> {
    let address: SockaddrStorage = nix::sys::socket::getsockname(fd.as_raw_fd())?;
    address
        .as_sockaddr_in()
        .map(nix::sys::socket::SockaddrIn::port)
        .or_else(|| address.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port))
        .context("a socket without a port")
}
