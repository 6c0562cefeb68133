//! Many, slow and broken clients.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::super::super::exporter::{ADDRESS, Exporter, Scrape};
use super::super::super::traffic::{Family, Flows, udp};
use super::{netns, watched};

/// Scrapers at once.
const SCRAPERS: usize = 100;
/// How much more memory all of them together may take, in KiB: a page of text for each, and the bookkeeping.
const MORE_KIB: u64 = 16 * 1024;

const GARBAGE: [&[u8]; 6] = [
    b"\0\0\0\0",
    b"GET\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost",
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nx",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /metrics HTTP/1.1\r\nContent-Length: many\r\n\r\n",
];

/// All at once, while flows come: every scraper is answered, counts are exact, memory is bounded.
pub(super) fn run() -> anyhow::Result<()> {
    let space = watched("exported")?;
    let exporter = Exporter::start(&["--netns", "exported"])?;
    exporter.scrape()?;
    let before = exporter.memory_kib("VmRSS")?;
    // Some that never ask, one that asks and never reads; all stay open to the end.
    let mut slow: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(ADDRESS)).collect::<Result<_, _>>()?;
    slow[0].write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let address = exporter.address();
    let sent = thread::scope(|scope| {
        let scrapers: Vec<_> = (0..SCRAPERS)
            .map(|_| scope.spawn(move || Scrape::over_tcp(address).map(|scrape| scrape.len())))
            .collect();
        let broken =
            scope.spawn(|| (0..10).try_for_each(|_| GARBAGE.iter().try_for_each(|bytes| garbage(bytes))));
        let sent = space.enter(|| udp::send(Flows::new(Family::V4, 5000)))?;
        for scraper in scrapers {
            let series = scraper.join().map_err(|_| anyhow::anyhow!("a scraper panicked"))??;
            anyhow::ensure!(series > 5, "a scraper got {series} series");
        }
        broken.join().map_err(|_| anyhow::anyhow!("a broken client panicked"))??;
        anyhow::Ok(sent)
    })?;
    exporter.wait_sum("ctwatch_inserts_total", &[&netns(&space)], sent.passed)?;
    let after = exporter.memory_kib("VmHWM")?;
    anyhow::ensure!(after <= before + MORE_KIB, "memory rose from {before} to {after} KiB");
    // Those that kept silent are shown out.
    for stream in &mut slow[1..] {
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        let read = stream.read(&mut [0; 1024]).context("a silent client was not shown out")?;
        anyhow::ensure!(read == 0, "a silent client was answered");
    }
    exporter.stop()
}

/// Whatever comes back, it is no metrics.
fn garbage(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    stream.write_all(bytes)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    // A reset ends it as well.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    anyhow::ensure!(!answer.contains("ctwatch_build_info"), "garbage was answered: {answer}");
    Ok(())
}
