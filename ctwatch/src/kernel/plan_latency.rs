//! The plan for timing: two functions of tracking, the receive path as a whole, and a function that shows what the
//! timing itself takes.

use super::facts::Facts;
use super::hooks::{Purpose, ROWS, Row};
use super::plan::{self, Hook, Refusal};
use crate::model::SourceKind;

/// How functions are timed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The mechanism.
    pub kind: SourceKind,
    /// What kept a better one from running.
    pub why: Option<String>,
    /// Attachments that time tracking.
    pub tracking: Vec<Hook>,
    /// Attachments that time the receive path; none where it cannot be watched.
    pub receive: Vec<Hook>,
    /// Attachments that time next to nothing; none where this kernel has no such function by itself.
    pub floor: Vec<Hook>,
}

/// The programs that time something by this mechanism.
fn rows(purpose: Purpose, kind: SourceKind) -> impl Iterator<Item = &'static Row> {
    let by = move |row: &&Row| row.method.is_trampoline() == (kind == SourceKind::Fexit);
    ROWS.iter().filter(move |row| row.purpose == purpose).filter(by)
}

/// What keeps it from being timed by this mechanism.
fn obstacle(facts: &Facts, purpose: Purpose, kind: SourceKind) -> Option<String> {
    rows(purpose, kind).map(|row| row.function.name()).find_map(|function| match kind {
        SourceKind::Fexit => unfit(facts, function),
        _ => (!facts.symbols.has(function)).then(|| format!("{function} as a symbol of its own")),
    })
}

/// The hooks that time it; none where it cannot be timed.
fn hooks(facts: &Facts, purpose: Purpose, kind: SourceKind) -> Vec<Hook> {
    if obstacle(facts, purpose, kind).is_some() {
        return Vec::new();
    }
    rows(purpose, kind).map(|row| Hook::on(row, row.function.name())).collect()
}

/// By the mechanism that counting takes, unless a timed function does not suit it.
pub fn plan(facts: &Facts, counting: plan::Plan) -> Result<Plan, Refusal> {
    let (mut kind, mut why) = (counting.kind, counting.why);
    let tracking = |kind| obstacle(facts, Purpose::TimeTracking, kind);
    if kind == SourceKind::Fexit
        && let Some(missing) = tracking(kind)
    {
        (kind, why) = (SourceKind::Kprobe, Some(format!("fexit needs {missing}")));
    }
    if let Some(missing) = tracking(kind) {
        let mend = "a kernel whose compiler left that function in one piece".into();
        return Err(Refusal { kind, obstacles: vec![plan::Obstacle { missing, mend }] });
    }
    Ok(Plan {
        kind,
        why,
        tracking: hooks(facts, Purpose::TimeTracking, kind),
        receive: hooks(facts, Purpose::TimeReceive, kind),
        floor: hooks(facts, Purpose::TimeFloor, kind),
    })
}

/// What keeps a function from carrying a trampoline program that reads none of its arguments.
fn unfit(facts: &Facts, function: &str) -> Option<String> {
    if !facts.prototypes.contains_key(function) {
        return Some(format!("{function} in the kernel's type information"));
    }
    (facts.symbols.names(function).count() != 1).then(|| format!("a {function} in one piece"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: &str = "__do_sys_getppid";
    const RECEIVE: &str = "net_rx_action";

    /// A captured kernel, with the functions that it had no reason to name when it was captured.
    fn kernel(name: &str) -> Facts {
        let path = format!("{}/tests/facts/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let mut facts: Facts = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for function in ["nf_conntrack_in", FLOOR, RECEIVE] {
            if !facts.symbols.has(function) {
                facts.symbols.watched.push(function.into());
            }
            if !facts.prototypes.is_empty() {
                facts.prototypes.entry(function.into()).or_default();
            }
        }
        facts
    }

    fn best(facts: &Facts) -> Result<Plan, Refusal> {
        plan(facts, plan::best(facts)?)
    }

    fn programs(hooks: &[Hook]) -> Vec<&str> {
        hooks.iter().map(|hook| hook.program).collect()
    }

    #[test]
    fn trampolines_where_nothing_is_preempted_kprobes_elsewhere() {
        for (name, kind) in [
            ("debian-5.10", SourceKind::Kprobe),
            ("debian-6.1", SourceKind::Fexit),
            ("debian-7.3", SourceKind::Kprobe),
        ] {
            let plan = best(&kernel(name)).unwrap();
            assert_eq!(plan.kind, kind, "{name}");
            assert_eq!(plan.why.is_none(), kind == SourceKind::Fexit, "{name}");
            assert_eq!((plan.tracking.len(), plan.receive.len(), plan.floor.len()), (4, 2, 2), "{name}");
        }
        let by_kprobe = best(&kernel("debian-5.10")).unwrap();
        assert_eq!(
            programs(&by_kprobe.tracking),
            ["latency_in_ret", "latency_in", "latency_confirm_ret", "latency_confirm"]
        );
    }

    #[test]
    fn a_function_without_types_falls_back_to_kprobes() {
        let mut facts = kernel("debian-6.1");
        facts.prototypes.remove("nf_conntrack_in");
        let plan = best(&facts).unwrap();
        assert_eq!(plan.kind, SourceKind::Kprobe);
        assert!(plan.why.unwrap().contains("nf_conntrack_in in the kernel's type"));
    }

    #[test]
    fn no_comparison_is_no_obstacle_no_function_is() {
        let mut facts = kernel("debian-6.1");
        facts.symbols.watched.retain(|symbol| symbol != FLOOR && symbol != RECEIVE);
        let plan = best(&facts).unwrap();
        assert!(plan.floor.is_empty() && plan.receive.is_empty());
        facts.symbols.watched.retain(|symbol| symbol != "nf_conntrack_in");
        assert!(best(&facts).unwrap_err().to_string().contains("nf_conntrack_in as a symbol"));
    }

    #[test]
    fn a_kernel_that_refuses_probes_says_why() {
        assert!(best(&kernel("debian-6.12-lockdown")).unwrap_err().to_string().contains("lockdown"));
    }
}
