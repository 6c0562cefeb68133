//! Packets that conntrack cannot assign to a flow, through a router: by flow type and reason, and the kernel's own
//! counter as the witness.

pub(super) mod calm;
pub(super) mod router;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::super::ctwatch::{self, Ended, PATIENCE, Running, Totals, Watch};
use super::super::traffic::Family;
use super::super::traffic::crafted::{
    ACK, Crafted, FIN, ICMP, ICMPV6, RST, SCTP, SYN, Segment, TCP, UDP, WINDOW, host,
};
use super::super::trial::equal;
use super::doctor::doctor_while;
use super::{Scenario, Skip, scenario};
use router::Router;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("invalid::datagrams", datagrams),
    scenario("invalid::out_of_window", out_of_window),
    scenario("invalid::states", states),
    scenario("invalid::accepted", accepted),
    scenario("invalid::unsaid", unsaid),
    scenario("invalid::filters", filters),
    scenario("invalid::traced", traced),
    scenario("invalid::doctor", doctor),
];

/// Of each kind of packet.
const EACH: u16 = 50;

/// What a run came to, reason by reason.
struct Found<'a> {
    router: &'a Router,
    totals: Totals,
    /// What the kernel counted.
    kernel: u64,
}

impl Found<'_> {
    /// Whether the source tells reasons and flow types.
    fn tells(&self) -> bool {
        self.totals.silence.kind != "netlink"
    }

    /// The count of one reason in one flow type.
    fn equal(&self, family: Family, proto: u8, reason: &str, witness: u64) -> anyhow::Result<()> {
        if !self.tells() {
            return Ok(());
        }
        let field = format!("invalid.{reason}");
        let told = self.router.get(&self.totals, family, proto, &field);
        equal(&format!("{field} of {family:?} {proto}: {}", self.totals), told, witness)
    }

    /// The sum is what the kernel counted, less what ctwatch says that it missed.
    fn sum(&self, lost: u64) -> anyhow::Result<()> {
        let told = self.totals.sum_in(self.router.inode(), "invalid");
        equal(&format!("invalid: {}", self.totals), told + lost, self.kernel)
    }
}

/// Watches a router while packets pass it.
fn watched<'a>(
    router: &'a Router,
    args: &[&str],
    send: impl FnOnce(&Router, &mut Watch) -> anyhow::Result<()>,
) -> anyhow::Result<Found<'a>> {
    let before = router.invalid()?;
    let mut watch = Watch::start(args)?;
    send(router, &mut watch)?;
    let kernel = router.invalid()? - before;
    let totals = watch.stop()?;
    Ok(Found { router, totals, kernel })
}

/// Bad checksums and wrong lengths of UDP, bad checksums of TCP, bad flags, SCTP with a bad sum; IPv4 and IPv6.
fn datagrams() -> anyhow::Result<()> {
    let router = Router::new()?;
    let each = u64::from(EACH);
    let found = watched(&router, &[], |router, _| {
        let mut packets = Vec::new();
        for family in Family::BOTH {
            for number in 1..=EACH {
                let (client, server) = (host(family, false, number), host(family, true, number));
                let udp = |length| Crafted::udp(client, server, (4000, 53), length);
                let tcp = |flags| {
                    Crafted::tcp(client, server, (4000, 80), Segment { seq: 1, flags, ..Segment::default() })
                };
                packets.extend([
                    udp(16).with_bad_sum(),
                    // Longer than the packet, and shorter than its own header.
                    udp(99),
                    udp(3),
                    tcp(SYN).with_bad_sum(),
                    tcp(SYN | FIN),
                    tcp(0),
                    Crafted::sctp(client, server, (4000, 2905), 0, 1),
                ]);
            }
        }
        router.send(&packets)
    })?;
    for family in Family::BOTH {
        found.equal(family, UDP, "bad_checksum", each)?;
        found.equal(family, UDP, "malformed", 2 * each)?;
        found.equal(family, TCP, "bad_checksum", each)?;
        found.equal(family, TCP, "malformed", 2 * each)?;
        found.equal(family, SCTP, "bad_checksum", each)?;
    }
    equal("packets and the kernel's counters", found.kernel, 14 * each)?;
    equal("packets and nft's counter", router.rule()?, 14 * each)?;
    found.sum(0)
}

