use super::*;

/// As kubeadm writes it.
const KUBEADM: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
clientConnection:
  acceptContentTypes: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
clusterCIDR: 10.244.0.0/16
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
iptables:
  min: 7
kind: KubeProxyConfiguration
";

fn proxy(text: &str) -> KubeProxy {
    KubeProxy { told: by_configuration(&named(text)).unwrap(), ..KubeProxy::default() }
}

/// The text with its kind, where it has none.
fn named(text: &str) -> String {
    let kind = if text.contains("kind:") { "" } else { "kind: KubeProxyConfiguration\n" };
    match text.strip_prefix("---\n") {
        Some(rest) => format!("---\n{kind}{rest}"),
        None => format!("{kind}{text}"),
    }
}

#[test]
fn what_is_not_told_has_its_default() {
    for text in [KUBEADM, "", "kind: KubeProxyConfiguration\n", "conntrack: null\n"] {
        let proxy = proxy(text);
        assert_eq!(proxy.sets("max", 2, 0), Some(131_072), "{text}");
        assert_eq!(proxy.sets("max", 8, 0), Some(262_144));
        assert_eq!(proxy.sets("tcp_timeout_established", 2, 0), Some(86_400));
        assert_eq!(proxy.sets("tcp_timeout_close_wait", 2, 0), Some(3_600));
        for left_alone in ["udp_timeout", "tcp_be_liberal", "buckets", ""] {
            assert_eq!(proxy.sets(left_alone, 2, 0), None, "{left_alone}");
        }
    }
}

#[test]
fn values_are_those_that_kube_proxy_takes() {
    let text = "---\nconntrack:\n    # ours\n    maxPerCore: 65536 # each\n\n    min: 500000\n    \
                tcpEstablishedTimeout: 1h30m0s\n    tcpCloseWaitTimeout: '90s'\n    udpTimeout: 1500ms\n    \
                tcpBeLiberal: true\n    other: {a: 1}\nmode: ipvs\n";
    let proxy = proxy(text);
    assert_eq!(proxy.sets("max", 4, 0), Some(500_000));
    assert_eq!(proxy.sets("max", 8, 0), Some(524_288));
    assert_eq!(proxy.sets("tcp_timeout_established", 4, 0), Some(5_400));
    assert_eq!(proxy.sets("tcp_timeout_close_wait", 4, 0), Some(90));
    assert_eq!(proxy.sets("udp_timeout", 4, 0), Some(1));
    assert_eq!(proxy.sets("tcp_be_liberal", 4, 0), Some(1));
    // Since 1.36 there is a most; what is in force shows which rule it goes by.
    assert_eq!(proxy.sets("max", 64, CAP), Some(CAP));
    assert_eq!(proxy.sets("max", 64, 262_144), Some(4_194_304));
    assert_eq!(KubeProxy { unread: Some(Unread::File), ..proxy }.sets("max", 4, 0), None);
    assert_eq!(self::proxy("conntrack:\n  maxPerCore: 0\n").sets("max", 4, 0), None);
}

