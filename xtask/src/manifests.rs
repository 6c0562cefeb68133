//! What `contrib/` has for containers, against the fields of the Kubernetes API and against the systemd unit.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::paths;

/// How the fields of an object go on: what is in them is any value, an object of a type, or a list of these.
#[derive(Clone, Copy)]
enum Is {
    Text,
    Number,
    Flag,
    /// Numbers and texts, as ports by number or name.
    Either,
    /// Names and texts that users choose.
    Map,
    Texts,
    Of(&'static str),
    List(&'static str),
}

use Is::{Either, Flag, List, Map, Number, Of, Text, Texts};

type Fields = &'static [(&'static str, Is)];

/// Fields of the types that the manifests use, as the API reference (v1, apps/v1, monitoring.coreos.com/v1) names them.
/// Those of a type that nobody uses here are left out; a manifest that uses one needs a row.
const TYPES: [(&str, Fields); 22] = [
    ("Namespace", &[("apiVersion", Text), ("kind", Text), ("metadata", Of("ObjectMeta"))]),
    (
        "DaemonSet",
        &[
            ("apiVersion", Text),
            ("kind", Text),
            ("metadata", Of("ObjectMeta")),
            ("spec", Of("DaemonSetSpec")),
        ],
    ),
    (
        "PodMonitor",
        &[
            ("apiVersion", Text),
            ("kind", Text),
            ("metadata", Of("ObjectMeta")),
            ("spec", Of("PodMonitorSpec")),
        ],
    ),
    ("ObjectMeta", &[("name", Text), ("namespace", Text), ("labels", Map), ("annotations", Map)]),
    (
        "DaemonSetSpec",
        &[
            ("selector", Of("LabelSelector")),
            ("template", Of("PodTemplateSpec")),
            ("updateStrategy", Of("DaemonSetUpdateStrategy")),
            ("minReadySeconds", Number),
            ("revisionHistoryLimit", Number),
        ],
    ),
    ("LabelSelector", &[("matchLabels", Map)]),
    ("DaemonSetUpdateStrategy", &[("type", Text), ("rollingUpdate", Of("RollingUpdateDaemonSet"))]),
    ("RollingUpdateDaemonSet", &[("maxUnavailable", Either), ("maxSurge", Either)]),
    ("PodTemplateSpec", &[("metadata", Of("ObjectMeta")), ("spec", Of("PodSpec"))]),
    (
        "PodSpec",
        &[
            ("automountServiceAccountToken", Flag),
            ("hostPID", Flag),
            ("hostNetwork", Flag),
            ("nodeSelector", Map),
            ("priorityClassName", Text),
            ("terminationGracePeriodSeconds", Number),
            ("tolerations", List("Toleration")),
            ("containers", List("Container")),
        ],
    ),
    ("Toleration", &[("key", Text), ("operator", Text), ("value", Text), ("effect", Text)]),
    (
        "Container",
        &[
            ("name", Text),
            ("image", Text),
            ("imagePullPolicy", Text),
            ("args", Texts),
            ("env", List("EnvVar")),
            ("ports", List("ContainerPort")),
            ("livenessProbe", Of("Probe")),
            ("readinessProbe", Of("Probe")),
            ("resources", Of("ResourceRequirements")),
            ("securityContext", Of("SecurityContext")),
        ],
    ),
    ("EnvVar", &[("name", Text), ("value", Text), ("valueFrom", Of("EnvVarSource"))]),
    ("EnvVarSource", &[("fieldRef", Of("ObjectFieldSelector"))]),
    ("ObjectFieldSelector", &[("apiVersion", Text), ("fieldPath", Text)]),
    ("ContainerPort", &[("name", Text), ("containerPort", Number), ("protocol", Text)]),
    (
        "Probe",
        &[
            ("httpGet", Of("HTTPGetAction")),
            ("initialDelaySeconds", Number),
            ("periodSeconds", Number),
            ("timeoutSeconds", Number),
            ("failureThreshold", Number),
        ],
    ),
    ("HTTPGetAction", &[("path", Text), ("port", Either), ("host", Text), ("scheme", Text)]),
    ("ResourceRequirements", &[("requests", Map), ("limits", Map)]),
    (
        "SecurityContext",
        &[
            ("runAsUser", Number),
            ("runAsGroup", Number),
            ("privileged", Flag),
            ("readOnlyRootFilesystem", Flag),
            ("allowPrivilegeEscalation", Flag),
            ("seccompProfile", Of("SeccompProfile")),
            ("capabilities", Of("Capabilities")),
        ],
    ),
    ("SeccompProfile", &[("type", Text), ("localhostProfile", Text)]),
    ("Capabilities", &[("add", Texts), ("drop", Texts)]),
];

