//! Flows of the real agent as an observer gets them: at once, with the right names and policies, exact in number.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use netpol_agent::observe::hubble::proto::flow::{Flow, Verdict};
use netpol_agent::observe::hubble::proto::observer::GetFlowsRequest;
use netpol_agent::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use netpol_agent::observe::hubble::proto::observer::observer_client::ObserverClient;
use netpol_tests::agent::{Agent, Options};
use netpol_tests::kube_proxy::Form;
use netpol_tests::level::has_agent;
use netpol_tests::probe::{Outcome, PATIENCE, SILENCE};
use netpol_tests::servers::Transport;
use netpol_tests::services::{NODES, Policed, Way, egress};
use netpol_tests::shop::{Shop, case};
use netpol_tests::table::Target;
use tonic::transport::{Endpoint, Uri};

/// How soon a drop is to be seen.
const SOON: Duration = Duration::from_millis(50);
/// Tries on a machine that does much else.
const TRIES: u16 = 5;

/// Flows with how long after their packets they came, as a thread of its own gets them.
struct Observer(Receiver<(Flow, Duration)>);

impl Observer {
    fn follow(path: PathBuf) -> Self {
        let (flows, queue) = channel();
        let (ready, started) = channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let connect = move |_: Uri| {
                    let path = path.clone();
                    async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
                };
                let endpoint = Endpoint::from_static("http://localhost");
                let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await.unwrap();
                let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
                let mut answers = ObserverClient::new(channel).get_flows(request).await.unwrap().into_inner();
                ready.send(()).unwrap();
                while let Ok(Some(answer)) = answers.message().await {
                    let Some(ResponseTypes::Flow(flow)) = answer.response_types else { continue };
                    let sent = SystemTime::try_from(flow.time.unwrap()).unwrap();
                    if flows.send((flow, SystemTime::now().duration_since(sent).unwrap_or_default())).is_err() {
                        return;
                    }
                }
            });
        });
        started.recv_timeout(PATIENCE).unwrap();
        Self(queue)
    }

    /// The next flow of this kind.
    fn next(&self, wanted: impl Fn(&Flow) -> bool) -> (Flow, Duration) {
        loop {
            let (flow, after) = self.0.recv_timeout(PATIENCE).unwrap();
            if wanted(&flow) {
                return (flow, after);
            }
        }
    }
}

fn event_type(flow: &Flow) -> i32 {
    flow.event_type.map_or(0, |it| it.r#type)
}

fn policies(flow: &Flow) -> Vec<&str> {
    flow.ingress_denied_by.iter().chain(&flow.ingress_allowed_by).map(|it| it.name.as_str()).collect()
}

#[test]
fn an_observer_sees_drops_and_verdicts_at_once_with_names_and_policies() {
    if !has_agent() {
        return;
    }
    let case = case("shop");
    let after = Shop::expectation(&case, "after").unwrap();
    let shop = Shop::build(&case, &[&after]).unwrap();
    let options = Options { arguments: ["--flows", "verdicts"].map(ToOwned::to_owned).to_vec(), ..Options::default() };
    let agent = Agent::start(&shop.node, &options).unwrap();
    shop.put_policies().unwrap();
    agent.sync().unwrap();
    let observer = Observer::follow(agent.flow_socket().unwrap());
    let database = Target { name: "production/postgresql".to_owned(), port: 5432, transport: Transport::Tcp };
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let denied = shop.probe("monitoring/grafana", &database, false).unwrap();
        assert_eq!(shop.node.probe(&denied, SILENCE).unwrap(), Outcome::Silence);
        for kind in [5, 1] {
            let (flow, after) = observer.next(|flow| flow.verdict() == Verdict::Dropped);
            best = best.min(after);
            assert_eq!(event_type(&flow), kind, "the verdict comes first: {flow:?}");
            let interface = flow.interface.clone().unwrap();
            let database = shop.node.pod("production/postgresql").unwrap();
            assert_eq!(interface.name, database.interface(), "where it was dropped: {interface:?}");
            let (source, destination) = (flow.source.clone().unwrap(), flow.destination.clone().unwrap());
            assert_eq!((source.namespace.as_str(), source.pod_name.as_str()), ("monitoring", "grafana"));
            assert_eq!((destination.namespace.as_str(), destination.pod_name.as_str()), ("production", "postgresql"));
            assert!(source.identity >= 256 && destination.identity >= 256 && source.identity != destination.identity);
            let named = policies(&flow);
            assert!(named.contains(&"database-access") && named.contains(&"default-deny-all"), "{named:?}");
        }
    }
    // One of them: what other processes make of this machine is not ours.
    assert!(best < SOON, "the quickest came after {best:?}");
    let allowed = shop.probe("production/payment-service", &database, false).unwrap();
    assert_eq!(shop.node.probe(&allowed, PATIENCE).unwrap(), Outcome::Answered);
    let to_database = |flow: &Flow| {
        flow.verdict() == Verdict::Forwarded
            && flow.destination.as_ref().is_some_and(|it| it.pod_name == "postgresql")
            && !flow.ingress_allowed_by.is_empty()
    };
    let (flow, _) = observer.next(to_database);
    assert_eq!((event_type(&flow), policies(&flow), flow.policy_match_type), (5, vec!["database-access"], 2));
    assert_eq!(flow.is_reply, Some(false));
}

#[test]
fn a_drop_behind_a_services_address_names_the_backend_that_it_was_for() {
    if !has_agent() {
        return;
    }
    let policed = Policed::start(Form::Iptables).unwrap();
    // The client may reach one backend; services do not matter to policy, whom they lead to does.
    policed.put("client.yaml", &egress("client", &["far"])).unwrap();
    let agent = policed.agent(NODES[0]).unwrap();
    let observer = Observer::follow(agent.flow_socket().unwrap());
    for (backend, node) in [("near", NODES[0]), ("away", "")] {
        let probe = policed.services.probe("shop/client", (backend, Way::ClusterIp), Transport::Tcp, false).unwrap();
        assert_eq!(policed.services.cluster.probe(&probe, SILENCE).unwrap(), Outcome::Silence, "{probe}");
        let (flow, _) = observer.next(|flow| flow.verdict() == Verdict::Dropped);
        let direct = policed.services.at(backend, Way::Direct, Transport::Tcp, false).unwrap();
        assert_ne!(probe.at, direct, "the client asked the service");
        assert_eq!(flow.ip.clone().unwrap().destination, direct.ip().to_string(), "{flow:?}");
        let (source, destination) = (flow.source.clone().unwrap(), flow.destination.clone().unwrap());
        assert_eq!((source.namespace.as_str(), source.pod_name.as_str()), ("shop", "client"));
        assert_eq!(destination.pod_name, if node.is_empty() { "" } else { backend }, "{flow:?}");
        let named: Vec<&str> = flow.egress_denied_by.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(named, ["client-egress"], "{flow:?}");
        // Its other half, so that the next backend's flow is the next.
        observer.next(|flow| flow.verdict() == Verdict::Dropped);
    }
}
