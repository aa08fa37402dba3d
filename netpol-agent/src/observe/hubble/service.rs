//! The gRPC services over a [`Hub`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, Stream};
use tonic::{Request, Response, Status};

use super::Hub;
use super::convert::CLUSTER;
use super::filter::Selection;
use super::peers::{Address, Told};
use super::proto::observer::observer_server::Observer;
use super::proto::observer::{
    GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse, GetFlowsRequest,
    GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest, GetNodesResponse, Namespace, Node,
    ServerStatusRequest, ServerStatusResponse, Tls,
};
use super::proto::peer::peer_server::Peer;
use super::proto::peer::{ChangeNotification, NotifyRequest};
use super::proto::relay::NodeState;
use super::reading::{Reading, compare};

/// Over how long flows a second are measured.
const RATE_WINDOW: Duration = Duration::from_secs(60);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services.
#[derive(Clone, Debug)]
pub(super) struct Services {
    pub(super) hub: Arc<Hub>,
    pub(super) address: Address,
}

#[tonic::async_trait]
impl Observer for Services {
    type GetFlowsStream = Responses<GetFlowsResponse>;
    type GetAgentEventsStream = Responses<GetAgentEventsResponse>;
    type GetDebugEventsStream = Responses<GetDebugEventsResponse>;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Self::GetFlowsStream>, Status> {
        let request = request.into_inner();
        if request.first && request.follow {
            return Err(Status::invalid_argument("first cannot be specified with follow"));
        }
        // Clients show the text alone if the code is UNKNOWN.
        let selection = Selection::new(&request.whitelist, &request.blacklist)
            .map_err(|error| Status::unknown(error.to_string()))?;
        let hub = &self.hub;
        let reading = Reading::new(hub.ring.clone(), hub.node.clone(), &request, selection);
        let responses = stream::unfold(reading, async |mut reading| {
            let response = reading.next().await?;
            Some((Ok(response), reading))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_agent_events(
        &self,
        _request: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        Err(Status::unimplemented("GetAgentEvents not implemented"))
    }

    async fn get_debug_events(
        &self,
        _request: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        Err(Status::unimplemented("GetDebugEvents not implemented"))
    }

    async fn get_nodes(&self, _request: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let status = self.hub.status();
        let own = self.hub.peers.borrow().iter().find(|peer| *peer.name == *self.hub.node).cloned();
        let address = own.map(|peer| std::net::SocketAddr::new(peer.address, self.address.port).to_string());
        let node = Node {
            name: self.hub.node.to_string(),
            version: status.version,
            address: address.unwrap_or_default(),
            state: NodeState::NodeConnected.into(),
            tls: Some(Tls {
                enabled: self.address.tls,
                server_name: if self.address.tls { super::peers::server_name(&self.hub.node) } else { String::new() },
            }),
            uptime_ns: status.uptime_ns,
            num_flows: status.num_flows,
            max_flows: status.max_flows,
            seen_flows: status.seen_flows,
        };
        Ok(Response::new(GetNodesResponse { nodes: vec![node] }))
    }

    async fn get_namespaces(
        &self,
        _request: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let namespace = |namespace| Namespace { cluster: CLUSTER.to_owned(), namespace };
        let namespaces = self.hub.namespaces().into_iter().map(namespace).collect();
        Ok(Response::new(GetNamespacesResponse { namespaces }))
    }

    async fn server_status(
        &self,
        _request: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        Ok(Response::new(self.hub.status()))
    }
}

#[tonic::async_trait]
impl Peer for Services {
    type NotifyStream = Responses<ChangeNotification>;

    /// All peers at once, then what changes; open for ever, as a relay takes the end for a failure of the node.
    async fn notify(&self, _request: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        let mut peers = self.hub.peers.subscribe();
        peers.mark_changed();
        let (hub, address) = (self.hub.clone(), self.address);
        let start = (peers, Told::default(), Vec::new().into_iter(), hub, address);
        let notifications = stream::unfold(start, async |(mut peers, mut told, mut changes, hub, address)| {
            loop {
                if let Some(change) = changes.next() {
                    return Some((Ok(change), (peers, told, changes, hub, address)));
                }
                peers.changed().await.ok()?;
                let now = peers.borrow_and_update().clone();
                changes = told.changes(&now, address).into_iter();
            }
        });
        Ok(Response::new(Box::pin(notifications)))
    }
}

impl Hub {
    /// The figures of this node.
    #[must_use]
    pub fn status(&self) -> ServerStatusResponse {
        let uptime = self.started.elapsed();
        let now = SystemTime::now();
        let (_, entries) = self.ring.snapshot();
        // A ring that is full tells of as long as it goes back only.
        let oldest = entries.first().filter(|_| entries.len() >= self.ring.capacity()).map(|entry| entry.time);
        let reach = oldest.and_then(|time| now.duration_since(SystemTime::try_from(time).ok()?).ok());
        let window = uptime.max(Duration::from_secs(1)).min(RATE_WINDOW).min(reach.unwrap_or(RATE_WINDOW));
        let from = now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH).into();
        let flows = entries.iter().filter(|entry| entry.flow().is_some());
        let recent = flows.clone().filter(|entry| compare(&entry.time, &from).is_ge()).count();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        ServerStatusResponse {
            num_flows: number(flows.count()),
            max_flows: number(self.ring.capacity()),
            seen_flows: self.ring.seen(),
            uptime_ns: u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX),
            version: format!("netpol v{}", self.stamp.version),
            flows_rate: f64::from(u32::try_from(recent).unwrap_or(u32::MAX)) / window.as_secs_f64().max(0.001),
            ..ServerStatusResponse::default()
        }
    }
}
