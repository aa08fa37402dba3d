//! The Helm chart and what is made from it: renders, fits Kubernetes' types, and says to the agent what the agent understands.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use clap::Parser as _;
use netpol_agent::access::{self, Access};
use netpol_agent::cli::{Cli, Command};
use netpol_agent::client;
use netpol_tests::chart::{self, Answer, Helm, Object, Rendered, Request, access_faults};
use netpol_tests::level;
use serde_json::{Value, json};

/// A value other than the default for each path in values.yaml, with what must be there for it to matter.
const OTHER: &[(&str, &str, &str)] = &[
    ("affinity", "{nodeAffinity: {}}", ""),
    ("alerts.annotations", "{a: b}", "alerts: {enabled: true}"),
    ("alerts.enabled", "true", ""),
    ("alerts.labels", "{a: b}", "alerts: {enabled: true}"),
    ("allowAnySource", "true", ""),
    ("annotations", "{a: b}", ""),
    ("attach", "clsact", ""),
    ("bpffs", "/other/bpf", ""),
    ("cni.agentAbsent", "allow", ""),
    ("cni.binDir", "/usr/libexec/cni", ""),
    ("cni.cacheDir", "/var/cache/cni", ""),
    ("cni.confDir", "/etc/other/net.d", ""),
    ("cni.install", "false", ""),
    ("dashboards.annotations", "{a: b}", "dashboards: {enabled: true}"),
    ("dashboards.enabled", "true", ""),
    ("dashboards.label", "other", "dashboards: {enabled: true}"),
    ("dashboards.labelValue", "other", "dashboards: {enabled: true}"),
    ("dashboards.namespace", "grafana", "dashboards: {enabled: true}"),
    ("enforceOwnNode", "true", ""),
    ("extraArgs", "[--output=json]", ""),
    ("extraEnv", "[{name: A, value: b}]", ""),
    ("extraVolumeMounts", "[{name: a, mountPath: /a}]", ""),
    ("extraVolumes", "[{name: a, emptyDir: {}}]", ""),
    ("flows", "all", ""),
    ("health.address", "'[::1]:9880'", ""),
    ("hubble.address", "'[::]:4245'", "hubble: {enabled: true, tls: {secretName: tls}}"),
    ("hubble.enabled", "true", "hubble: {tls: {secretName: tls}}"),
    ("hubble.service.annotations", "{a: b}", "hubble: {enabled: true, tls: {secretName: tls}}"),
    ("hubble.service.enabled", "false", "hubble: {enabled: true, tls: {secretName: tls}}"),
    ("hubble.tls.enabled", "false", "hubble: {enabled: true, tls: {secretName: tls}}"),
    ("hubble.tls.secretName", "other", "hubble: {enabled: true, tls: {secretName: tls}}"),
    ("image.digest", "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", ""),
    ("image.pullPolicy", "Always", ""),
    ("image.repository", "registry.example:5000/netpol", ""),
    ("image.tag", "v9", ""),
    ("imagePullSecrets", "[{name: a}]", ""),
    ("k8sServiceHost", "192.0.2.2", "{k8sServiceHost: 192.0.2.1, k8sServicePort: '6443'}"),
    ("k8sServicePort", "'6444'", "{k8sServiceHost: 192.0.2.1, k8sServicePort: '6443'}"),
    ("logLevel", "debug", ""),
    ("markMask", "'0xff00000'", ""),
    ("maxPods", "200", ""),
    ("metrics.address", "'127.0.0.1:9000'", "metrics: {enabled: true}"),
    ("metrics.enabled", "true", ""),
    ("metrics.service.annotations", "{a: b}", "metrics: {enabled: true}"),
    ("nodeSelector", "{a: b}", ""),
    ("oldKernels", "true", ""),
    ("onApplyFailure", "keep", ""),
    ("pendingPods", "allow", ""),
    ("podAnnotations", "{a: b}", ""),
    ("podInterfaces", "'lxc*'", ""),
    ("podLabels", "{a: b}", ""),
    ("podSecurityContext", "{seccompProfile: {type: Localhost, localhostProfile: a.json}}", ""),
    ("priorityClassName", "other", ""),
    ("rbac.create", "false", ""),
    ("resources", "{requests: {cpu: 1m}}", ""),
    ("runDir", "/run/other", ""),
    ("securityContext", "{readOnlyRootFilesystem: false}", ""),
    ("serviceAccount.annotations", "{a: b}", ""),
    ("serviceAccount.create", "false", ""),
    ("serviceAccount.name", "other", ""),
    ("serviceCIDRs", "[10.96.0.0/12, 'fd00:96::/108']", ""),
    ("serviceMonitor.annotations", "{a: b}", "{metrics: {enabled: true}, serviceMonitor: {enabled: true}}"),
    ("serviceMonitor.enabled", "true", "metrics: {enabled: true}"),
    ("serviceMonitor.interval", "10s", "{metrics: {enabled: true}, serviceMonitor: {enabled: true}}"),
    ("serviceMonitor.labels", "{a: b}", "{metrics: {enabled: true}, serviceMonitor: {enabled: true}}"),
    (
        "serviceMonitor.metricRelabelings",
        "[{action: labeldrop, regex: a}]",
        "{metrics: {enabled: true}, serviceMonitor: {enabled: true}}",
    ),
    (
        "serviceMonitor.relabelings",
        "[{action: labeldrop, regex: a}]",
        "{metrics: {enabled: true}, serviceMonitor: {enabled: true}}",
    ),
    ("serviceMonitor.scrapeTimeout", "5s", "{metrics: {enabled: true}, serviceMonitor: {enabled: true}}"),
    ("strictTCP", "true", ""),
    ("terminationGracePeriodSeconds", "1", ""),
    ("tolerations", "[{key: a, operator: Exists}]", ""),
    ("uninstall.cleanup", "false", ""),
    ("uninstall.timeoutSeconds", "10", ""),
    ("updateStrategy", "{type: OnDelete, rollingUpdate: null}", ""),
    ("updateStrategy.type", "OnDelete", ""),
    ("updateStrategy.rollingUpdate.maxUnavailable", "10%", ""),
];

