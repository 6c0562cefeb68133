//! Open vSwitch's kernel half set up by its own netlink families (uapi/linux/openvswitch.h, 6.12): a switch without its
//! daemon, whose flows never change.

use anyhow::Context;
use nix::net::if_::if_nametoindex;

use super::generic_netlink::{Generic, attribute};
use super::space::Space;

const DATAPATH: &str = "ovs_datapath";
const VPORT: &str = "ovs_vport";
const FLOW: &str = "ovs_flow";
/// Of each family the command that makes one.
const NEW: u8 = 1;

/// What the switch's own device is called.
const DEVICE: &str = "switch0";
/// `OVS_VPORT_TYPE_NETDEV`
const NETDEV: u32 = 1;
const IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();

/// A switch between two devices in `space`. Each IPv4 packet from one to the other is looked up in this zone, then committed
/// there by force. The switch goes with its namespace.
pub(super) fn between(space: &Space, devices: [&str; 2], zone: u16) -> anyhow::Result<()> {
    space.enter(|| {
        let header = |ifindex: i32| ifindex.to_ne_bytes();
        let nobody = 0_u32.to_ne_bytes();
        let named = |name: &str| [name.as_bytes(), &[0]].concat();
        let body = [&header(0)[..], &attribute(1, &named(DEVICE)), &attribute(2, &nobody)].concat();
        Generic::open(DATAPATH)?.make(NEW, 2, &body).context("the switch")?;
        let own = i32::try_from(if_nametoindex(DEVICE).context(DEVICE)?)?;
        let vports = Generic::open(VPORT)?;
        let ports: [u32; 2] = [1, 2];
        for (device, port) in devices.into_iter().zip(ports) {
            let body = [
                &header(own)[..],
                &attribute(1, &port.to_ne_bytes()),
                &attribute(2, &NETDEV.to_ne_bytes()),
                &attribute(3, &named(device)),
                &attribute(5, &nobody),
            ]
            .concat();
            vports.make(NEW, 1, &body).with_context(|| format!("port {device}"))?;
        }
        let flows = Generic::open(FLOW)?;
        for (from, to) in [(ports[0], ports[1]), (ports[1], ports[0])] {
            let body = [
                &header(own)[..],
                &attribute(1, &key(from, IPV4)),
                &attribute(2, &actions(zone, to)),
                &attribute(7, &key(u32::MAX, [0xff; 2])),
            ]
            .concat();
            flows.make(NEW, 1, &body).with_context(|| format!("the flow from port {from}"))?;
        }
        Ok(())
    })
}

/// `OVS_FLOW_ATTR_KEY` or `_MASK`: which packets, or which of their bits are asked for. No address is.
fn key(port: u32, ethertype: [u8; 2]) -> Vec<u8> {
    [
        attribute(3, &port.to_ne_bytes()),
        attribute(4, &[0; 12]),
        attribute(6, &ethertype),
        attribute(7, &[0; 12]),
    ]
    .concat()
}

/// `OVS_FLOW_ATTR_ACTIONS`: `ct(zone=…),ct(commit,force,zone=…),output`.
fn actions(zone: u16, to: u32) -> Vec<u8> {
    let zone = attribute(2, &zone.to_ne_bytes());
    let force_commit = attribute(7, &[]);
    [
        attribute(12, &zone),
        attribute(12, &[force_commit, zone.clone()].concat()),
        attribute(1, &to.to_ne_bytes()),
    ]
    .concat()
}
