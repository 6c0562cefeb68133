//! One function for each parser of foreign bytes. libFuzzer calls them with inputs of its own; `ctwatch/tests/corpora.rs`
//! calls them with every file of `fuzz/corpus`, so that a crash once found stays mended.
//!
//! A target fails by a panic: the parser's own, or one of the assertions here.

use std::ops::ControlFlow;

use ctwatch::doctor::gather::budget::Budget;
use ctwatch::doctor::gather::output::Lossy;
use ctwatch::doctor::gather::{rules, system};
use ctwatch::doctor::kube_proxy::{self, KubeProxy};
use ctwatch::doctor::recorded::Recorded;
use ctwatch::doctor::{Facts, diagnose, mask};
use ctwatch::kernel::btf::Btf;
use ctwatch::kernel::{arch, kallsyms, kcore, module_symbols};
use ctwatch::model::compare::compare;
use ctwatch::model::incident::Incident;
use ctwatch::record::{self, Piece, Reader};
use ctwatch::source::netlink::entry::Entry;
use ctwatch::source::netlink::message::{Attributes, CT_DELETE, CT_NEW, Messages};
use ctwatch::source::proc_stat::Statistics;
use ctwatch::source::saved;
use ctwatch::view::compare::{self, Time};
use ctwatch::view::compare_json;
use ctwatch::view::doctor::{self as view, Context, Style};
use ctwatch::view::json::Json;
use ctwatch::view::lines::Lines;
use ctwatch::view::page::{Subject, page};
use ctwatch::view::trace_lines::TraceLines;
use ctwatch::view::{Machine, View, trace_json};

/// A parser under test, by the name of its corpus.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 12] = [
    ("btf", btf),
    ("capture", capture),
    ("code", code),
    ("iptables", iptables),
    ("kallsyms", kallsyms),
    ("kcore", kcore),
    ("kube_proxy", kube_proxy),
    ("list", list),
    ("netlink", netlink),
    ("nft", nft),
    ("proc", proc),
    ("recording", recording),
];

/// A datagram of netlink messages, as a socket hands it over.
pub(crate) fn netlink(data: &[u8]) {
    let mut messages = Messages::new(data);
    let mut seen = 0_usize;
    for message in messages.by_ref() {
        seen += 1;
        let _ = (message.family(), message.resource(), message.error());
        walk(message.attributes(), 0);
        if [CT_NEW, CT_DELETE].contains(&message.kind)
            && let Some(entry) = Entry::parse(&message)
        {
            let _ = entry.original.for_filter();
        }
    }
    assert!(seen <= data.len() / 16, "each message has a header of 16 bytes");
    let _ = messages.is_malformed();
}

/// Every attribute may be read as every type, nested ones included.
fn walk(attributes: Attributes<'_>, depth: usize) {
    for attribute in attributes {
        let _ = (attribute.u8(), attribute.u16(), attribute.u32(), attribute.u64());
        // The parser goes three levels deep (tuple, address, port).
        if depth < 4 {
            walk(attribute.nested(), depth + 1);
        }
    }
}

/// A kernel's BTF, or a module's on top of it: the first two bytes say where the one ends.
pub(crate) fn btf(data: &[u8]) {
    const WANTED: [&str; 6] =
        ["nf_conn", "nf_conntrack_tuple", "net", "ip_conntrack_status", "early_drop", "sk_buff"];
    let Some((split, data)) = data.split_first_chunk::<2>() else { return };
    let (kernel, module) = data.split_at(data.len().min(usize::from(u16::from_le_bytes(*split))));
    let kernel = Btf::parse(kernel, None, &WANTED);
    if let Ok(kernel) = &kernel {
        ask(kernel);
    }
    if let Ok(module) = Btf::parse(module, kernel.as_ref().ok(), &WANTED) {
        ask(&module);
    }
}

fn ask(btf: &Btf<'_>) {
    let _ = (btf.function("early_drop"), btf.prototype("early_drop"));
    let _ = btf.constant("ip_conntrack_status", "IPS_CONFIRMED_BIT");
    for (structure, path) in [
        ("nf_conn", &["tuplehash"][..]),
        ("nf_conn", &["status"]),
        ("net", &["ns", "inum"]),
        ("nf_conntrack_tuple", &["dst", "u", "all"]),
        ("sk_buff", &["_nfct"]),
    ] {
        let _ = btf.member(structure, path);
    }
}