/// The incident: 900 segments outside the window, among 20,000 healthy flows.
fn out_of_window() -> anyhow::Result<()> {
    const FAR: u64 = 900;
    let router = Router::new()?;
    let found = watched(&router, &[], |router, watch| {
        for family in Family::BOTH {
            let ends = (host(family, false, 1), host(family, true, 1));
            router.send(&Router::handshake(ends, (4000, 80)))?;
            let segments: Vec<Crafted> = (0..FAR).map(|_| far(ends)).collect();
            let (first, second) = segments.split_at(segments.len() / 2);
            router.send(first)?;
            router.flood(family, 10_000)?;
            router.send(second)?;
        }
        watch.wait_sum("insert", 20_002)
    })?;
    for family in Family::BOTH {
        found.equal(family, TCP, "out_of_window", FAR)?;
    }
    equal("segments and the kernel's counters", found.kernel, 2 * FAR)?;
    equal("segments and nft's counter", router.rule()?, 2 * FAR)?;
    found.sum(0)
}

/// A segment beyond the window that the server offered.
fn far(ends: (IpAddr, IpAddr)) -> Crafted {
    let seq = 1001 + u32::from(WINDOW) * 16;
    Crafted::tcp(ends.0, ends.1, (4000, 80), Segment { seq, ack: 5001, flags: ACK, length: 100 })
}

/// What a connection's state does not allow.
fn states() -> anyhow::Result<()> {
    let router = Router::new()?;
    let each = u64::from(EACH);
    let found = watched(&router, &[], |router, _| {
        let mut packets = Vec::new();
        for family in Family::BOTH {
            for number in 1..=EACH {
                let ends = (host(family, false, number), host(family, true, number));
                // A SYN, and a FIN before the answer.
                let segment = |seq, flags| {
                    Crafted::tcp(ends.0, ends.1, (4000, 80), Segment { seq, flags, ..Segment::default() })
                };
                packets.extend([segment(1000, SYN), segment(1001, FIN | ACK)]);
            }
        }
        router.send(&packets)
    })?;
    for family in Family::BOTH {
        found.equal(family, TCP, "bad_state", each)?;
    }
    equal("packets and the kernel's counters", found.kernel, 2 * each)?;
    found.sum(0)
}

/// The kernel says something about these, and accepts them: a SYN on an established connection, and since 6.1 an
/// acknowledgement of long ago. A connection that is opened again is no invalid packet either.
fn accepted() -> anyhow::Result<()> {
    let router = Router::new()?;
    let found = watched(&router, &[], |router, _| {
        let mut packets = Vec::new();
        for number in 1..=EACH {
            let ends = (host(Family::V4, false, number), host(Family::V4, true, number));
            packets.extend(Router::handshake(ends, (4000, 80)));
            let segment = |seq, flags| Segment { seq, ack: 5001, flags, length: 0 };
            let from_client = |segment| Crafted::tcp(ends.0, ends.1, (4000, 80), segment);
            packets.push(from_client(segment(9_000_000, SYN)));
            // Reset, and opened again at once.
            packets.extend([from_client(segment(1001, RST | ACK)), from_client(segment(2_000_000, SYN))]);
        }
        router.send(&packets)
    })?;
    equal("packets and nft's counter", router.rule()?, 0)?;
    if found.tells() {
        equal(&format!("invalid: {}", found.totals), found.totals.sum("invalid"), 0)?;
        // On 5.10 the kernel's counter has the connections that were opened again.
        anyhow::ensure!(found.totals.lost()? <= found.kernel, "{}", found.totals);
        return Ok(());
    }
    found.sum(0)
}

