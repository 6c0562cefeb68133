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
    KubeProxy { told: by_configuration(text).unwrap(), ..KubeProxy::default() }
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
    let text = "---\nconntrack:\n    # ours\n    maxPerCore: 65536 # each\n\n    min: \"500000\"\n    \
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
        "conntrack:\n  tcpEstablishedTimeout: 99999999999999999h\n",
        "conntrack:\n  tcpEstablishedTimeout: 24\u{e9}\n",
        "conntrack:\n  tcpEstablishedTimeout: h\n",
        "linux:\n  conntrack:\n    maxPerCore: 1\n",
        "conntrack:\n  <<: *base\n  - maxPerCore\n",
    ] {
        assert_eq!(by_configuration(text), Err(Unread::Form), "{text}");
    }
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
        let _ = by_configuration(&format!("conntrack:\n  min: {under}\n"));
        let _ = by_command_line(&text.split(' ').collect::<Vec<_>>());
    }
}
