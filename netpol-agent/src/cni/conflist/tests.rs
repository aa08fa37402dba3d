use super::*;

const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "x-unknown": [1, {"b": 1, "a": 2}],
  "disableCheck": true,
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"#;

fn entry() -> Entry<'static> {
    Entry {
        socket: Path::new("/run/netpol/netpol.sock"),
        agent_absent: AgentAbsent::Fail,
        timeout_seconds: None,
        enter_namespace: true,
    }
}

fn of(name: &str, text: &str) -> Result<String, String> {
    derive(&Source { name, text, folder: &[] }, &entry()).map_err(|error| error.to_string())
}

fn value(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn flannels_list_gets_our_plugin_last_and_is_otherwise_the_same() {
    let derived = of("10-flannel.conflist", FLANNEL).unwrap();
    let mut expected = value(FLANNEL);
    let ours = r#"{"type":"netpol-cni","socket":"/run/netpol/netpol.sock","agentAbsent":"fail"}"#;
    expected["plugins"].as_array_mut().unwrap().push(value(ours));
    assert_eq!(value(&derived), expected);
    let order = ["\"name\"", "cniVersion", "x-unknown", "\"b\"", "\"a\"", "disableCheck", "plugins", "hairpinMode"];
    let found: Vec<usize> = order.iter().map(|key| derived.find(key).unwrap()).collect();
    assert!(found.is_sorted(), "{derived}");
}

#[test]
fn what_is_derived_from_what_was_derived_is_the_same() {
    for text in [FLANNEL, r#"{"cniVersions":["9.9.9","1.0.0"],"name":"n","plugins":[{"type":"bridge"}]}"#] {
        let once = of("10-flannel.conflist", text).unwrap();
        assert_eq!(of("10-flannel.conflist", &once).unwrap(), once);
    }
    let in_front = FLANNEL.replace(r#"{"type": "flannel""#, r#"{"type":"netpol-cni"},{"type": "flannel""#);
    assert_eq!(of("10-flannel.conflist", &in_front), of("10-flannel.conflist", FLANNEL));
}

#[test]
fn a_single_plugin_becomes_a_list_as_libcni_makes_it() {
    let text = r#"{"cniVersion":"1.0.0","name":"net","type":"bridge","ipam":{"type":"host-local"}}"#;
    for name in ["10-bridge.conf", "10-bridge.json"] {
        let derived = value(&of(name, text).unwrap());
        assert_eq!((derived["name"].as_str(), derived["cniVersion"].as_str()), (Some("net"), Some("1.0.0")));
        assert_eq!(derived["plugins"][0], value(text));
        assert_eq!(derived["plugins"][1]["type"], "netpol-cni");
    }
    assert!(of("10-bridge.conf", FLANNEL).unwrap_err().contains("no type"));
}

#[test]
fn versions_that_we_do_not_speak_are_not_offered() {
    let list = |versions| format!(r#"{{{versions}"name":"n","plugins":[{{"type":"bridge"}}]}}"#);
    for bad in ["", r#""cniVersion":"0.2.0","#, r#""cniVersion":"1.2.0","#, r#""cniVersions":["1.2.0"],"#] {
        assert!(of("1.conflist", &list(bad)).unwrap_err().contains("netpol-cni speaks 0.3.0"), "{bad}");
    }
    let both = list(r#""cniVersion":"1.2.0","cniVersions":["0.4.0","1.1.0","1.2.0"],"#);
    let derived = value(&of("1.conflist", &both).unwrap());
    assert_eq!(derived["cniVersion"], "1.1.0");
    assert_eq!(derived["cniVersions"], serde_json::json!(["0.4.0", "1.1.0"]));
}

#[test]
fn what_is_no_configuration_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "no JSON"),
        (&FLANNEL[..80], "no JSON"),
        ("[]", "no JSON object"),
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#, "no name"),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "not a list"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "not a list"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "no plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"netpol-cni"}]}"#, "no plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{}]}"#, "plugin 1 has no type"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"loopback"}]}"#, "loopback"),
    ] {
        let error = of("10-flannel.conflist", text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn plugins_of_the_networks_folder_come_before_ours() {
    let folder = [r#"{"type":"bandwidth"}"#.to_owned()];
    let source = Source { name: "10-flannel.conflist", text: FLANNEL, folder: &folder };
    let derived = value(&derive(&source, &entry()).unwrap());
    let types: Vec<&str> =
        derived["plugins"].as_array().unwrap().iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["flannel", "portmap", "bandwidth", "netpol-cni"]);
    assert_eq!(derived["loadOnlyInlinedPlugins"], true);
    assert_eq!(plugin_folder("10-flannel.conflist", FLANNEL).as_deref(), Some("cbr0"));
    assert_eq!(plugin_folder("10-flannel.conf", FLANNEL), None);
    assert_eq!(plugin_folder("1.conflist", r#"{"name":"n","loadOnlyInlinedPlugins":"True"}"#), None);
    assert_eq!(plugin_folder("1.conflist", r#"{"name":"../n"}"#), None);
}

#[test]
fn the_first_configuration_that_sorts_behind_ours_is_the_source() {
    let names = ["99-loopback.conf", "10-flannel.conflist", "00-multus.conf", ".a.conf", "00-netpol.conflist"];
    assert_eq!(choose(&names), (vec![".a.conf", "00-multus.conf"], Some("10-flannel.conflist")));
    assert_eq!(choose(&["00-netpol.conflist"]), (Vec::new(), None));
    let configurations = [".conf", "a.b.conflist", "x.json"];
    assert!(configurations.into_iter().all(is_configuration));
    assert!(
        !["x.CONF", "x.conf~", "x.conf.bak", "conf", "", ".10-flannel.conflist.swp"].into_iter().any(is_configuration)
    );
}

#[test]
fn a_chain_of_others_that_calls_us_is_known() {
    assert!(!calls_us(FLANNEL));
    assert!(calls_us(&of("10-flannel.conflist", FLANNEL).unwrap()));
    assert!(calls_us(r#"{"type":"multus","delegates":[{"name":"n","plugins":[{"type":"netpol-cni"}]}]}"#));
    assert!(!calls_us(r#"{"name":"netpol-cni""#));
}

#[test]
fn our_plugin_is_told_what_was_asked_for() {
    let entry = Entry { agent_absent: AgentAbsent::Allow, timeout_seconds: Some(7), enter_namespace: false, ..entry() };
    let derived = value(&derive(&Source { name: "1.conflist", text: FLANNEL, folder: &[] }, &entry).unwrap());
    let own = r#"{"type":"netpol-cni","socket":"/run/netpol/netpol.sock","agentAbsent":"allow","timeoutSeconds":7,
                  "enterNamespace":false}"#;
    assert_eq!(derived["plugins"][2], value(own));
}
