//! A headless Chromium, driven over two pipes by its DevTools protocol.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::flood::decode;
use crate::step;

/// An answer that takes longer does not come. The first one waits for the start on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A browser that ends with this.
#[derive(Debug)]
pub(super) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    /// What it said beside answers.
    events: VecDeque<Value>,
    calls: u64,
    log: PathBuf,
}

/// How a page is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) width: u32,
    pub(super) dark: bool,
    /// Whether the page's scripts run.
    pub(super) script: bool,
}

impl Browser {
    /// Starts it with a profile of its own in `scratch`.
    pub(super) fn start(program: &Path, scratch: &Path) -> Result<Self> {
        let profile = scratch.join("profile");
        if profile.exists() {
            fs::remove_dir_all(&profile)?;
        }
        let log = scratch.join("chromium.log");
        // It reads descriptor 3 and writes descriptor 4.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-extensions"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        if nix::unistd::geteuid().is_root() {
            // Its sandbox refuses to run as root.
            command.arg("--no-sandbox");
        }
        let mut child = command.spawn().context("cannot start Chromium")?;
        let to = child.stdin.take().context("Chromium's input")?;
        let out = child.stdout.take().context("Chromium's output")?;
        let (sender, from) = mpsc::channel();
        thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { break };
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, to, from, events: VecDeque::new(), calls: 0, log })
    }

    /// Opens a page, runs a script in it, and gives all that is wrong: what the script returned, and what the page
    /// said and asked for. A picture of the whole page is left in `picture`.
    pub(super) fn look(
        &mut self,
        page: &Path,
        window: Window,
        script: &str,
        picture: &Path,
    ) -> Result<Vec<String>> {
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"}))?;
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call(None, "Target.attachToTarget", target.clone())?;
        let session = attached["sessionId"].as_str().context("no session")?.to_owned();
        let session = Some(session.as_str());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(session, &format!("{domain}.enable"), json!({}))?;
        }
        self.call(session, "Page.setLifecycleEventsEnabled", json!({"enabled": true}))?;
        let phone = window.width < 600;
        let metrics = json!({"width": window.width, "height": 900, "deviceScaleFactor": 1, "mobile": phone});
        self.call(session, "Emulation.setDeviceMetricsOverride", metrics)?;
        let scheme = if window.dark { "dark" } else { "light" };
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call(session, "Emulation.setEmulatedMedia", scheme)?;
        let off = json!({"value": !window.script});
        self.call(session, "Emulation.setScriptExecutionDisabled", off)?;
        self.events.clear();
        let url = format!("file://{}", page.display());
        let began = self.call(session, "Page.navigate", json!({"url": url}))?;
        if let Some(error) = began["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        // Half a second after the last request, if there was any.
        let loader = began["loaderId"].clone();
        let idle = |event: &Value| {
            event["method"] == "Page.lifecycleEvent"
                && event["params"]["name"] == "networkIdle"
                && event["params"]["loaderId"] == loader
        };
        self.wait_for(idle)?;
        let expression = json!({"expression": script, "returnByValue": true});
        let found = self.call(session, "Runtime.evaluate", expression)?;
        let Some(found) = found["result"]["value"].as_array() else {
            bail!("the script in the page failed: {found}");
        };
        let mut wrong: Vec<String> =
            found.iter().map(|said| said.as_str().unwrap_or_default().to_owned()).collect();
        wrong.extend(self.events.iter().filter_map(|event| complaint(event, &url)));
        self.save(session, picture)?;
        self.call(None, "Target.closeTarget", target)?;
        Ok(wrong)
    }

    fn save(&mut self, session: Option<&str>, picture: &Path) -> Result<()> {
        let shot = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.call(session, "Page.captureScreenshot", shot)?;
        decode(shot["data"].as_str().context("no picture")?, picture)
    }

    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method});
        message["params"] = params;
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let sent = self.to.write_all(format!("{message}\0").as_bytes()).and_then(|()| self.to.flush());
        sent.with_context(|| format!("{method}: Chromium is gone: {}", self.said()))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let message = self.next(until).with_context(|| method.to_owned())?;
            if message["id"] != self.calls {
                self.events.push_back(message);
            } else if message["error"].is_null() {
                return Ok(message["result"].clone());
            } else {
                bail!("{method}: {}", message["error"]);
            }
        }
    }

    fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.events.iter().any(&wanted) {
            let event = self.next(until).context("the end of loading")?;
            self.events.push_back(event);
        }
        Ok(())
    }

    fn next(&self, until: Instant) -> Result<Value> {
        self.from
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .map_err(|error| anyhow::anyhow!("no answer from Chromium ({error}): {}", self.said()))
    }

    fn said(&self) -> String {
        step::tail(&fs::read_to_string(&self.log).unwrap_or_default(), 10)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends its own processes in order when asked to, and all of them end with it.
        let _ = self.call(None, "Browser.close", json!({}));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an event of the page has to say against it.
fn complaint(event: &Value, page: &str) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.consoleAPICalled" => Some(format!("console: {}", params["args"])),
        "Runtime.exceptionThrown" => Some(format!("console: {}", params["exceptionDetails"]["text"])),
        "Log.entryAdded" => Some(format!("console: {}", params["entry"]["text"])),
        "Network.requestWillBeSent" if params["request"]["url"] != page => {
            Some(format!("a request to {}", params["request"]["url"]))
        }
        "Network.webSocketCreated" | "Network.webTransportCreated" => {
            Some(format!("a request to {}", params["url"]))
        }
        "Page.javascriptDialogOpening" => Some(format!("a dialogue: {}", params["message"])),
        _ => None,
    }
}
