//! `ctwatch export` as a child process, read over HTTP as any client would.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::ctwatch::{PATIENCE, Running, program, source};
use super::space::Space;
use super::wait;

/// Where it listens unless a scenario says otherwise.
pub(super) const ADDRESS: &str = "127.0.0.1:9963";

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// It, running.
#[derive(Debug)]
pub(super) struct Exporter {
    running: Running,
    address: SocketAddr,
}

/// One scrape: each series with its labels as printed, and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scrape(BTreeMap<String, f64>);

impl Exporter {
    /// Starts it and waits until it answers.
    pub(super) fn start(args: &[&str]) -> anyhow::Result<Self> {
        let mut command = Space::init().command(&program());
        command.args(["export", "--interval", "0.2", "--source", source(), "--listen", ADDRESS]).args(args);
        let exporter = Self { running: Running::spawn(&mut command)?, address: ADDRESS.parse()? };
        wait::until("an answer of ctwatch export", PATIENCE, || {
            Ok(exporter.get("/healthz", "").map(drop).map_err(|error| format!("{error:#}")))
        })?;
        Ok(exporter)
    }

    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        self.running.pid()
    }

    /// A whole answer over TCP; an error unless it is 200.
    pub(super) fn get(&self, path: &str, headers: &str) -> anyhow::Result<String> {
        get(self.address, path, headers)
    }

    /// What Prometheus's own text format holds now.
    pub(super) fn scrape(&self) -> anyhow::Result<Scrape> {
        Scrape::over_tcp(self.address)
    }

    /// A line of its `/proc/PID/status` that has an amount of memory, in KiB.
    pub(super) fn memory_kib(&self, name: &str) -> anyhow::Result<u64> {
        super::processes::memory_kib(self.running.pid()?, name)
    }

    /// Ends it; it must end well.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.running.signal(Signal::SIGTERM)?;
        let ended = self.running.end()?;
        anyhow::ensure!(ended.status.success(), "ctwatch export: {}: {}", ended.status, ended.stderr);
        Ok(())
    }

    /// Waits until these series add up to a count, what kprobes missed included, and that they still do afterwards.
    pub(super) fn wait_sum(&self, name: &str, labels: &[&str], wanted: u64) -> anyhow::Result<Scrape> {
        // By netlink, what was lost is added to the counts of a namespace as soon as its number is known.
        let lost = |scrape: &Scrape| {
            let by_kprobe = scrape.sum("ctwatch_source_info", &["kind=\"kprobe\""]) == 1;
            if by_kprobe { scrape.sum("ctwatch_events_lost_total", &[]) } else { 0 }
        };
        let told = |scrape: &Scrape| (scrape.sum(name, labels), lost(scrape));
        wait::until(&format!("{wanted} {name} {labels:?}"), PATIENCE, || {
            let (sum, lost) = told(&self.scrape()?);
            Ok(if sum + lost >= wanted { Ok(()) } else { Err(format!("{sum}, and {lost} lost")) })
        })?;
        // A later reading: its own processor time has gone on.
        let cpu = self.scrape()?.value("ctwatch_cpu_seconds_total");
        let mut later = None;
        wait::until("the next reading", PATIENCE, || {
            let scrape = self.scrape()?;
            let done = scrape.value("ctwatch_cpu_seconds_total") > cpu;
            later = Some(scrape);
            Ok(if done { Ok(()) } else { Err("none".to_owned()) })
        })?;
        let later = later.context("a reading")?;
        let (sum, lost) = told(&later);
        anyhow::ensure!(
            (sum..=sum + lost).contains(&wanted),
            "{name} {labels:?}: ctwatch {sum} and {lost} lost, witness {wanted}"
        );
        Ok(later)
    }
}

fn get(address: SocketAddr, path: &str, headers: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    ask(stream, path, headers)
}

/// Sends a request and reads the body of its answer.
fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str, headers: &str) -> anyhow::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end to its head")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    Ok(body.to_owned())
}

impl Scrape {
    /// From an exporter that listens there.
    pub(super) fn over_tcp(address: SocketAddr) -> anyhow::Result<Self> {
        Self::parse(&get(address, "/metrics", "")?)
    }

    /// From one that listens at a Unix socket.
    pub(super) fn over_unix(path: &Path) -> anyhow::Result<Self> {
        Self::parse(&ask(UnixStream::connect(path)?, "/metrics", "")?)
    }

    /// Reads Prometheus text; fails on anything that is none, and on a series that is there twice.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no series: {line}"))?;
            let value = value.parse().with_context(|| format!("no value: {line}"))?;
            anyhow::ensure!(series.insert(name.to_owned(), value).is_none(), "twice: {line}");
        }
        anyhow::ensure!(!series.is_empty(), "nothing was exported");
        Ok(Self(series))
    }

    /// The sum over the series of this name that have all these labels, each as `name="value"`.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let fits = |series: &str| {
            let (of, rest) = series.split_once('{').unwrap_or((series, ""));
            of == name && labels.iter().all(|label| rest.contains(label))
        };
        let sum: f64 = self.0.iter().filter(|(series, _)| fits(series)).map(|(_, value)| value).sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of a test are small"
        )]
        let sum = sum as u64;
        sum
    }

    /// One series without labels; 0 where there is none.
    pub(super) fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// How many series there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those whose names begin so.
    pub(super) fn named(&self, prefix: &str) -> usize {
        self.0.keys().filter(|series| series.starts_with(prefix)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::Scrape;

    #[test]
    fn sums_what_has_the_labels() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\nab{x=\"1\"} 5\nb 6\n";
        let scrape = Scrape::parse(text).expect("parses");
        assert_eq!(scrape.sum("a", &["x=\"1\""]), 7);
        assert_eq!(scrape.sum("a", &["x=\"1\"", "y=\"3\""]), 4);
        assert_eq!(scrape.sum("b", &[]), 6);
        assert!(
            Scrape::parse("a 1\na 1\n").is_err()
                && Scrape::parse("").is_err()
                && Scrape::parse("a x\n").is_err()
        );
    }
}
