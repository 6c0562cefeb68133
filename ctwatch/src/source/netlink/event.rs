//! The hot path: what is counted of an event, and nothing else of it.

use ctwatch_ebpf::{AF_INET, AF_INET6};

use ctwatch_ebpf::loss::TraceFilter;

use super::entry::{self, cta, state};
use super::message::Message;

/// What an event says for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// L4 protocol number of the original direction.
    pub proto: u8,
    /// The socket whose request caused it, 0 for none.
    pub portid: u32,
}

/// Whether the flow of an event passes a filter by ports and networks.
pub(super) fn passes(message: &Message<'_>, ends: &TraceFilter) -> bool {
    let tuple = message.attributes().find(cta::TUPLE_ORIG).and_then(|tuple| entry::tuple(tuple.nested()));
    tuple.is_some_and(|tuple| ends.passes(&tuple.for_filter()))
}

/// What the event of an ended entry says beside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// `IPS_…` bits.
    pub status: u32,
    /// Whether it had time left, a second at least.
    pub alive: bool,
    /// Whether a state came with it, which kernels write since 5.12, with the time left.
    pub state: Option<u8>,
}

impl Event {
    /// Reads the flow type; `None` where the event has none.
    pub fn parse(message: &Message<'_>) -> Option<Self> {
        let family = message.family().filter(|family| matches!(*family, AF_INET | AF_INET6))?;
        let tuple = message.attributes().find(cta::TUPLE_ORIG)?;
        let proto = tuple.nested().find(cta::TUPLE_PROTO)?.nested().find(cta::PROTO_NUM)?.u8()?;
        Some(Self { family, proto, portid: message.portid })
    }
}

impl Ending {
    /// Reads how an entry ended.
    pub fn parse(message: &Message<'_>) -> Self {
        let mut ending = Self::default();
        for attribute in message.attributes() {
            match attribute.kind {
                cta::STATUS => ending.status = attribute.u32().unwrap_or(0),
                cta::TIMEOUT => ending.alive = attribute.u32().is_some_and(|left| left > 0),
                cta::PROTOINFO => ending.state = state(attribute.nested()),
                _ => {}
            }
        }
        ending
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::build::{attribute, message, nest};
    use super::super::message::{CT_DELETE, CT_NEW, Messages};
    use super::*;
    use crate::model::filter;

    fn udp() -> Vec<u8> {
        let addresses = nest(1, &[attribute(1, &[10, 0, 0, 1]), attribute(2, &[10, 0, 0, 2])]);
        let ports = nest(2, &[attribute(1, &[17]), attribute(2, &[1, 2]), attribute(3, &[3, 4])]);
        nest(1, &[addresses, ports])
    }

    #[test]
    fn a_new_flow_is_a_family_a_protocol_and_who_asked() {
        let bytes = message(CT_NEW, 4711, AF_INET, &[udp(), attribute(3, &[0, 0, 0, 8])]);
        let event = Event::parse(&Messages::new(&bytes).next().unwrap());
        assert_eq!(event, Some(Event { family: AF_INET, proto: 17, portid: 4711 }));
    }

    #[test]
    fn an_ending_tells_the_time_left_and_the_state() {
        let parts = [
            udp(),
            attribute(3, &[0, 0, 2, 0x8e]),
            attribute(7, &[0, 0, 0, 9]),
            nest(4, &[nest(1, &[attribute(1, &[8])])]),
        ];
        let bytes = message(CT_DELETE, 0, AF_INET6, &parts);
        let ending = Ending::parse(&Messages::new(&bytes).next().unwrap());
        assert_eq!(ending, Ending { status: 0x28e, alive: true, state: Some(8) });
        let bytes = message(CT_DELETE, 0, AF_INET, &[udp()]);
        assert_eq!(Ending::parse(&Messages::new(&bytes).next().unwrap()), Ending::default());
    }

    #[test]
    fn either_end_may_pass_a_filter() {
        let bytes = message(CT_NEW, 0, AF_INET, &[udp()]);
        let message = Messages::new(&bytes).next().unwrap();
        let nets = |text: &str| filter::ends(&[], &[filter::parse_net(text).unwrap()]).unwrap();
        assert!(passes(&message, &filter::ends(&[0x0102], &[]).unwrap()));
        assert!(passes(&message, &filter::ends(&[9, 0x0304], &[]).unwrap()));
        assert!(!passes(&message, &filter::ends(&[0x0201], &[]).unwrap()));
        assert!(passes(&message, &nets("10.0.0.2/32")) && !passes(&message, &nets("10.0.0.3/32")));
        assert!(!passes(&message, &nets("::/0")));
    }

    #[test]
    fn other_families_are_no_flow_types() {
        let bytes = message(CT_NEW, 0, 7, &[udp()]);
        assert_eq!(Event::parse(&Messages::new(&bytes).next().unwrap()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::new(&bytes) {
                let _ = (Event::parse(&message), Ending::parse(&message));
            }
        }
    }
}
