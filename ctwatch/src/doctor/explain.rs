//! All about each finding, offline.

/// One finding's story.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    /// The finding's id.
    pub id: &'static str,
    /// One line.
    pub title: &'static str,
    /// What it is, how it comes about, what to do, what not to do.
    pub text: &'static str,
}

/// The topic of an id.
pub fn topic(id: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.id == id)
}

macro_rules! topic {
    ($id:literal, $title:literal) => {
        Topic { id: $id, title: $title, text: include_str!(concat!("explain/", $id, ".txt")) }
    };
}

/// Every finding there is.
pub const TOPICS: [Topic; 32] = [
    topic!("table-full", "the table is full: new flows are refused, live ones thrown out"),
    topic!("table-near-full", "the table is close to its limit"),
    topic!("table-filling", "the table grows towards its limit"),
    topic!("table-overflowed", "the table overflowed, and nothing has changed since"),
    topic!("table-was-full", "the table was full, and somebody has dealt with it"),
    topic!("limit-not-applied", "a file says one value, the kernel has another"),
    topic!("held-entries", "entries that are counted and in no list"),
    topic!("expectations-full", "helpers may expect no more connections"),
    topic!("memory", "what the table costs in memory"),
    topic!("long-chains", "too few buckets for the limit"),
    topic!("chain-too-long", "packets dropped because their hash chain was too long"),
    topic!("long-timeouts", "entries kept only by a long timeout"),
    topic!("one-flow-type", "one protocol and port fills the table"),
    topic!("table-unseen", "what the table holds could not be read"),
    topic!("rules-left-out", "rules that were not read, or counted only"),
    topic!("namespaces-left-out", "network namespaces that were not looked at"),
    topic!("table-unreadable", "the table's count could not be read"),
    topic!("snat-exhausted", "source NAT has no port left for one more flow"),
    topic!("stale-nat", "entries that send flows where nobody is"),
    topic!("insert-failed", "packets lost in races for one entry"),
    topic!("no-memory", "flows refused for want of memory"),
    topic!("clash-resolve", "races that cost nothing"),
    topic!("invalid", "packets that fitted no flow"),
    topic!("invalid-packets", "packets that belong to no flow, and the rule that drops them"),
    topic!("search-restart", "look-ups that had to start again"),
    topic!("misleading-counters", "kernel counters that say less than their names"),
    topic!("latency", "what tracking costs each packet in time"),
    topic!("tracked-by", "what keeps tracking on"),
    topic!("module-holders", "why rmmod nf_conntrack refuses"),
    topic!("not-loaded", "connection tracking is not there"),
    topic!("container", "what cannot be set from inside a container"),
    topic!("source", "how ctwatch counts here, or why it cannot"),
];

/// `no-source` is told with `source`.
pub const ALIASES: [(&str, &str); 1] = [("no-source", "source")];

/// The topic of an id or of its alias.
pub fn find(id: &str) -> Option<&'static Topic> {
    let id = ALIASES.iter().find(|(alias, _)| *alias == id).map_or(id, |(_, id)| *id);
    topic(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_a_terminal_and_say_something() {
        for topic in &TOPICS {
            assert!(topic.text.len() > 200, "{}", topic.id);
            assert!(topic.text.lines().all(|line| line.chars().count() <= 80), "{}", topic.id);
        }
    }
}
