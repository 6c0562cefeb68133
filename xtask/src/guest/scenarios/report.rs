//! `report --live`: the page of this machine has what the kernel counted while it was watched.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::Context;
use nix::sys::signal::Signal;

use super::super::ctwatch::{PATIENCE, program, run, signal, source};
use super::super::traffic::{Family, Flows, spread, udp};
use super::super::trial::equal;
use super::super::witness::Stats;
use super::super::{modules, state, wait};
use super::record::{is_first_choice, thousands};
use super::{Scenario, Skip, init, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario("report::live", live)];

const PAGE: &str = "/tmp/live.html";
const SAID: &str = "/tmp/live.stderr";

/// A flood while it watches; it is ended early by Ctrl-C. Then a time that ends by itself.
fn live() -> anyhow::Result<()> {
    if !is_first_choice()? {
        return Err(Skip("it is shown on 6.12 by auto".to_owned()).into());
    }
    modules::load()?;
    let space = init();
    state::fresh(&space)?;
    state::set("nf_conntrack_max", 1000)?;
    let _ = fs::remove_file(PAGE);
    let mut child = Command::new(program())
        .args(["report", "--live", "10m", "--interval", "0.2", "-o", PAGE, "--source", source()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(SAID)?)
        .spawn()
        .context("start ctwatch report")?;
    let outcome = wait::until("that it watches", PATIENCE, || {
        let said = fs::read_to_string(SAID)?;
        Ok(if said.contains("watching for 600 s") { Ok(()) } else { Err(said) })
    })
    .and_then(|()| {
        let before = Stats::read(&space)?;
        let sent = spread(Flows::new(Family::V4, 3000), 2, udp::send)?;
        Ok((sent, Stats::read(&space)?.since(&before)))
    });
    if outcome.is_err() {
        let _ = child.kill();
    } else {
        signal(&child, Signal::SIGINT)?;
    }
    let status = child.wait()?;
    let (sent, kernel) = outcome?;
    anyhow::ensure!(status.success(), "report: {status}: {}", fs::read_to_string(SAID)?);
    anyhow::ensure!(sent.refused > 0, "nothing was refused");
    equal("refusals and the kernel's", Some(sent.refused), kernel.get("drop"))?;
    let page = fs::read_to_string(PAGE)?;
    for told in ["CRITICAL", "table-full", &format!("<b>{}</b> new flows refused", thousands(sent.refused))] {
        anyhow::ensure!(page.contains(told), "`{told}` is missing in the page:\n{page}");
    }
    anyhow::ensure!(page.contains("<svg ") && page.ends_with("</html>\n"), "no page:\n{page}");

    let ended = run(&["report", "--live", "1s", "--interval", "0.5", "-o", "-", "--source", source()])?;
    anyhow::ensure!(ended.status.success(), "report: {}", String::from_utf8_lossy(&ended.stderr));
    let page = String::from_utf8(ended.stdout)?;
    anyhow::ensure!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "no page:\n{page}");
    let refused = run(&["report", "--live", "10m", "-o", "/nowhere/page.html"])?;
    anyhow::ensure!(
        !refused.status.success(),
        "a page that cannot be written is refused at once: {refused:?}"
    );
    Ok(())
}
