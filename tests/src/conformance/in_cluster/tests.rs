//! The driver against a cluster that is not there: an API that keeps objects, pods whose prober knows what the oracle says.

use std::cell::RefCell;
use std::net::IpAddr;

use anyhow::bail;
use serde_json::{Value, json};

use super::*;
use crate::conformance::{By, Level, committed};
use crate::judge::{Change, Judge as _, Objects, Side, name_of};
use crate::oracle::Oracle;

#[derive(Default)]
struct Double {
    objects: RefCell<Objects>,
    lines: RefCell<Vec<String>>,
    /// Everything passes, as where nobody enforces.
    open: bool,
    /// Pods are to be asked at services' addresses.
    by_service: bool,
}

impl Double {
    /// A cluster as it comes: with namespaces that have the label which the API server sets.
    fn with_own_namespaces() -> Self {
        let double = Self::default();
        for name in ["default", "kube-system"] {
            let labels = json!({"kubernetes.io/metadata.name": name});
            double.apply(json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
        }
        double
    }

    fn apply(&self, object: Value) {
        let mut objects = self.objects.borrow_mut();
        let mut object = object;
        if object["kind"] == "Pod" {
            let number = objects.of("Pod").count() + 1;
            let name = name_of(&object);
            let known = objects.get("Pod", &name).map(|it| it["status"].clone());
            let address = format!("10.244.{}.{number}", number % 2 + 1);
            object["status"] =
                known.unwrap_or_else(|| json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}));
            object["spec"]["nodeName"] = json!("worker");
        }
        if object["kind"] == "Service" {
            let number = objects.of("Service").count() + 1;
            object["spec"]["clusterIP"] = json!(format!("10.96.1.{number}"));
        }
        objects.change(&Change::Apply(object));
    }

    fn ask(&self, from: Name, input: &str) -> Result<String> {
        let objects = self.objects.borrow();
        let mut oracle = Oracle::default();
        oracle.change(&objects.creation())?;
        let side = |name: Name, address: IpAddr| Side { address, pod: Some(name) };
        let own: IpAddr =
            objects.get("Pod", &from).context("no such pod")?["status"]["podIP"].as_str().unwrap().parse()?;
        let asked: Vec<Asked> = serde_json::from_str(input)?;
        let heard = asked.into_iter().map(|asked| {
            let (namespace, pod) = asked.who.split_once('/').unwrap();
            let name = (namespace.to_owned(), pod.to_owned());
            let address = asked.at.ip();
            // kube-proxy's work.
            let behind = objects.get("Service", &name).filter(|it| it["spec"]["clusterIP"] == address.to_string());
            let behind = behind.and_then(|_| objects.get("Pod", &name)?["status"]["podIP"].as_str()?.parse().ok());
            anyhow::ensure!(behind.is_some() == self.by_service, "{name:?} is asked at {address}");
            let destination = side(name, behind.unwrap_or(address));
            let protocol = if asked.udp { Protocol::Udp } else { Protocol::Tcp };
            let probe = Probe { source: side(from.clone(), own), destination, protocol, port: asked.at.port() };
            Ok(if self.open || oracle.verdict(&probe)?.allowed() { Heard::Answered } else { Heard::Silence })
        });
        Ok(serde_json::to_string(&heard.collect::<Result<Vec<_>>>()?)?)
    }
}