/// `/proc/kallsyms`.
pub(crate) fn kallsyms(data: &[u8]) {
    let Ok(symbols) = kallsyms::read(data) else { return };
    for caller in &symbols.callers {
        assert!(caller.start < caller.end, "a function has a size");
    }
    let _ = (symbols.has("early_drop"), symbols.names("early_drop").count());
}

/// The headers of `/proc/kcore`: the file's own, then those of its parts. And a module's symbols, read from there.
pub(crate) fn kcore(data: &[u8]) {
    let Some((header, parts)) = data.split_first_chunk::<64>() else { return };
    let _ = kcore::table(header);
    for (start, end) in [(0, 1), (0x1000, 0x1000), (u64::MAX - 1, u64::MAX), (1 << 63, u64::MAX), (9, 3)] {
        let _ = kcore::place(parts, start, end);
    }
    for function in module_symbols::functions(parts, header, data) {
        assert!(!function.name.is_empty(), "each has a name");
    }
}

/// Machine code of a kernel function, at an address near either end and in between.
pub(crate) fn code(data: &[u8]) {
    for start in [0, 0xffff_ffff_8100_0000, u64::MAX - 0x1000] {
        for callee in [start, start.wrapping_add(64), 0xffff_ffff_c000_0000] {
            let distance = arch::distance(data, start, callee);
            assert!(distance.is_none_or(|bytes| bytes % 8 == 0), "the stack holds words");
            let (main, cold) = data.split_at(data.len() / 2);
            let pieces = [arch::Piece { start, code: main }, arch::Piece { start: callee, code: cold }];
            let _ = arch::arguments(&pieces, callee);
        }
    }
}

/// `nft -j list ruleset` and `nft -a list ruleset`, parted by a zero byte.
pub(crate) fn nft(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (json, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let _ = rules::parse_nft(Lossy::new(json), Lossy::new(text), &Budget::start());
}

/// A saved list of entries, in any of its forms.
pub(crate) fn list(data: &[u8]) {
    let mut seen = 0;
    let read = saved::read(data, |entry| {
        seen += 1;
        assert!(entry.reply.is_none_or(|reply| reply.family == entry.tuple.family), "one family");
        ControlFlow::Continue(())
    });
    // Memory has no errors.
    let Ok(outcome) = read else { return };
    let lines = data.split(|byte| *byte == b'\n').count() as u64;
    assert_eq!(outcome.entries, seen, "each entry is handed over");
    assert!(outcome.entries + outcome.unread + u64::from(outcome.cut.is_some()) <= lines, "one a line");
    assert!(outcome.first.is_none_or(|(line, _)| (1..=lines).contains(&line)), "its line is there");
}

/// `iptables-save`.
pub(crate) fn iptables(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let listing = rules::parse_iptables(&text, "ip", &Budget::start());
    assert!(listing.rules.len() <= text.matches("-A ").count(), "no rule without a line");
}

/// `/proc/modules`, `/proc/slabinfo` and `/proc/net/stat/nf_conntrack`.
pub(crate) fn proc(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = Statistics::parse(&text).map(|statistics| statistics.iter().count());
    let _ = (system::parse_modules(&text), system::parse_slab(&text));
}

/// kube-proxy's command line and its configuration: whatever it is told has a value, or none.
pub(crate) fn kube_proxy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (_, mut proxy) = kube_proxy::by_command_line(&text.split('\0').collect::<Vec<_>>());
    if let Ok(told) = kube_proxy::by_configuration(&text) {
        assert!(told.keys().all(|key| KubeProxy::has_key(key)), "only known keys are kept");
        proxy = KubeProxy { told, ..proxy };
    }
    for cpus in [0, 1, u32::MAX] {
        let _ = (proxy.sets("max", cpus, 0), proxy.sets("udp_timeout", cpus, 0), proxy.left_alone("max"));
    }
}

