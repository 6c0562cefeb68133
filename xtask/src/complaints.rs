//! What a kernel says when something is wrong with it: an Oops, a BUG, a WARNING. Both sides of a guest look for these:
//! the guest in the kernel's log after each scenario, the machine outside in the console of a guest that died.

/// How a record begins: panic() of kernel/panic.c and `__warn()` there, die() of arch/x86/kernel/dumpstack.c, bad
/// accesses of arch/x86/mm/fault.c, lockdep, KASAN, 5.10 to 7.3. Not the soft lockup detector and the stall detector of
/// RCU ("watchdog: BUG:", "rcu: INFO:"): an emulated CPU that has to wait for a real one sets them off.
const BEGINNINGS: [&str; 9] = [
    "Oops",
    "int3: ",
    "BUG: ",
    "WARNING: ",
    "kernel BUG at ",
    "general protection fault",
    "Kernel panic",
    "stack segment: ",
    "UBSAN: ",
];

/// A crash, after which nothing else in this kernel can be relied on.
const CRASHES: [&str; 6] =
    ["Oops", "int3: ", "BUG: kernel", "kernel BUG at ", "general protection fault", "Kernel panic"];

/// How many lines below its beginning a complaint names the function it is about.
const REACH: usize = 16;

/// Complaints that are no finding: the function or the words that identify one, and why.
const ALLOWED: [(&str, &str); 1] = [(
    "workqueue lockup",
    "the watchdog of work queues measures the time of a CPU, which an emulated one on a busy machine does not get",
)];

/// One complaint of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// Its first line.
    pub line: String,
    /// The function it names, where it names one.
    pub symbol: Option<String>,
    /// Whether the kernel had stepped to address 0 from a breakpoint ([`stepped_to_nothing`]).
    from_breakpoint: bool,
}

impl Complaint {
    /// Why it is no finding, if it is none.
    pub(crate) fn allowed(&self) -> Option<&'static str> {
        let named = |known: &str| self.symbol.as_deref() == Some(known) || self.line.contains(known);
        ALLOWED.iter().find(|(known, _)| named(known)).map(|(_, why)| *why)
    }

    /// Whether the kernel crashed.
    pub(crate) fn is_crash(&self) -> bool {
        CRASHES.iter().any(|crash| self.line.starts_with(crash))
    }

    /// Whether it is the emulator's fault: a CPU ran a breakpoint by which the kernel had patched its code a moment
    /// before, and which was no longer there. qemu's threads translate code ahead (seen with static keys, in
    /// functions that nobody watches).
    pub(crate) fn is_emulators(&self) -> bool {
        self.line.contains("int3: ") || self.from_breakpoint
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line)?;
        match &self.symbol {
            Some(symbol) if !self.line.contains(symbol) => write!(f, " (in {symbol})"),
            _ => Ok(()),
        }
    }
}

/// All complaints in a kernel's log, one record a line, with or without time stamps.
pub(crate) fn all(log: &str) -> Vec<Complaint> {
    let lines: Vec<&str> = log.lines().map(without_time).collect();
    let begins = |line: &str| BEGINNINGS.iter().any(|beginning| line.starts_with(beginning));
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| begins(line)) {
        let below = lines[index + 1..].iter().take(REACH);
        let from_breakpoint = stepped_to_nothing(line, below.clone().copied());
        let below = below.take_while(|line| !begins(line));
        let symbol = symbol_in(line)
            .or_else(|| below.filter(|line| line.starts_with("RIP: ")).find_map(|line| symbol_in(line)));
        found.push(Complaint { line: line.trim_end().to_owned(), symbol, from_breakpoint });
    }
    found
}

/// Whether a CPU ran such a breakpoint where a kprobe is made by ftrace (`kprobe_int3_handler` of
/// arch/x86/kernel/kprobes/core.c, 7.3). The kernel then takes the breakpoint for the probe's own, and steps with
/// interrupts off to the copy of the instruction under it, which such a probe does not have: its address is 0
/// (`arch_prepare_kprobe_ftrace`). Seen once in `__nf_conntrack_alloc`, whose arguments were in the registers. A call of
/// a null pointer looks different: it leaves interrupts as they were.
fn stepped_to_nothing<'a>(line: &str, mut below: impl Iterator<Item = &'a str>) -> bool {
    /// `X86_EFLAGS_IF`: interrupts are on.
    const INTERRUPTS: u64 = 1 << 9;
    let at_0 = line.starts_with("BUG: kernel NULL pointer dereference, address: 0000000000000000");
    let flags = |line: &str| u64::from_str_radix(line.split_once("EFLAGS: ")?.1.trim(), 16).ok();
    at_0 && below.any(|line| line.trim_end() == "RIP: 0010:0x0")
        && below.find_map(flags).is_some_and(|flags| flags & INTERRUPTS == 0)
}

