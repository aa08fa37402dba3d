//! What a CNI result says of a pod's interface. The shape is one from 0.3.0 to 1.1.0, as far as it is read here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::json::Json;
use super::version::SpecVersion;

/// What a result says of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Interfaces outside any sandbox, in the result's order: for a bridge the bridge itself and the host's end of the veth
    /// pair, for ptp that end alone.
    pub(super) on_host: Vec<String>,
    /// The interface's MAC address, in lower case.
    pub(super) mac: Option<String>,
    /// Its addresses, each family at most once: the first.
    pub(super) addresses: Vec<IpAddr>,
}

/// Why a result cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResultError {
    #[error("it is {0}, not an object")]
    NotAnObject(&'static str),
    #[error("its {0} is not a list")]
    NotAList(&'static str),
    #[error("{0:?} of its ips is no address")]
    Address(String),
    #[error("{0:?} is no MAC address")]
    Mac(String),
}

/// Reads of `result` what concerns the sandbox's interface `ifname`.
pub(super) fn read(result: &Json, ifname: &str) -> Result<Found, ResultError> {
    if result.as_object().is_none() {
        return Err(ResultError::NotAnObject(if *result == Json::Null { "null" } else { "something else" }));
    }
    let interfaces = list(result, "interfaces")?;
    let text = |interface: &Json, key| interface.get(key).and_then(Json::as_text).unwrap_or_default().to_owned();
    let is_in_sandbox = |interface: &Json| !text(interface, "sandbox").is_empty();
    let ours = interfaces.iter().position(|it| is_in_sandbox(it) && text(it, "name") == ifname);
    let mut found = Found {
        on_host: interfaces.iter().filter(|it| !is_in_sandbox(it)).map(|it| text(it, "name")).collect(),
        ..Found::default()
    };
    found.on_host.retain(|name| !name.is_empty());
    let mac = ours.and_then(|at| interfaces.get(at)).map(|it| text(it, "mac")).filter(|mac| !mac.is_empty());
    found.mac = mac.map(|mac| checked_mac(&mac)).transpose()?;
    for ip in list(result, "ips")? {
        if is_of(ip, ours) {
            let address = address(&text(ip, "address"))?;
            if !found.addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                found.addresses.push(address);
            }
        }
    }
    Ok(found)
}

/// Sets a result's version to the one that is asked for, and what is different in it. Older runtimes refuse another.
pub(super) fn as_version(result: &mut Json, version: SpecVersion) {
    let Json::Object(object) = result else { return };
    if object.get("cniVersion").and_then(Json::as_text) == Some(version.name()) {
        return;
    }
    object.set("cniVersion", Json::text(version.name()));
    let Some(Json::List(ips)) = object.get("ips") else { return };
    let mut ips = ips.clone();
    for ip in &mut ips {
        let Json::Object(ip) = ip else { continue };
        let address = ip.get("address").and_then(Json::as_text).unwrap_or_default().to_owned();
        if version.addresses_have_versions() {
            ip.set("version", Json::text(if address.contains(':') { "6" } else { "4" }));
        } else {
            ip.remove("version");
        }
    }
    object.set("ips", Json::List(ips));
}

/// A MAC address of six octets in lower case.
pub(super) fn checked_mac(text: &str) -> Result<String, ResultError> {
    let octets: Vec<&str> = text.split(':').collect();
    let is_octet = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    if octets.len() == 6 && octets.iter().all(is_octet) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(ResultError::Mac(text.to_owned()))
}

/// An address is the interface's if it says so, or says of none.
fn is_of(ip: &Json, interface: Option<usize>) -> bool {
    match ip.get("interface") {
        None | Some(Json::Null) => true,
        Some(Json::Number(number)) => {
            interface.is_some() && number.as_u64().and_then(|at| usize::try_from(at).ok()) == interface
        }
        Some(_) => false,
    }
}

fn address(text: &str) -> Result<IpAddr, ResultError> {
    let network = text.parse::<IpNet>().map(|network| network.addr());
    network.or_else(|_no_prefix| text.parse()).map_err(|_no_address| ResultError::Address(text.to_owned()))
}

/// Go writes a list that was never made as null.
fn list<'a>(result: &'a Json, key: &'static str) -> Result<&'a [Json], ResultError> {
    match result.get(key) {
        None | Some(Json::Null) => Ok(&[]),
        Some(value) => value.as_list().ok_or(ResultError::NotAList(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"0.3.1",
        "interfaces":[{"name":"cni0","mac":"0a:58:0a:f4:01:01"},{"name":"veth1a2b3c4d","mac":"2e:12:00:00:00:01"},
                      {"name":"eth0","mac":"0A:58:0A:F4:01:0B","sandbox":"/var/run/netns/x"}],
        "ips":[{"version":"4","interface":2,"address":"10.244.1.11/24","gateway":"10.244.1.1"},
               {"version":"4","interface":2,"address":"10.244.9.9/24"},
               {"version":"6","interface":2,"address":"fd00::b/64"},
               {"version":"4","interface":0,"address":"10.244.1.1/24"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;

    fn parse(text: &str) -> Json {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_bridge_plugins_result_is_read() {
        let found = read(&parse(BRIDGE), "eth0").unwrap();
        assert_eq!(found.on_host, ["cni0", "veth1a2b3c4d"]);
        assert_eq!(found.mac.as_deref(), Some("0a:58:0a:f4:01:0b"));
        assert_eq!(found.addresses, ["10.244.1.11".parse::<IpAddr>().unwrap(), "fd00::b".parse().unwrap()]);
        assert_eq!(read(&parse(BRIDGE), "net1").unwrap().mac, None);
    }

    #[test]
    fn what_is_missing_is_missing_and_what_is_wrong_is_said() {
        assert_eq!(read(&parse(r#"{"interfaces":null}"#), "eth0").unwrap(), Found::default());
        let unnumbered = read(&parse(r#"{"ips":[{"address":"10.0.0.5/16"}]}"#), "eth0").unwrap();
        assert_eq!(unnumbered.addresses, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        let elsewhere = parse(r#"{"ips":[{"interface":-1,"address":"10.0.0.5/16"}]}"#);
        assert!(read(&elsewhere, "eth0").unwrap().addresses.is_empty());
        for (text, wanted) in [
            (r"null", ResultError::NotAnObject("null")),
            (r#"{"ips":3}"#, ResultError::NotAList("ips")),
            (r#"{"ips":[{"address":"10.0.0"}]}"#, ResultError::Address("10.0.0".to_owned())),
            (r#"{"interfaces":[{"name":"eth0","sandbox":"x","mac":"02:xx"}]}"#, ResultError::Mac("02:xx".to_owned())),
        ] {
            assert_eq!(read(&parse(text), "eth0"), Err(wanted), "{text}");
        }
    }

    #[test]
    fn another_version_is_another_form() {
        let mut result = parse(BRIDGE);
        as_version(&mut result, SpecVersion::V0_3_1);
        assert_eq!(result, parse(BRIDGE), "nothing is touched that need not be");
        as_version(&mut result, SpecVersion::V1_0_0);
        let text = serde_json::to_string(&result).unwrap();
        assert!(text.contains(r#""cniVersion":"1.0.0""#) && !text.contains(r#""version""#), "{text}");
        as_version(&mut result, SpecVersion::V0_4_0);
        let text = serde_json::to_string(&result).unwrap();
        assert!(text.contains(r#""address":"fd00::b/64","version":"6""#), "{text}");
    }
}
