//! Ctnetlink sockets: one for requests, one for each group of events, in the namespace of the thread that opens them.
//!
//! Opening one loads `nfnetlink`, and joining a group loads `nf_conntrack_netlink` (`nfnetlink_bind`), where they are
//! missing: ask [`super::presence`] first. An open socket keeps its namespace alive and `nfnetlink` loaded.
//!
//! Every process with CAP_NET_ADMIN in a namespace may send to every netlink socket in it, and a user without privileges
//! has that capability in namespaces of their own. So every socket here is connected to the kernel, which then refuses
//! messages from others (`netlink_getsockbyportid`), and the sender is checked at each message: one may have been queued
//! before, and forged multicast messages are delivered all the same (`do_one_broadcast`).

use std::io::{self, IoSliceMut};
use std::mem;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recvmsg, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::message::{self, DUMP, Message, Messages};

/// Groups of events (`NFNLGRP_CONNTRACK_…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Entries that entered the table.
    New = 1,
    /// Entries that left it.
    Destroy = 3,
}

/// The kernel's address: only the kernel has port 0.
fn kernel() -> NetlinkAddr {
    NetlinkAddr::new(0, 0)
}

/// How long the kernel may think about one part of an answer.
const PATIENCE_SECONDS: i64 = 5;
/// The kernel makes the parts of a dump as large as the buffers it has seen, up to 32 KiB (`netlink_dump`).
const ANSWER: usize = 32 << 10;

/// A socket for requests.
#[derive(Debug)]
pub struct Requests {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dumped {
    /// Everything came.
    Complete,
    /// The kernel says that what it walked changed under it: some may be missing or twice.
    Interrupted,
    /// The receiver had enough.
    Stopped,
}

impl Requests {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        Self::open_to(SockProtocol::NetlinkNetFilter)
    }

    /// The same to the kernel's routing and interfaces, whose messages begin with the family too.
    pub fn open_to_routes() -> io::Result<Self> {
        Self::open_to(SockProtocol::NetlinkRoute)
    }