/// About these the kernel says nothing: segments of connections that it does not know with tcp_loose off, SYN/ACKs that
/// come late (until 6.1), ICMP errors about nothing, echo replies that nobody asked for.
fn unsaid() -> anyhow::Result<()> {
    let router = Router::new()?;
    router.set("nf_conntrack_tcp_loose", 0)?;
    let each = u64::from(EACH);
    let found = watched(&router, &[], |router, watch| {
        // The first ones are missed, and said to be.
        let (client, server) = (host(Family::V4, false, 999), host(Family::V4, true, 999));
        let ack = |ends: (_, _)| {
            let segment = Segment { seq: 7, ack: 7, flags: ACK, length: 1 };
            Crafted::tcp(ends.0, ends.1, (4000, 80), segment)
        };
        router.send(&[ack((client, server))])?;
        if watch_tells(watch)? {
            watch.wait_object("the first one", |object| object["source"]["lost"].as_u64() == Some(1))?;
        }
        let mut packets = Vec::new();
        for family in Family::BOTH {
            let (error, reply) = if family == Family::V4 { (3, 0) } else { (1, 129) };
            for number in 1..=EACH {
                let ends = (host(family, false, number), host(family, true, number));
                let unknown = Crafted::udp(ends.0, ends.1, (4000, 53), 16);
                let late = Segment { seq: 5000, ack: 1001, flags: SYN | ACK, length: 0 };
                packets.extend([
                    ack(ends),
                    Crafted::tcp(ends.0, ends.1, (4001, 80), late),
                    Crafted::icmp(ends.1, ends.0, error, Some(&unknown)),
                    Crafted::icmp(ends.0, ends.1, reply, None),
                ]);
            }
        }
        router.send(&packets)
    })?;
    for family in Family::BOTH {
        let icmp = if family == Family::V4 { ICMP } else { ICMPV6 };
        found.equal(family, icmp, "unrelated", each)?;
        found.equal(family, icmp, "other", each)?;
        // On later kernels than 6.1 there are words for a SYN/ACK out of the blue.
        let told = |reason: &str| router.get(&found.totals, family, TCP, &format!("invalid.{reason}"));
        if found.tells() {
            equal(&format!("TCP: {}", found.totals), told("other") + told("bad_state"), 2 * each)?;
            anyhow::ensure!(told("other") >= each, "{}", found.totals);
        }
    }
    equal("packets and the kernel's counters", found.kernel, 8 * each + 1)?;
    equal("packets and nft's counter", router.rule()?, 8 * each + 1)?;
    found.sum(found.totals.lost()?)
}

fn watch_tells(watch: &mut Watch) -> anyhow::Result<bool> {
    let mut kind = String::new();
    watch.wait_object("an object", |object| {
        object["source"]["kind"].as_str().unwrap_or_default().clone_into(&mut kind);
        true
    })?;
    Ok(kind != "netlink")
}

/// Filters by type, port and network.
fn filters() -> anyhow::Result<()> {
    let router = Router::new()?;
    for (args, v4, v6) in [
        (&["--proto", "udp", "--family", "ipv6"][..], 0, 30),
        (&["--port", "53", "--net", "10.97.0.0/28"], 30, 0),
        (&["--netns", "init"], 0, 0),
    ] {
        let found = watched(&router, args, |router, _| {
            let mut packets = Vec::new();
            for family in Family::BOTH {
                for number in 1..=10 {
                    let ends = (host(family, false, number), host(family, true, number));
                    let udp = || Crafted::udp(ends.0, ends.1, (4000, 53), 16).with_bad_sum();
                    let segment = Segment { seq: 1, flags: SYN | FIN, ..Segment::default() };
                    let tcp = || Crafted::tcp(ends.0, ends.1, (4000, 80), segment);
                    packets.extend([udp(), udp(), udp(), tcp(), tcp()]);
                }
            }
            router.send(&packets)
        })?;
        if !found.tells() {
            continue;
        }
        let told = ["ipv4", "ipv6"].map(|family| found.totals.sum_of_family(family, "invalid"));
        equal(&format!("{args:?}: {}", found.totals), told, [v4, v6])?;
        equal("lost", found.totals.lost()?, 0)?;
    }
    Ok(())
}