#[test]
fn another_form_is_not_guessed_at() {
    for text in [
        "{\"conntrack\": {\"maxPerCore\": 1}}",
        "conntrack: {maxPerCore: 1}\n",
        "conntrack: &anchor\n  maxPerCore: 1\n",
        "\"conntrack\":\n  maxPerCore: 1\n",
        "<<: *base\n",
        "conntrack:\n  maxPerCore: 1\nconntrack:\n  min: 1\n",
        "conntrack:\n  maxPerCore: 1\n---\nconntrack:\n  min: 1\n",
        "conntrack:\n  maxPerCore: 1\n    min: 1\n",
        "conntrack:\n\tmaxPerCore: 1\n",
        "conntrack:\n  maxPerCore: 1\n  maxPerCore: 2\n",
        "conntrack:\n  maxPerCore: many\n",
        "conntrack:\n  maxPerCore: 1.5\n",
        "conntrack:\n  maxPerCore: -1\n",
        "conntrack:\n  maxPerCore: 99999999999999999999\n",
        "conntrack:\n  maxPerCore: 2147483648\n",
        "conntrack:\n  min: 4294967297\n",
        "conntrack:\n  min: -1\n",
        "conntrack:\n  min: +1\n",
        "conntrack:\n  min: 010\n",
        "conntrack:\n  min: 0x10\n",
        "conntrack:\n  min: 1_000\n",
        "conntrack:\n  min: 1e3\n",
        "conntrack:\n  min: true\n",
        "conntrack:\n  min: 10s\n",
        "conntrack:\n  min: \"500000\"\n",
        "conntrack:\n  maxPerCore: null\n  maxPerCore: 2\n  maxPerCore: 3\n",
        "conntrack:\n  tcpBeLiberal: 1\n",
        "conntrack:\n  tcpEstablishedTimeout: 3600\n",
        "conntrack:\n  tcpEstablishedTimeout: 0\n",
        "conntrack:\n  tcpEstablishedTimeout: -1s\n",
        "conntrack:\n  tcpEstablishedTimeout: 600000h\n",
        "conntrack:\n  min: 1\n...\n",
        "conntrack:\n  min: 1\n--- other\n",
        "conntrack:\n  tcpEstablishedTimeout: 99999999999999999h\n",
        "conntrack:\n  tcpEstablishedTimeout: 24\u{e9}\n",
        "conntrack:\n  tcpEstablishedTimeout: h\n",
        "linux:\n  conntrack:\n    maxPerCore: 1\n",
        "conntrack:\n  <<: *base\n  - maxPerCore\n",
    ] {
        assert_eq!(by_configuration(&named(text)), Err(Unread::Form), "{text}");
    }
}

#[test]
fn a_configuration_of_something_else_tells_nothing() {
    for text in [
        "",
        "conntrack:\n  min: 1\n",
        "kind: KubeletConfiguration\nconntrack:\n  min: 1\n",
        "kind:\nconntrack:\n  min: 1\n",
        "other:\n  kind: KubeProxyConfiguration\n",
        "root:x:0:0:root:/root:/bin/bash\n",
    ] {
        assert_eq!(by_configuration(text), Err(Unread::NotProxy), "{text}");
    }
    for quoted in ["kind: \"KubeProxyConfiguration\"", "kind: 'KubeProxyConfiguration' # ours"] {
        assert_eq!(by_configuration(quoted), Ok(BTreeMap::new()), "{quoted}");
    }
    let twice = "kind: KubeProxyConfiguration\nkind: KubeletConfiguration\n";
    assert_eq!(by_configuration(twice), Err(Unread::Form));
}

/// 32 bits with a sign for each number, and no product of them that the kernel would refuse.
#[test]
fn numbers_end_where_kube_proxys_and_the_kernels_do() {
    let most = proxy("conntrack:\n  maxPerCore: 2147483647\n  min: 2147483647\n");
    assert_eq!(most.sets("max", 1, 0), Some(i32::MAX as u64));
    assert_eq!(most.sets("max", 2, 0), None);
    assert_eq!(most.sets("max", u32::MAX, 0), None);
    // A capture may hold anything.
    let told = [(MAX_PER_CORE.to_owned(), u64::MAX), (MIN.to_owned(), u64::MAX)].into();
    assert_eq!(KubeProxy { told, ..KubeProxy::default() }.sets("max", u32::MAX, 0), None);
    let flag = |value: &str| by_command_line(&["kube-proxy", &format!("--conntrack-min={value}")]).1;
    assert_eq!(flag("2147483647").unread, None);
    for value in ["2147483648", "-1", "", "true", "1h", "007"] {
        assert_eq!(flag(value).unread, Some(Unread::Form), "{value}");
    }
    let time = |value| by_command_line(&["kube-proxy", "--conntrack-udp-timeout", value]).1;
    assert_eq!((time("0").unread, time("90").unread), (None, Some(Unread::Form)));
}

