use super::tests::machine;
use super::*;
use crate::doctor::facts::{Configured, Program};
use crate::doctor::kube_proxy::{KubeProxy, Unread};

const FILE: &str = "/var/lib/kube-proxy/config.conf";

/// What is found of a sysctl: the line, what it means, and what no command is given for.
fn found(name: &str, sysctl: &str, change: &dyn Fn(&mut Facts)) -> String {
    let mut facts = machine(name);
    change(&mut facts);
    let findings = diagnose(&facts).findings;
    let finding = findings.into_iter().find(|finding| {
        finding.id == "limit-not-applied"
            && finding.evidence["sysctl"].value == format!("nf_conntrack_{sysctl}")
    });
    finding.map_or_else(String::new, |finding| {
        let left_out = finding.remedies.iter().flat_map(|remedy| remedy.left_out.clone());
        [finding.what, finding.meaning].into_iter().chain(left_out).collect::<Vec<_>>().join(" | ")
    })
}

fn in_force(facts: &mut Facts, sysctl: &str, value: u64) {
    facts.namespaces[0].sysctls.insert(format!("nf_conntrack_{sysctl}"), value);
}

fn proxy(facts: &mut Facts) -> &mut KubeProxy {
    facts.kube_proxy.as_mut().unwrap()
}

#[test]
fn kube_proxy_wins_over_files_and_where_to_write_is_told() {
    let told = found("kube-proxy", "max", &|_| {});
    for words in [
        "/etc/sysctl.d/90-x.conf sets nf_conntrack_max to 1,048,576, but 131,072 is in force",
        "kube-proxy's configuration /var/lib/kube-proxy/config.conf says 131,072 (maxPerCore 32,768 for each of 2 CPUs, \
         min 131,072)",
        "/var/lib/kube-proxy/config.conf, which decides again when kube-proxy starts next: write `maxPerCore: 0` under `conntrack:`",
    ] {
        assert!(told.contains(words), "{told}");
    }
    let told = found("kube-proxy", "tcp_timeout_established", &|_| {});
    assert!(told.contains("config.conf says 86,400. kube-proxy sets this as it starts"), "{told}");
    assert!(told.contains("`tcpEstablishedTimeout: 0s`"), "{told}");
    // By its defaults, and by its command line.
    let told = found("kube-proxy", "max", &|facts| proxy(facts).told.clear());
    assert!(told.contains("kube-proxy's default says 131,072"), "{told}");
    let told = found("kube-proxy", "max", &|facts| proxy(facts).file = None);
    assert!(told.contains("kube-proxy's command line says 131,072"), "{told}");
    assert!(told.contains("`--conntrack-max-per-core=0`"), "{told}");
    // What it was told is not known.
    let told = found("kube-proxy", "max", &|facts| proxy(facts).unread = Some(Unread::Form));
    assert!(told.contains("131,072 is its default for 2 CPUs"), "{told}");
    assert!(told.contains(&format!("What {FILE} says is not known: it is written in a form")), "{told}");
    let told = found("kube-proxy", "max", &|facts| proxy(facts).unread = Some(Unread::NotProxy));
    assert!(
        told.contains(&format!(
            "What {FILE} says is not known: it is no KubeProxyConfiguration (its `kind:`"
        )),
        "{told}"
    );
    assert!(!told.contains("kubectl") && !told.contains("write `"), "{told}");
    // Each reason has its own words, and what mends it after them.
    let why = |why| found("kube-proxy", "max", &|facts| proxy(facts).unread = Some(why));
    for (reason, words) in [
        (Unread::File, "could not be opened or read; look"),
        (Unread::Missing, "there is no such file where the process sees this path; name one"),
        (Unread::NotRegular, "it is no regular file; put"),
        (Unread::Empty, "it is empty; kube-proxy does not start"),
        (Unread::TooLarge, "it is larger than 64 KiB; keep"),
        (Unread::NotAllowed, "doctor may not follow its path; run"),
        (Unread::Late, "it did not come within two seconds; look"),
    ] {
        let told = why(reason);
        assert!(told.contains(&format!("What {FILE} says is not known: ")) && told.contains(words), "{told}");
    }
    // It leaves the sysctl alone: something else set it.
    let told = found("kube-proxy", "max", &|facts| {
        proxy(facts).told.insert("maxPerCore".into(), 0);
    });
    assert!(told.contains("Something set another value"), "{told}");
    assert!(!told.contains("kube-proxy"), "{told}");
    // Another value than its own is in force: it will set its own when it starts again.
    let told = found("kube-proxy", "max", &|facts| in_force(facts, "max", 200_000));
    assert!(told.contains("kube-proxy sets it to 131,072 whenever it starts"), "{told}");
}

