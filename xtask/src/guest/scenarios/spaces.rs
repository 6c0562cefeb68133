//! Several namespaces, one that goes away, and translated addresses.

use anyhow::Context;

use super::super::space::{Space, checked};
use super::super::state;
use super::super::traffic::{Family, Flows, PORT, udp};
use super::super::trial::Trial;
use super::super::witness;
use super::{Scenario, init, scenario, traffic};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("netns::two_at_once", two_at_once),
    scenario("netns::full_in_one", full_in_one),
    scenario("netns::exit", exit),
    scenario("nat::dnat", dnat),
    scenario("nat::masquerade_routed", masquerade),
];

/// Traffic in three namespaces at the same time, another amount in each.
fn two_at_once() -> anyhow::Result<()> {
    let (first, one, two) = (init(), Space::create("one")?, Space::create("two")?);
    let trial = Trial::start(&[&first, &one, &two], &[], || Ok(()))?;
    let made = std::thread::scope(|scope| {
        let running = [(&first, 1000), (&one, 3000), (&two, 2000)]
            .map(|(space, n)| scope.spawn(move || traffic::in_space(space, n)));
        running.map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a generator panicked"))?)
    });
    let finding = trial.finish()?;
    for ((space, flows), half) in [&first, &one, &two].into_iter().zip(made).zip([1000, 3000, 2000]) {
        finding.equal(
            &format!("inserts in {}", space.label()),
            finding.totals.sum_in(space.inode, "insert"),
            flows?,
        )?;
        for family in Family::BOTH {
            let what = format!("{family:?} inserts in {}", space.label());
            finding.equal(&what, finding.get_in(space.inode, family, 17, "insert"), half)?;
        }
        named(finding.totals.objects.last(), space)?;
    }
    finding.equal("inserts anywhere", finding.totals.sum("insert"), 12_000)
}

/// The last object's table has the namespace under its name.
fn named(object: Option<&serde_json::Value>, space: &Space) -> anyhow::Result<()> {
    let tables = object.and_then(|object| object["table"].as_array()).map(Vec::as_slice).unwrap_or_default();
    let table = tables.iter().find(|table| table["netns"] == space.inode);
    anyhow::ensure!(
        table.is_some_and(|table| table["name"] == space.label()),
        "no table of {} ({}) in {tables:?}",
        space.label(),
        space.inode
    );
    Ok(())
}

/// The limit holds for each namespace by itself: one is full, the other is not.
fn full_in_one() -> anyhow::Result<()> {
    let (first, other) = (init(), Space::create("other")?);
    let trial = Trial::start(&[&first, &other], &[], || state::set("nf_conntrack_max", 1500))?;
    let calm = traffic::in_space(&first, 500)?;
    let sent = other.enter(|| udp::send(Flows::new(Family::V4, 10_000)))?;
    let finding = trial.finish()?;
    finding.equal("inserts in init", finding.totals.sum_in(first.inode, "insert"), calm)?;
    finding.equal("drops in init", finding.totals.sum_in(first.inode, "drop"), 0)?;
    finding.equal("deletes in init", finding.totals.sum_in(first.inode, "delete"), 0)?;
    finding.equal("inserts in other", finding.totals.sum_in(other.inode, "insert"), sent.passed)?;
    finding.equal("drops in other", finding.totals.sum_in(other.inode, "drop.table_full"), sent.refused)?;
    anyhow::ensure!(sent.refused > 0, "nothing was refused: {}", finding.sides(1));
    Ok(())
}

/// A namespace ends with entries in its table. Its rules and modules stay, other namespaces keep their entries.
fn exit() -> anyhow::Result<()> {
    let (first, leaving) = (init(), Space::create("leaving")?);
    // Its own witnesses go with it, so it is no part of the trial.
    super::super::modules::load()?;
    state::fresh(&leaving)?;
    let mut trial = Trial::start(&[&first], &[], || Ok(()))?;
    let stay = traffic::in_space(&first, 200)?;
    let flows = traffic::in_space(&leaving, 1500)?;
    let there = witness::count(&leaving)?;
    let inode = leaving.inode;
    leaving.delete()?;
    // The kernel tears it down in the background.
    trial.watch.wait_sum("delete", there)?;
    let finding = trial.finish()?;
    finding.equal("inserts", finding.totals.sum_in(inode, "insert"), flows)?;
    finding.equal("inserts and conntrack -C", finding.totals.sum_in(inode, "insert"), there)?;
    if finding.totals.silence.tells_somewhere("delete.cleanup") {
        finding.equal("delete.cleanup", finding.totals.sum_in(inode, "delete.cleanup"), there)?;
    }
    finding.equal("deletes of any cause", finding.totals.sum_in(inode, "delete"), there)?;
    finding.equal("inserts in init", finding.totals.sum_in(first.inode, "insert"), stay)?;
    finding.equal("deletes in init", finding.totals.sum_in(first.inode, "delete"), 0)
}

