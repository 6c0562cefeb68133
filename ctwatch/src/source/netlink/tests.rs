//! Against this machine's kernel, in namespaces that only a test's thread is in. They need root and ctnetlink, and say
//! so where they cannot run: nothing is loaded for them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ctwatch_ebpf::{AF_INET, Counters, Event as Counted, FlowType};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, send, sendto,
};

use super::account::Account;
use super::entry::{Entry, L4};
use super::follower::total_memory;
use super::message::build::{attribute, message, nest};
use super::message::{CT_DELETE, CT_GET, CT_NEW, ERROR, Messages};
use super::socket::{Batch, Requests};
use super::watched::Watched;
use super::*;
use crate::model::Protocols;

/// Runs in a fresh namespace, or says why not.
fn in_fresh_namespace(test: impl FnOnce(u32) + Send) {
    if let Err(missing) = presence::check() {
        eprintln!("skipped: {}", missing.text());
        return;
    }
    thread::scope(|scope| {
        let inside = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => test(Roots::default().own().unwrap()),
            Err(error) => eprintln!("skipped: no namespace of its own ({error}): run as root"),
        });
        inside.join().unwrap();
    });
}

/// Adds entries by request: `conntrack -I` for each source port.
struct Maker {
    requests: Requests,
}

impl Maker {
    fn new() -> Self {
        Self { requests: Requests::open().unwrap() }
    }

    fn request(&self, mut bytes: Vec<u8>, flags: u16) {
        /// `NLM_F_REQUEST | NLM_F_ACK`.
        const ACKNOWLEDGED: u16 = 5;
        bytes[6..8].copy_from_slice(&(ACKNOWLEDGED | flags).to_ne_bytes());
        let fd = self.requests.as_raw();
        send(fd, &bytes, MsgFlags::empty()).unwrap();
        let mut answer = [0; 512];
        let length = recv(fd, &mut answer, MsgFlags::empty()).unwrap();
        let answer = Messages::new(&answer[..length]).next().unwrap();
        assert_eq!((answer.kind, answer.error()), (ERROR, 0));
    }

    fn insert(&self, proto: u8, port: u16, timeout: u32) {
        /// `NLM_F_CREATE | NLM_F_EXCL`.
        const CREATE: u16 = 0x600;
        let (client, server, service) = ([10, 0, 0, 1], [10, 0, 0, 2], 53u16);
        let tuple = |kind, src: &[u8; 4], dst: &[u8; 4], sport: u16, dport: u16| {
            let ports = [attribute(2, &sport.to_be_bytes()), attribute(3, &dport.to_be_bytes())];
            let proto = nest(2, &[attribute(1, &[proto]), ports.concat()]);
            nest(kind, &[nest(1, &[attribute(1, src), attribute(2, dst)]), proto])
        };
        let parts = [
            tuple(1, &client, &server, port, service),
            tuple(2, &server, &client, service, port),
            attribute(7, &timeout.to_be_bytes()),
        ];
        self.request(message(CT_NEW, 0, AF_INET, &parts), CREATE);
    }

    fn flush(&self) {
        self.request(message(CT_DELETE, 0, AF_INET, &[]), 0);
    }
}