/// Values that Helm must refuse, and what it then says.
const REFUSED: &[(&str, &str)] = &[
    ("tolerationz: []", "additional properties 'tolerationz' not allowed"),
    ("cni: {agentAbsnt: allow}", "at '/cni': additional properties 'agentAbsnt' not allowed"),
    ("cni: {agentAbsent: maybe}", "at '/cni/agentAbsent': value must be one of 'fail', 'allow'"),
    ("maxPods: 0", "at '/maxPods': minimum: got 0, want 1"),
    ("markMask: 4278190080", "at '/markMask': got number, want string"),
    ("bpffs: sys/fs/bpf", "at '/bpffs': 'sys/fs/bpf' does not match pattern"),
    ("hubble: {enabled: true}", "name a Secret with tls.crt, tls.key and ca.crt in hubble.tls.secretName"),
    ("serviceMonitor: {enabled: true}", "set metrics.enabled=true too"),
    ("k8sServiceHost: 192.0.2.1", "k8sServiceHost and k8sServicePort go together"),
    ("serviceAccount: {create: false, name: ''}", "needs the name of one that exists"),
];

/// Everything that the tests look at, rendered at once. None where Helm is not at hand.
struct Bench {
    lint: Vec<String>,
    values: Value,
    default: Rendered,
    examples: BTreeMap<String, Rendered>,
    /// By path: without and with the other value.
    changed: BTreeMap<&'static str, (Rendered, Rendered)>,
    /// By values: what Helm said.
    refused: BTreeMap<&'static str, String>,
}

static BENCH: LazyLock<Option<Bench>> = LazyLock::new(|| match Helm::find() {
    Ok(helm) => Some(bench(&helm)),
    Err(error) => {
        let _said = level::skip(&format!("{error:#}"));
        None
    }
});

fn bench(helm: &Helm) -> Bench {
    let examples = examples();
    let mut values = vec![String::new()];
    values.extend(examples.values().cloned());
    for (path, other, base) in OTHER {
        values.push((*base).to_owned());
        values.push(overlay(base, path, other));
    }
    values.extend(REFUSED.iter().map(|(values, _)| (*values).to_owned()));
    let chart = chart_with_files();
    let answer: Answer = helm.ask(&Request { chart: chart.clone(), values: values.clone() }).unwrap();
    std::fs::remove_dir_all(chart).unwrap();
    let mut each = answer.each().zip(&values);
    let mut next = || {
        let (templates, values) = each.next().unwrap();
        let templates = templates.unwrap_or_else(|error| panic!("{values}: {error}"));
        Rendered::read(templates).unwrap_or_else(|error| panic!("{values}: {error:#}"))
    };
    let default = next();
    let examples = examples.keys().map(|name| (name.clone(), next())).collect();
    let changed = OTHER.iter().map(|(path, ..)| (*path, (next(), next()))).collect();
    let refused = REFUSED.iter().zip(each).map(|((values, _), (templates, _))| {
        (*values, templates.err().unwrap_or_else(|| panic!("{values} is taken")).to_owned())
    });
    let refused = refused.collect();
    Bench { lint: answer.lint.clone(), values: answer.defaults.clone(), default, examples, changed, refused }
}