/// Destination NAT: each flow is one entry, counted and ranked by what the sender asked for.
fn dnat() -> anyhow::Result<()> {
    const BACKEND: u16 = 7002;
    let space = init();
    let trial = Trial::start(&[&space], &[], || {
        let nat = format!(
            "table ip translate {{\n chain out {{ type nat hook output priority -100; \
             udp dport {PORT} dnat to 127.0.0.9:{BACKEND}; }}\n}}\n"
        );
        state::rules(&space, &(state::RULES.to_owned() + &nat))
    })?;
    let _backend = std::net::UdpSocket::bind(("127.0.0.9", BACKEND))?;
    let sent = udp::send(Flows::new(Family::V4, 1000))?;
    let finding = trial.finish()?;
    finding.equal("inserts", finding.get(Family::V4, 17, "insert"), sent.passed)?;
    let translated =
        checked(space.command("conntrack").args(["-L", "-f", "ipv4", "--dst-nat"]))?.lines().count();
    finding.equal("translated entries", translated as u64, sent.passed)?;
    let port = PORT.to_string();
    for object in &finding.totals.objects {
        let ranked = object["top"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wrong = ranked.iter().find(|top| top["by"] == "dport" && top["key"] != port);
        anyhow::ensure!(wrong.is_none(), "ranked by the translated port: {wrong:?}");
    }
    Ok(())
}

/// A namespace sends through another that masquerades: one entry in each, and the receiver's own.
fn masquerade() -> anyhow::Result<()> {
    let (router, client, server) = (init(), Space::create("client")?, Space::create("server")?);
    link(&router, "to-client", &client, "198.51.100.1/24", "198.51.100.2/24")?;
    link(&router, "to-server", &server, "203.0.113.1/24", "203.0.113.2/24")?;
    checked(client.command("ip").args(["route", "add", "default", "via", "198.51.100.1"]))?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let trial = Trial::start(&[&router, &client, &server], &[], || {
        let nat = "table ip hide {\n chain post { type nat hook postrouting priority 100; \
                   oifname \"to-server\" masquerade; }\n}\n";
        state::rules(&router, &(state::RULES.to_owned() + nat))
    })?;
    let sink = server.enter(|| Ok(std::net::UdpSocket::bind(("203.0.113.2", PORT))?))?;
    sink.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    let flows: u16 = 500;
    client.enter(|| {
        for port in 0..flows {
            let socket = std::net::UdpSocket::bind(("198.51.100.2", 10_000 + port))?;
            socket.send_to(b"ctwatch", ("203.0.113.2", PORT))?;
            // A datagram that arrives has been through all three tables.
            let (_, from) = sink.recv_from(&mut [0; 16]).with_context(|| format!("datagram {port}"))?;
            anyhow::ensure!(from.ip().to_string() == "203.0.113.1", "{from} was not translated");
        }
        Ok(())
    })?;
    let finding = trial.finish()?;
    for space in [&router, &client, &server] {
        let inserts = finding.get_in(space.inode, Family::V4, 17, "insert");
        finding.equal(&format!("inserts in {}", space.label()), inserts, u64::from(flows))?;
    }
    finding.equal("inserts anywhere", finding.totals.sum("insert"), 3 * u64::from(flows))
}

/// A veth pair: `name` here, `eth0` in `peer`. It goes away with the peer's namespace.
fn link(here: &Space, name: &str, peer: &Space, address: &str, peer_address: &str) -> anyhow::Result<()> {
    let ip = |space: &Space, line: &str| checked(space.command("ip").args(line.split(' ')));
    ip(here, &format!("link add {name} type veth peer name eth0 netns {}", peer.label()))?;
    ip(here, &format!("addr add {address} dev {name}"))?;
    ip(here, &format!("link set {name} up"))?;
    ip(peer, &format!("addr add {peer_address} dev eth0"))?;
    ip(peer, "link set eth0 up")?;
    Ok(())
}
