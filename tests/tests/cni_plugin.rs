//! The plugin as a process, against an agent that answers, does not, or goes away. (What needs interfaces is in `netns_cni`.)

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netpol_agent::cni::protocol::{AttachmentKey, CniAnswer, CniRequest};
use netpol_tests::cni::{Call, FakeAgent, Finished, Manner, binary};
use serde_json::{Value, json};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A directory with a fake agent's socket.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("netpol-cni-plugin-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    fn agent(&self) -> FakeAgent {
        FakeAgent::start(&self.socket()).unwrap()
    }

    /// A configuration with more members.
    fn conf(&self, version: &str, more: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": version, "name": "cbr0", "type": "netpol-cni", "socket": self.socket(), "timeoutSeconds": 20,
        });
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        conf
    }

    fn call(&self, verb: &str, version: &str, more: &Value) -> Call {
        plugin(verb).input(self.conf(version, more).to_string())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

/// The plugin called about a pod.
fn plugin(verb: &str) -> Call {
    Call::new(&binary().unwrap(), verb)
        .with("CNI_CONTAINERID", "c1")
        .with("CNI_NETNS", "/nonexistent/netns")
        .with("CNI_IFNAME", "eth0")
        .with("CNI_PATH", "/opt/cni/bin")
        .with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=api")
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey { container_id: container.to_owned(), ifname: "eth0".to_owned() }
}

fn assert_error(finished: &Finished, code: u64, text: &str) {
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let error = finished.json().unwrap();
    let message = error["msg"].as_str().unwrap();
    assert!(error["code"] == code && message.contains(text), "{finished:?}");
    assert!(VERSIONS.contains(&error["cniVersion"].as_str().unwrap()), "{finished:?}");
}

fn assert_done(finished: &Finished) {
    assert!(finished.status.success() && finished.output.is_empty(), "{finished:?}");
}

fn failed(code: u32, message: &str) -> Manner {
    Manner::Answer(CniAnswer::Failed { code, message: message.to_owned() })
}

#[test]
fn each_verb_asks_the_agent_in_each_version_that_has_it() {
    let place = Place::new();
    let agent = place.agent();
    let gc = json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });
    let none = json!({});
    for version in VERSIONS {
        for (verb, more, since, request) in [
            ("DEL", &none, "0.3.0", CniRequest::Del(key("c1"))),
            ("CHECK", &none, "0.4.0", CniRequest::Check(key("c1"))),
            ("GC", &gc, "1.1.0", CniRequest::Gc { valid: vec![key("c1")] }),
            ("STATUS", &none, "1.1.0", CniRequest::Status),
        ] {
            let finished = place.call(verb, version, more).run(None).unwrap();
            if version < since {
                assert_error(&finished, 1, verb);
                assert_eq!(agent.asked(), []);
            } else {
                assert_done(&finished);
                assert_eq!(agent.asked(), [request], "{verb} {version}");
            }
        }
    }
    let finished = plugin("VERSION").input(r#"{"cniVersion":"1.0.0"}"#).run(None).unwrap();
    assert_eq!(finished.json().unwrap(), json!({ "cniVersion": "1.0.0", "supportedVersions": VERSIONS }));
}

#[test]
fn an_older_name_of_the_list_and_an_empty_list_are_taken() {
    let place = Place::new();
    let agent = place.agent();
    let empty = place.call("GC", "1.1.0", &json!({ "cni.dev/attachments": [] })).run(None).unwrap();
    assert_done(&empty);
    assert_eq!(agent.asked(), [CniRequest::Gc { valid: Vec::new() }]);
    // A list that is not there must not be taken for an empty one.
    assert_error(&place.call("GC", "1.1.0", &json!({})).run(None).unwrap(), 7, "valid-attachments");
    assert_eq!(agent.asked(), []);
}

#[test]
fn the_agents_refusal_is_the_plugins_error() {
    let place = Place::new();
    let agent = place.agent();
    agent.behave(failed(11, "not in force: no slot is free"));
    assert_error(&place.call("CHECK", "1.0.0", &json!({})).run(None).unwrap(), 11, "no slot is free");
    for code in [50, 51] {
        agent.behave(failed(code, "the cluster was not seen yet"));
        assert_error(&place.call("STATUS", "1.1.0", &json!({})).run(None).unwrap(), code.into(), "not seen yet");
    }
    // Absence can be allowed, a refusal cannot.
    let allow = json!({ "agentAbsent": "allow" });
    assert_error(&place.call("STATUS", "1.1.0", &allow).run(None).unwrap(), 51, "not seen yet");
    agent.behave(failed(0, "a code that is none"));
    assert_error(&place.call("CHECK", "1.0.0", &json!({})).run(None).unwrap(), 11, "none");
    // A pod that goes must be able to go.
    let gone = place.call("DEL", "1.0.0", &json!({})).run(None).unwrap();
    assert_done(&gone);
    assert!(gone.notes.contains("none"), "{gone:?}");
}

