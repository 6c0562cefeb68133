//! What NAT, zones, marks and accounting leave in entries: the groups and filters of both directions.

use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;
use serde_json::Value;

use super::super::super::space::Space;
use super::super::super::state;
use super::super::super::traffic::{Family, Flows, raw, tcp};
use super::listed::{Line, compare};
use super::{both, fresh, init, objects, of_space};

pub(super) const RULES: &str = "table ip translate {
  chain zoned {
    type filter hook output priority -300;
    ip daddr 127.64.9.9 ct zone set 9
  }
  chain targets {
    type nat hook output priority -100;
    ip daddr 127.64.1.1 udp dport 5353 dnat to 127.64.7.7:53
    ip daddr 127.64.1.3 udp dport 5353 dnat to 127.64.7.7:53
  }
  chain marked {
    type filter hook output priority 0;
    ip daddr 127.64.9.8 ct mark set 0x4001
  }
  chain sources {
    type nat hook postrouting priority 100;
    ip daddr 127.64.1.2 udp dport 5353 snat to 127.64.8.8:2000-2007
    ip daddr 127.64.7.7 ct original ip daddr 127.64.1.3 snat to 127.64.8.9
  }
}
";

/// Groups by both directions, and filters by them, are those of `conntrack -L`.
pub(super) fn both_directions() -> anyhow::Result<()> {
    const GROUPINGS: [&[&str]; 5] = [
        &["rsrc"],
        &["nat"],
        &["zone", "mark", "offload"],
        &["proto", "dport", "rsrc", "rsport", "nat"],
        &["src", "dst", "rsrc", "rdst", "rdport"],
    ];
    type Fits = fn(&Line) -> bool;
    const CASES: [(&[&str], Fits); 11] = [
        (&["--net", "127.64.7.7/32"], |line| line.is("rsrc", "127.64.7.7")),
        (&["--port", "53"], |line| line.is("rsport", "53")),
        (&["--net", "127.64.1.1", "--port", "53"], |line| line.is("dst", "127.64.1.1")),
        (&["--rsrc", "127.64.7.0/24"], |line| line.is("rsrc", "127.64.7.7")),
        (&["--rsport", "53"], |line| line.is("rsport", "53")),
        (&["--rdst", "127.64.8.8"], |line| line.is("rdst", "127.64.8.8")),
        (&["--rdport", "2000,2001,2002,2003"], |line| {
            line.has(["rdport"; 2], |port| {
                port.parse::<u16>().is_ok_and(|port| (2000..=2003).contains(&port))
            })
        }),
        (&["--nat", "dnat"], |line| line.is("nat", "dnat")),
        (&["--nat", "snat,both"], |line| line.is("nat", "snat") || line.is("nat", "both")),
        (&["--zone", "9"], |line| line.is("zone", "9")),
        (&["--mark", "0x4000/0x4000"], |line| line.is("mark", "16385")),
    ];
    let space = init();
    fresh(&[&space])?;
    let accounting = Accounting::on()?;
    state::rules(&space, RULES)?;
    let _held = translated()?;
    let ask = |asked: &[&str], by: &str| -> anyhow::Result<Value> {
        let args = [asked, &["--by", by, "--netns", "init"]].concat();
        of_space(&objects(&args)?.0, &space)
    };
    // One reading by the witness for all of them: reading takes longest.
    let ((groups, filtered), lines) = both(&[&space], || {
        let groups = GROUPINGS.iter().map(|by| ask(&[], &by.join(",")));
        let filtered = CASES.iter().map(|(asked, _)| ask(asked, "proto,rsrc,rdst"));
        Ok((groups.collect::<anyhow::Result<Vec<_>>>()?, filtered.collect::<anyhow::Result<Vec<_>>>()?))
    })?;
    let lines = &lines[0];
    anyhow::ensure!(lines.iter().all(|line| line.traffic.is_some()), "entries without accounts");
    for nat in ["none", "snat", "dnat", "both"] {
        anyhow::ensure!(lines.iter().any(|line| line.is("nat", nat)), "no entry with nat {nat}");
    }
    for (object, by) in groups.iter().zip(GROUPINGS) {
        compare(object, lines, by)?;
    }
    for (object, (asked, fits)) in filtered.iter().zip(CASES) {
        let wanted: Vec<Line> = lines.iter().filter(|line| fits(line)).cloned().collect();
        anyhow::ensure!(!wanted.is_empty() && wanted.len() < lines.len(), "{asked:?} tells nothing apart");
        compare(object, &wanted, &["proto", "rsrc", "rdst"]).with_context(|| format!("{asked:?}"))?;
    }
    drop(accounting);
    fresh(&[&space])
}

/// Flows that each of the rules meets, and some that none does.
pub(super) fn translated() -> anyhow::Result<tcp::Held> {
    let mut held = tcp::Held::default();
    for (target, count) in [
        ("127.64.1.1:5353", 12),
        ("127.64.1.2:5353", 7),
        ("127.64.1.3:5353", 4),
        ("127.64.9.9:7", 5),
        ("127.64.9.8:7", 3),
        ("127.64.9.7:7", 2),
    ] {
        let target: SocketAddr = target.parse()?;
        // All open at once, so that no port is used twice.
        let sockets = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        for socket in &sockets {
            socket.send_to(b"ctwatch", target).with_context(|| format!("send to {target}"))?;
        }
    }
    raw::echo(Flows::new(Family::V4, 4))?;
    raw::echo(Flows::new(Family::V6, 3))?;
    raw::protocol(Flows::new(Family::V4, 2), raw::GRE)?;
    tcp::hold(Flows::new(Family::V4, 6), &mut held)?;
    Ok(held)
}

/// The kernel accounts while this lives.
pub(super) struct Accounting;

impl Accounting {
    pub(super) fn on() -> anyhow::Result<Self> {
        state::set("nf_conntrack_acct", 1)?;
        Ok(Self)
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if let Err(error) = Space::init().enter(|| state::set("nf_conntrack_acct", 0)) {
            eprintln!("switch accounting off: {error:#}");
        }
    }
}
