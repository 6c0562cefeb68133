//! Programs at work: attaching, detaching, and what the kernel says of their runs.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya_obj::generated::bpf_attach_type;

use super::{
    kprobe::Kprobe,
    object::{Object, Target},
    sys::{ProgramStats, program_stats},
    trampoline,
};
use crate::{
    kernel::{facts::Facts, hooks::Method, plan::Hook},
    model::Cost,
};

/// An object and those of its programs that are attached. Dropping it detaches them all.
#[derive(Debug)]
pub struct Attached {
    /// The programs' maps.
    pub object: Object,
    programs: Vec<Program>,
    /// The BTF object of nf_conntrack, once it was needed.
    module_btf: Option<OwnedFd>,
}

/// What programs did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often the kernel skipped one that tells of more than failures, as far as it tells.
    pub missed: u64,
    /// How often one of the others ([`Hook::failures_only`]).
    pub missed_failures: u64,
    /// What they cost.
    pub cost: Cost,
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    failures_only: bool,
    fd: OwnedFd,
    links: Vec<Link>,
}

#[derive(Debug)]
enum Link {
    Trampoline { _link: OwnedFd },
    Kprobe { kprobe: Kprobe, symbol: String },
}

impl Attached {
    /// Nothing attached yet.
    pub fn new(object: Object) -> Self {
        Self { object, programs: Vec::new(), module_btf: None }
    }

    /// Attaches these hooks beside those that are attached, in this order.
    ///
    /// All of them are loaded before the first is attached, so that a refusal changes nothing and
    /// little time passes between one and the next. Where one of them cannot be attached, none is.
    pub fn hook(&mut self, facts: &Facts, hooks: &[Hook]) -> Result<()> {
        let mut loaded: Vec<(Program, Vec<&Hook>)> = Vec::new();
        for hook in hooks {
            let known = loaded.iter_mut().find(|(program, _)| program.name == hook.program);
            // A trampoline program is loaded for one function; a kprobe's serves any.
            if let (Some((_, on)), Method::Kprobe | Method::Kretprobe) = (known, hook.method) {
                on.push(hook);
                continue;
            }
            let fd = self.load(facts, hook).with_context(|| format!("cannot watch {}", hook.symbol))?;
            let failures_only = hook.failures_only();
            loaded.push((Program { name: hook.program, failures_only, fd, links: Vec::new() }, vec![hook]));
        }
        // In the order asked for, which is not that of the programs where one serves several hooks.
        for hook in hooks {
            let found = loaded.iter_mut().find(|(_, on)| on.iter().any(|on| std::ptr::eq(*on, hook)));
            let (program, _) = found.context("every hook has a program")?;
            let link = program.attach(hook);
            program
                .links
                .push(link.with_context(|| format!("cannot attach {} to {}", hook.program, hook.symbol))?);
        }
        self.programs.extend(loaded.into_iter().map(|(program, _)| program));
        Ok(())
    }

    /// Detaches these. What the kernel knows that they missed is forgotten.
    pub fn release(&mut self, hooks: &[Hook]) {
        self.programs.retain(|program| !hooks.iter().any(|hook| hook.program == program.name));
    }

    /// Detaches all of them. What they counted stays in the maps.
    pub fn unhook(&mut self) {
        self.programs.clear();
    }

    /// How many there are.
    pub const fn programs(&self) -> usize {
        self.programs.len()
    }

    /// What the attached programs did since they were loaded.
    pub fn runs(&self) -> Result<Runs> {
        let mut sum = Runs::default();
        // The kernel counts a call that it skips for each kprobe on the function, and a pair sees one call.
        let mut skipped: BTreeMap<&str, (bool, u64)> = BTreeMap::new();
        for program in &self.programs {
            sum.add(program.runs()?);
            for (symbol, missed) in program.links_missed()? {
                let entry = skipped.entry(symbol).or_insert((program.failures_only, 0));
                entry.1 = entry.1.max(missed);
            }
        }
        for (failures_only, missed) in skipped.into_values() {
            sum.add(Runs::missed(failures_only, missed));
        }
        Ok(sum)
    }

    /// The kernel's number of an attached program that uses this map.
    pub fn user_of(&self, map: &str) -> Result<Option<u32>> {
        let found = self.programs.iter().find(|program| self.object.uses(program.name, map));
        Ok(found.map(|program| program_stats(program.fd.as_fd())).transpose()?.map(|stats| stats.id))
    }

    fn load(&mut self, facts: &Facts, hook: &Hook) -> Result<OwnedFd> {
        let attach_type = match hook.method {
            Method::Kprobe | Method::Kretprobe => return self.object.load(hook.program, Target::Kprobe),
            Method::Fentry => bpf_attach_type::BPF_TRACE_FENTRY as u32,
            Method::Fexit => bpf_attach_type::BPF_TRACE_FEXIT as u32,
        };
        let function = facts.functions.get(&hook.symbol).copied();
        let function = function.context("the kernel's type information does not have it")?;
        let module = if facts.in_module(function) {
            if self.module_btf.is_none() {
                self.module_btf = Some(trampoline::btf_object("nf_conntrack")?);
            }
            self.module_btf.as_ref()
        } else {
            None
        };
        let module = module.map(OwnedFd::as_fd);
        self.object.load(hook.program, Target::Trampoline { attach_type, function, module })
    }
}

impl Program {
    fn attach(&self, hook: &Hook) -> Result<Link> {
        let program = self.fd.as_fd();
        Ok(match hook.method {
            Method::Fentry | Method::Fexit => Link::Trampoline { _link: trampoline::attach(program)? },
            Method::Kprobe | Method::Kretprobe => {
                let at_return = hook.method == Method::Kretprobe;
                let kprobe = Kprobe::attach(program, &hook.symbol, at_return)?;
                Link::Kprobe { kprobe, symbol: hook.symbol.clone() }
            }
        })
    }

    /// What each kprobe missed, by its function.
    fn links_missed(&self) -> Result<Vec<(&str, u64)>> {
        let mut all = Vec::new();
        for link in &self.links {
            if let Link::Kprobe { kprobe, symbol } = link {
                all.push((symbol.as_str(), kprobe.missed().context("cannot read a kprobe's misses")?));
            }
        }
        Ok(all)
    }

    fn runs(&self) -> Result<Runs> {
        let ProgramStats { run_ns, runs, missed, .. } =
            program_stats(self.fd.as_fd()).context("cannot read a program's statistics")?;
        Ok(Runs { cost: Cost { run_ns, runs }, ..Runs::missed(self.failures_only, missed) })
    }
}

impl Runs {
    fn missed(failures_only: bool, missed: u64) -> Self {
        if failures_only {
            Self { missed_failures: missed, ..Self::default() }
        } else {
            Self { missed, ..Self::default() }
        }
    }

    fn add(&mut self, other: Self) {
        self.missed += other.missed;
        self.missed_failures += other.missed_failures;
        self.cost.run_ns += other.cost.run_ns;
        self.cost.runs += other.cost.runs;
    }
}
