//! A large cluster as an API server would send it: pods of several kilobytes with all that kubelet and controllers write
//! into them, and policies of the usual sorts.

#![expect(clippy::indexing_slicing, reason = "of JSON that is built here")]

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Pods on a node, the usual most.
pub const PODS_PER_NODE: usize = 110;
/// Pods of a namespace.
const PODS_PER_NAMESPACE: usize = 500;
/// Pods of a Deployment or StatefulSet.
const REPLICAS: usize = 10;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pods.
    pub pods: usize,
    /// NetworkPolicies.
    pub policies: usize,
}

impl Size {
    fn namespaces(self) -> usize {
        self.pods.div_ceil(PODS_PER_NAMESPACE).max(1)
    }

    /// All objects, in no order that would help.
    pub fn objects(self) -> impl Iterator<Item = Value> {
        let namespaces = (0..self.namespaces()).map(namespace);
        let services = (0..self.pods / REPLICAS / 2).map(move |number| service(self, number));
        let policies = (0..self.policies).map(move |number| policy(self, number));
        namespaces.chain((0..self.pods).map(move |number| pod(self, number, 0))).chain(services).chain(policies)
    }
}

/// The name of a pod's namespace.
fn namespace_of(size: Size, number: usize) -> String {
    // Pods of a node are from everywhere, replicas of a set from one namespace.
    format!("team-{:03}", number / REPLICAS % size.namespaces())
}

fn namespace(number: usize) -> Value {
    json!({
        "kind": "Namespace",
        "metadata": {
            "name": format!("team-{number:03}"),
            "labels": { "team": format!("t{}", number / 4), "env": pick(&["dev", "stage", "prod"], number) },
        },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    })
}

fn service(size: Size, number: usize) -> Value {
    let pod = number * REPLICAS * 2;
    json!({
        "kind": "Service",
        "metadata": { "name": format!("svc-{number}"), "namespace": namespace_of(size, pod) },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address(172, number),
            "clusterIPs": [address(172, number)],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "selector": { "app.kubernetes.io/name": app(pod) },
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": "http" }],
        },
        "status": { "loadBalancer": {} },
    })
}

