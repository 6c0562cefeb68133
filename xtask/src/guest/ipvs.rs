//! IPVS set up by its own netlink family (uapi/linux/ip_vs.h, 5.10 to 7.3).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::generic_netlink::{Generic, attribute};

const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;

/// Commands.
const NEW_SERVICE: u8 = 1;
const NEW_DEST: u8 = 5;
const SET_CONFIG: u8 = 12;
const FLUSH: u8 = 17;

/// Attributes of a command.
const SERVICE: u16 = 1;
const DEST: u16 = 2;
const TIMEOUT_UDP: u16 = 6;

/// `IP_VS_CONN_F_MASQ`
const MASQUERADE: u32 = 0;

/// Has UDP datagrams to the first address and port forwarded to the second, each source port by a connection that ends when
/// it has been silent for so long.
pub(super) fn forward_udp(
    service: (&str, u16),
    server: (&str, u16),
    silence: Duration,
) -> anyhow::Result<()> {
    let ipvs = Generic::open(FAMILY)?;
    let seconds = u32::try_from(silence.as_secs())?;
    ipvs.make(SET_CONFIG, VERSION, &attribute(TIMEOUT_UDP, &seconds.to_ne_bytes()))?;
    let address = |(address, port): (&str, u16)| -> anyhow::Result<([u8; 16], [u8; 2])> {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address.parse::<Ipv4Addr>()?.octets());
        Ok((bytes, port.to_be_bytes()))
    };
    let (virtual_address, virtual_port) = address(service)?;
    let key = [
        attribute(1, &2_u16.to_ne_bytes()),
        attribute(2, &17_u16.to_ne_bytes()),
        attribute(3, &virtual_address),
        attribute(4, &virtual_port),
    ]
    .concat();
    let settings = [
        key.clone(),
        attribute(6, b"rr\0"),
        // Flags: a value and which of its bits are meant.
        attribute(7, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        attribute(8, &0_u32.to_ne_bytes()),
        attribute(9, &[0xff; 4]),
    ]
    .concat();
    ipvs.make(NEW_SERVICE, VERSION, &attribute(SERVICE, &settings))?;
    let (server_address, server_port) = address(server)?;
    let dest = [
        attribute(1, &server_address),
        attribute(2, &server_port),
        attribute(3, &MASQUERADE.to_ne_bytes()),
        attribute(4, &1_u32.to_ne_bytes()),
        attribute(5, &0_u32.to_ne_bytes()),
        attribute(6, &0_u32.to_ne_bytes()),
    ]
    .concat();
    ipvs.make(NEW_DEST, VERSION, &[attribute(SERVICE, &key), attribute(DEST, &dest)].concat())
}

/// Removes every service.
pub(super) fn flush() -> anyhow::Result<()> {
    Generic::open(FAMILY)?.make(FLUSH, VERSION, &[])
}
