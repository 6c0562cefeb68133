//! `export`: the counts as OpenMetrics 1.0, or in the text format that Prometheus had before it (version 0.0.4).

use std::fmt;
use std::sync::Arc;

use ctwatch_ebpf::{Event, Group};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::clean::clean;
use crate::model::series::{Exposition, Labels, Occupation};

/// A name or reason longer than this is cut: it is somebody else's text.
const LONGEST: usize = 200;

/// How an exposition is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Prometheus,
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::OpenMetrics, Self::Prometheus];

    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What the client likes best of these, by its `Accept` (RFC 9110, 12.5.1): Prometheus text unless OpenMetrics is
    /// named with at least the same weight.
    pub fn negotiate(accept: &str) -> Self {
        let (mut openmetrics, mut prometheus) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameter = |name: &str| {
                range.split(';').skip(1).find_map(|part| {
                    let (key, value) = part.split_once('=')?;
                    (key.trim().eq_ignore_ascii_case(name)).then(|| value.trim().trim_matches('"').to_owned())
                })
            };
            let weight = parameter("q").map_or(1.0, |q| q.parse::<f64>().unwrap_or(0.0).clamp(0.0, 1.0));
            match media.as_str() {
                // Version 0.0.1 is what its drafts had, and clients name both.
                "application/openmetrics-text" if parameter("version").is_none_or(|v| v == "1.0.0") => {
                    openmetrics = f64::max(openmetrics, weight);
                }
                "text/plain" | "text/*" | "*/*" => prometheus = f64::max(prometheus, weight),
                _ => {}
            }
        }
        if openmetrics > 0.0 && openmetrics >= prometheus { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// Which program this is.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// Its version.
    pub version: &'static str,
    /// The commit that it was built from.
    pub revision: &'static str,
}

/// The whole text.
///
/// # Panics
///
/// Never: only the writer can fail, and a string does not.
pub fn render(exposition: &Arc<Exposition>, build: Build, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { exposition: Arc::clone(exposition), build }));
    let mut out = String::new();
    let written = match format {
        Format::OpenMetrics => text::encode(&mut out, &registry),
        Format::Prometheus => prometheus_text::encode(&mut out, &registry),
    };
    written.expect("writing into a string");
    out
}

#[derive(Debug)]
struct Metrics {
    exposition: Arc<Exposition>,
    build: Build,
}

/// A counter of flow types: the events of a group of the event table.
struct Counter {
    name: String,
    help: &'static str,
    /// The label that names the event.
    label: Option<&'static str>,
    events: &'static [Event],
}

/// Name and help of each group's counter. Names are promised to users, so none is made from another.
const GROUPS: [(&str, &str, &str); 8] = [
    ("insert", "inserts", "Entries that entered the connection tracking table from the packet path"),
    ("insert_netlink", "netlink_inserts", "Entries that entered through ctnetlink or a BPF helper"),
    ("early_drop", "early_drops", "Live entries that were evicted to make room"),
    ("clash_resolve", "clash_resolves", "Races of two packets for one flow that both survived"),
    ("drop", "drops", "New flows that were refused"),
    ("insert_failed", "insert_failures", "Packets that were dropped because their entry could not enter"),
    ("invalid", "invalid_packets", "Packets that connection tracking could not assign to a flow"),
    ("delete", "deletes", "Entries that left the table"),
];

/// Name and help of what is a part of another counter.
const PARTS: [(&str, &str); 1] =
    [("clash_reply_only", "Resolved races whose entry entered by its reply alone")];

/// A counter for each group, in the order of [`GROUPS`], with its parts behind it. A group that is not there yet is
/// called as in the event table.
fn counters() -> Vec<Counter> {
    let place = |group: &Group| GROUPS.iter().position(|(name, ..)| *name == group.name());
    let mut groups = Group::ALL;
    groups.sort_by_key(|group| place(group).unwrap_or(GROUPS.len()));
    let of_group = |group: Group| {
        let (_, name, help) = place(&group).map_or((group.name(), group.name(), UNNAMED), |at| GROUPS[at]);
        let label = if group == Group::Delete { "cause" } else { "reason" };
        let whole = Counter {
            name: format!("ctwatch_{name}"),
            help,
            label: (group.parts().len() > 1).then_some(label),
            events: group.parts(),
        };
        let within = group.events().iter().filter(move |event| !group.parts().contains(event));
        std::iter::once(whole).chain(within.map(|event| {
            let known = PARTS.iter().find(|(name, _)| *name == event.reason());
            Counter {
                name: format!("ctwatch_{}", event.reason()),
                help: known.map_or(UNNAMED, |(_, help)| help),
                label: None,
                events: std::slice::from_ref(event),
            }
        }))
    };
    groups.into_iter().flat_map(of_group).collect()
}

/// The help of what has no name of its own here; a test fails where there is such a thing.
const UNNAMED: &str = "Events of connection tracking";

type Pairs<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for counter in counters() {
            self.counter(&mut encoder, &counter)?;
        }
        self.tables(&mut encoder)?;
        self.top(&mut encoder)?;
        self.own(&mut encoder)
    }
}

