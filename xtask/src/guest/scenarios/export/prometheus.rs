//! A real Prometheus and its promtool.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::super::super::exporter::Exporter;
use super::super::super::space::{Space, checked};
use super::super::super::traffic::{Family, Flows, udp};
use super::super::super::wait;
use super::{netns, watched};

/// In a group of its own: it needs programs that most guests do not have.
pub(super) const NAME: &str = "prometheus::scrapes";

const SERVER: &str = "127.0.0.1:9090";
/// Emulated, it takes half a minute to start.
const PATIENCE: Duration = Duration::from_mins(4);
const DIRECTORY: &str = "/tmp/ctwatch-prometheus";

/// Two jobs of different intervals see the same totals; the rules load and are evaluated; every query of the dashboard
/// has an answer.
const CONFIGURATION: &str = "
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 2s}
rule_files: [ctwatch.rules.yml]
scrape_configs:
  - {job_name: often, static_configs: [{targets: ['127.0.0.1:9963']}]}
  - {job_name: seldom, scrape_interval: 3s, scrape_timeout: 3s, static_configs: [{targets: ['127.0.0.1:9963']}]}
";

const RULES: &str = include_str!("../../../../../contrib/prometheus/ctwatch.rules.yml");
const DASHBOARD: &str = include_str!("../../../../../contrib/prometheus/dashboard.json");

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already where it failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn run() -> anyhow::Result<()> {
    let space = watched("exported")?;
    let exporter = Exporter::start(&["--netns", "exported"])?;
    silent_promtool(&exporter)?;
    let server = start()?;
    let mut first = 0;
    let mut sent = 0;
    let mut make = |space: &Space, count: u32| {
        let made = space.enter(|| udp::send(Flows::new(Family::V4, count).from(first)))?;
        (first, sent) = (first + count, sent + made.passed);
        anyhow::Ok(sent)
    };
    make(&space, 1000)?;
    // The rate of a count needs two scrapes of it.
    for job in ["often", "seldom"] {
        wait::until(&format!("a scrape by job {job}"), PATIENCE, || {
            let scrapes = number(&format!("count_over_time(ctwatch_inserts_total{{job=\"{job}\"}}[5m])"))?;
            Ok(if scrapes >= Some(2.0) { Ok(()) } else { Err(format!("{scrapes:?}")) })
        })?;
    }
    let all = make(&space, 3000)?;
    exporter.wait_sum("ctwatch_inserts_total", &[&netns(&space)], all)?;
    for job in ["often", "seldom"] {
        let query = format!("sum(ctwatch_inserts_total{{job=\"{job}\",{}}})", netns(&space));
        let lost = format!("sum(ctwatch_events_lost_total{{job=\"{job}\"}})");
        wait::until(&format!("{all} inserts by job {job}"), PATIENCE, || {
            let (told, lost) = (number(&query)?.unwrap_or(0.0), number(&lost)?.unwrap_or(0.0));
            let equal = told <= all as f64 && told + lost >= all as f64;
            Ok(if equal { Ok(()) } else { Err(format!("{told}, and {lost} lost")) })
        })?;
    }
    rules_are_well()?;
    dashboard()?;
    drop(server);
    exporter.stop()
}

/// `promtool check metrics` has nothing to say.
fn silent_promtool(exporter: &Exporter) -> anyhow::Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool")?;
    promtool.stdin.take().context("its stdin")?.write_all(exporter.get("/metrics", "")?.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    anyhow::ensure!(
        output.status.success() && said.is_empty(),
        "promtool: {}: {}",
        output.status,
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

fn start() -> anyhow::Result<Server> {
    let directory = Path::new(DIRECTORY);
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("prometheus.yml"), CONFIGURATION)?;
    std::fs::write(directory.join("ctwatch.rules.yml"), RULES)?;
    let log = std::fs::File::create(directory.join("log"))?;
    let mut server = Server(
        Command::new("prometheus")
            .arg(format!("--config.file={DIRECTORY}/prometheus.yml"))
            .arg(format!("--storage.tsdb.path={DIRECTORY}/data"))
            .arg(format!("--web.listen-address={SERVER}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start prometheus")?,
    );
    wait::until("Prometheus", PATIENCE, || {
        if let Some(status) = server.0.try_wait()? {
            let log = std::fs::read_to_string(directory.join("log"))?;
            anyhow::bail!("prometheus ended: {status}: {log}");
        }
        Ok(api("/api/v1/status/runtimeinfo", &[]).map(drop).map_err(|error| format!("{error:#}")))
    })?;
    Ok(server)
}

/// Every rule was evaluated without an error.
fn rules_are_well() -> anyhow::Result<()> {
    wait::until("the rules", PATIENCE, || {
        let groups = api("/api/v1/rules", &[])?;
        let rules: Vec<&Value> = groups["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|group| group["rules"].as_array())
            .flatten()
            .collect();
        let bad: Vec<_> = rules.iter().filter(|rule| rule["health"] == "err").collect();
        anyhow::ensure!(bad.is_empty(), "rules fail: {bad:?}");
        let done = rules.len() > 10 && rules.iter().all(|rule| rule["health"] == "ok");
        Ok(if done { Ok(()) } else { Err(format!("{} of them", rules.len())) })
    })
}

/// Every query of every panel has data.
fn dashboard() -> anyhow::Result<()> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).context("the dashboard")?;
    let panels = dashboard["panels"].as_array().context("its panels")?;
    let ranked = number("count(ctwatch_top_inserts_total)")?.is_some();
    let mut asked = 0;
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("a query")?;
            // By netlink nobody ranks ports.
            if query.contains("ctwatch_top_") && !ranked {
                continue;
            }
            let filled =
                query.replace("$job", ".*").replace("$instance", ".*").replace("$__rate_interval", "1m");
            anyhow::ensure!(!filled.contains('$'), "an unknown variable in {query}");
            wait::until(&format!("data of panel {}: {query}", panel["title"]), PATIENCE, || {
                let result = &api("/api/v1/query", &[("query", &filled)])?["result"];
                let some = result.as_array().is_some_and(|series| !series.is_empty());
                Ok(if some { Ok(()) } else { Err(result.to_string()) })
            })?;
            asked += 1;
        }
    }
    anyhow::ensure!(asked >= 20, "only {asked} queries");
    Ok(())
}

/// The value of a query with one result.
fn number(query: &str) -> anyhow::Result<Option<f64>> {
    let result = &api("/api/v1/query", &[("query", query)])?["result"];
    let value = result[0]["value"][1].as_str();
    value.map(|value| value.parse().with_context(|| format!("{query}: {result}"))).transpose()
}

/// The data of an answer of Prometheus's API, asked for with its own client.
fn api(path: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
    let encoded: Vec<String> =
        parameters.iter().map(|(key, value)| format!("{key}={}", percent(value))).collect();
    let text = checked(Command::new("wget").args([
        "-q",
        "-O",
        "-",
        &format!("http://{SERVER}{path}?{}", encoded.join("&")),
    ]))?;
    let mut answer: Value = serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))?;
    anyhow::ensure!(answer["status"] == "success", "{path}: {text}");
    Ok(answer["data"].take())
}

fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn queries_survive_a_url() {
        assert_eq!(super::percent("a{b=~\".*\"}[1m]"), "a%7Bb%3D~%22.%2A%22%7D%5B1m%5D");
    }
}
