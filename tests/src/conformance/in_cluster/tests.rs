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
}

impl Double {
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
            let destination = side((namespace.to_owned(), pod.to_owned()), asked.at.ip());
            let protocol = if asked.udp { Protocol::Udp } else { Protocol::Tcp };
            let probe = Probe { source: side(from.clone(), own), destination, protocol, port: asked.at.port() };
            Ok(if self.open || oracle.verdict(&probe)?.allowed() { Heard::Answered } else { Heard::Silence })
        });
        Ok(serde_json::to_string(&heard.collect::<Result<Vec<_>>>()?)?)
    }
}

impl Kubectl for Double {
    fn run(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.lines.borrow_mut().push(arguments.join(" "));
        match arguments {
            ["apply", "-f", "-"] => {
                let list: Value = serde_json::from_str(input)?;
                list["items"].as_array().unwrap().iter().for_each(|object| self.apply(object.clone()));
            }
            ["wait", ..] => {}
            ["get", "pods", "-n", namespace, "-o", "json"] => {
                let objects = self.objects.borrow();
                let items: Vec<&Value> =
                    objects.of("Pod").filter(|(name, _)| name.0 == *namespace).map(|it| it.1).collect();
                return Ok(json!({"items": items}).to_string());
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
            ["delete", "namespace", ..] => *self.objects.borrow_mut() = Objects::default(),
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
    for (suite, least) in [("recipes", 100), ("e2e-netpol", 400)] {
        let double = Double::default();
        let said = RefCell::new(Vec::new());
        let tally = run(&settings(suite), &double, "prober", |line| said.borrow_mut().push(line.to_owned())).unwrap();
        assert_eq!(tally.failed, 0, "{}", said.borrow().join("\n"));
        assert!(tally.passed >= least, "{suite}: {tally}");
        assert!(double.lines.borrow().last().is_some_and(|line| line.starts_with("delete namespace")));
    }
}

#[test]
fn a_denial_that_does_not_come_about_is_found() {
    let double = Double { open: true, ..Double::default() };
    let suite = crate::npconf::Suite::committed("recipes").unwrap();
    let case = suite.cases.iter().find(|case| {
        let work = Work { suite: &suite, case, plan_name: NO_PLAN };
        why_not(&work).is_none()
            && case.steps.iter().any(|step| step.expect.iter().any(|it| it.allow.iter().any(|row| row.contains('X'))))
    });
    let work = Work { suite: &suite, case: case.unwrap(), plan_name: NO_PLAN };
    let stage = Stage::set(&work, &double, "prober").unwrap();
    let plan = stage.plan().clone();
    let mut world = World::new(work.cluster().unwrap(), &plan).unwrap();
    world.enact(&work.case.steps[0]).unwrap();
    let cells = world.cells(&work.case.steps[0], NO_PLAN, "").unwrap();
    let cells: Vec<&Cell> = cells.iter().filter(|cell| can_ask(&cell.probe)).collect();
    let denied = cells.iter().filter(|cell| datapath::stated(cell) == Some(false)).count();
    let wrong = round(&cells, &double).unwrap();
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