/// The chart, with a dashboard and a rule of the tests where it has none of its own: so the templates for them are tried.
fn chart_with_files() -> std::path::PathBuf {
    let copy = std::env::temp_dir().join(format!("netpol-chart-{}", std::process::id()));
    copy_tree(&chart::chart(), &copy);
    for (place, name, text) in [
        ("files/dashboards", "try.json", "{\"title\": \"{{ kept }}\"}\n"),
        (
            "files/rules",
            "try.yaml",
            "groups:\n  - name: try\n    rules:\n      - {alert: Try, expr: 'vector(1)', annotations: {summary: '{{ $value }}'}}\n",
        ),
    ] {
        let place = copy.join(place);
        if std::fs::read_dir(&place).map_or(0, Iterator::count) == 0 {
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join(name), text).unwrap();
        }
    }
    copy
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &to);
        } else {
            std::fs::copy(path, to).unwrap();
        }
    }
}

fn examples() -> BTreeMap<String, String> {
    let directory = std::fs::read_dir(chart::deploy().join("helm/examples")).unwrap();
    let paths = directory.map(|entry| entry.unwrap().path());
    paths
        .map(|it| (it.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(it).unwrap()))
        .collect()
}

/// The base with the value at the path.
fn overlay(base: &str, path: &str, value: &str) -> String {
    let mut values: Value = if base.is_empty() { json!({}) } else { serde_saphyr::from_str(base).unwrap() };
    let mut place = &mut values;
    for name in path.split('.') {
        place = &mut place[name];
    }
    *place = serde_saphyr::from_str(value).unwrap();
    values.to_string()
}

fn text_of(rendered: &Rendered) -> String {
    let objects = rendered.objects.iter().chain(&rendered.hooks);
    objects.map(|object| object.value.to_string()).collect()
}

/// Paths of values that are set one by one: everything that is not a mapping with content.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value.as_object().filter(|it| !it.is_empty()) {
        Some(members) => members.iter().for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            leaves(value, &path, found);
        }),
        None => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn helm_has_nothing_to_say_against_the_chart() {
    let Some(bench) = &*BENCH else { return };
    assert_eq!(bench.lint, [""; 0]);
}