const OPERATOR_TYPES: [(&str, Fields); 3] = [
    (
        "PodMonitorSpec",
        &[("selector", Of("LabelSelector")), ("podMetricsEndpoints", List("PodMetricsEndpoint"))],
    ),
    (
        "PodMetricsEndpoint",
        &[
            ("port", Text),
            ("path", Text),
            ("interval", Text),
            ("scrapeTimeout", Text),
            ("relabelings", List("RelabelConfig")),
        ],
    ),
    (
        "RelabelConfig",
        &[
            ("sourceLabels", Texts),
            ("targetLabel", Text),
            ("regex", Text),
            ("replacement", Text),
            ("action", Text),
        ],
    ),
];

/// Everything in an object that its type has no place for.
fn faults(value: &Value, is: Is, path: &str) -> Vec<String> {
    let fine = match is {
        Text => value.is_string(),
        Number => value.is_u64(),
        Flag => value.is_boolean(),
        Either => value.is_u64() || value.is_string(),
        Map => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
        Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
        List(of) => {
            let Some(list) = value.as_array() else { return vec![format!("{path} is no list")] };
            return list.iter().flat_map(|item| faults(item, Of(of), path)).collect();
        }
        Of(name) => {
            let Some(map) = value.as_object() else { return vec![format!("{path} is no {name}")] };
            let fields = TYPES.iter().chain(&OPERATOR_TYPES).find(|(known, _)| *known == name);
            let fields = fields.map_or(&[][..], |(_, fields)| fields);
            return map
                .iter()
                .flat_map(|(key, value)| {
                    let path = format!("{path}.{key}");
                    match fields.iter().find(|(field, _)| field == key) {
                        Some((_, is)) => faults(value, *is, &path),
                        None => vec![format!("{path} is no field of {name}")],
                    }
                })
                .collect();
        }
    };
    if fine { Vec::new() } else { vec![format!("{path} has a value of another kind: {value}")] }
}

fn text(path: &str) -> String {
    fs::read_to_string(paths::root().join(path)).unwrap()
}

fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(&format!("contrib/kubernetes/{name}"))).unwrap()
}

fn all() -> Vec<Value> {
    [documents("daemonset.yaml"), documents("podmonitor.yaml")].concat()
}

fn of_kind(kind: &str) -> Value {
    all().into_iter().find(|document| document["kind"] == kind).unwrap()
}

fn texts(value: &Value) -> BTreeSet<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The capabilities that the systemd unit has, without their prefix.
fn of_the_unit() -> BTreeSet<String> {
    let unit = text("contrib/systemd/ctwatch.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    line.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_owned()).collect()
}

#[test]
fn manifests_have_only_fields_of_the_api() {
    let versions =
        [("Namespace", "v1"), ("DaemonSet", "apps/v1"), ("PodMonitor", "monitoring.coreos.com/v1")];
    let all = all();
    assert_eq!(all.len(), 3);
    for document in &all {
        let kind = document["kind"].as_str().unwrap();
        let version = versions.iter().find(|(known, _)| *known == kind).unwrap();
        let kind = version.0;
        assert_eq!(document["apiVersion"], version.1, "{kind}");
        assert_eq!(faults(document, Of(kind), kind), [""; 0]);
    }
}

#[test]
fn a_field_that_is_none_is_found() {
    let mut set = of_kind("DaemonSet");
    set["spec"]["template"]["spec"]["hostPid"] = true.into();
    set["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "9963".into();
    let found = faults(&set, Of("DaemonSet"), "set");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|fault| fault.contains("hostPid is no field of PodSpec")), "{found:?}");
}

#[test]
fn selectors_and_ports_meet() {
    let (set, monitor) = (of_kind("DaemonSet"), of_kind("PodMonitor"));
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    for selector in [&set["spec"]["selector"], &monitor["spec"]["selector"]] {
        for (key, value) in selector["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[key], value);
        }
    }
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(port["name"], monitor["spec"]["podMetricsEndpoints"][0]["port"]);
    assert_eq!(port["name"], container["livenessProbe"]["httpGet"]["port"]);
    let listen =
        format!("--listen=$({}):{}", container["env"][0]["name"].as_str().unwrap(), port["containerPort"]);
    assert!(texts(&container["args"]).contains(&listen), "{listen}");
    for document in all().iter().filter(|document| document["kind"] != "Namespace") {
        assert_eq!(document["metadata"]["namespace"], of_kind("Namespace")["metadata"]["name"]);
    }
}

#[test]
fn containers_have_the_rights_of_the_service() {
    let context = of_kind("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["securityContext"].take();
    assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL".to_owned()].into());
    assert_eq!(texts(&context["capabilities"]["add"]), of_the_unit());
    assert_eq!(context["privileged"], Value::Null);
    let recipe = text("contrib/container/Containerfile");
    let line = recipe.lines().find_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("--cap-add="));
    let named = line.unwrap().split_whitespace().next().unwrap().split(',');
    assert_eq!(named.map(str::to_uppercase).collect::<BTreeSet<_>>(), of_the_unit());
}

/// Nothing but the binary: it needs no library and no file.
#[test]
fn the_image_is_the_binary_alone() {
    let recipe = text("contrib/container/Containerfile");
    let steps: Vec<&str> = recipe.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(steps[..2], ["FROM scratch", "COPY ctwatch /ctwatch"]);
}
