//! Where doctor must not raise an alarm.

use super::super::super::ctwatch;
use super::super::super::space::Space;
use super::super::super::traffic::Family;
use super::super::super::traffic::crafted::{Crafted, FIN, SYN, Segment, host};
use super::super::super::trial::equal;
use super::super::doctor::doctor_while;
use super::router::Router;

/// A firewall that drops everything, invalid packets by name; but neighbours must find each other.
const CLOSED: &str = "table inet watched {
  chain input {
    type filter hook input priority 0; policy drop;
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    ct state invalid drop
  }
  chain forward { type filter hook forward priority 0; policy drop; ct state invalid counter drop; }
}
";

/// Namespaces beside the router's.
const CROWD: u32 = 10;
/// Packets of a scan during one look.
const SCANNED: u16 = 3;

/// IPv6 only, many namespaces, all flows dropped by the rules: no alarm, and doctor says that conntrack is not the cause.
/// The few packets of a scan are none either.
pub(in super::super) fn no_alarm() -> anyhow::Result<()> {
    let router = Router::new()?;
    router.rules(CLOSED)?;
    let crowd: Vec<Space> =
        (0..CROWD).map(|number| Space::create(&format!("crowd{number}"))).collect::<anyhow::Result<_>>()?;
    let ends = |number| (host(Family::V6, false, number), host(Family::V6, true, number));
    let args = ["--all", "--source", ctwatch::source()];
    let mut number = 0;
    let mut flow = |router: &Router| {
        number = number % 200 + 1;
        let (client, server) = ends(number);
        router.send(&[Crafted::udp(client, server, (4000, 53), 16)])
    };
    let answer = doctor_while(&args, || flow(&router))?;
    answer.expect(0, "ok")?;
    let what = answer.finding("invalid-packets")?["what"].as_str().unwrap_or_default().to_owned();
    anyhow::ensure!(what.starts_with("it is not conntrack"), "{what}");

    let before = router.invalid()?;
    let mut scanned = 0;
    let answer = doctor_while(&args, || {
        if scanned < SCANNED {
            scanned += 1;
            let (client, server) = ends(scanned);
            let segment = Segment { seq: 1, flags: SYN | FIN, ..Segment::default() };
            router.send(&[Crafted::tcp(client, server, (4000, 80), segment)])?;
        }
        flow(&router)
    })?;
    equal("scanned and the kernel's counters", router.invalid()? - before, u64::from(SCANNED))?;
    equal("scanned and nft's counter", router.rule()?, u64::from(SCANNED))?;
    answer.expect(0, "ok")?;
    crowd.into_iter().try_for_each(Space::delete)
}
