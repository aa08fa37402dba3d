//! Hubble's API over TLS: whose certificate is taken, on either side, by `netpol observe` and by any client; and certificates
//! that are rotated under way.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use netpol_agent::observe::hubble::Hub;
use netpol_agent::observe::hubble::listen::{self, Served};
use netpol_agent::observe::hubble::proto::flow::Flow;
use netpol_agent::observe::hubble::proto::observer::observer_client::ObserverClient;
use netpol_agent::observe::hubble::proto::observer::{GetNodesRequest, ServerStatusRequest};
use netpol_agent::observe::hubble::tls::TlsFiles;
use netpol_tests::agent;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// What Cilium's own certificates say, and this host.
const NAMES: [&str; 3] = ["node-a.default.hubble-grpc.cilium.io", "localhost", "127.0.0.1"];

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with its key.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

struct Scene {
    directory: PathBuf,
    authority: Authority,
    address: SocketAddr,
    _served: Served,
}

impl Scene {
    async fn start(name: &str, is_mutual: bool) -> Self {
        let directory = std::env::temp_dir().join(format!("netpol-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let authority = Authority::new();
        let files = TlsFiles {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            client_ca: is_mutual.then(|| directory.join("ca.crt")),
        };
        write(&directory, &authority);
        let hub = Arc::new(Hub::new("node-a", 15));
        hub.push(Flow { uuid: "one".to_owned(), ..Flow::default() });
        let served = listen::on_address("127.0.0.1:0".parse().unwrap(), Some(&files), hub).await.unwrap();
        Self { directory, authority, address: served.address().unwrap(), _served: served }
    }

    /// What a client sees that trusts `authority` and shows a certificate of `own`.
    async fn ask(&self, authority: &Authority, own: Option<&Authority>, name: &str) -> Result<u64, String> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem())).domain_name(name);
        if let Some(own) = own {
            let (certificate, key) = own.issue(&["a client"]);
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.map_err(|error| format!("{error:?}"))?;
        flows(channel).await
    }

    fn observe(&self, arguments: &[&str]) -> Output {
        let netpol = agent::binary().unwrap().with_file_name("netpol");
        let mut command = Command::new(netpol);
        command.current_dir(&self.directory).args(["observe", "-o", "jsonpb"]).args(arguments);
        command.output().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn write(directory: &std::path::Path, authority: &Authority) {
    let (certificate, key) = authority.issue(&NAMES);
    fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    fs::write(directory.join("tls.key"), key).unwrap();
    fs::write(directory.join("tls.crt"), certificate).unwrap();
}

async fn flows(channel: Channel) -> Result<u64, String> {
    let status = ObserverClient::new(channel).server_status(ServerStatusRequest::default()).await;
    status.map(|status| status.into_inner().num_flows).map_err(|status| format!("{status:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_of_the_authority_are_let_in_and_only_to_the_server_they_mean() {
    let scene = Scene::start("mutual", true).await;
    let (ours, other) = (&scene.authority, &Authority::new());
    for name in NAMES {
        assert_eq!(scene.ask(ours, Some(ours), name).await, Ok(1), "{name}");
    }
    let refused = [
        ("no certificate", scene.ask(ours, None, "localhost").await),
        ("another authority's", scene.ask(ours, Some(other), "localhost").await),
        ("a server of another authority", scene.ask(other, Some(ours), "localhost").await),
        ("a server of another name", scene.ask(ours, Some(ours), "node-b.default.hubble-grpc.cilium.io").await),
    ];
    for (what, answer) in refused {
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    let plain = Endpoint::from_shared(format!("http://{}", scene.address)).unwrap();
    let answer = match plain.connect().await {
        Ok(channel) => flows(channel).await,
        Err(error) => Err(error.to_string()),
    };
    assert!(answer.is_err(), "without TLS: {answer:?}");

    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ours.pem())).domain_name("localhost").identity({
            let (certificate, key) = ours.issue(&["a client"]);
            Identity::from_pem(certificate, key)
        });
    let endpoint = Endpoint::from_shared(format!("https://{}", scene.address)).unwrap().tls_config(tls).unwrap();
    let mut observer = ObserverClient::new(endpoint.connect().await.unwrap());
    let nodes = observer.get_nodes(GetNodesRequest::default()).await.unwrap().into_inner().nodes;
    let told = nodes.first().and_then(|node| node.tls.clone()).expect("what its TLS is like");
    assert_eq!((told.enabled, told.server_name.as_str()), (true, "node-a.default.hubble-grpc.cilium.io"));
}

#[tokio::test(flavor = "multi_thread")]
async fn netpol_observe_speaks_tls_and_says_what_is_wrong() {
    let scene = Scene::start("observe", true).await;
    let (certificate, key) = scene.authority.issue(&["a client"]);
    fs::write(scene.directory.join("client.crt"), certificate).unwrap();
    fs::write(scene.directory.join("client.key"), key).unwrap();
    let port = scene.address.port();
    let server = format!("tls://localhost:{port}");
    let trust = ["--server", &server, "--tls-ca-cert-files", "ca.crt"];
    let own = ["--tls-client-cert-file", "client.crt", "--tls-client-key-file", "client.key"];
    let good = scene.observe(&[trust, own].concat());
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("\"uuid\":\"one\""), "{good:?}");
    let by_address = format!("127.0.0.1:{port}");
    let named = ["--server", &by_address, "--tls", "--tls-ca-cert-files", "ca.crt"];
    let named = [&named[..], &own, &["--tls-server-name", "node-a.default.hubble-grpc.cilium.io"]].concat();
    assert!(scene.observe(&named).status.success());

    let plain = ["--server", &by_address];
    let untrusted = [&["--server", &server][..], &own].concat();
    let missing = [&trust[..], &["--tls-client-cert-file", "none.crt", "--tls-client-key-file", "client.key"]].concat();
    for (arguments, words) in [(&trust[..], ""), (&plain, ""), (&untrusted, &server[6..]), (&missing, "none.crt")] {
        let output = scene.observe(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(
            said.starts_with("Error: ") && said.contains(words) && said.lines().count() == 1,
            "{arguments:?}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_under_way_and_bad_ones_change_nothing() {
    let scene = Scene::start("rotate", true).await;
    let (old, new) = (&scene.authority, &Authority::new());
    assert_eq!(scene.ask(old, Some(old), "localhost").await, Ok(1));
    fs::write(scene.directory.join("tls.crt"), "half of it").unwrap();
    assert_eq!(scene.ask(old, Some(old), "localhost").await, Ok(1), "what cannot be used changes nothing");
    write(&scene.directory, new);
    assert_eq!(scene.ask(new, Some(new), "localhost").await, Ok(1), "a new authority");
    assert!(scene.ask(old, Some(old), "localhost").await.is_err(), "the old one is gone");
    assert!(scene.ask(new, Some(old), "localhost").await.is_err(), "its clients too");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_authority_of_clients_everybody_is_let_in() {
    let scene = Scene::start("open", false).await;
    assert_eq!(scene.ask(&scene.authority, None, "localhost").await, Ok(1));
    let files = TlsFiles { certificate: scene.directory.join("tls.crt"), key: "/nonexistent".into(), client_ca: None };
    let hub = Arc::new(Hub::new("node-b", 15));
    let error = listen::on_address("127.0.0.1:0".parse().unwrap(), Some(&files), hub).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
