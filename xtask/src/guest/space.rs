//! Network namespaces: the guest's first one and the ones a scenario makes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};

/// One network namespace. One that was made here goes away when dropped.
#[derive(Debug)]
pub(super) struct Space {
    name: Option<String>,
    /// Inode of the namespace, as ctwatch shows it.
    pub(super) inode: u64,
}

impl Space {
    /// The namespace the guest booted with.
    pub(super) fn init() -> Self {
        let inode = fs::metadata("/proc/self/ns/net").map_or(0, |meta| meta.ino());
        Self { name: None, inode }
    }

    /// A new one, known to `ip netns`, with its loopback up.
    pub(super) fn create(name: &str) -> anyhow::Result<Self> {
        checked(Command::new("ip").args(["netns", "add", name]))?;
        let inode = fs::metadata(format!("/run/netns/{name}")).context("the new namespace")?.ino();
        let space = Self { name: Some(name.to_owned()), inode };
        checked(space.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(space)
    }

    /// The one that a process is in, given a name, with its loopback up.
    pub(super) fn attach(name: &str, pid: u32) -> anyhow::Result<Self> {
        checked(Command::new("ip").args(["netns", "attach", name, &pid.to_string()]))?;
        let inode = fs::metadata(format!("/run/netns/{name}")).context("the attached namespace")?.ino();
        let space = Self { name: Some(name.to_owned()), inode };
        checked(space.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(space)
    }

    /// What errors call it.
    pub(super) fn label(&self) -> &str {
        self.name.as_deref().unwrap_or("init")
    }

    /// A command to run inside.
    pub(super) fn command(&self, program: &str) -> Command {
        match &self.name {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, program]);
                command
            }
        }
    }

    /// Runs `work` on a thread inside. Threads that it starts are inside too.
    pub(super) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let Some(name) = &self.name else { return work() };
        let file = File::open(format!("/run/netns/{name}")).with_context(|| format!("open netns {name}"))?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(file, CloneFlags::CLONE_NEWNET).context("enter a namespace")?;
                    work()
                })
                .join()
                .map_err(|_| anyhow::anyhow!("a thread in a namespace panicked"))?
        })
    }

    /// Removes the namespace: `ip netns` unmounts it, and the kernel tears it down in the background.
    pub(super) fn delete(mut self) -> anyhow::Result<()> {
        match self.name.take() {
            Some(name) => checked(Command::new("ip").args(["netns", "del", &name])).map(drop),
            None => anyhow::bail!("the first namespace cannot be deleted"),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = checked(Command::new("ip").args(["netns", "del", &name]))
        {
            eprintln!("delete namespace {name}: {error:#}");
        }
    }
}

/// Runs a command to its end; an error says what it printed.
pub(super) fn checked(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("what {command:?} printed"))
}