    fn open_to(protocol: SockProtocol) -> io::Result<Self> {
        let fd = open(SockFlag::empty(), protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        connect(fd.as_raw_fd(), &kernel())?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; ANSWER] })
    }

    /// Asks for a dump, such as [`message::CT_GET`], and hands over its messages as they come. Family 0 asks for all.
    ///
    /// Nothing is kept, so that a table of any size can be walked.
    pub fn dump(
        &mut self,
        kind: u16,
        family: u8,
        receive: impl FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<Dumped> {
        self.dump_where(kind, family, &[], receive)
    }

    /// The same for what these attributes select.
    pub fn dump_where(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        mut receive: impl FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<Dumped> {
        let sequence = self.ask(kind, DUMP, family, attributes)?;
        let mut outcome = Dumped::Complete;
        let mut stopped = false;
        loop {
            let length = self.receive_part()?;
            let mut messages = Messages::new(&self.buffer[..length]);
            // Answers to an earlier request whose receiver gave up carry its number.
            for message in messages.by_ref().filter(|message| message.sequence == sequence) {
                if message.flags & message::DUMP_INTERRUPTED != 0 {
                    outcome = Dumped::Interrupted;
                }
                match message.kind {
                    message::DONE | message::ERROR if message.error() != 0 => {
                        return Err(io::Error::from_raw_os_error(message.error()));
                    }
                    message::DONE => return Ok(if stopped { Dumped::Stopped } else { outcome }),
                    message::ERROR => {}
                    // A dump that runs keeps the socket busy: its rest is taken and dropped.
                    _ => stopped = stopped || receive(&message).is_break(),
                }
            }
            if messages.is_malformed() {
                return Err(malformed());
            }
        }
    }

    /// Asks for one message.
    pub fn get(&mut self, kind: u16, receive: impl FnOnce(&Message<'_>)) -> io::Result<()> {
        let sequence = self.ask(kind, 0, 0, &[])?;
        loop {
            let length = self.receive_part()?;
            let mut messages = Messages::new(&self.buffer[..length]);
            if let Some(message) = messages.by_ref().find(|message| message.sequence == sequence) {
                if message.kind == message::ERROR {
                    return Err(io::Error::from_raw_os_error(message.error().max(1)));
                }
                receive(&message);
                return Ok(());
            }
            if messages.is_malformed() {
                return Err(malformed());
            }
        }
    }

    fn ask(&mut self, kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut request = message::request(kind, flags, self.sequence, family).to_vec();
        request.extend(attributes);
        let length = u32::try_from(request.len()).map_err(io::Error::other)?;
        request[..4].copy_from_slice(&length.to_ne_bytes());
        send(self.fd.as_raw_fd(), &request, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    fn receive_part(&mut self) -> io::Result<usize> {
        loop {
            let mut slices = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut slices, None, MsgFlags::empty());
            let received = match received {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            if received.address.is_none_or(|sender| sender.pid() != 0) {
                continue;
            }
            let whole = !received.flags.contains(MsgFlags::MSG_TRUNC);
            return if whole { Ok(received.bytes) } else { Err(malformed()) };
        }
    }
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of ctnetlink that cannot be read")
}

fn open(flags: SockFlag, protocol: SockProtocol) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Netlink, SockType::Raw, flags | SockFlag::SOCK_CLOEXEC, protocol)
}

/// A socket that receives one group's events, and counts exactly those that it had no room for.
#[derive(Debug)]
pub struct Events {
    fd: OwnedFd,
    drops: u32,
}

impl Events {
    /// Opens one in the calling thread's namespace. Every event from now on is either received or counted as dropped,
    /// apart from those that `filter` refuses.
    pub fn open(group: Group, buffer: usize, filter: &[libc::sock_filter]) -> io::Result<Self> {
        let fd = open(SockFlag::SOCK_NONBLOCK, SockProtocol::NetlinkNetFilter)?;
        // A full buffer would otherwise refuse everything until it has been emptied (NETLINK_S_CONGESTED), and the
        // error that tells of it says no number: SO_MEMINFO does.
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, &1i32)?;
        let mut events = Self { fd, drops: 0 };
        events.set_buffer(buffer)?;
        if !filter.is_empty() {
            events.attach(filter)?;
        }
        bind(events.fd.as_raw_fd(), &NetlinkAddr::new(0, 1 << (group as u32 - 1)))?;
        connect(events.fd.as_raw_fd(), &kernel())?;
        events.drops = events.drop_counter()?;
        Ok(events)
    }

    /// Gives the queue room for so many bytes of kernel memory, or for what `net.core.rmem_max` allows.
    pub fn set_buffer(&self, bytes: usize) -> io::Result<()> {
        // The kernel doubles what it is told (`sock_setsockopt`).
        let half = bytes / 2;
        match setsockopt(&self.fd, sockopt::RcvBufForce, &half) {
            Err(nix::Error::EPERM) => Ok(setsockopt(&self.fd, sockopt::RcvBuf, &half)?),
            other => Ok(other?),
        }
    }

    /// How many events were dropped for want of room since it was last asked.
    pub fn take_drops(&mut self) -> io::Result<u32> {
        let now = self.drop_counter()?;
        let new = now.wrapping_sub(self.drops);
        self.drops = now;
        Ok(new)
    }

    /// `sk_drops`, which `netlink_overrun` raises once for each message.
    fn drop_counter(&self) -> io::Result<u32> {
        /// Since 4.12.
        const SO_MEMINFO: libc::c_int = 55;
        const SK_MEMINFO_DROPS: usize = 8;
        let mut values = [0u32; SK_MEMINFO_DROPS + 1];
        let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
        // SAFETY: both pointers are to live locals, and the length given is that of the array.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(values[SK_MEMINFO_DROPS])
    }

    fn attach(&self, filter: &[libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).map_err(io::Error::other)?,
            filter: filter.as_ptr().cast_mut(),
        };
        set_option(&self.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets an option whose value is plain data that the kernel only reads.
fn set_option<T: Copy>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of a live value; the instructions that a filter points to live as long
    // as the caller's slice.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many events one system call may bring.
const BATCH: usize = 128;
const BATCH_CALL: libc::c_uint = 128;
const ADDRESS: libc::socklen_t = 12;
const _: () = assert!(BATCH_CALL as usize == BATCH && ADDRESS as usize == size_of::<libc::sockaddr_nl>());
/// An event of an entry with everything switched on (labels, security context, two NAT sides) has under 700 bytes.
const EVENT: usize = 1024;

/// Room for the events of one system call, used again for each.
pub struct Batch {
    bytes: Box<[[u8; EVENT]]>,
    /// `None` where a message is not the kernel's.
    lengths: [Option<usize>; BATCH],
    received: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("received", &self.received).finish_non_exhaustive()
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self { bytes: vec![[0; EVENT]; BATCH].into_boxed_slice(), lengths: [None; BATCH], received: 0 }
    }
}

impl Batch {
    /// Takes what waits at a socket, and tells whether more may wait.
    pub fn receive(&mut self, events: &Events) -> io::Result<bool> {
        self.received = 0;
        // SAFETY: plain C structures, for which all zeroes is "nothing there".
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut senders: [libc::sockaddr_nl; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut slices: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        for (((header, sender), slice), bytes) in
            headers.iter_mut().zip(&mut senders).zip(&mut slices).zip(&mut *self.bytes)
        {
            *slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: EVENT };
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut *sender).cast();
            header.msg_hdr.msg_namelen = ADDRESS;
        }
        // SAFETY: each header describes a buffer and an address that live until the call returns.
        let received = unsafe {
            libc::recvmmsg(
                events.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH_CALL,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(false),
                io::ErrorKind::Interrupted => Ok(true),
                _ => Err(error),
            };
        }
        self.received = usize::try_from(received).unwrap_or(0);
        for ((length, header), sender) in self.lengths.iter_mut().zip(&headers[..self.received]).zip(&senders)
        {
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            *length = (sender.nl_pid == 0).then_some(if whole { header.msg_len as usize } else { 0 });
        }
        Ok(self.received == BATCH)
    }

    /// The kernel's messages that the last call brought; empty where one was cut.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let lengths = &self.lengths[..self.received];
        self.bytes.iter().zip(lengths).filter_map(|(bytes, length)| Some(&bytes[..(*length)?]))
    }

    /// How many messages of the last call were not the kernel's.
    pub fn forged(&self) -> usize {
        self.lengths[..self.received].iter().filter(|length| length.is_none()).count()
    }
}