#[test]
fn an_agent_that_is_gone_or_answers_nonsense_is_told_apart_and_allowed_if_so_configured() {
    let place = Place::new();
    let check =
        |agent_absent: &str| place.call("CHECK", "1.0.0", &json!({ "agentAbsent": agent_absent })).run(None).unwrap();
    let assert_all = |text: &str| {
        assert_error(&check("fail"), 11, text);
        let allowed = check("allow");
        assert_done(&allowed);
        assert!(allowed.notes.contains(text), "{allowed:?}");
        assert_done(&place.call("DEL", "1.0.0", &json!({})).run(None).unwrap());
    };
    assert_all("is not there");
    assert_error(&place.call("STATUS", "1.1.0", &json!({})).run(None).unwrap(), 50, "is not there");
    assert_error(&place.call("GC", "1.1.0", &json!({ "cni.dev/attachments": [] })).run(None).unwrap(), 11, "not there");
    // A socket that nobody serves any more.
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    assert_all("is not there");
    std::fs::remove_file(place.socket()).unwrap();
    let agent = place.agent();
    agent.behave(Manner::HangUp);
    assert_all("went away");
    agent.behave(Manner::Bytes(br#"{"result":"do"#.to_vec()));
    assert_all("went away");
    for bytes in ["{\"error\":\"the agent is shutting down\"}\n", "\u{0}\n", "[]\n", "{\"result\":\"maybe\"}\n"] {
        agent.behave(Manner::Bytes(bytes.as_bytes().to_vec()));
        assert_all("something else");
    }
    agent.behave(Manner::Bytes(vec![b'x'; 1 << 20]));
    assert_all("no end");
}

#[test]
fn a_slow_agent_costs_the_time_that_is_configured_and_no_more() {
    let place = Place::new();
    let timed = |verb: &str, version: &str| {
        let started = Instant::now();
        let finished = place.call(verb, version, &json!({ "timeoutSeconds": 1 })).run(None).unwrap();
        assert!(started.elapsed() >= Duration::from_secs(1) && started.elapsed() < Duration::from_secs(15));
        finished
    };
    let agent = place.agent();
    agent.behave(Manner::Silence);
    assert_error(&timed("CHECK", "1.0.0"), 11, "did not answer within 1s");
    assert_error(&timed("STATUS", "1.1.0"), 50, "did not answer within 1s");
    assert_done(&timed("DEL", "1.0.0"));
    drop(agent);
    // One that does not even accept: the queue of one connection is full.
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let address = nix::sys::socket::UnixAddr::new(&place.socket()).unwrap();
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &address).unwrap();
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(place.socket()).unwrap();
    assert_error(&timed("CHECK", "1.0.0"), 11, "did not answer within 1s");
}

#[test]
fn a_plugin_that_is_killed_at_any_step_leaves_the_agent_free() {
    let place = Place::new();
    let agent = place.agent();
    for verb in ["DEL", "CHECK"] {
        // Before it has read anything.
        place.call(verb, "1.0.0", &json!({})).start(None).unwrap().kill().unwrap();
        // While the agent works.
        agent.behave(Manner::Silence);
        let mut running = place.call(verb, "1.0.0", &json!({})).start(None).unwrap();
        running.feed().unwrap();
        agent.wait_for_a_question().unwrap();
        running.kill().unwrap();
        agent.wait_for_a_lost_plugin().unwrap();
        assert_eq!(agent.asked().len(), 1);
        agent.behave(Manner::Answer(CniAnswer::Done));
        assert_done(&place.call(verb, "1.0.0", &json!({})).run(None).unwrap());
        assert_eq!(agent.asked().len(), 1, "and the next one is served");
    }
}

#[test]
fn hostile_bytes_are_errors_with_a_number() {
    let place = Place::new();
    let hostile: [&[u8]; 6] = [b"", b"\0\0\0", b"\xff\xfe{}", b"{\"cniVersion\":", &[b'['; 100_000], b"nul"];
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for input in hostile {
            assert_error(&plugin(verb).input(input).run(None).unwrap(), 6, "JSON");
        }
    }
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        let value = std::ffi::OsString::from_vec(vec![0xff, 0xfe, b'=']);
        let call = place.call("ADD", "1.0.0", &json!({})).with(name, value);
        assert_error(&call.run(None).unwrap(), 4, name);
    }
    let nothing = Call::new(&binary().unwrap(), "").run(None).unwrap();
    assert_error(&nothing, 4, "CNI_COMMAND is not set");
}

#[test]
fn it_needs_little_time() {
    let place = Place::new();
    let _agent = place.agent();
    let times = (0..20).map(|_| place.call("DEL", "1.0.0", &json!({})).run(None).unwrap().took);
    let best = times.min().unwrap();
    // A tenth of that optimised; what matters is that nobody starts a runtime in it.
    assert!(best < Duration::from_millis(100), "{best:?}");
}