impl Metrics {
    /// Nothing at all where no flow type has it: a family without series says that it is 0 to some readers.
    fn counter(&self, encoder: &mut DescriptorEncoder<'_>, counter: &Counter) -> fmt::Result {
        let flows = &self.exposition.flows;
        let all = flows.iter().flat_map(|(labels, counts)| {
            counter.events.iter().filter_map(move |event| Some((labels, *event, *counts.get(event)?)))
        });
        let mut all = all.peekable();
        if all.peek().is_none() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(&counter.name, counter.help, None, MetricType::Counter)?;
        for (labels, event, count) in all {
            let mut pairs = pairs(labels);
            pairs.extend(counter.label.map(|label| (label, event.reason())));
            count_of(&mut family.encode_family(&pairs)?, count)?;
        }
        Ok(())
    }

    fn tables(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Value = fn(&Occupation) -> Option<u64>;
        let gauges: [(&str, &str, Value); 2] = [
            ("ctwatch_table_entries", "Entries in the table of a network namespace", |table| table.count),
            ("ctwatch_table_limit", "Limit that new flows of a network namespace meet", |table| table.max),
        ];
        for (name, help, value) in gauges {
            let mut all =
                self.exposition.tables.iter().filter_map(|table| Some((table, value(table)?))).peekable();
            if all.peek().is_none() {
                continue;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (table, value) in all {
                let pairs: Pairs<'_> = table.netns.iter().map(|netns| ("netns", netns.as_str())).collect();
                family.encode_family(&pairs)?.encode_gauge(&value)?;
            }
        }
        let mut named = self.exposition.tables.iter().filter(|table| table.netns.is_some()).peekable();
        if named.peek().is_some() {
            let help = "What a network namespace is called";
            let mut family = encoder.encode_descriptor("ctwatch_netns", help, None, MetricType::Info)?;
            for table in named {
                let name = short(&table.name);
                let pairs = [("netns", table.netns.as_deref().unwrap_or_default()), ("name", &name)];
                family.encode_info(&pairs)?;
            }
        }
        Ok(())
    }

    fn top(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Value = fn(&crate::model::series::Ranked) -> u64;
        let counters: [(&str, &str, Value); 3] = [
            ("ctwatch_top_inserts", "Inserts by the destination ports that lead the ranking", |top| {
                top.insert
            }),
            ("ctwatch_top_early_drops", "Evictions by the destination ports that lead the ranking", |top| {
                top.early_drop
            }),
            ("ctwatch_top_drops", "Refusals by the destination ports that lead the ranking", |top| top.drop),
        ];
        if self.exposition.top.is_empty() {
            return Ok(());
        }
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for top in &self.exposition.top {
                let mut pairs = pairs(&top.labels);
                pairs.push(("dport", &top.dport));
                count_of(&mut family.encode_family(&pairs)?, value(top))?;
            }
        }
        Ok(())
    }

    /// Of ctwatch itself.
    fn own(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let exposition = &self.exposition;
        let help = "Events that the source knows it missed";
        let mut lost = encoder.encode_descriptor("ctwatch_events_lost", help, None, MetricType::Counter)?;
        count_of(&mut lost, exposition.lost)?;
        let help =
            "Processor time of ctwatch: its own, and that of its programs where the kernel measures them";
        let mut cpu = encoder.encode_descriptor("ctwatch_cpu_seconds", help, None, MetricType::Counter)?;
        let seconds = std::time::Duration::from_nanos(exposition.cpu_ns).as_secs_f64();
        cpu.encode_counter(&seconds, None::<&Exemplar<Pairs<'_>, f64>>)?;
        let left_out = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        for (name, help, value) in [
            (
                "ctwatch_watching",
                "1 while connection tracking is there to be watched, else 0",
                u64::from(exposition.watching),
            ),
            (
                "ctwatch_series_left_out",
                "Series that are left out because the bound on their number is reached",
                left_out(exposition.left_out),
            ),
            (
                "ctwatch_top_left_out",
                "Destination ports that were counted and are not among those of the ranking",
                left_out(exposition.top_left_out),
            ),
            (
                "ctwatch_namespaces_left_out",
                "Network namespaces that are not looked at because there are too many",
                exposition.namespaces_left_out,
            ),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let why = short(exposition.why.as_deref().unwrap_or_default());
        let help = "The source of the counts, and the reason why no better source runs";
        let source = [("kind", exposition.kind), ("why", why.as_str())];
        encoder.encode_descriptor("ctwatch_source", help, None, MetricType::Info)?.encode_info(&source)?;
        let build = [("version", self.build.version), ("revision", self.build.revision)];
        let help = "Which ctwatch this is";
        encoder.encode_descriptor("ctwatch_build", help, None, MetricType::Info)?.encode_info(&build)
    }
}

fn count_of(encoder: &mut MetricEncoder<'_>, count: u64) -> fmt::Result {
    encoder.encode_counter(&count, None::<&Exemplar<Pairs<'_>, f64>>)
}

fn pairs(labels: &Labels) -> Pairs<'_> {
    let netns = labels.netns.iter().map(|netns| ("netns", netns.as_str()));
    netns.chain([("family", labels.family), ("proto", labels.proto.as_str())]).collect()
}

/// Somebody else's text as a label: no control characters, and not long.
fn short(text: &str) -> String {
    clean(text).chars().take(LONGEST).collect()
}

#[cfg(test)]
#[path = "openmetrics_tests.rs"]
mod tests;