/// A whole settlement, waited for.
fn settle(watched: &mut Watched) {
    let number = watched.begin();
    loop {
        watched.advance(Instant::now(), &mut Batch::default());
        assert!(watched.failed().is_none(), "{:?}", watched.failed());
        let Some(due) = watched.due(number) else { return };
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

impl Requests {
    fn as_raw(&self) -> i32 {
        use std::os::fd::AsFd as _;
        self.as_fd().as_raw_fd()
    }
}

#[test]
fn memory_is_read_in_bytes() {
    assert_eq!(total_memory("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
    assert_eq!(total_memory("MemFree: 1 kB\n"), None);
}

fn sum(account: &Account, event: Counted) -> u64 {
    account.rows().map(|(_, counters)| counters.get(event)).sum()
}

#[test]
fn as_root_every_insert_and_delete_is_heard() {
    in_fresh_namespace(|netns| {
        let mut watched = Watched::open(netns, &Filter::default(), &[], 8 << 20, false, None).unwrap();
        let maker = Maker::new();
        for port in 1..=1000 {
            maker.insert(17, port, 600);
        }
        maker.insert(6, 1, 600);
        settle(&mut watched);
        let udp = FlowType { netns, family: AF_INET, proto: 17 };
        let rows: BTreeMap<FlowType, Counters> = watched.account.rows().collect();
        assert_eq!(rows[&udp].get(Counted::InsertNetlink), 1000);
        assert_eq!(rows[&FlowType { proto: 6, ..udp }].get(Counted::InsertNetlink), 1);
        assert_eq!(rows.len(), 2);

        let mut ports = BTreeSet::new();
        let mut requests = Requests::open().unwrap();
        let dumped = requests.dump(CT_GET, AF_INET, |message| {
            let entry = Entry::parse(message).unwrap();
            assert!(
                entry.timeout.is_some_and(|left| left > 500) && entry.id.is_some() && entry.reply.is_some()
            );
            if let (17, L4::Ports { src, dst: 53 }) = (entry.original.proto, entry.original.l4) {
                ports.insert(src);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(dumped.unwrap(), socket::Dumped::Complete);
        assert!(ports.into_iter().eq(1..=1000));

        maker.flush();
        settle(&mut watched);
        assert_eq!(sum(&watched.account, Counted::DeleteNetlink), 1001);
        assert_eq!(watched.account.lost(), 0);
    });
}

#[test]
fn as_root_entries_that_expire_are_told_from_others() {
    in_fresh_namespace(|netns| {
        let mut watched = Watched::open(netns, &Filter::default(), &[], 8 << 20, false, None).unwrap();
        let maker = Maker::new();
        maker.insert(17, 1, 1);
        let started = Instant::now();
        let mut requests = Requests::open().unwrap();
        // A dump removes what has expired (ctnetlink_dump_table), without waiting for the collector.
        while sum(&watched.account, Counted::DeleteTimeout) + sum(&watched.account, Counted::DeleteOther) == 0
        {
            assert!(started.elapsed() < Duration::from_secs(30), "the entry never left");
            requests.dump(CT_GET, AF_INET, |_| ControlFlow::Continue(())).unwrap();
            settle(&mut watched);
        }
        if watched.account.tells_time_left() {
            assert_eq!(sum(&watched.account, Counted::DeleteTimeout), 1);
        }
    });
}

#[test]
fn as_root_what_finds_no_room_is_counted_exactly() {
    in_fresh_namespace(|netns| {
        // The kernel gives a queue 2,304 bytes at least (SOCK_MIN_RCVBUF).
        let mut watched = Watched::open(netns, &Filter::default(), &[], 1, false, None).unwrap();
        let maker = Maker::new();
        for port in 1..=1000 {
            maker.insert(17, port, 600);
        }
        settle(&mut watched);
        let (heard, lost) = (sum(&watched.account, Counted::InsertNetlink), watched.account.lost());
        assert!(lost > 900, "{lost}");
        assert_eq!(heard + lost, 1000);
        assert_eq!(sum(&watched.account, Counted::Insert), lost);
    });
}

#[test]
fn as_root_a_namespace_that_is_found_while_entries_come_misses_none() {
    in_fresh_namespace(|netns| {
        const ENTRIES: u16 = 3000;
        let (began, begins) = mpsc::channel();
        let maker = thread::spawn(move || {
            let maker = Maker::new();
            for port in 1..=ENTRIES {
                maker.insert(17, port, 600);
                if port == 500 {
                    began.send(()).unwrap();
                }
            }
        });
        begins.recv().unwrap();
        let mut watched = Watched::open(netns, &Filter::default(), &[], 8 << 20, true, None).unwrap();
        maker.join().unwrap();
        settle(&mut watched);
        let told = sum(&watched.account, Counted::Insert) + sum(&watched.account, Counted::InsertNetlink);
        // One may be allocated and not yet inserted when entries are counted.
        assert!((ENTRIES.into()..=u64::from(ENTRIES) + 1).contains(&told), "{told} inserts");
        assert!(watched.account.lost() >= 500, "{} from before", watched.account.lost());
    });
}

#[test]
fn as_root_unwanted_protocols_never_reach_the_queue() {
    in_fresh_namespace(|netns| {
        let mut protos = Protocols::default();
        protos.insert(6);
        protos.insert(132);
        for family in [None, Some(AF_INET)] {
            let filter = Filter { protos: Some(protos), family, ..Filter::default() };
            let mut watched =
                Watched::open(netns, &filter, &filter::program(&filter), 8 << 20, false, None).unwrap();
            let maker = Maker::new();
            for port in 1..=100 {
                maker.insert(17, port, 600);
            }
            maker.insert(6, 1, 600);
            assert_eq!(watched.drain(&mut Batch::default()), 1);
            assert_eq!(sum(&watched.account, Counted::InsertNetlink), 1);
            maker.flush();
            assert_eq!(watched.drain(&mut Batch::default()), 1);
            let other = Filter { family: Some(ctwatch_ebpf::AF_INET6), ..filter };
            let mut deaf =
                Watched::open(netns, &other, &filter::program(&other), 8 << 20, false, None).unwrap();
            maker.insert(6, 2, 600);
            assert_eq!(deaf.drain(&mut Batch::default()), 0);
            maker.flush();
        }
    });
}

#[test]
fn as_root_messages_of_others_are_ignored() {
    in_fresh_namespace(|netns| {
        let mut watched = Watched::open(netns, &Filter::default(), &[], 8 << 20, false, None).unwrap();
        let maker = Maker::new();
        maker.insert(17, 1, 600);
        // A multicast message of another process, which the kernel delivers as it does its own.
        let forger = nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .unwrap();
        for bytes in [&message(CT_NEW, 0, AF_INET, &[])[..], &[0; 4], &[0; 64]] {
            for group in [1 << (socket::Group::New as u32 - 1), 1 << (socket::Group::Destroy as u32 - 1)] {
                let to = NetlinkAddr::new(0, group);
                sendto(forger.as_raw_fd(), bytes, &to, MsgFlags::empty()).unwrap();
            }
        }
        settle(&mut watched);
        assert_eq!(sum(&watched.account, Counted::InsertNetlink), 1);
        assert_eq!(watched.account.rows().count(), 1);
        assert_eq!(watched.account.lost(), 0);
    });
}
