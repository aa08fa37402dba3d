//! netpol's judges and harnesses.
//!
//! - `oracle`, `npconf`, `judge`, `replay`: the naive oracle, the conformance suites as data, and who is asked about them; `replica`:
//!   the compiler and the hooks as the second judge.
//! - `generate`, `property`, `frame`: random clusters and histories, their properties, and packets as bytes.
//! - `packet`: the decision on packet bytes, scene by scene, on the host and in the kernel.
//! - `netns`, `cluster`, `node`, `servers`, `probe`, `connection`, `agent`: nodes made of network namespaces, real servers and
//!   clients in their pods, the real agent beside them.
//! - `conformance`: every case of the suites on the real datapath; `behaviours`: a stage for what no table can hold.
//! - `arrivals`: what reached a place, whatever its client heard.
//! - `traffic`: what goes on while something else happens, and what of it was lost or leaked.
//! - `chart`: the Helm chart, rendered by Helm and held against Kubernetes' types and the agent's flags.
//! - `churn`, `counted`: a cluster whose objects change while the same pairs stay allowed, and flows of which every packet is
//!   accounted for.
//! - `apiserver`: the list and watch protocol of kube-apiserver, and the ways in which it fails.
//! - `table`: reachability tables, as written by hand and as measured.
//! - `guest`: process 1 of a virtual machine that tries the datapath on another kernel.
//! - `kube_proxy`: what translates addresses on a node; `services`: a case of pods behind services, on two nodes.
//! - `attack`: frames of a hostile pod, each beside a legal one of the same form, and the node on which they are tried.
//! - `kubelet`: starts and ends pods through CNI plugins and reports them to the API server's double.
//! - `scale`: a cluster of 100,000 pods.
//! - `cni`: a container runtime, one call of a plugin, and an agent that answers as a test wants; `footprint`: all that netpol may leave
//!   on a node, as a list.
//! - `container`: the image's programs as the kubelet would run them from the DaemonSet.
//! - `shop`: a case directory as a node that can be measured; `demo`: the shop, before and after its policies.

pub mod agent;
pub mod apiserver;
pub mod arrivals;
pub mod attack;
pub mod behaviours;
pub mod chart;
pub mod churn;
pub mod cluster;
pub mod cni;
pub mod conformance;
pub mod connection;
pub mod container;
pub mod counted;
pub mod demo;
pub mod explained;
pub mod footprint;
pub mod frame;
pub mod generate;
pub mod guest;
pub mod judge;
pub mod kube_proxy;
pub mod kubelet;
pub mod level;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod npconf;
pub mod oracle;
pub mod packet;
pub mod probe;
pub mod property;
pub mod replay;
pub mod replica;
pub mod scale;
pub mod servers;
pub mod services;
pub mod shop;
pub mod table;
pub mod traffic;
