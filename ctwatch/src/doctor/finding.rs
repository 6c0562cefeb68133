//! What doctor has to say.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::command::{Command, Refused};
use super::facts::Namespace;

/// How bad it is, as monitoring plugins answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// It may hurt soon, or hurts a little.
    Warning,
    /// It hurts now.
    Critical,
    /// It could not be told.
    Unknown,
}

impl Status {
    /// The exit code of a monitoring plugin.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    /// As JSON spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Unknown => "unknown",
        }
    }

    /// The order in which findings are told: a known evil outweighs what could not be told.
    pub const fn weight(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Unknown => 1,
            Self::Warning => 2,
            Self::Critical => 3,
        }
    }
}

/// One figure or text that a finding rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The value as found.
    pub value: Value,
    /// The file, program or computation it comes from.
    pub from: String,
}

/// Figures by name.
pub type Evidence = BTreeMap<&'static str, Figure>;

/// One way out, with all that must be known before it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// A name that stays, one of [`super::remedies::IDS`].
    pub id: &'static str,
    /// What it does.
    pub what: String,
    /// Commands for this machine, to be run as root in this order.
    pub commands: Vec<Command>,
    /// Commands that make it last over a reboot.
    pub persist: Vec<Command>,
    /// Commands that undo both.
    pub undo: Vec<Command>,
    /// What no command is given for, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// What it costs: memory, security, lost NAT or stateful rules.
    pub price: String,
    /// Whether it is another way to the same end as the one before it.
    pub alternative: bool,
}

impl Remedy {
    /// The same where no command reaches the namespace.
    #[must_use]
    pub fn without(mut self, namespace: &Namespace, why: Refused) -> Self {
        self.left_out.push(format!("namespace {} (inode {}): {why}", namespace.name, namespace.netns));
        self
    }
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// A name that stays; `doctor explain` takes it.
    pub id: &'static str,
    /// How bad.
    pub status: Status,
    /// What was found, in a line.
    pub what: String,
    /// What it rests on.
    pub evidence: Evidence,
    /// What it means, in two sentences.
    pub meaning: String,
    /// Ways out, best first.
    pub remedies: Vec<Remedy>,
    /// Whether somebody asked for just this, so that it is told however harmless.
    #[serde(skip)]
    pub asked: bool,
}

impl Finding {
    /// A finding without evidence or remedies yet.
    pub fn new(
        id: &'static str,
        status: Status,
        what: impl Into<String>,
        meaning: impl Into<String>,
    ) -> Self {
        Self {
            id,
            status,
            what: what.into(),
            evidence: Evidence::new(),
            meaning: meaning.into(),
            remedies: Vec::new(),
            asked: false,
        }
    }

    /// Whether it is told without `--all`.
    pub fn matters(&self) -> bool {
        self.asked || self.status != Status::Ok
    }

    /// Adds a figure.
    #[must_use]
    pub fn seen(mut self, name: &'static str, value: impl Into<Value>, from: impl Into<String>) -> Self {
        self.evidence.insert(name, Figure { value: value.into(), from: from.into() });
        self
    }

    /// Adds a figure where there is one.
    #[must_use]
    pub fn seen_if(
        self,
        name: &'static str,
        value: Option<impl Into<Value>>,
        from: impl Into<String>,
    ) -> Self {
        match value {
            Some(value) => self.seen(name, value, from),
            None => self,
        }
    }

    /// Adds ways out.
    #[must_use]
    pub fn cure(mut self, remedies: impl IntoIterator<Item = Remedy>) -> Self {
        self.remedies.extend(remedies);
        self
    }
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The worst of all findings.
    pub status: Status,
    /// The verdict in a line.
    pub verdict: String,
    /// All findings, worst first; those with status `ok` are worth knowing, not worth acting on.
    pub findings: Vec<Finding>,
}
