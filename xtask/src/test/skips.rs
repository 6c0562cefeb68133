//! Which scenarios cannot run where. A skip that is not in this table is a failure, and so is one that did not happen.

use crate::guest_protocol::Outcome;

/// A scenario that is skipped on some kernels.
#[derive(Clone, Copy, Debug)]
struct Skip {
    scenario: &'static str,
    /// Series of kernels, as [`series`] names them; none means all.
    kernels: &'static [&'static str],
    /// Sources of the run; none means all.
    sources: &'static [&'static str],
}

const OLD: &[&str] = &["5.10"];
const NETLINK: &[&str] = &["netlink"];
const BUT_6_12: &[&str] = &["5.10", "6.1", "7.3"];
const BUT_AUTO: &[&str] = &["kprobe", "netlink"];
const PROBES: &[&str] = &["auto", "kprobe"];

/// In each line one reason, which the scenario itself gives.
const EXPECTED: &[Skip] = &[
    // No type information of modules on 5.10, so no trampolines on their functions.
    Skip { scenario: "trace::burst_fexit", kernels: OLD, sources: &[] },
    Skip { scenario: "trace::age", kernels: OLD, sources: &[] },
    Skip { scenario: "full::beside_another", kernels: OLD, sources: &[] },
    // The compiler split nf_ct_delete there, so that its caller is looked for elsewhere.
    Skip { scenario: "misread::no_caller", kernels: OLD, sources: PROBES },
    Skip { scenario: "misread::other_caller", kernels: OLD, sources: PROBES },
    // The limit on chains, and its counter, came with 5.15.
    Skip { scenario: "trace::chaintoolong", kernels: OLD, sources: &[] },
    Skip { scenario: "clash::chaintoolong", kernels: OLD, sources: &[] },
    Skip { scenario: "doctor::chains", kernels: OLD, sources: &[] },
    Skip { scenario: "clash::unforeseen", kernels: OLD, sources: PROBES },
    // Programs look up no symbols before 5.16.
    Skip { scenario: "hidden_code::symbols", kernels: OLD, sources: PROBES },
    Skip { scenario: "invalid::traced", kernels: &[], sources: NETLINK },
    // The netlink source waits for nothing, and looks at no stack.
    Skip { scenario: "clash::unforeseen", kernels: &[], sources: NETLINK },
    Skip { scenario: "full::beside_another", kernels: &[], sources: NETLINK },
    // The same everywhere: files and keys.
    Skip { scenario: "record::full_disk", kernels: BUT_6_12, sources: &[] },
    Skip { scenario: "record::full_disk", kernels: &["6.12"], sources: BUT_AUTO },
    Skip { scenario: "report::live", kernels: BUT_6_12, sources: &[] },
    Skip { scenario: "report::live", kernels: &["6.12"], sources: BUT_AUTO },
    Skip { scenario: "screen::recording", kernels: BUT_6_12, sources: &[] },
    Skip { scenario: "screen::recording", kernels: &["6.12"], sources: BUT_AUTO },
];

/// The series that are in the table's knowledge: those of the matrix.
const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "7.3"];

/// The series of a stock cloud kernel, as `6.12`; `None` for all others, of which the table knows nothing.
fn series(release: &str) -> Option<&'static str> {
    SERIES.into_iter().find(|series| {
        let rest = release.strip_prefix(series).and_then(|rest| rest.strip_prefix('.'));
        rest.is_some() && release.ends_with("-cloud-amd64")
    })
}

/// A result as it came from a guest, or as a failure where it is a skip that nobody expects, or none where one is.
pub(super) fn judge(
    release: &str,
    source: &str,
    scenario: &str,
    result: Outcome,
    detail: String,
) -> (Outcome, String) {
    let Some(series) = series(release) else { return (result, detail) };
    let fits = |list: &[&str], item: &str| list.is_empty() || list.contains(&item);
    let expected = EXPECTED
        .iter()
        .any(|skip| skip.scenario == scenario && fits(skip.kernels, series) && fits(skip.sources, source));
    match (result, expected) {
        (Outcome::Skipped, false) => {
            let why = format!("it was skipped, and xtask/src/test/skips.rs does not expect that: {detail}");
            (Outcome::Failed, why)
        }
        (Outcome::Ok, true) => {
            (Outcome::Failed, "it ran, and xtask/src/test/skips.rs expects that it cannot".to_owned())
        }
        _ => (result, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest;

    fn judged(release: &str, source: &str, scenario: &str, result: Outcome) -> Outcome {
        judge(release, source, scenario, result, String::new()).0
    }

    #[test]
    fn a_skip_that_is_not_expected_fails_and_so_does_its_absence() {
        let (old, new) = ("5.10.0-46-cloud-amd64", "6.12.118+deb13-cloud-amd64");
        assert_eq!(judged(old, "auto", "trace::age", Outcome::Skipped), Outcome::Skipped);
        assert_eq!(judged(old, "auto", "trace::age", Outcome::Ok), Outcome::Failed);
        assert_eq!(judged(new, "auto", "trace::age", Outcome::Skipped), Outcome::Failed);
        assert_eq!(judged(new, "netlink", "clash::unforeseen", Outcome::Skipped), Outcome::Skipped);
        assert_eq!(judged(new, "auto", "traffic::udp", Outcome::Ok), Outcome::Ok);
    }

    #[test]
    fn of_other_kernels_nothing_is_expected() {
        assert_eq!(
            judged("6.18.15+deb13-cloud-amd64", "auto", "trace::age", Outcome::Skipped),
            Outcome::Skipped
        );
        assert_eq!(series("6.12.118+deb13-rt-amd64"), None);
        assert_eq!(series("6.1.0-56-cloud-amd64"), Some("6.1"));
    }

    #[test]
    fn the_table_names_scenarios_that_exist() {
        for skip in EXPECTED {
            assert!(guest::scenario_names().any(|name| name == skip.scenario), "{}", skip.scenario);
        }
    }
}