#[test]
fn the_plain_manifest_is_the_default_rendering() {
    let Some(bench) = &*BENCH else { return };
    let head = "# Made from the chart deploy/helm/netpol by `cargo xtask chart --bless`: edit that, not this.\n";
    let made = bench.default.manifest(head);
    let path = chart::deploy().join("netpol.yaml");
    if std::env::var_os("NETPOL_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "deploy/netpol.yaml is not the default rendering: cargo xtask chart --bless");
    assert!(!made.contains("helm.sh/"), "hooks run on events of a release only");
    let objects = chart::parse(&made).unwrap();
    assert_eq!(objects.len(), bench.default.objects.len());
}

#[test]
fn every_value_has_a_test_and_changes_something() {
    let Some(bench) = &*BENCH else { return };
    let mut values = BTreeSet::new();
    leaves(&bench.values, "", &mut values);
    // What is one mapping to the chart.
    let whole = ["nodeSelector.", "resources.", "podSecurityContext."];
    let known: BTreeSet<String> = values
        .into_iter()
        .map(|path| {
            whole.iter().find(|it| path.starts_with(*it)).map_or(path.clone(), |it| it.trim_end_matches('.').to_owned())
        })
        .collect();
    let tested: BTreeSet<String> =
        OTHER.iter().map(|(path, ..)| (*path).to_owned()).filter(|it| it != "updateStrategy").collect();
    assert_eq!(tested, known, "OTHER and values.yaml");
    let idle: Vec<&str> = bench
        .changed
        .iter()
        .filter(|(_, (without, with))| text_of(without) == text_of(with))
        .map(|(path, _)| *path)
        .collect();
    assert_eq!(idle, [""; 0], "values that change nothing");
}

#[test]
fn a_mistake_in_the_values_is_refused_by_name() {
    let Some(bench) = &*BENCH else { return };
    for (values, wanted) in REFUSED {
        let said = &bench.refused[values];
        assert!(said.contains(wanted), "{values}: {said}");
    }
}

#[test]
fn the_agent_understands_every_flag() {
    let Some(bench) = &*BENCH else { return };
    let renderings = [&bench.default].into_iter().chain(bench.examples.values());
    for rendered in renderings.chain(bench.changed.values().flat_map(|(without, with)| [without, with])) {
        let arguments = rendered.arguments().unwrap();
        let command = rendered.agent().unwrap()["command"][0].as_str().unwrap().to_owned();
        assert_eq!(command, "/netpol-agent");
        let parsed = Cli::try_parse_from([command].into_iter().chain(arguments.clone()));
        let parsed = parsed.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        assert!(matches!(parsed.command, Command::Run(run) if run.manifests.is_none()));
    }
}

#[test]
fn roles_grant_what_the_code_uses_and_no_more() {
    let Some(bench) = &*BENCH else { return };
    let faults = |kind: &str, name: &str, table: &[Access]| {
        access_faults(bench.default.get(kind, name).unwrap(), table).unwrap()
    };
    assert_eq!(faults("ClusterRole", "netpol", access::AGENT), [""; 0]);
    assert_eq!(faults("Role", "netpol-uninstall", access::CLIENT), [""; 0]);
    // It can tell: the tables of each other do not fit.
    assert_eq!(faults("ClusterRole", "netpol", access::CLIENT).len(), 6);
}

#[test]
fn the_agent_has_no_privilege_that_is_not_argued() {
    let Some(bench) = &*BENCH else { return };
    let pod = |rendered: &Rendered| {
        rendered.get("DaemonSet", "netpol").unwrap().value.pointer("/spec/template/spec").unwrap().clone()
    };
    let security = |rendered: &Rendered| rendered.agent().unwrap()["securityContext"].clone();
    let default = json!({
        "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsUser": 0,
        "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]},
    });
    assert_eq!(security(&bench.default), default);
    let old = security(&bench.changed["oldKernels"].1);
    assert_eq!(old["capabilities"]["add"], json!(["BPF", "NET_ADMIN", "PERFMON", "SYS_RESOURCE"]));
    let one_changed = security(&bench.changed["securityContext"].1);
    assert_eq!(
        (&one_changed["readOnlyRootFilesystem"], &one_changed["capabilities"]),
        (&json!(false), &default["capabilities"])
    );
    let spec = pod(&bench.default);
    assert_eq!(spec["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!((&spec["hostNetwork"], &spec["hostPID"], &spec["hostIPC"]), (&json!(true), &Value::Null, &Value::Null));
    // Each mount is argued in the README, by its path on the node.
    let readme = std::fs::read_to_string(chart::deploy().join("README.md")).unwrap();
    for volume in spec["volumes"].as_array().unwrap() {
        let path = volume["hostPath"]["path"].as_str().unwrap();
        assert!(readme.contains(&format!("| `{path}`")), "{path} is not argued in deploy/README.md");
    }
    for capability in old["capabilities"]["add"].as_array().unwrap() {
        let name = format!("| CAP_{}", capability.as_str().unwrap());
        assert!(readme.contains(&name), "{name} is not argued in deploy/README.md");
    }
}

#[test]
fn what_the_agent_is_told_is_mounted_where_it_is_told() {
    let Some(bench) = &*BENCH else { return };
    for rendered in
        [&bench.default].into_iter().chain(bench.examples.values()).chain(bench.changed.values().map(|it| &it.1))
    {
        let agent = rendered.agent().unwrap();
        let mounts: Vec<&str> =
            agent["volumeMounts"].as_array().unwrap().iter().map(|it| it["mountPath"].as_str().unwrap()).collect();
        for argument in rendered.arguments().unwrap() {
            let Some((flag, path)) = argument.split_once('=').filter(|(_, value)| value.starts_with('/')) else {
                continue;
            };
            let path = std::path::Path::new(path);
            assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{flag} {} is below no mount", path.display());
        }
        // AppArmor's profile of container runtimes forbids writing below /sys.
        assert!(mounts.iter().all(|it| !it.starts_with("/sys") && !it.starts_with("/proc")), "{mounts:?}");
    }
}

#[test]
fn clients_find_the_agents_and_nothing_else() {
    let Some(bench) = &*BENCH else { return };
    let label = |object: &Object, pointer: &str| {
        object.value.pointer(&format!("{pointer}/app.kubernetes.io~1name")).and_then(Value::as_str).map(str::to_owned)
    };
    let agents = bench.default.get("DaemonSet", "netpol").unwrap();
    assert_eq!(label(agents, "/spec/template/metadata/labels").as_deref(), Some("netpol"));
    let job = bench.default.get("Job", "netpol-uninstall").unwrap();
    assert_eq!(label(job, "/spec/template/metadata/labels").as_deref(), Some("netpol-uninstall"));
}

#[test]
fn uninstalling_cleans_every_node_first_unless_it_is_told_not_to() {
    let Some(bench) = &*BENCH else { return };
    let kinds = |rendered: &Rendered| rendered.hooks.iter().map(|it| it.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&bench.default), ["ServiceAccount", "Role", "RoleBinding", "Job"]);
    for hook in &bench.default.hooks {
        assert_eq!(hook.value["metadata"]["annotations"]["helm.sh/hook"], "pre-delete", "{}", hook.kind);
    }
    assert_eq!(kinds(&bench.changed["uninstall.cleanup"].1), [""; 0]);
    let job = bench.default.get("Job", "netpol-uninstall").unwrap();
    let container = &job.value["spec"]["template"]["spec"]["containers"][0];
    let words = ["command", "args"].into_iter().flat_map(|part| container[part].as_array().unwrap());
    let words: Vec<&str> = words.map(|it| it.as_str().unwrap()).collect();
    let parsed = client::cli::Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(matches!(parsed.command, client::cli::Command::Cleanup { yes: true }));
    assert!(parsed.place.all_nodes && parsed.place.agent_namespace == "kube-system");
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
}

#[test]
fn examples_say_what_their_platform_needs() {
    let Some(bench) = &*BENCH else { return };
    let volume = |example: &str, name: &str| {
        let spec =
            bench.examples[example].get("DaemonSet", "netpol").unwrap().value["spec"]["template"]["spec"].clone();
        let volume = spec["volumes"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone();
        volume["hostPath"]["path"].as_str().unwrap().to_owned()
    };
    assert_eq!(volume("k3s", "cni-conf"), "/var/lib/rancher/k3s/agent/etc/cni/net.d");
    assert_eq!(volume("k3s", "cni-bin"), "/var/lib/rancher/k3s/data/cni");
    assert_eq!(volume("talos", "cni-bin"), "/opt/cni/bin");
    let talos = bench.examples["talos"].agent().unwrap()["env"].to_string();
    assert!(talos.contains("KUBERNETES_SERVICE_HOST") && talos.contains("7445"), "{talos}");
    let monitoring: BTreeSet<&str> = bench.examples["monitoring"].objects.iter().map(|it| it.kind.as_str()).collect();
    assert!(
        ["ServiceMonitor", "PrometheusRule", "ConfigMap", "Service"].iter().all(|it| monitoring.contains(it)),
        "{monitoring:?}"
    );
}

#[test]
fn kustomizations_find_what_they_change() {
    for directory in [chart::deploy(), chart::deploy().join("kustomize/k3s")] {
        assert_eq!(chart::kustomization_faults(&directory).unwrap(), [""; 0]);
    }
}

#[test]
fn chart_and_programs_are_of_one_version() {
    let text = std::fs::read_to_string(chart::chart().join("Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn the_chart_carries_the_dashboard_and_the_alerts_that_are_tested() {
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let read = |path: &str| std::fs::read_to_string(deploy.join(path)).unwrap();
    assert_eq!(read("helm/netpol/files/dashboards/netpol.json"), read("monitoring/dashboard.json"));
    let yaml = |path: &str| serde_saphyr::from_str::<serde_json::Value>(&read(path)).unwrap();
    assert_eq!(yaml("helm/netpol/files/rules/netpol.yaml"), yaml("monitoring/alerts.yaml")["spec"]);
}
