//! Hubble's API and `netpol observe` against what Hubble's own client sends and prints (`tests/corpora/hubble`).

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use netpol_agent::client::observe::flags;
use netpol_agent::client::observe::print::Printer;
use netpol_agent::client::observe::{file, request};
use netpol_agent::observe::hubble::filter::Selection;
use netpol_agent::observe::hubble::listen::{self, Served};
use netpol_agent::observe::hubble::peers::{Address, PeerNode};
use netpol_agent::observe::hubble::proto::flow::{Flow, LostEventSource};
use netpol_agent::observe::hubble::proto::observer::get_flows_response::ResponseTypes;
use netpol_agent::observe::hubble::proto::observer::observer_client::ObserverClient;
use netpol_agent::observe::hubble::proto::observer::{
    GetAgentEventsRequest, GetDebugEventsRequest, GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest,
    GetNodesRequest, ServerStatusRequest, get_flows_request,
};
use netpol_agent::observe::hubble::proto::peer::NotifyRequest;
use netpol_agent::observe::hubble::proto::peer::peer_client::PeerClient;
use netpol_agent::observe::hubble::{Hub, json};
use prost::Message as _;
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Streaming};

fn corpus(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/hubble").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn responses() -> Vec<GetFlowsResponse> {
    corpus("flows.jsonl").lines().map(|line| json::parse(line, false).unwrap()).collect()
}

fn flows() -> Vec<Flow> {
    responses().into_iter().filter_map(|response| flow_of(&response).cloned()).collect()
}

fn flow_of(response: &GetFlowsResponse) -> Option<&Flow> {
    match response.response_types.as_ref()? {
        ResponseTypes::Flow(flow) => Some(flow),
        ResponseTypes::LostEvents(_) | ResponseTypes::NodeStatus(_) => None,
    }
}