impl Kubectl for Double {
    #[expect(clippy::too_many_lines, reason = "one arm for each command that the driver runs")]
    fn run(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.lines.borrow_mut().push(arguments.join(" "));
        match arguments {
            ["apply", "-f", "-"] => {
                let list: Value = serde_json::from_str(input)?;
                list["items"].as_array().unwrap().iter().for_each(|object| self.apply(object.clone()));
            }
            [
                "wait",
                "-n",
                namespace,
                "--for=condition=ContainersReady",
                "pod",
                "-l",
                "netpol.test/conformance=true",
                ..,
            ] => {
                let is_there = self.objects.borrow().of("Pod").any(|(name, _)| name.0 == *namespace);
                anyhow::ensure!(is_there, "error: no matching resources found");
            }
            [
                "get",
                kind @ ("pods" | "services"),
                "-n",
                namespace,
                "-l",
                "netpol.test/conformance=true",
                "-o",
                "json",
            ] => {
                let kind = if *kind == "pods" { "Pod" } else { "Service" };
                let objects = self.objects.borrow();
                let is_marked = |it: &Value| it["metadata"]["labels"]["netpol.test/conformance"] == "true";
                let all = objects.of(kind).filter(|(name, it)| name.0 == *namespace && is_marked(it));
                let items: Vec<&Value> = all.map(|it| it.1).collect();
                return Ok(json!({"items": items}).to_string());
            }
            ["get", "namespaces", "-l", "netpol.test/conformance!=true", "-o", "json"] => {
                let there = ["default", "kube-system"].map(|name| json!({"metadata": {"name": name}}));
                return Ok(json!({"items": there}).to_string());
            }
            ["patch", rest @ ..] => {
                let (namespace, rest) = match rest {
                    ["-n", namespace, rest @ ..] => ((*namespace).to_owned(), rest),
                    rest => (String::new(), rest),
                };
                let [kind, name, "--type=merge", "-p", patch] = rest else { bail!("{arguments:?}") };
                let patch: Value = serde_json::from_str(patch)?;
                let mut object = self
                    .objects
                    .borrow()
                    .get(kind, &(namespace, (*name).to_owned()))
                    .context("no such object")?
                    .clone();
                for (label, value) in patch["metadata"]["labels"].as_object().unwrap() {
                    let labels = object["metadata"]["labels"].as_object_mut().unwrap();
                    if value.is_null() {
                        labels.remove(label);
                    } else {
                        labels.insert(label.clone(), value.clone());
                    }
                }
                self.apply(object);
            }
            ["delete", "networkpolicy", "-n", namespace, name] => {
                let name = ((*namespace).to_owned(), (*name).to_owned());
                self.objects.borrow_mut().change(&Change::Delete { kind: "NetworkPolicy".to_owned(), name });
            }
            [
                "delete",
                "pods,services",
                "-n",
                namespace @ ("default" | "kube-system"),
                "-l",
                "netpol.test/conformance=true",
                ..,
            ] => {
                let mut objects = self.objects.borrow_mut();
                for kind in ["Pod", "Service"] {
                    let ours = objects.of(kind).map(|it| it.0.clone()).filter(|it| it.0 == *namespace);
                    for name in ours.collect::<Vec<Name>>() {
                        objects.change(&Change::Delete { kind: kind.to_owned(), name });
                    }
                }
            }
            ["delete", "namespace", "--wait=true", "--timeout=180s", namespaces @ ..] => {
                // As an API server would: these are for ever.
                anyhow::ensure!(!namespaces.iter().any(|it| ["default", "kube-system"].contains(it)), "{namespaces:?}");
                let mut objects = self.objects.borrow_mut();
                for name in namespaces {
                    for kind in ["NetworkPolicy", "Pod", "Service"] {
                        let inside = objects.of(kind).map(|it| it.0.clone()).filter(|it| it.0 == *name);
                        for name in inside.collect::<Vec<Name>>() {
                            objects.change(&Change::Delete { kind: kind.to_owned(), name });
                        }
                    }
                    let name = (String::new(), (*name).to_owned());
                    objects.change(&Change::Delete { kind: "Namespace".to_owned(), name });
                }
            }
            ["exec", "-i", "-n", namespace, pod, "--", ..] => {
                return self.ask(((*namespace).to_owned(), (*pod).to_owned()), input);
            }
            _ => bail!("{arguments:?}"),
        }
        Ok(String::new())
    }
}

fn settings(suite: &str) -> Settings {
    Settings { suites: vec![suite.to_owned()], by: By::PodIp, level: Level::Datapath, ..Settings::all_of(committed()) }
}

#[test]
fn suites_run_to_their_end_in_a_cluster_that_enforces() {
    for (suite, least) in [("recipes", 100), ("e2e-netpol", 400), ("guides", 80)] {
        let double = Double::with_own_namespaces();
        let said = RefCell::new(Vec::new());
        let tally = run(&settings(suite), &double, "prober", |line| said.borrow_mut().push(line.to_owned())).unwrap();
        assert_eq!(tally.failed, 0, "{}", said.borrow().join("\n"));
        assert!(tally.passed >= least, "{suite}: {tally}");
        let objects = double.objects.borrow();
        for kind in ["Pod", "NetworkPolicy"] {
            assert_eq!(objects.of(kind).count(), 0, "{suite} leaves nothing, in the cluster's own namespaces either");
        }
        let namespaces =
            objects.of("Namespace").filter(|(name, _)| !["default", "kube-system"].contains(&name.1.as_str()));
        assert_eq!(namespaces.count(), 0, "{suite}");
    }
}

