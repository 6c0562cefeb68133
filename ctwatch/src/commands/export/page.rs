//! One reading, written when somebody asks for it, and once for all who ask.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;

use crate::model::series::Exposition;
use crate::view::openmetrics::{Build, Format, render};

/// A reading is missing when it is late by this and two intervals: the machine may be busy.
const GRACE: Duration = Duration::from_secs(10);

/// A reading and its texts. Copies share them.
#[derive(Clone, Debug)]
pub(super) struct Page(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    exposition: Arc<Exposition>,
    build: Build,
    read: Instant,
    interval: Duration,
    openmetrics: OnceLock<Bytes>,
    prometheus: OnceLock<Bytes>,
}

impl Page {
    pub(super) fn new(exposition: Exposition, build: Build, interval: Duration) -> Self {
        Self(Arc::new(Inner {
            exposition: Arc::new(exposition),
            build,
            read: Instant::now(),
            interval,
            openmetrics: OnceLock::new(),
            prometheus: OnceLock::new(),
        }))
    }

    /// The text in this format.
    pub(super) fn text(&self, format: Format) -> Full<Bytes> {
        Full::new(self.bytes(format).clone())
    }

    /// The text that node_exporter reads.
    pub(super) fn prometheus(&self) -> &[u8] {
        self.bytes(Format::Prometheus)
    }

    fn bytes(&self, format: Format) -> &Bytes {
        let text = match format {
            Format::OpenMetrics => &self.0.openmetrics,
            Format::Prometheus => &self.0.prometheus,
        };
        text.get_or_init(|| render(&self.0.exposition, self.0.build, format).into())
    }

    /// Whether the next reading should have come long ago.
    pub(super) fn is_late(&self) -> bool {
        self.0.read.elapsed() > self.0.interval * 2 + GRACE
    }
}