#[test]
fn what_kube_proxy_is_told_may_not_be_in_force_either() {
    let told = found("kube-proxy", "max", &|facts| in_force(facts, "max", 65_536));
    for words in [
        "kube-proxy's configuration /var/lib/kube-proxy/config.conf sets nf_conntrack_max to 131,072, but 65,536 is in force",
        "kube-proxy sets it only as it starts. Something set what is in force",
    ] {
        assert!(told.contains(words), "{told}");
    }
    // Nobody asked for its defaults, so that nobody misses them.
    let told = found("kube-proxy", "max", &|facts| {
        in_force(facts, "max", 65_536);
        proxy(facts).told.clear();
    });
    assert!(told.starts_with("/etc/sysctl.d/90-x.conf sets"), "{told}");
    let told = found("kube-proxy", "max", &|facts| {
        in_force(facts, "max", 65_536);
        proxy(facts).told.clear();
        facts.configured.clear();
    });
    assert_eq!(told, "");
}

#[test]
fn a_file_in_a_container_sets_nothing_of_the_machine() {
    let inside = |facts: &mut Facts| facts.namespaces[0].limit_writable = false;
    let told = found("limit-not-applied", "max", &inside);
    assert!(told.contains("90-x.conf sets nf_conntrack_max to 1,048,576, but 8,192 is in force"), "{told}");
    assert!(told.contains("is one number for the whole machine"), "{told}");
    // Its timeouts are its own, a distribution's file is nobody's wish, and another namespace has no files here.
    assert_eq!(found("limit-not-applied", "tcp_timeout_established", &inside), "");
    let vendor = |facts: &mut Facts| {
        inside(facts);
        facts.configured.truncate(1);
    };
    assert_eq!(found("limit-not-applied", "max", &vendor), "");
    let other = |facts: &mut Facts| {
        inside(facts);
        facts.namespaces[0].own = false;
    };
    assert_eq!(found("limit-not-applied", "max", &other), "");
}

#[test]
fn firewalld_may_take_the_module_and_its_settings_away() {
    let told = found("limit-not-applied", "max", &|facts| facts.firewalld_unloads = true);
    assert!(told.contains("firewalld unloads it whenever it stops"), "{told}");
    assert!(
        told.contains("| /etc/firewalld/firewalld.conf: `CleanupModulesOnExit=no` keeps the module"),
        "{told}"
    );
    let written = |facts: &mut Facts| {
        facts.firewalld_unloads = true;
        facts.written_ms.insert("nf_conntrack_max".into(), 1_000);
    };
    assert!(!found("limit-not-applied", "max", &written).contains("firewalld"));
}

/// Each reason for a value that is not in force has its own words.
#[test]
fn why_a_file_is_not_in_force_is_told() {
    let told = |change: &dyn Fn(&mut Facts)| {
        let mut facts = machine("limit-not-applied");
        facts.modprobe.clear();
        facts.configured.truncate(2);
        change(&mut facts);
        let findings = diagnose(&facts).findings;
        let finding = findings.into_iter().find(|finding| finding.id == "limit-not-applied");
        finding.map_or_else(String::new, |finding| finding.what + ". " + &finding.meaning)
    };
    let in_force = |facts: &mut Facts, max: u64| {
        facts.namespaces[0].sysctls.insert("nf_conntrack_max".into(), max);
    };
    let written = |facts: &mut Facts, ms: u64| {
        facts.written_ms.insert("nf_conntrack_max".into(), ms);
    };
    assert!(
        told(&|_| {})
            .contains("90-x.conf sets nf_conntrack_max to 1,048,576, but 8,192 is in force. As far as the kernel remembers, nothing has set")
    );
    assert!(told(&|facts| written(facts, 60_000)).contains("set another value 60 s ago"));
    let changed = |facts: &mut Facts| facts.configured[1].changed_s = Some(30);
    assert!(told(&changed).contains("changed 30 s ago, and nobody has applied it"));
    // Applied, and then set to another value.
    assert!(told(&|facts| (changed(facts), written(facts, 5_000)).1).contains("set another value 5 s ago"));
    let later = |facts: &mut Facts| {
        let file = "/etc/sysctl.d/99-y.conf".to_owned();
        let setting = Configured { sysctl: "nf_conntrack_max".into(), value: 8192, file, changed_s: None };
        facts.configured.push(setting);
    };
    assert!(told(&later).contains("99-y.conf is applied after it and sets 8,192"));
    assert!(told(&|facts| facts.loaded_early = true).contains("Nothing says why"));
    let proxy = |facts: &mut Facts| {
        in_force(facts, 131_072);
        facts.programs.push(Program { name: "kube-proxy".into(), uses: String::new() });
    };
    assert!(told(&proxy).contains("131,072 is its default for 2 CPUs"));
    // In force, or more than the file asks for; or only what a distribution's file says is overruled.
    assert_eq!(told(&|facts| in_force(facts, 1_048_576)), "");
    assert_eq!(told(&|facts| in_force(facts, 2_097_152)), "");
    let overruled = |facts: &mut Facts| {
        facts.configured[1].value = 262_144;
        in_force(facts, 262_144);
    };
    assert_eq!(told(&overruled), "");
}