#[test]
fn the_shop_is_asked_by_both_addresses_and_borrows_a_namespace() {
    for by in [By::PodIp, By::ServiceIp] {
        let double = Double { by_service: by == By::ServiceIp, ..Double::with_own_namespaces() };
        let said = RefCell::new(Vec::new());
        let settings = Settings { by, ..settings(shop::NAME) };
        let tally = run(&settings, &double, "prober", |line| said.borrow_mut().push(line.to_owned())).unwrap();
        assert_eq!((tally.cases, tally.failed, tally.skipped), (1, 0, 0), "{}", said.borrow().join("\n"));
        assert!(tally.passed > 400, "{tally}");
        let lines = double.lines.borrow();
        let borrowed: Vec<&String> = lines.iter().filter(|it| it.starts_with("delete pods")).collect();
        assert!(matches!(borrowed.as_slice(), [line] if line.contains("-n kube-system -l ")), "{borrowed:?}");
        assert!(lines.iter().all(|it| !it.starts_with("patch Namespace")), "it is not ours to change");
    }
}

#[test]
fn a_pod_in_a_namespace_of_the_clusters_own_never_serves_it() {
    let double = Double::with_own_namespaces();
    let suite = shop::suite().unwrap();
    let work = Work { suite: &suite, case: &suite.cases[0], plan_name: NO_PLAN };
    let stage = Stage::set(&work, &double, "prober", By::PodIp).unwrap();
    let gates = |namespace: &str, pod: &str| {
        let objects = double.objects.borrow();
        objects.get("Pod", &(namespace.to_owned(), pod.to_owned())).unwrap()["spec"]["readinessGates"].clone()
    };
    assert_eq!(gates("kube-system", "kube-dns"), json!([{"conditionType": "netpol.test/never"}]));
    assert_eq!(gates("production", "user-api"), json!([]));
    stage.strike(&double).unwrap();
    assert!(double.objects.borrow().get("Namespace", &(String::new(), "kube-system".to_owned())).is_some());
}

#[test]
fn a_denial_that_does_not_come_about_is_found() {
    let double = Double { open: true, ..Double::with_own_namespaces() };
    let suite = crate::npconf::Suite::committed("recipes").unwrap();
    let case = suite.cases.iter().find(|case| {
        let work = Work { suite: &suite, case, plan_name: NO_PLAN };
        why_not(&work).is_none()
            && case.steps.iter().any(|step| step.expect.iter().any(|it| it.allow.iter().any(|row| row.contains('X'))))
    });
    let work = Work { suite: &suite, case: case.unwrap(), plan_name: NO_PLAN };
    let stage = Stage::set(&work, &double, "prober", By::PodIp).unwrap();
    let plan = stage.plan().clone();
    let mut world = World::new(work.cluster().unwrap(), &plan).unwrap();
    world.enact(&work.case.steps[0]).unwrap();
    let cells = world.cells(&work.case.steps[0], NO_PLAN, "").unwrap();
    let cells: Vec<&Cell> = cells.iter().filter(|cell| can_ask(&cell.probe)).collect();
    let denied = cells.iter().filter(|cell| datapath::stated(cell) == Some(false)).count();
    let wrong = round(&cells, stage.services(), &double).unwrap();
    assert!(denied > 0);
    assert_eq!(wrong.len(), denied);
    assert!(wrong.iter().all(|(_, heard)| heard == "answered"));
}

#[test]
fn a_prober_tells_the_right_server_from_another_and_from_none() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let free = |it: std::net::SocketAddr| it.port();
        let tcp = free(std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap());
        let udp = free(std::net::UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap());
        let server = tokio::spawn(async move { prober::serve("x/a", &[tcp], &[udp]).await });
        let asked = |port, udp, who: &str| Asked { at: ([127, 0, 0, 1], port).into(), udp, who: who.to_owned() };
        let questions = vec![asked(tcp, false, "x/a"), asked(udp, true, "x/a"), asked(tcp, false, "x/b")];
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let heard = prober::ask(questions.clone()).await;
            if let [Heard::Answered, Heard::Answered, Heard::Other(who)] = heard.as_slice() {
                assert!(who.contains("x/a"), "{who}");
                break;
            }
            assert!(Instant::now() < deadline, "{heard:?}");
            tokio::task::yield_now().await;
        }
        server.abort();
    });
}