/// The number at the end of a flow's UUID.
fn number(flow: &Flow) -> u32 {
    flow.uuid.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A server on a socket of its own.
struct Server {
    hub: Arc<Hub>,
    channel: Channel,
    _served: Served,
}

impl Server {
    async fn start(name: &str, capacity: usize) -> Self {
        let hub = Arc::new(Hub::new("node-a", capacity));
        let path: PathBuf = std::env::temp_dir().join(format!("netpol-hubble-{name}-{}.sock", std::process::id()));
        let served = listen::on_socket(&path, hub.clone(), Address::default()).unwrap();
        let connect = move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        };
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await.unwrap();
        Self { hub, channel, _served: served }
    }

    async fn with_corpus(name: &str) -> Self {
        let server = Self::start(name, 4095).await;
        for flow in flows() {
            server.hub.push(flow);
        }
        server
    }

    fn observer(&self) -> ObserverClient<Channel> {
        ObserverClient::new(self.channel.clone())
    }

    async fn ask(&self, request: GetFlowsRequest) -> Result<Vec<GetFlowsResponse>, tonic::Status> {
        let mut answers = self.observer().get_flows(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    }

    async fn numbers(&self, request: GetFlowsRequest) -> Vec<u32> {
        self.ask(request).await.unwrap().iter().filter_map(flow_of).map(number).collect()
    }
}

#[derive(Deserialize)]
struct Golden {
    args: String,
    request: serde_json::Value,
    request_hex: String,
    expect_server: Vec<u32>,
}

fn golden() -> Vec<Golden> {
    corpus("filter-golden.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[tokio::test]
async fn each_filter_that_hubbles_client_sends_gives_the_flows_that_hubbles_server_would() {
    let server = Server::with_corpus("golden").await;
    let lines = golden();
    assert!(lines.len() > 80);
    for line in lines {
        let request = GetFlowsRequest::decode(bytes(&line.request_hex).as_slice()).unwrap();
        assert_eq!(server.numbers(request).await, line.expect_server, "{}", line.args);
    }
}

/// Words of a shell line with single and double quotes, as the corpus has them.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut open) = (None, false);
    for letter in line.chars() {
        match (quote, letter) {
            (None, '\'' | '"') => {
                quote = Some(letter);
                if !open {
                    words.push(String::new());
                }
                open = true;
            }
            (Some(mark), _) if mark == letter => quote = None,
            (None, ' ') => open = false,
            _ => {
                if !open {
                    words.push(String::new());
                }
                open = true;
                words.last_mut().unwrap().push(letter);
            }
        }
    }
    words
}

/// The request of a command line; `all` stands where the corpus was made with `--all`.
fn request_of(line: &str) -> (flags::Flags, GetFlowsRequest) {
    let arguments = ["observe".to_owned()].into_iter().chain(words(line));
    let matches = flags::command().try_get_matches_from(arguments).unwrap_or_else(|error| panic!("{line}: {error}"));
    let (flags, given) = flags::read(&matches).unwrap();
    let request = request::build(&flags, &given, jiff::Timestamp::UNIX_EPOCH);
    (flags, request.unwrap_or_else(|error| panic!("{line}: {error}")))
}

#[test]
fn flags_become_the_request_that_hubbles_client_sends() {
    for line in golden() {
        let is_all = line.request.get("number").and_then(|number| number.as_str()) == Some("18446744073709551615");
        let (_, built) = request_of(&format!("{} {}", line.args, if is_all { "--all" } else { "" }));
        let sent = GetFlowsRequest::decode(bytes(&line.request_hex).as_slice()).unwrap();
        assert_eq!(built, sent, "{}", line.args);
        let spelt: GetFlowsRequest = json::parse(&line.request.to_string(), false).unwrap();
        assert_eq!(spelt, sent, "{}", line.args);
    }
}

/// What the flags print of the corpus: standard output, standard error.
fn printed(line: &str) -> (String, String) {
    let (flags, request) = request_of(line);
    let selection = Selection::new(&request.whitelist, &request.blacklist).unwrap();
    let mut printer = Printer::new(&flags, false);
    let (mut out, mut err) = (String::new(), String::new());
    let input = corpus("flows.jsonl");
    file::read(input.as_bytes(), &request, &selection, |response| {
        let printed = printer.print(response).unwrap();
        out.push_str(&printed.out);
        err.push_str(&printed.err);
        true
    })
    .unwrap();
    out.push_str(&printer.end());
    (out, err)
}

#[test]
fn every_format_is_hubbles_byte_for_byte() {
    for output in ["compact", "table", "dict", "jsonpb"] {
        let (out, _) = printed(&format!("--input-file - -o {output}"));
        assert_eq!(out, corpus(&format!("flows.{output}.txt")), "{output}");
    }
    let (out, err) = printed("--input-file - --print-node-name --print-policy-names");
    assert_eq!(out + &err, corpus("flows.compact-policynames.txt"));
}

#[test]
fn what_is_read_from_a_file_is_filtered_like_a_servers() {
    let (out, _) = printed("--input-file - --last 3 --verdict DROPPED -o jsonpb");
    let last: Vec<u32> = out.lines().map(|line| number(flow_of(&json::parse(line, false).unwrap()).unwrap())).collect();
    assert_eq!(last, [24, 25, 26]);
    let (out, _) = printed("--input-file - --color always --verdict FORWARDED -t trace:to-network");
    assert_eq!(out.matches("\u{1b}[").count(), 14, "{out:?}");
}

#[tokio::test]
async fn a_default_mask_leaves_what_the_client_prints() {
    let server = Server::with_corpus("mask").await;
    let paths = [
        "time",
        "verdict",
        "IP",
        "source.namespace",
        "source.pod_name",
        "event_type",
        "Summary",
        "ip_trace_id",
        "nonsense",
    ];
    let mask = prost_types::FieldMask { paths: paths.map(ToOwned::to_owned).to_vec() };
    let new = GetFlowsRequest { field_mask: Some(mask.clone()), ..GetFlowsRequest::default() };
    let old = GetFlowsRequest {
        experimental: Some(get_flows_request::Experimental { field_mask: Some(mask) }),
        ..GetFlowsRequest::default()
    };
    for request in [new, old] {
        let answers = server.ask(request).await.unwrap();
        let verdict = answers
            .iter()
            .filter_map(flow_of)
            .find(|flow| flow.traffic_direction == 2 && !flow.egress_denied_by.is_empty());
        let verdict = verdict.expect("direction and policies come with the type");
        let source = verdict.source.clone().unwrap();
        assert_eq!((source.pod_name.as_str(), source.identity), ("web-6d4cf56db6-x2x7q", 0));
        assert!(source.labels.is_empty() && verdict.destination.is_none() && verdict.uuid.is_empty());
    }
}

#[tokio::test]
async fn a_filter_that_is_none_is_refused_in_words_that_the_client_shows() {
    let server = Server::with_corpus("refused").await;
    for args in [
        "--ip 10.0.0.256",
        "--to-port 65536",
        "--protocol quic",
        "--label a=b=c",
        "--to-fqdn a/b",
        "--cel-expression true",
        "--from-ip 10.0.0.0/33",
        "--node-name a/b/c",
    ] {
        let status = server.ask(request_of(args).1).await.unwrap_err();
        assert_eq!(status.code(), Code::Unknown, "{args}: {status}");
    }
    let both = GetFlowsRequest { first: true, follow: true, ..GetFlowsRequest::default() };
    assert_eq!(server.ask(both).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn next_flow(answers: &mut Streaming<GetFlowsResponse>) -> u32 {
    let next = tokio::time::timeout(Duration::from_secs(10), answers.message());
    number(flow_of(&next.await.unwrap().unwrap().unwrap()).unwrap())
}

#[tokio::test]
async fn an_observer_that_follows_gets_its_backlog_and_then_what_comes() {
    let server = Server::with_corpus("follow").await;
    let request = GetFlowsRequest { follow: true, number: 2, ..request_of("-f --protocol tcp --last 2").1 };
    let mut answers = server.observer().get_flows(request).await.unwrap().into_inner();
    assert_eq!([next_flow(&mut answers).await, next_flow(&mut answers).await], [33, 34]);
    let all = flows();
    let fresh = server.observer().get_flows(request_of("-f").1).await.unwrap();
    server.hub.push(all[1].clone());
    server.hub.push(all[0].clone());
    assert_eq!(next_flow(&mut answers).await, 1, "the UDP flow is filtered out");
    let mut fresh = fresh.into_inner();
    assert_eq!([next_flow(&mut fresh).await, next_flow(&mut fresh).await], [2, 1], "no backlog unless it is asked for");
}

#[tokio::test]
async fn first_last_and_since_start_where_hubble_does() {
    let server = Server::with_corpus("start").await;
    assert_eq!(server.numbers(request_of("--first 2").1).await, [1, 2]);
    assert_eq!(server.numbers(request_of("--first 2 --protocol udp").1).await, [2, 7]);
    assert_eq!(server.numbers(request_of("").1).await.len(), 20);
    assert_eq!(server.numbers(request_of("--since 2026-09-01T10:00:03Z --last 2").1).await, [22, 23]);
    assert_eq!(server.numbers(request_of("--last 1000").1).await.len(), 36);
}

#[tokio::test]
async fn where_a_request_begins_only_flows_that_are_asked_for_count() {
    let server = Server::start("order", 63).await;
    let flow = |second: i64, uuid: u32, verdict: i32| Flow {
        time: Some(prost_types::Timestamp { seconds: second, nanos: 0 }),
        uuid: format!("x-{uuid}"),
        verdict,
        ..Flow::default()
    };
    // One of another sort is out of order; one of the same sort is.
    for flow in [flow(5, 1, 1), flow(1, 2, 2), flow(6, 3, 1), flow(9, 4, 1), flow(7, 5, 1)] {
        server.hub.push(flow);
    }
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let forwarded = request_of("--verdict FORWARDED --all").1;
    let since = |number, seconds, first| GetFlowsRequest { since: at(seconds), number, first, ..forwarded.clone() };
    assert_eq!(server.numbers(since(0, 3, false)).await, [1, 3, 4, 5]);
    assert_eq!(server.numbers(since(2, 3, false)).await, [1, 3], "since goes before number");
    assert_eq!(server.numbers(since(2, 3, true)).await, [1, 3], "and before first");
    assert_eq!(server.numbers(since(0, 8, false)).await, [0_u32; 0], "the newest is older");
    assert_eq!(server.numbers(since(0, 6, false)).await, [3, 4, 5], "inclusive");
    let until = |number, seconds| GetFlowsRequest { until: at(seconds), number, ..forwarded.clone() };
    assert_eq!(server.numbers(until(0, 6)).await, [1, 3], "inclusive; the first that is later ends it");
    assert_eq!(server.numbers(until(2, 8)).await, [0_u32; 0], "number counts from the newest");
    assert_eq!(server.numbers(until(4, 8)).await, [1, 3]);
    let all = GetFlowsRequest::default();
    assert_eq!(server.numbers(all).await, [1, 2, 3, 4, 5], "no number is no limit");
    let status = server.observer().server_status(ServerStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.flows_rate.to_bits(), 0.0_f64.to_bits(), "they are long ago");
}

#[tokio::test]
async fn reflection_names_every_service() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let server = Server::start("reflection", 3).await;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers = client.server_reflection_info(once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["observer.Observer", "peer.Peer", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

fn once<T: Send + 'static>(value: T) -> impl futures_util::Stream<Item = T> + Send + 'static {
    futures_util::stream::once(std::future::ready(value))
}

#[tokio::test]
async fn a_stuck_observer_slows_nobody_and_is_told_what_it_missed() {
    let server = Server::start("stuck", 255).await;
    let flow = flows().remove(0);
    let stuck = server.observer().get_flows(request_of("-f").1).await.unwrap();
    let mut lively = server.observer().get_flows(request_of("-f --uuid last").1).await.unwrap().into_inner();
    let pushed = 50_000_u64;
    for _ in 0..pushed {
        server.hub.push(flow.clone());
    }
    server.hub.push(Flow { uuid: "last".to_owned(), ..flow.clone() });
    let mut stuck = stuck.into_inner();
    let (mut got, mut missed, mut ended) = (0, 0, false);
    while !ended || got + missed < pushed + 1 {
        let answer = tokio::time::timeout(Duration::from_secs(20), stuck.message()).await.unwrap().unwrap().unwrap();
        match answer.response_types.unwrap() {
            ResponseTypes::Flow(flow) => {
                got += 1;
                ended |= flow.uuid == "last";
            }
            ResponseTypes::LostEvents(lost) => {
                assert_eq!(lost.source(), LostEventSource::HubbleRingBuffer);
                missed += lost.num_events_lost;
            }
            ResponseTypes::NodeStatus(status) => panic!("{status:?}"),
        }
    }
    assert_eq!(got + missed, pushed + 1, "every flow was got or told of");
    assert!(missed > 0 && server.hub.ring().missed() >= missed);
    assert_eq!(server.hub.ring().len(), 255);
    let mut last = None;
    while last.is_none() {
        let answer = tokio::time::timeout(Duration::from_secs(20), lively.message()).await.unwrap().unwrap().unwrap();
        last = flow_of(&answer).map(|flow| flow.uuid.clone());
    }
    assert_eq!(last.as_deref(), Some("last"));
}

#[tokio::test]
async fn events_that_the_kernel_lost_are_told_past_every_filter() {
    let server = Server::with_corpus("lost").await;
    server.hub.lost(LostEventSource::PerfEventRingBuffer, 42);
    let answers = server.ask(request_of("--verdict AUDIT --all").1).await.unwrap();
    let lost: Vec<u64> = answers
        .iter()
        .filter_map(|answer| match answer.response_types.as_ref()? {
            ResponseTypes::LostEvents(lost) => Some(lost.num_events_lost),
            ResponseTypes::Flow(_) | ResponseTypes::NodeStatus(_) => None,
        })
        .collect();
    assert_eq!((answers.len(), lost), (2, vec![42]));
}

#[tokio::test]
async fn status_nodes_namespaces_peers_and_health_answer() {
    let server = Server::with_corpus("status").await;
    let mut observer = server.observer();
    let status = observer.server_status(ServerStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (36, 4095, 36));
    assert!(status.num_connected_nodes.is_none() && status.version.starts_with("netpol v") && status.uptime_ns > 0);
    let nodes = observer.get_nodes(GetNodesRequest::default()).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["node-a"]);
    for refused in [
        observer.get_agent_events(GetAgentEventsRequest::default()).await.map(drop),
        observer.get_debug_events(GetDebugEventsRequest::default()).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    }
    observer.get_namespaces(GetNamespacesRequest::default()).await.unwrap();
    let peer = |name: &str, address: &str| PeerNode { name: name.into(), address: address.parse().unwrap() };
    server.hub.set_peers(vec![peer("node-a", "10.0.0.1")]);
    let mut peers =
        PeerClient::new(server.channel.clone()).notify(NotifyRequest::default()).await.unwrap().into_inner();
    let mut told = Vec::new();
    told.push(peers.message().await.unwrap().unwrap());
    server.hub.set_peers(vec![peer("node-a", "10.0.0.1"), peer("node-b", "fd00::2")]);
    told.push(peers.message().await.unwrap().unwrap());
    server.hub.set_peers(vec![peer("node-b", "fd00::2")]);
    told.push(peers.message().await.unwrap().unwrap());
    let told: Vec<_> = told.iter().map(|it| (it.name.as_str(), it.address.as_str(), it.r#type)).collect();
    assert_eq!(told, [("node-a", "10.0.0.1:4244", 1), ("node-b", "[fd00::2]:4244", 1), ("node-a", "", 2)]);
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel.clone());
    for (service, serves) in [("hubble.server.Observer", true), ("", true), ("nobody", false)] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        assert_eq!(health.check(request).await.is_ok(), serves, "{service:?}");
    }
}
