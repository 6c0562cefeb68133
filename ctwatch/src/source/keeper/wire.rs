//! What ctwatch and the keeper say to each other: JSON behind its length.

use std::collections::BTreeMap;
use std::io;

use ctwatch_ebpf::{Counters, FlowType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::demand::Failures;
use super::super::netlink::singles::Told;
use crate::kernel::plan::{Obstacle, Refusal};
use crate::model::{Cost, Sample, SourceInfo, SourceKind, Table};

/// More than any sample takes.
const LONGEST: usize = 256 << 20;
const HEAD: usize = 4;

/// What ctwatch asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Tables { only: Option<u32>, met: Vec<u32> },
    Open { why: String },
    Look,
    Sample,
    Told { last: bool },
    Close,
}

/// What the keeper answers, each time with the processor time that it has taken.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Tables(TableReading),
    Opened(SourceInfo),
    Looked { waiting: Option<String>, info: SourceInfo },
    Sampled(WireSample),
    Told(Told),
    Closed,
    Failed(Failure),
}

/// An error, as far as others act on it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// Of a [`Refusal`], what is missing and what mends it.
    obstacles: Vec<(String, String)>,
    text: String,
}

/// What is read of tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct TableReading {
    pub(in super::super) tables: Vec<Table>,
    pub(in super::super) failures: BTreeMap<u32, Failures>,
    pub(in super::super) left_out: u64,
}

/// A sample by ctnetlink. JSON has no maps by flow type.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireSample {
    wall_ns: i128,
    mono_ns: u64,
    rows: Vec<(u32, u8, u8, Vec<u64>)>,
    tables: Vec<Table>,
    left_out: u64,
    lost: u64,
    cost: Option<Cost>,
}

impl Answer {
    /// The error that an answer of another kind is.
    pub(super) fn error(self) -> anyhow::Error {
        match self {
            Self::Failed(Failure { obstacles, text }) if obstacles.is_empty() => anyhow::anyhow!(text),
            Self::Failed(Failure { obstacles, .. }) => {
                let obstacle = |(missing, mend)| Obstacle { missing, mend };
                let obstacles = obstacles.into_iter().map(obstacle).collect();
                Refusal { kind: SourceKind::Netlink, obstacles }.into()
            }
            other => anyhow::anyhow!("the process for network namespaces answered something else: {other:?}"),
        }
    }
}

/// An error on its way.
pub(super) fn failed(error: &anyhow::Error) -> Answer {
    let obstacles = error.downcast_ref::<Refusal>().map(|refusal| {
        let texts = |obstacle: &Obstacle| (obstacle.missing.clone(), obstacle.mend.clone());
        refusal.obstacles.iter().map(texts).collect()
    });
    Answer::Failed(Failure { obstacles: obstacles.unwrap_or_default(), text: format!("{error:#}") })
}

impl From<Sample> for WireSample {
    fn from(sample: Sample) -> Self {
        let row = |(flow, counters): (FlowType, Counters)| {
            (flow.netns, flow.family, flow.proto, counters.0.to_vec())
        };
        Self {
            wall_ns: sample.wall_ns,
            mono_ns: sample.mono_ns,
            rows: sample.rows.into_iter().map(row).collect(),
            tables: sample.tables,
            left_out: sample.namespaces_left_out,
            lost: sample.lost,
            cost: sample.cost,
        }
    }
}

impl From<WireSample> for Sample {
    fn from(wire: WireSample) -> Self {
        let row = |(netns, family, proto, values): (u32, u8, u8, Vec<u64>)| {
            let mut counters = Counters::default();
            for (counter, value) in counters.0.iter_mut().zip(values) {
                *counter = value;
            }
            (FlowType { netns, family, proto }, counters)
        };
        Self {
            wall_ns: wire.wall_ns,
            mono_ns: wire.mono_ns,
            rows: wire.rows.into_iter().map(row).collect(),
            tables: wire.tables,
            namespaces_left_out: wire.left_out,
            lost: wire.lost,
            cost: wire.cost,
            ..Self::default()
        }
    }
}

/// A message with its length before it.
pub(super) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEAD];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - HEAD).map_err(io::Error::other)?;
    bytes[..HEAD].copy_from_slice(&length.to_ne_bytes());
    Ok(bytes)
}

/// Bytes that become messages.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The next whole message.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((head, rest)) = self.0.split_first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_ne_bytes(*head) as usize;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.0.drain(..HEAD + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_they_went_however_they_are_cut() {
        let counters = Counters(std::array::from_fn(|event| u64::MAX - event as u64));
        let table = |netns| Table { netns, name: "a\n\u{1b}".into(), count: Some(5), max: None };
        let sample = Sample {
            wall_ns: i128::from(u64::MAX) * 3,
            mono_ns: 7,
            rows: BTreeMap::from([(FlowType { netns: u32::MAX, family: 10, proto: 255 }, counters)]),
            tables: vec![table(1), table(2)],
            namespaces_left_out: 9,
            lost: 3,
            cost: Some(Cost { run_ns: 1, runs: 2 }),
            ..Sample::default()
        };
        let sent = Answer::Sampled(sample.clone().into());
        let bytes = [frame(&(4_u64, &sent)).unwrap(), frame(&(5_u64, &sent)).unwrap()].concat();
        let mut frames = Frames::default();
        let mut came = Vec::new();
        for byte in bytes {
            frames.take(&[byte]);
            while let Some((own_ns, Answer::Sampled(wire))) = frames.next::<(u64, Answer)>().unwrap() {
                came.push((own_ns, Sample::from(wire)));
            }
        }
        assert_eq!(came, [(4, sample.clone()), (5, sample)]);
    }

    #[test]
    fn a_refusal_stays_one() {
        let obstacle = Obstacle { missing: "the right".into(), mend: "sudo".into() };
        let refusal = Refusal { kind: SourceKind::Netlink, obstacles: vec![obstacle] };
        let text = refusal.to_string();
        let back = failed(&refusal.into()).error();
        assert!(back.is::<Refusal>());
        assert_eq!(back.to_string(), text);
        assert_eq!(failed(&anyhow::anyhow!("x").context("y")).error().to_string(), "y: x");
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut frames = Frames::default();
        frames.take(&[0xff; 8]);
        assert!(frames.next::<Request>().is_err());
        let mut frames = Frames::default();
        frames.take(&[1, 0, 0, 0, b'x']);
        assert!(frames.next::<Request>().is_err());
    }
}