/// A capture, through every check, remedy and view.
pub(crate) fn capture(data: &[u8]) {
    let Ok(mut facts) = serde_json::from_slice::<Facts>(data) else { return };
    judge(&facts);
    mask::mask(&mut facts);
    judge(&facts);
}

fn judge(facts: &Facts) {
    let diagnosis = diagnose(facts);
    let context = Context {
        time: String::new(),
        host: None,
        kernel: facts.release.clone(),
        sample_s: facts.live.seconds,
    };
    for all in [false, true] {
        let text = view::plain(&diagnosis, Style { all, color: false });
        assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "a line is clean");
        if let Ok(json) = view::json(&diagnosis, &context, all) {
            assert_eq!(json.matches(|char: char| char.is_control()).count(), 1, "JSON is one line");
        }
    }
}

/// A recording, through the views of `replay`, the checks of `doctor` and the page of `report`. The first byte says whether it is the file as it is, or what stands in
/// its frames: the checksums are right then. There each frame has its kind and its length before it.
pub(crate) fn recording(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    let bytes = if *how == 0 { data.to_vec() } else { record::sealed(frames(data)).unwrap_or_default() };
    let Ok(mut reader) = Reader::of_bytes(bytes) else { return };
    let (mut recorded, mut incident) = (Recorded::default(), Incident::default());
    let mut machine = Machine { host: String::new(), kernel: String::new() };
    while let Ok(Some(step)) = reader.next_step() {
        let session = step.session;
        recorded.add(session.id, &session.kernel, &session.info, &step.report);
        incident.add(session.id, &session.info, &step.report);
        machine = Machine { host: session.host, kernel: session.kernel };
        let mut json = Json::new(machine.clone());
        let line = json.report(&step.report, &session.info);
        assert_eq!(line.matches(|char: char| char.is_control()).count(), 1, "JSON is one line");
        let mut lines = Lines::new(machine.clone(), jiff::tz::TimeZone::UTC, false);
        let text = lines.start(&session.info)
            + &lines.report(&step.report, &session.info)
            + &lines.end(&step.report, &session.info);
        let losses = TraceLines::new(jiff::tz::TimeZone::UTC, false);
        let events = step.report.losses.iter().flat_map(|losses| &losses.events);
        let text = events.fold(text, |text, event| {
            let line = trace_json::record(event, "a name");
            assert_eq!(line.matches(|char: char| char.is_control()).count(), 1, "JSON is one line");
            text + &losses.record(event, "a name")
        });
        assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "a line is clean");
    }
    incident.finish();
    let time = || Time {
        file: "a",
        host: machine.host.clone(),
        kernel: machine.kernel.clone(),
        incident: &incident,
    };
    let compared = compare(&incident, &Incident::default());
    let text = compare::plain(&time(), &time(), &compared, &jiff::tz::TimeZone::UTC, false);
    assert!(!text.contains(|char: char| char.is_control() && char != '\n'), "a line is clean");
    let line = compare_json::json(&time(), &time(), &compared);
    assert_eq!(line.matches(|char: char| char.is_control()).count(), 1, "JSON is one line");
    if let Some(facts) = recorded.facts() {
        judge(&facts);
        let zone = jiff::tz::TimeZone::UTC;
        let subject = Subject { machine: &machine, version: &machine.kernel, zone: &zone };
        if let Ok(page) = page(&subject, &incident, &diagnose(&facts)) {
            assert!(page.matches("<script").count() == 1 && page.ends_with("</html>\n"), "a page is whole");
        }
    }
}

/// Each behind a byte for its kind and two for its length. One with words has their length in two bytes more.
fn frames(mut data: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    std::iter::from_fn(move || {
        let ([kind, low, high], rest) = data.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (frame, rest) = rest.split_at(rest.len().min(length));
        data = rest;
        Some(match kind % 4 {
            0 => Piece::Key(frame),
            1 => Piece::Difference(frame),
            2 => Piece::Numbers(frame),
            _ => {
                let (length, rest) = frame.split_first_chunk::<2>().unwrap_or((&[0, 0], frame));
                let (words, numbers) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
                Piece::Words(words, numbers)
            }
        })
    })
}
