//! Steps that show they are alive, and commands whose failure tells everything.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a step may be silent.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// One line on stderr: stdout belongs to what a command was asked to print.
pub(crate) fn say(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// A step that has begun; says how long it took when that is worth knowing.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    began: Instant,
}

impl Step {
    /// Announces a step.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        say(format!("{what} …"));
        Self { what, began: Instant::now() }
    }

    /// Ends the step.
    pub(crate) fn end(self) {
        let took = self.began.elapsed();
        if took > Duration::from_secs(1) {
            say(format!("{}: {:.1} s", self.what, took.as_secs_f64()));
        }
    }
}

/// What a quiet command printed.
#[derive(Debug)]
pub(crate) struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end with its output kept back; says every ten seconds that it still runs.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait_alive(child, &name)?;
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Runs a command quietly and gives its standard output; any failure shows the command and its stderr.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let out = output(command)?;
    if !out.status.success() {
        let said = [out.stdout.trim(), out.stderr.trim()];
        let said = said.iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>().join("\n");
        bail!("{} failed ({}):\n{}", shown(command), out.status, tail(&said, 40));
    }
    Ok(out.stdout)
}

/// Runs a command quietly for its effect.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    read(command).map(drop)
}

/// Runs a command that shows its own progress on the terminal.
pub(crate) fn run_shown(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command as one would type it, with the variables set for it.
fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={:?}", name.to_string_lossy(), value.to_string_lossy()))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| {
        let word = word.to_string_lossy();
        if word.contains([' ', '"', '\'', '$']) { format!("{word:?}") } else { word.into_owned() }
    });
    format!("`{}`", variables.chain(words).collect::<Vec<_>>().join(" "))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks ends the text; the exit status tells what happened.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait_alive(mut child: Child, name: &str) -> Result<ExitStatus> {
    let began = Instant::now();
    let (ended, waiting) = mpsc::channel();
    thread::spawn(move || ended.send(child.wait()));
    loop {
        match waiting.recv_timeout(HEARTBEAT) {
            Ok(status) => return status.with_context(|| format!("waiting for {name}")),
            Err(RecvTimeoutError::Timeout) => {
                say(format!("  {name} still works ({} s)", began.elapsed().as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => bail!("lost track of {name}"),
        }
    }
}
