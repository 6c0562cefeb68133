//! Keeping a resolver's two queries from racing for one entry.

use super::notrack;
use crate::doctor::command::Call;
use crate::doctor::facts::{Facts, Namespace};
use crate::doctor::finding::Remedy;

const FILE: &str = "/etc/resolv.conf";
const SAVED: &str = "/root/ctwatch-resolv.conf";
const UDP: u8 = 17;
const DNS: u16 = 53;

/// What helps where it is DNS that races; none where the packets that raced were not UDP.
pub fn remedies(facts: &Facts, namespace: &Namespace, protocol: Option<&str>) -> Vec<Remedy> {
    if protocol.is_some_and(|protocol| protocol != "udp") {
        return Vec::new();
    }
    let mut remedies = Vec::new();
    if namespace.own {
        remedies.push(one_query_at_a_time());
    }
    let dns = namespace.table.ports.iter().find(|port| port.proto == UDP && port.port == DNS);
    remedies.extend(dns.into_iter().flat_map(|port| notrack::remedies(facts.tools, namespace, &port.into())));
    remedies
}

/// glibc's option (2.9); with it each query also has a socket, and so a flow, of its own.
fn one_query_at_a_time() -> Remedy {
    Remedy {
        id: "one-query",
        what: "Where it is DNS: let the resolver ask for A and AAAA one after the other; the same in each container, or \
               once for all of them by a DNS cache on this node"
            .into(),
        commands: vec![
            Call::new("cat").arg(FILE).into_file(SAVED).into(),
            Call::new("echo").arg("options single-request-reopen").onto_file(FILE).into(),
        ],
        // Through a symbolic link, where the file is one.
        undo: vec![
            Call::new("cat").arg(SAVED).into_file(FILE).into(),
            Call::new("rm").args(["-f", SAVED]).into(),
        ],
        price: "one round trip more for each name looked up; musl (Alpine) ignores the option; what writes this file \
                (DHCP, systemd-resolved, kubelet's dnsConfig, docker's --dns-option) takes it away again unless it is \
                set there"
            .into(),
        ..Remedy::default()
    }
}
