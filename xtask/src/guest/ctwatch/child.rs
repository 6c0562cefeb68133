//! A child process that prints JSON, a line each.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::super::wait;
use super::{PATIENCE, program};

/// ctwatch, running.
#[derive(Debug)]
pub(in super::super) struct Running {
    child: Child,
    objects: Receiver<Value>,
    said: Arc<Mutex<String>>,
    stderr: Option<JoinHandle<()>>,
}

/// How it ended.
#[derive(Debug)]
pub(in super::super) struct Ended {
    /// The objects that had not been read yet.
    pub(in super::super) objects: Vec<Value>,
    /// All it wrote to stderr.
    pub(in super::super) stderr: String,
    /// How it ended.
    pub(in super::super) status: ExitStatus,
}

impl Running {
    /// Starts it.
    pub(in super::super) fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program()))?;
        let stdout = child.stdout.take().context("its stdout")?;
        let stderr = child.stderr.take().context("its stderr")?;
        let (sender, objects) = channel();
        // Ends with the pipe: a line that is no JSON is handed on as a string and fails whoever reads it.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let object = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(object).is_err() {
                    break;
                }
            }
        });
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        let stderr = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
                said.push_str(&line);
                said.push('\n');
            }
        });
        Ok(Self { child, objects, said, stderr: Some(stderr) })
    }

    /// The next object, or `None` where none comes in time. An error where it has ended.
    pub(in super::super) fn next(&mut self, limit: Duration) -> anyhow::Result<Option<Value>> {
        match self.objects.recv_timeout(limit) {
            Ok(object) => Ok(Some(object)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                anyhow::bail!("ctwatch ended: {status}: {}", self.stderr_text());
            }
        }
    }

    /// Its process id.
    pub(in super::super) fn pid(&self) -> anyhow::Result<Pid> {
        pid(&self.child)
    }

    /// Sends a signal.
    pub(in super::super) fn signal(&self, which: Signal) -> anyhow::Result<()> {
        signal(&self.child, which)
    }

    /// Waits until it has said something to its user.
    pub(in super::super) fn wait_said(&self) -> anyhow::Result<()> {
        wait::until("a word from ctwatch", PATIENCE, || {
            let silent = self.said.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            Ok(if silent { Err("silence".to_owned()) } else { Ok(()) })
        })
    }

    /// Waits for its end.
    pub(in super::super) fn end(&mut self) -> anyhow::Result<Ended> {
        let status = wait_end(&mut self.child)?;
        Ok(Ended { objects: self.objects.iter().collect(), stderr: self.stderr_text(), status })
    }

    /// All it wrote to stderr; for a child that has ended.
    fn stderr_text(&mut self) -> String {
        if let Some(thread) = self.stderr.take() {
            // It ends with the pipe; a panic in it leaves what came before.
            let _ = thread.join();
        }
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A scenario that failed half-way; gone already in every other case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(child: &Child) -> anyhow::Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Sends a signal to any child.
pub(in super::super) fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    kill(pid(child)?, signal).with_context(|| format!("send {signal} to ctwatch"))
}

fn wait_end(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let mut status = None;
    wait::until("the end of ctwatch", PATIENCE, || {
        status = child.try_wait()?;
        Ok(status.map(drop).ok_or_else(|| "still running".to_owned()))
    })?;
    status.context("it ended")
}

/// Whoever reads its output goes away, after the first line or at once: it ends well and says nothing.
pub(in super::super) fn bears_a_closed_pipe(args: &[&str], after_a_line: bool) -> anyhow::Result<()> {
    let mut child =
        Command::new(program()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(child.stdout.take().context("its stdout")?);
    if after_a_line {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "{args:?}: nothing before the pipe was closed");
    }
    drop(reader);
    wait_end(&mut child)
        .inspect_err(|_| drop(child.kill()))
        .with_context(|| format!("{args:?}: the pipe was closed"))?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{args:?}: {}", output.status);
    anyhow::ensure!(output.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
