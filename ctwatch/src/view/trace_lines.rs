//! `trace` for people: one line an event, what happened first, to whom, and why.

use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::tz::TimeZone;

use ctwatch_ebpf::Group;

use super::Machine;
use super::plain::{DIM, RED, YELLOW, clean, level_style, paint, time_ms};
use crate::model::entry::Nat;
use crate::model::trace::{Certainty, Detail, Flow, Invalid, Names, OfEntry, Record};
use crate::model::verdict::weight;
use crate::model::{SourceInfo, SourceKind, protocol};

/// Stands between the two ends of a flow.
const ARROW: &str = ">";

/// Lines with times in one zone, coloured or not.
#[derive(Debug)]
pub struct TraceLines {
    zone: TimeZone,
    color: bool,
}

impl TraceLines {
    /// Lines with times in this zone.
    pub const fn new(zone: TimeZone, color: bool) -> Self {
        Self { zone, color }
    }

    /// What stands before the first event.
    pub fn start(&self, info: &SourceInfo, names: Names, per_second: u32) -> String {
        let names: Vec<&str> = names.iter().map(Group::name).collect();
        let by_netlink = info.kind == SourceKind::Netlink;
        let mut text = format!(
            "tracing {} by {}; at most {per_second} a second from each {}\n",
            names.join(", "),
            info.kind.name(),
            if by_netlink { "network namespace" } else { "CPU" }
        );
        if by_netlink {
            text += "evictions are inferred from the kernel's statistics; times are those of hearing of it\n";
        }
        if let Some(why) = &info.why {
            let _ =
                writeln!(text, "using {}, because no better source is available: {why}", info.kind.name());
        }
        self.paint(DIM, text.trim_end()) + "\n"
    }

    /// What stands before the events of a recorded run.
    pub fn start_recorded(&self, machine: &Machine, info: &SourceInfo) -> String {
        let (host, kernel) = (clean(&machine.host), clean(&machine.kernel));
        let text = format!("losses on {host}, Linux {kernel}, recorded by {}", info.kind.name());
        self.paint(DIM, &text) + "\n"
    }

    /// Recorded events of which only the number was kept.
    pub fn only_counted(&self, count: u64) -> String {
        self.paint(YELLOW, &format!("({count} more events were counted and not kept)")) + "\n"
    }

    /// One event, in the namespace of this name.
    pub fn record(&self, record: &Record, netns_name: &str) -> String {
        let name = self.paint(level_style(weight(record.name)), &format!("{:<13}", record.name.name()));
        let mut line =
            format!("{} {name} {}", time_ms(record.wall_ns, &self.zone), flow_text(&record.flow, ARROW));
        if let Some(why) = record.reason().or(record.cause()) {
            let _ = write!(line, "  {why}");
        }
        if matches!(record.name, Group::EarlyDrop | Group::Delete) {
            line += match (record.assured, record.replied) {
                (true, _) => "  assured",
                (false, true) => "  replied",
                (false, false) => "  unreplied",
            };
        }
        if record.certainty == Certainty::Inferred {
            line += "  inferred";
        }
        if let Some(age) = record.age {
            let _ = write!(line, "  after {:.1} s", age.as_secs_f64());
        }
        if let Some(newcomer) = &record.newcomer {
            let _ = write!(line, "  for {}", flow_text(newcomer, ARROW));
        }
        if let Some(entry) = &record.entry {
            line += &entry_text(entry);
        }
        if let Some(invalid) = &record.invalid {
            line += &invalid_text(invalid, &record.flow);
        }
        if netns_name != "init" {
            let _ = write!(line, "  netns {}", clean(netns_name));
        }
        if let Some(comm) = &record.comm {
            let _ = write!(line, "  by {}", clean(comm));
        }
        line.push('\n');
        line
    }

    /// Events that were held back.
    pub fn suppressed(&self, count: u64) -> String {
        self.paint(YELLOW, &format!("({count} more events not shown: --max-events)")) + "\n"
    }

    /// Events that are known to have been missed by this source.
    pub fn lost(&self, count: u64, kind: SourceKind) -> String {
        let why = match kind {
            SourceKind::Netlink => {
                "no room for them, not announced, or evictions that could not be told from other deletes"
            }
            _ => "the kernel skipped programs",
        };
        self.paint(RED, &format!("!{count} events missed: {why}")) + "\n"
    }

    fn paint(&self, style: &str, text: &str) -> String {
        paint(self.color, style, text)
    }
}

/// What NAT changes and a mark, where there is any: most entries have neither.
fn entry_text(entry: &OfEntry) -> String {
    let mut text = String::new();
    if entry.nat != Nat::None {
        let _ = write!(text, "  {}, answers {}", entry.nat.name(), ends_text(&entry.reply, ARROW));
    }
    if entry.mark != 0 {
        let _ = write!(text, "  mark {:#x}", entry.mark);
    }
    text
}

/// The numbers of an invalid packet, the kernel's words, and its flow where that is not the packet's own two ends.
fn invalid_text(Invalid { detail, known, tcp }: &Invalid, own: &Flow) -> String {
    let mut text = String::new();
    if let Some(tcp) = tcp {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set: Vec<&str> =
            (0..).zip(names).filter(|(bit, _)| tcp.flags >> bit & 1 != 0).map(|(_, name)| name).collect();
        let flags = if set.is_empty() { "no flags".to_owned() } else { set.join(",") };
        let _ = write!(text, "  {flags} seq {} ack {} win {}", tcp.seq, tcp.ack, tcp.win);
    }
    if let Some(detail) = detail {
        let _ = write!(text, "  \"{}\"", clean(detail));
    }
    if let Some(known) = known.as_ref().filter(|known| *known != own) {
        let _ = write!(text, "  of {}", flow_text(known, ARROW));
    }
    text
}

/// A flow in its first packet's direction.
pub(super) fn flow_text(flow: &Flow, arrow: &str) -> String {
    let mut text = format!("{} {}", protocol::name(flow.proto), ends_text(flow, arrow));
    if flow.zone != 0 {
        let _ = write!(text, " zone {}", flow.zone);
    }
    text
}

/// The ends of one direction.
fn ends_text(flow: &Flow, arrow: &str) -> String {
    let Flow { src, dst, .. } = *flow;
    match flow.detail {
        Detail::Ports(sport, dport) => format!("{} {arrow} {}", end(src, sport), end(dst, dport)),
        Detail::Icmp { kind, code, id } => format!("{src} {arrow} {dst} type {kind} code {code} id {id}"),
        Detail::None => format!("{src} {arrow} {dst}"),
    }
}

fn end(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
