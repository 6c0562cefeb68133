//! One million flows on two CPUs with the table full: ctwatch's totals against the kernel's and the senders'.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::super::ctwatch::Watch;
use super::super::report::Report;
use super::super::scenarios::ranking::{CULPRIT, flood, ranked};
use super::super::space::Space;
use super::super::traffic::tcp::{self, Held};
use super::super::traffic::{Family, Flows, Sent, spoofed, spread, udp};
use super::super::witness::{self, Stats};
use super::super::{modules, state};
use super::clock;
use crate::bench::figure::{Figure, Million};

/// How many.
const FLOWS: u32 = 1_000_000;
/// After how many of them memory is looked at first.
const FIRST: u32 = 100_000;

/// Who sends them.
#[derive(Clone, Copy)]
enum Senders {
    /// This machine, to as many addresses.
    One,
    /// As many addresses as there are flows, to one port.
    Random,
}

impl Senders {
    fn send(self, flows: Flows) -> anyhow::Result<Sent> {
        spread(flows, 2, |share| match self {
            Self::One => udp::send(share),
            Self::Random => spoofed::send((share.first..share.first + share.count).map(flood)),
        })
    }
}

/// What the table does with a new flow.
#[derive(Clone, Copy, PartialEq)]
enum Table {
    /// It evicts another one.
    Evicts,
    /// It refuses it: open TCP connections fill the table, and the kernel does not evict these.
    Refuses,
}

/// How many connections fill a table that refuses.
const HELD: u32 = 10;

/// Runs it with each of these sources.
pub(in super::super) fn run(sources: &[String], results: &Path) -> anyhow::Result<ExitCode> {
    let mut report = Report::open(results)?;
    modules::load()?;
    // The first flow has the kernel patch its code (get_random_once in hash_conntrack_raw): done before two CPUs run
    // it, or emulated ones may meet the breakpoint that it patches by.
    state::fresh(&Space::init())?;
    udp::send(Flows::new(Family::V4, 1))?;
    let kinds =
        [(Senders::One, Table::Evicts), (Senders::Random, Table::Evicts), (Senders::One, Table::Refuses)];
    let runs = sources.iter().flat_map(|source| kinds.map(|kind| (source, kind)));
    for (source, (senders, table)) in runs {
        report.figure(&match one(source, senders, table) {
            Ok(million) => Figure::Million(million),
            Err(error) => Figure::Absent { observer: source.clone(), why: format!("{error:#}") },
        })?;
    }
    report.end(0)?;
    Ok(ExitCode::SUCCESS)
}

fn one(source: &str, senders: Senders, table: Table) -> anyhow::Result<Million> {
    let space = Space::init();
    state::fresh(&space)?;
    state::buckets(8192)?;
    let mut held = Held::default();
    if table == Table::Refuses {
        tcp::hold(Flows::new(Family::V4, HELD), &mut held)?;
    }
    state::set("nf_conntrack_max", if table == Table::Refuses { HELD } else { 3000 })?;
    let filled = witness::count(&space)?;
    let before = Stats::read(&space)?;
    let mut watch = Watch::start(&["--source", source])?;
    let began = clock()?;
    let mut sent = senders.send(Flows::new(Family::V4, FIRST))?;
    watch.wait_sum("insert", sent.passed)?;
    watch.wait_sum("drop", sent.refused)?;
    let memory = watch.memory_kib("RssAnon")?;
    sent += senders.send(Flows::new(Family::V4, FLOWS - FIRST).from(FIRST))?;
    let memory = [memory, watch.memory_kib("RssAnon")?];
    let seconds = (clock()? - began) as f64 / 1e9;
    let totals = watch.stop()?;
    let kernel = Stats::read(&space)?.since(&before);
    let entries = witness::count(&space)?;
    anyhow::ensure!(sent.passed + sent.refused == u64::from(FLOWS), "{sent:?} of {FLOWS}");
    anyhow::ensure!(table == Table::Evicts || sent.passed == 0, "{sent:?}: the table did not refuse all");
    let report = totals.objects.last().context("ctwatch printed nothing")?;
    let lost = report["source"]["lost"].as_u64().context("ctwatch does not say what it lost")?;
    let watched = |field: &str| totals.sum(field);
    let of_kernel = |name: &str| kernel.get(name).with_context(|| format!("no counter {name}"));
    let to_port = |field| ranked(&totals, "dport", &CULPRIT.to_string(), field);
    let sides = [
        ("insert, and what the senders could send", watched("insert"), sent.passed),
        ("drop, and what the senders were refused", watched("drop"), sent.refused),
        ("drop, and the kernel's drop", watched("drop"), of_kernel("drop")?),
        ("early_drop, and the kernel's", watched("early_drop"), of_kernel("early_drop")?),
        ("delete, and inserts less entries left", watched("delete"), filled + sent.passed - entries),
        ("inserts ranked to the one port, and sent", to_port("insert"), sent.passed),
        ("drops ranked to it, and refused", to_port("drop"), sent.refused),
        ("evictions ranked to it, and the kernel's", to_port("early_drop"), of_kernel("early_drop")?),
    ];
    let sides =
        sides.into_iter().map(|(name, ctwatch, witness)| (name.to_owned(), ctwatch, witness)).collect();
    let senders = match senders {
        Senders::One => "one source",
        Senders::Random => "as many sources",
    };
    let table = match table {
        Table::Evicts => "evicting",
        Table::Refuses => "refusing",
    };
    Ok(Million { observer: format!("ctwatch-{source}, {senders}, {table}"), lost, sides, seconds, memory })
}