fn pick(words: &[&'static str], number: usize) -> &'static str {
    words.get(number % words.len()).copied().unwrap_or_default()
}

fn address(first: u8, number: usize) -> String {
    let number = u32::try_from(number).unwrap_or_default() + 256;
    Ipv4Addr::from((u32::from(first) << 24) + number).to_string()
}

fn app(pod: usize) -> String {
    format!("app-{}", pod / REPLICAS % 97)
}

/// The node that a pod is on. Replicas are spread.
#[must_use]
pub fn node_of(size: Size, pod: usize) -> String {
    format!("node-{:04}", pod % size.pods.div_ceil(PODS_PER_NODE).max(1))
}

/// Pod `number`; its labels say how often it was `relabelled`.
#[must_use]
pub fn pod(size: Size, number: usize, relabelled: usize) -> Value {
    let stateful = (number / REPLICAS).is_multiple_of(5);
    let set = number / REPLICAS;
    let name = if stateful {
        format!("{}-{set}-{}", app(number), number % REPLICAS)
    } else {
        format!("{}-{set}-7d9c{:06x}-{:05x}", app(number), set * 7919 % 0xff_ffff, number * 31 % 0xf_ffff)
    };
    let ip = address(10, number);
    let mut labels = json!({
        "app.kubernetes.io/name": app(number),
        "app.kubernetes.io/instance": format!("{}-{set}", app(number)),
        "app.kubernetes.io/version": format!("{}.{}.0", set % 5, set % 23),
        "app.kubernetes.io/component": pick(&["frontend", "backend", "database", "cache", "worker"], set),
        "app.kubernetes.io/part-of": format!("product-{}", set % 40),
        "app.kubernetes.io/managed-by": "Helm",
        "track": if relabelled.is_multiple_of(2) { "stable" } else { "canary" },
    });
    if stateful {
        labels["statefulset.kubernetes.io/pod-name"] = name.clone().into();
    } else {
        labels["pod-template-hash"] = format!("7d9c{:06x}", set * 7919 % 0xff_ffff).into();
    }
    let node = node_of(size, number);
    json!({
        "kind": "Pod",
        "metadata": {
            "name": name,
            "generateName": format!("{}-{set}-", app(number)),
            "namespace": namespace_of(size, number),
            "labels": labels,
            "annotations": { "checksum/config": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "prometheus.io/scrape": "true", "prometheus.io/port": "9090" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-{set}", app(number)),
                "uid": "5c9b6a7e-9c63-4b3e-8a34-0d8a7f1c2b3d", "controller": true, "blockOwnerDeletion": true }],
            "managedFields": managed_fields(),
        },
        "spec": spec(&node),
        "status": status(&ip, &node),
    })
}

fn managed_fields() -> Value {
    let owned = json!({ "f:metadata": { "f:generateName": {}, "f:labels": { ".": {}, "f:app.kubernetes.io/name": {},
            "f:app.kubernetes.io/instance": {}, "f:app.kubernetes.io/version": {}, "f:pod-template-hash": {} },
            "f:ownerReferences": { ".": {}, "k:{\"uid\":\"5c9b6a7e-9c63-4b3e-8a34-0d8a7f1c2b3d\"}": {} } },
        "f:spec": { "f:containers": { "k:{\"name\":\"main\"}": { ".": {}, "f:env": { ".": {},
            "k:{\"name\":\"LOG_LEVEL\"}": { ".": {}, "f:name": {}, "f:value": {} } }, "f:image": {},
            "f:imagePullPolicy": {}, "f:livenessProbe": { ".": {}, "f:failureThreshold": {}, "f:httpGet": { ".": {},
            "f:path": {}, "f:port": {}, "f:scheme": {} }, "f:periodSeconds": {}, "f:successThreshold": {} }, "f:name": {},
            "f:ports": { ".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {},
            "f:name": {}, "f:protocol": {} } }, "f:resources": { ".": {}, "f:limits": {}, "f:requests": {} },
            "f:securityContext": {}, "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {} } },
            "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {}, "f:schedulerName": {},
            "f:securityContext": {}, "f:serviceAccount": {}, "f:terminationGracePeriodSeconds": {}, "f:volumes": {} } });
    let status = json!({ "f:status": { "f:conditions": { "k:{\"type\":\"ContainersReady\"}": { ".": {},
            "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:status": {}, "f:type": {} },
            "k:{\"type\":\"Initialized\"}": { ".": {}, "f:status": {}, "f:type": {} },
            "k:{\"type\":\"Ready\"}": { ".": {}, "f:status": {}, "f:type": {} } }, "f:containerStatuses": {},
            "f:hostIP": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": { ".": {} }, "f:startTime": {} } });
    json!([
        { "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
          "fieldsType": "FieldsV1", "fieldsV1": owned },
        { "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
          "fieldsType": "FieldsV1", "fieldsV1": status, "subresource": "status" },
    ])
}

fn spec(node: &str) -> Value {
    let probe = json!({ "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" }, "timeoutSeconds": 1,
        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 });
    let mounts = json!([{ "name": "config", "mountPath": "/etc/app" },
        { "name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }]);
    let container = |name: &str, port: u16, port_name: &str| {
        json!({
            "name": name,
            "image": format!("registry.example.com/products/{name}@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c"),
            "ports": [{ "name": port_name, "containerPort": port, "protocol": "TCP" }],
            "env": [
                { "name": "LOG_LEVEL", "value": "info" },
                { "name": "POD_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } },
                { "name": "DATABASE_URL", "valueFrom": { "secretKeyRef": { "name": "database", "key": "url" } } },
            ],
            "resources": { "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "100m", "memory": "256Mi" } },
            "volumeMounts": mounts,
            "livenessProbe": probe,
            "readinessProbe": probe,
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
            "securityContext": { "capabilities": { "drop": ["ALL"] }, "readOnlyRootFilesystem": true },
        })
    };
    json!({
        "volumes": [
            { "name": "config", "configMap": { "name": "app-config", "defaultMode": 420 } },
            { "name": "kube-api-access", "projected": { "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1",
                    "fieldPath": "metadata.namespace" } }] } }], "defaultMode": 420 } },
        ],
        "containers": [container("main", 8080, "http"), container("metrics", 9090, "metrics")],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "nodeName": node,
        "securityContext": { "runAsNonRoot": true, "fsGroup": 1000 },
        "schedulerName": "default-scheduler",
        "tolerations": [
            { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }],
        "priority": 0,
        "enableServiceLinks": true,
        "preemptionPolicy": "PreemptLowerPriority",
    })
}

fn status(ip: &str, node: &str) -> Value {
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let container = |name: &str| {
        json!({ "name": name, "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } }, "lastState": {}, "ready": true,
            "restartCount": 0, "started": true, "image": format!("registry.example.com/products/{name}"),
            "imageID": format!("registry.example.com/products/{name}@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b"),
            "containerID": "containerd://2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" })
    };
    json!({
        "phase": "Running",
        "conditions": (["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
            .map(condition)),
        "hostIP": "192.168.0.10",
        "hostIPs": [{ "ip": "192.168.0.10" }],
        "podIP": ip,
        "podIPs": [{ "ip": ip }],
        "startTime": "2026-01-01T00:00:00Z",
        "containerStatuses": [container("main"), container("metrics")],
        "qosClass": "Burstable",
        "observedGeneration": 1,
        "x-node": node,
    })
}

/// Policies as teams write them: a default deny a namespace, then one allowance after the other.
fn policy(size: Size, number: usize) -> Value {
    let namespaces = size.namespaces();
    let (namespace, sort) = (number % namespaces, number / namespaces);
    let of = |component: &str| json!({ "matchLabels": { "app.kubernetes.io/component": component } });
    let spec = match sort % 10 {
        0 => json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
        1 => json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": [{
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "team-000" } } }],
                "ports": [{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }] }] }),
        2 => json!({ "podSelector": of("backend"), "ingress": [{ "from": [{ "podSelector": of("frontend") }],
                "ports": [{ "port": "http" }] }] }),
        3 => json!({ "podSelector": of("database"), "ingress": [{ "from": [{ "podSelector": of("backend") },
                { "podSelector": of("worker") }], "ports": [{ "port": 5432 }] }] }),
        4 => json!({ "podSelector": of("frontend"), "ingress": [{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0",
                "except": ["10.0.0.0/8"] } }], "ports": [{ "port": 8080 }] }] }),
        5 => json!({ "podSelector": {}, "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": {
                "team": format!("t{}", namespace / 4) } } }] }] }),
        6 => json!({ "podSelector": {}, "ingress": [{ "from": [{ "namespaceSelector": {}, "podSelector": {
                "matchLabels": { "app.kubernetes.io/name": "app-7", "track": "stable" } } }],
                "ports": [{ "port": "metrics" }] }] }),
        7 => {
            json!({ "podSelector": of("worker"), "policyTypes": ["Egress"], "egress": [{ "to": [{ "podSelector": of("cache") },
                { "namespaceSelector": { "matchExpressions": [{ "key": "env", "operator": "In", "values": ["prod"] }] },
                  "podSelector": of("database") }], "ports": [{ "port": 6379 }, { "port": 5432 }] }] })
        }
        8 => json!({ "podSelector": of("backend"), "policyTypes": ["Egress"], "egress": [{ "to": [{ "ipBlock": {
                "cidr": format!("203.0.{}.0/24", namespace % 250) } }], "ports": [{ "port": 443 }] }] }),
        _ => json!({ "podSelector": of("cache"), "ingress": [{ "from": [{ "namespaceSelector": { "matchExpressions": [
                { "key": "env", "operator": "NotIn", "values": ["dev"] }] }, "podSelector": { "matchExpressions": [
                { "key": "app.kubernetes.io/component", "operator": "In", "values": ["backend", "worker"] }] } }],
                "ports": [{ "port": 6379, "endPort": 6400 }] }] }),
    };
    json!({
        "kind": "NetworkPolicy",
        "metadata": { "name": format!("policy-{sort}"), "namespace": format!("team-{namespace:03}") },
        "spec": spec,
    })
}