#[test]
fn a_path_is_told_in_bounds_and_without_words_of_its_own() {
    let told =
        |file: &str| KubeProxy { file: Some(file.into()), ..KubeProxy::default() }.told_file().unwrap();
    assert_eq!(told("/var/lib/kube-proxy/config.conf"), "/var/lib/kube-proxy/config.conf");
    assert_eq!(told(&"a".repeat(2_000)), format!("{}… (a path of 2000 bytes)", "a".repeat(TOLD_OF_PATH)));
    for file in ["/a b", "/a\u{1b}[2J", "/a`id`", "/é", "/a\n"] {
        assert_eq!(told(file), "a file whose path has unusual characters", "{file}");
        let proxy = KubeProxy { file: Some(file.into()), ..KubeProxy::default() };
        assert!(!proxy.left_alone("max").contains(file), "{file}");
    }
    let long = format!("--config=/{}", "a".repeat(LONGEST_PATH));
    let (file, proxy) = by_command_line(&["kube-proxy", &long]);
    assert_eq!((file, proxy.unread), (None, Some(Unread::Form)));
}

#[test]
fn flags_count_where_no_file_is_named() {
    let (file, proxy) = by_command_line(&[
        "/usr/local/bin/kube-proxy",
        "--v=2",
        "--conntrack-max-per-core=0",
        "--conntrack_min",
        "7",
        "--conntrack-tcp-timeout-established=2h",
        "--conntrack-tcp-be-liberal",
        "--hostname-override=node",
    ]);
    assert_eq!((file, proxy.sets("max", 4, 0)), (None, None));
    assert_eq!(proxy.sets("tcp_timeout_established", 4, 0), Some(7_200));
    assert_eq!(proxy.sets("tcp_be_liberal", 4, 0), Some(1));
    for (words, file) in [
        (&["kube-proxy", "--config=/a b"][..], Some("/a b")),
        (&["kube-proxy", "--config", "/a"], Some("/a")),
        (&["kube-proxy", "--config="], None),
        (&["kube-proxy", "--configuration=/a"], None),
        (&["--config=/a"], None),
        (&[], None),
    ] {
        assert_eq!(by_command_line(words).0.as_deref(), file, "{words:?}");
    }
    assert_eq!(by_command_line(&["kube-proxy", "--conntrack-min=x"]).1.unread, Some(Unread::Form));
    assert_eq!(by_command_line(&["kube-proxy", "--conntrack-min"]).1.unread, Some(Unread::Form));
}

#[test]
fn it_is_told_what_leaves_a_sysctl_alone() {
    let by_file = KubeProxy { file: Some("/x".into()), ..KubeProxy::default() };
    assert!(
        by_file.left_alone("max").starts_with("/x, which decides")
            && by_file.left_alone("max").contains("`maxPerCore: 0` under")
    );
    assert!(by_file.left_alone("tcp_timeout_established").contains("`tcpEstablishedTimeout: 0s`"));
    assert!(by_file.left_alone("tcp_be_liberal").contains("`tcpBeLiberal: false`"));
    let by_flags = KubeProxy::default();
    assert!(by_flags.left_alone("udp_timeout").contains("`--conntrack-udp-timeout=0`"));
}

proptest::proptest! {
    /// Whatever a file or a command line holds, the parser answers.
    #[test]
    fn nothing_panics(text in "[a-zA-Z0-9:#\\-{}\"' \t\n&*<>~é]{0,200}", under in "\\PC{0,40}") {
        let _ = by_configuration(&text);
        let _ = by_configuration(&format!("kind: KubeProxyConfiguration\nconntrack:\n  min: {under}\n"));
        let _ = by_command_line(&text.split(' ').collect::<Vec<_>>());
    }
}
