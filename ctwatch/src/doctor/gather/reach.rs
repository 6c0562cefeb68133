//! What else than an input chain has to do with a port of a namespace: packets for others, and answers to its own flows.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};

use crate::doctor::early::DroppedPort;
use crate::doctor::facts::Namespace;

const UDP: u8 = 17;
const UDPLITE: u8 = 136;
/// Interfaces asked whether they forward.
const MOST_INTERFACES: usize = 4096;
/// Bytes of a list of sockets, some 100,000 of them; a line has 128 or so.
const MOST_BYTES: u64 = 16 << 20;

/// Rules of IP that may see what bridges forward.
const OF_BRIDGES: [&str; 2] = ["iptables", "ip6tables"];

/// Which rules of IP see what bridges forward: `br_netfilter` hands them these packets, which are tracked then
/// (`br_nf_pre_routing`, 5.10 to 7.3).
pub fn bridged() -> Vec<String> {
    let on = |of: &&str| {
        let file = format!("/proc/sys/net/bridge/bridge-nf-call-{of}");
        fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
    };
    OF_BRIDGES.into_iter().filter(on).map(str::to_owned).collect()
}

/// Reads it for the calling thread's namespace, after its rules.
pub fn read(namespace: &mut Namespace) {
    namespace.forwards = if namespace.bridged.is_empty() { forwards() } else { Some(true) };
    namespace.local_ports = local_ports();
    let listings = [&mut namespace.nft, &mut namespace.iptables, &mut namespace.ip6tables];
    let mut dropped: Vec<&mut DroppedPort> =
        listings.into_iter().flat_map(|listing| &mut listing.dropped).collect();
    for (proto, names) in [(UDP, ["udp", "udp6"]), (UDPLITE, ["udplite", "udplite6"])] {
        if dropped.iter().any(|port| port.proto == proto) {
            let bound = bound(names).ok();
            for port in dropped.iter_mut().filter(|port| port.proto == proto) {
                port.bound = bound.as_ref().map(|bound| bound.contains(&port.port));
            }
        }
    }
}

/// Whether some interface forwards: what it forwards meets no input chain, as what a bridge hands to the rules of IP does.
fn forwards() -> Option<bool> {
    let mut asked = 0;
    for family in ["ipv4", "ipv6"] {
        let folder = format!("/proc/sys/net/{family}/conf");
        let interfaces = match fs::read_dir(&folder) {
            Ok(interfaces) => interfaces,
            // A kernel, or a boot, without IPv6.
            Err(_) if family == "ipv6" => continue,
            Err(_) => return None,
        };
        for interface in interfaces.flatten() {
            asked += 1;
            if asked > MOST_INTERFACES {
                return None;
            }
            let file = interface.path().join("forwarding");
            if fs::read_to_string(file).ok()?.trim() != "0" {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// From which ports the kernel opens flows where a program names none.
fn local_ports() -> Option<(u16, u16)> {
    parse_range(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(|port| port.parse().ok());
    Some((ports.next()??, ports.next()??))
}

/// Ports of sockets: a program may open flows from any of them.
fn bound(names: [&str; 2]) -> io::Result<BTreeSet<u16>> {
    let mut bound = BTreeSet::new();
    for name in names {
        let file = match File::open(format!("/proc/thread-self/net/{name}")) {
            Ok(file) => file,
            // A kernel without this protocol, or without IPv6, has no such sockets.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut lines = BufReader::new(file).take(MOST_BYTES);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            bound.extend(local_port(&line));
            line.clear();
        }
        if lines.limit() == 0 {
            return Err(io::Error::other("more sockets than are read"));
        }
    }
    Ok(bound)
}

/// `  412: 0100007F:0035 00000000:0000 07 …`: slot, local address and port, and more; the title has no such port.
fn local_port(line: &str) -> Option<u16> {
    u16::from_str_radix(line.split_whitespace().nth(1)?.rsplit_once(':')?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!((parse_range(""), parse_range("1"), parse_range("1 65536")), (None, None, None));
        let title = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        assert_eq!(local_port(title), None);
        assert_eq!(local_port("  412: 0100007F:0035 00000000:0000 07 00000000:00000000"), Some(53));
        let six = " 7: 00000000000000000000000001000000:A001 00000000000000000000000000000000:0000 07";
        assert_eq!(local_port(six), Some(0xa001));
        assert_eq!((local_port(""), local_port("1: nothing"), local_port("1: 0:10000")), (None, None, None));
    }

    #[test]
    fn a_socket_of_this_machine_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut namespace = Namespace::default();
        let port = socket.local_addr().unwrap().port();
        for (proto, port) in [(UDP, port), (6, port)] {
            namespace.nft.dropped.push(DroppedPort { proto, port, ..DroppedPort::default() });
        }
        read(&mut namespace);
        let bound: Vec<_> = namespace.nft.dropped.iter().map(|port| port.bound).collect();
        assert_eq!(bound, [Some(true), None]);
        assert!(namespace.local_ports.is_some_and(|(first, last)| first <= last));
    }
}