/// The line without `[    4.480000] ` before it, or the same with the number of a CPU or thread.
fn without_time(line: &str) -> &str {
    let mut line = line.trim_start();
    while let Some((inside, rest)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
        if !inside.trim_start().starts_with(|c: char| c.is_ascii_digit() || c == 'T' || c == 'C') {
            break;
        }
        line = rest.trim_start();
    }
    line
}

/// The function in a word like `nf_ct_delete+0x12/0x90` or `0010:nf_ct_delete+0x12/0x90`.
fn symbol_in(line: &str) -> Option<String> {
    let name = line.split([' ', ',']).find_map(|word| word.split_once("+0x").map(|(name, _)| name))?;
    let name = name.rsplit(':').next().unwrap_or(name);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(log: &str) -> Complaint {
        let mut found = all(log);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn a_warning_names_its_function_on_old_and_new_kernels() {
        let old = "[    9.1] ------------[ cut here ]------------\n\
                   [    9.1] WARNING: CPU: 1 PID: 9 at net/core/dev.c:10 nf_ct_delete+0x1/0x9 [nf_conntrack]\n";
        assert_eq!(one(old).symbol.as_deref(), Some("nf_ct_delete"));
        let new = "WARNING: net/core/dev.c:10 at nf_ct_delete+0x1/0x9, CPU#0: nft/88\nModules linked in: x\n";
        assert_eq!(one(new).symbol.as_deref(), Some("nf_ct_delete"));
        assert!(!one(new).is_crash());
    }

    #[test]
    fn a_crash_is_told_from_a_breakpoint_that_was_gone() {
        let log = "[ 4.1] nf_conntrack: loaded\n[ 4.48] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n\
                   [ 4.48][    C1] RIP: 0010:hash_conntrack_raw+0x1/0x20 [nf_conntrack]\n\
                   [ 4.48] Kernel panic - not syncing: Fatal exception in interrupt\n";
        let found = all(log);
        assert_eq!(found.len(), 2);
        assert!(found[0].is_crash() && found[0].is_emulators());
        assert_eq!(found[0].symbol.as_deref(), Some("hash_conntrack_raw"));
        assert!(found[1].is_crash() && !found[1].is_emulators());
        let access = "BUG: kernel NULL pointer dereference, address: 0\n#PF: supervisor read\n\
                      RIP: 0010:early_drop+0x3/0x9\n";
        assert!(one(access).is_crash() && one(access).to_string().ends_with("(in early_drop)"));
    }

    #[test]
    fn a_breakpoint_that_was_gone_under_a_probe_is_told_from_a_null_pointer() {
        let log = |rip: &str, flags: &str| {
            format!(
                "[  531.4] BUG: kernel NULL pointer dereference, address: 0000000000000000\n\
                 [  531.4] #PF: supervisor instruction fetch in kernel mode\n\
                 [  531.4] #PF: error_code(0x0010) - not-present page\n\
                 [  531.4] PGD 0 P4D 0 \n\
                 [  531.4] Oops: Oops: 0010 [#1] SMP NOPTI\n\
                 [  531.4] CPU: 1 UID: 0 PID: 2331 Comm: exe Not tainted 7.3.4+deb13-cloud-amd64\n\
                 [  531.4] RIP: 0010:{rip}\n\
                 [  531.4] Code: Unable to access opcode bytes at 0xffffffffffffffd6.\n\
                 [  531.4] RSP: 0018:ff706d02c1e139c8 EFLAGS: {flags}\n"
            )
        };
        let is_emulators = |log: &str| all(log).iter().find(|found| found.is_crash()).unwrap().is_emulators();
        assert!(is_emulators(&log("0x0", "00000046")));
        assert!(!is_emulators(&log("0x0", "00010246")), "a call of a null pointer with interrupts on");
        assert!(!is_emulators(&log("nf_ct_delete+0x3/0x9", "00000046")));
    }

    #[test]
    fn what_a_healthy_or_a_waiting_kernel_says_is_no_complaint() {
        let log = "nf_conntrack: nf_conntrack: table full, dropping packet\n\
                   [    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on\n\
                   [   60.1] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [swapper/1:0]\n\
                   [   60.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n";
        assert_eq!(all(log), []);
        let waiting = one("BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 32s!");
        assert!(waiting.allowed().is_some());
        assert!(one("BUG: scheduling while atomic: ctwatch/77/0x2").allowed().is_none());
    }
}