/// One object for each packet, with its ends, the kernel's words, its flow and its numbers.
fn traced() -> anyhow::Result<()> {
    if ctwatch::source() == "netlink" {
        return Err(Skip("the netlink source cannot trace".to_owned()).into());
    }
    let router = Router::new()?;
    let ends = (host(Family::V4, false, 1), host(Family::V4, true, 1));
    router.send(&Router::handshake(ends, (4000, 80)))?;
    let mut running = Running::spawn(std::process::Command::new(ctwatch::program()).args([
        "trace",
        "--json",
        "--events",
        "-all,invalid",
        "--source",
        ctwatch::source(),
    ]))?;
    // Datagrams of their own until one is told of: from then on nothing may be missing.
    let marker = Crafted::udp(ends.0, ends.1, (9, 9), 16).with_bad_sum();
    let mut objects: Vec<Value> = Vec::new();
    let start = Instant::now();
    while objects.is_empty() {
        anyhow::ensure!(start.elapsed() < PATIENCE, "ctwatch traced nothing in {PATIENCE:?}");
        router.send(std::slice::from_ref(&marker))?;
        objects.extend(running.next(Duration::from_secs(1))?);
    }
    let reply = Crafted::icmp(ends.1, ends.0, 0, None);
    router.send(&[far(ends), far(ends), reply])?;
    running.signal(Signal::SIGINT)?;
    let Ended { objects: rest, stderr, status } = running.end()?;
    anyhow::ensure!(status.success(), "{status}: {stderr}");
    objects.extend(rest);
    let of = |key: &str, value: &str| -> Vec<&Value> {
        objects.iter().filter(|object| object[key] == value).collect()
    };
    let markers = of("reason", "bad_checksum");
    let first = markers.first().context("no marker")?;
    equal("detail of a bad sum", first["detail"].as_str(), Some("bad checksum"))?;
    equal("its flow", first["known_flow"].is_null(), true)?;
    let outside = of("reason", "out_of_window");
    equal("segments outside the window", outside.len(), 2)?;
    for object in outside {
        equal("event", object["event"].as_str(), Some("invalid"))?;
        equal("netns", object["netns"].as_u64(), Some(router.inode()))?;
        equal("src", object["src"].as_str(), Some(ends.0.to_string().as_str()))?;
        equal("ports", (object["sport"].as_u64(), object["dport"].as_u64()), (Some(4000), Some(80)))?;
        equal("its flow", object["known_flow"]["dst"].as_str(), Some(ends.1.to_string().as_str()))?;
        let tcp = &object["tcp"];
        let seq = u64::from(1001 + u32::from(WINDOW) * 16);
        equal("seq and ack", (tcp["seq"].as_u64(), tcp["ack"].as_u64()), (Some(seq), Some(5001)))?;
        let detail = object["detail"].as_str().unwrap_or_default();
        anyhow::ensure!(detail.starts_with("SEQ is over"), "detail of {object}");
    }
    let echoes = of("proto", "icmp");
    equal("echo replies", echoes.len(), 1)?;
    equal("reason", echoes[0]["reason"].as_str(), Some("other"))?;
    equal("detail", echoes[0]["detail"].is_null(), true)
}

/// Doctor names rate, reason and the rule that drops them; or the chain that drops what no rule accepts.
fn doctor() -> anyhow::Result<()> {
    const ACCEPTED_ALONE: &str = "table inet watched {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid counter
    ct state established,related accept
  }
}
";
    let router = Router::new()?;
    let ends = (host(Family::V4, false, 1), host(Family::V4, true, 1));
    router.send(&Router::handshake(ends, (4000, 80)))?;
    let packets: Vec<Crafted> = (0..20).map(|_| far(ends)).collect();
    let source = ctwatch::source();
    let answer = doctor_while(&["--source", source], || router.send(&packets))?;
    equal("status", answer.status(), "warning")?;
    let finding = answer.finding("invalid-packets")?;
    equal("status of the finding", finding["status"].as_str(), Some("warning"))?;
    let text = finding.to_string();
    anyhow::ensure!(text.contains("ct state invalid"), "the rule is missing: {text}");
    if source != "netlink" {
        anyhow::ensure!(text.contains("out_of_window"), "the reason is missing: {text}");
        anyhow::ensure!(text.contains("nf_conntrack_tcp_be_liberal=1"), "no remedy: {text}");
    }
    router.rules(ACCEPTED_ALONE)?;
    let before = router.invalid()?;
    let answer = doctor_while(&["--source", source], || router.send(&packets))?;
    equal("invalid by the rule", router.rule()?, router.invalid()? - before)?;
    equal("status under a chain that drops the rest", answer.status(), "warning")?;
    let what = answer.finding("invalid-packets")?["what"].to_string();
    anyhow::ensure!(what.contains("a chain drops what no rule accepts"), "{what}");
    Ok(())
}
