//! Calls that need no agent: what is wrong with them, and what they say.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use serde_json::Value;

use super::*;

const CONF: &str = r#"{"cniVersion":"1.0.0","name":"cbr0","type":"netpol-cni","socket":"/nonexistent/netpol.sock"}"#;
const POD: &str = "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b";

/// A call about a pod, with these variables changed.
fn with(changes: &[(&'static str, &[u8])], input: &str) -> Outcome {
    let mut variables = vec![
        ("CNI_COMMAND", OsStr::new("ADD")),
        ("CNI_CONTAINERID", OsStr::new("c1")),
        ("CNI_NETNS", OsStr::new("/nonexistent/netns")),
        ("CNI_IFNAME", OsStr::new("eth0")),
        ("CNI_ARGS", OsStr::new(POD)),
    ];
    variables.extend(changes.iter().map(|(name, value)| (*name, OsStr::from_bytes(value))));
    call(&Environment::of(&variables), input.as_bytes())
}

fn verb(verb: &'static str, input: &str) -> Outcome {
    with(&[("CNI_COMMAND", verb.as_bytes())], input)
}

fn error(outcome: &Outcome) -> (u64, String) {
    assert!(!outcome.is_success, "{outcome:?}");
    let error: Value = serde_json::from_str(&outcome.output).unwrap();
    assert!(SpecVersion::of(error["cniVersion"].as_str().unwrap()).is_some());
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

fn assert_error(outcome: &Outcome, code: u64, text: &str) {
    let (found, message) = error(outcome);
    assert!(found == code && message.contains(text), "{found}: {message}");
}

#[test]
fn version_tells_what_is_spoken_whatever_comes_in() {
    for input in ["", "not JSON", "{}", r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVersion":"1.1.0"}"#] {
        let outcome = verb("VERSION", input);
        let answer: Value = serde_json::from_str(&outcome.output).unwrap();
        assert!(outcome.is_success);
        assert_eq!(answer["cniVersion"], "1.1.0", "{input}");
        assert_eq!(answer["supportedVersions"], serde_json::json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
    assert!(verb("VERSION", r#"{"cniVersion":"0.4.0"}"#).output.contains(r#""cniVersion":"0.4.0""#));
}

#[test]
fn a_wrong_environment_is_error_4_and_names_the_variable() {
    assert_error(&call(&Environment::default(), CONF.as_bytes()), 4, "CNI_COMMAND");
    for (name, value) in [
        ("CNI_COMMAND", &b"REMOVE"[..]),
        ("CNI_COMMAND", b"\xff"),
        ("CNI_CONTAINERID", b""),
        ("CNI_CONTAINERID", b"../etc"),
        ("CNI_CONTAINERID", b"\xff\xfe"),
        ("CNI_NETNS", b""),
        ("CNI_IFNAME", b""),
        ("CNI_IFNAME", b"a/b"),
        ("CNI_IFNAME", b".."),
        ("CNI_IFNAME", b"0123456789abcdef"),
        ("CNI_ARGS", b"K8S_POD_NAME"),
        ("CNI_ARGS", b"K8S_POD_NAME=b"),
        ("CNI_ARGS", b"a=\xff"),
    ] {
        assert_error(&with(&[(name, value)], CONF), 4, name);
    }
}

#[test]
fn input_that_is_no_configuration_is_error_6() {
    for input in
        ["", "{", "[]", "3", "\"x\"", "\u{0}", r#"{"cniVersion":1}"#, &"[".repeat(1 << 20), &"{\"a\":".repeat(9999)]
    {
        assert_error(&verb("ADD", input), 6, "JSON");
    }
    let endless = call(&Environment::of(&[("CNI_COMMAND", OsStr::new("STATUS"))]), std::io::repeat(b' '));
    assert_error(&endless, 6, "larger");
}

#[test]
fn a_version_that_is_not_spoken_is_error_1() {
    for conf in [CONF.replace("1.0.0", "0.2.0"), CONF.replace("1.0.0", "2.0.0"), "{}".to_owned()] {
        for name in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            assert_error(&verb(name, &conf), 1, "netpol-cni speaks");
        }
    }
    assert_error(&verb("CHECK", &CONF.replace("1.0.0", "0.3.1")), 1, "CHECK is not part of cniVersion 0.3.1");
    assert_error(&verb("GC", CONF), 1, "GC");
    assert_error(&verb("STATUS", CONF), 1, "STATUS");
}

#[test]
fn a_configuration_that_makes_no_sense_is_error_7() {
    for (member, text) in [
        (r#""agentAbsent":"alow""#, "agentAbsent is \"alow\""),
        (r#""timeoutSeconds":0"#, "timeoutSeconds is 0"),
        (r#""timeoutSeconds":"30""#, "timeoutSeconds"),
        (r#""timeoutSeconds":1e9"#, "timeoutSeconds"),
        (r#""enterNamespace":"no""#, "enterNamespace"),
        (r#""socket":"netpol.sock""#, "absolute path"),
    ] {
        // The last value counts.
        assert_error(&verb("ADD", &CONF.replace('}', &format!(",{member}}}"))), 7, text);
    }
    assert_error(&verb("ADD", CONF), 7, "must be chained");
    assert_error(&verb("ADD", &CONF.replace('}', r#","prevResult":null}"#)), 7, "must be chained");
    assert_error(&verb("ADD", &CONF.replace('}', r#","prevResult":{"ips":1}}"#)), 7, "prevResult");
    let gc = CONF.replace("1.0.0", "1.1.0");
    assert_error(&verb("GC", &gc), 7, "cni.dev/valid-attachments");
    for list in ["{}", r#"[{"containerID":"a"}]"#, "[3]"] {
        let conf = gc.replace('}', &format!(r#","cni.dev/valid-attachments":{list}}}"#));
        assert_error(&verb("GC", &conf), 7, "valid-attachments");
    }
}

#[test]
fn a_result_without_interface_is_an_error_where_nobody_may_look() {
    let result = r#","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24"}]}"#;
    let conf = CONF.replace('}', &format!("{result},\"enterNamespace\":false}}"));
    assert_error(&verb("ADD", &conf), 100, "enterNamespace is false");
    assert_error(&verb("ADD", &CONF.replace('}', &format!("{result}}}"))), 101, "/nonexistent/netns");
}

#[test]
fn without_an_agent_nothing_is_added_and_everything_can_go() {
    assert!(verb("DEL", CONF).is_success);
    assert!(verb("DEL", CONF).notes[0].contains("not there"));
    assert_error(&verb("CHECK", CONF), 11, "the kubelet tries again");
    let conf = CONF.replace("1.0.0", "1.1.0");
    assert_error(&verb("STATUS", &conf), 50, "not there");
    let allow = |conf: &str| conf.replace('}', r#","agentAbsent":"allow"}"#);
    assert!(verb("STATUS", &allow(&conf)).is_success);
    assert!(verb("CHECK", &allow(CONF)).is_success);
}

#[test]
fn what_is_no_pods_first_interface_is_passed_on() {
    let result = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24"}],"z":1,"a":2}"#;
    let conf = CONF.replace('}', &format!(",\"prevResult\":{result}}}"));
    for changes in [("CNI_ARGS", &b""[..]), ("CNI_ARGS", b"IgnoreUnknown=1"), ("CNI_IFNAME", b"net1")] {
        let outcome = with(&[changes], &conf);
        assert!(outcome.is_success, "{outcome:?}");
        assert_eq!(outcome.output, result, "as it came");
    }
}

#[test]
fn no_input_makes_it_panic() {
    let whole = CONF.replace('}', r#","prevResult":{"interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[]}}"#);
    for cut in 0..whole.len() {
        for name in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let outcome = verb(name, &whole[..cut]);
            assert_eq!(error(&outcome).0, 6, "{name} {cut}: {outcome:?}");
        }
    }
}
