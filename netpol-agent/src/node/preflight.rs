//! What on this node may get in the way of judging services' packets behind their translation.
//!
//! In: the bits of the mark that are ours. Out: a [`Problem`] of severity note for each thing found, with what to do.
//! Nothing is changed. Rules of iptables and nftables that use the same bits are not looked for.

use std::fs;
use std::io;

use futures_util::StreamExt;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::NodeError;
use crate::problem::{Problem, Severity};

/// Whether bridged frames go through iptables and nftables, by family.
const BRIDGE_SETTINGS: [&str; 2] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];

/// Routing rules that look at bits of the mark which are ours.
///
/// # Errors
/// If netlink cannot be used.
pub(super) async fn routing_rules(handle: &Handle, mask: u32) -> Result<Vec<Problem>, NodeError> {
    let mut problems = Vec::new();
    for (family, version) in [("-4", IpVersion::V4), ("-6", IpVersion::V6)] {
        let mut rules = std::pin::pin!(handle.rule().get(version).execute());
        while let Some(rule) = rules.next().await {
            let rule = rule.map_err(|source| NodeError::Dump { what: "routing rules", source })?;
            if let Some(marked) = looks_at(&rule, mask) {
                problems.push(overlap(family, &marked, mask));
            }
        }
    }
    Ok(problems)
}

/// A routing rule with a mark.
#[derive(Debug, PartialEq, Eq)]
struct Marked {
    priority: u32,
    mark: u32,
    mask: u32,
}

fn looks_at(rule: &RuleMessage, ours: u32) -> Option<Marked> {
    let (mut priority, mut mark, mut mask) = (0, None, None);
    for attribute in &rule.attributes {
        #[expect(clippy::wildcard_enum_match_arm, reason = "what else a rule looks at is of no interest")]
        match attribute {
            RuleAttribute::Priority(found) => priority = *found,
            RuleAttribute::FwMark(found) => mark = Some(*found),
            RuleAttribute::FwMask(found) => mask = Some(*found),
            _ => {}
        }
    }
    // kernel: a mark without a mask is compared as a whole.
    let mask = mask.or(mark.map(|_| u32::MAX))?;
    (mask & ours != 0).then_some(Marked { priority, mark: mark.unwrap_or_default(), mask })
}

fn overlap(family: &str, rule: &Marked, ours: u32) -> Problem {
    let Marked { priority, mark, mask } = rule;
    note(
        format!("routing rule {priority} (ip {family} rule)"),
        format!(
            "it looks at fwmark {mark:#x}/{mask:#x}, which shares bits with netpol's {ours:#x}; give the agent other bits with \
             --mark-mask, or the rule a mask without these"
        ),
        "pods' packets may be routed otherwise than before, as netpol writes whose they are into these bits",
    )
}

/// The setting of a family, if it keeps a bridge's frames from being translated back.
pub(super) fn bridge_setting(ipv6: bool) -> Option<Problem> {
    let [v4, v6] = BRIDGE_SETTINGS;
    let setting = if ipv6 { v6 } else { v4 };
    let value = fs::read_to_string(format!("/proc/sys/net/bridge/{setting}"));
    is_off(value).then(|| {
        note(
            format!("net.bridge.{setting}"),
            "it is off or absent; load the module br_netfilter and set it to 1".to_owned(),
            "replies between pods of this node through a service are not translated back, and their connections fail",
        )
    })
}

fn is_off(value: io::Result<String>) -> bool {
    match value {
        Ok(value) => value.trim() == "0",
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn note(object: String, message: String, effect: &str) -> Problem {
    Problem {
        severity: Severity::Note,
        origin: "node".to_owned(),
        object,
        field: String::new(),
        message,
        effect: effect.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(attributes: Vec<RuleAttribute>) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.attributes = attributes;
        rule
    }

    #[test]
    fn rules_with_bits_of_ours_are_found_and_others_are_not() {
        use RuleAttribute::{FwMark, FwMask, Priority};
        const OURS: u32 = 0xff00_0000;
        let found = |attributes| looks_at(&rule(attributes), OURS).is_some();
        assert!(!found(vec![Priority(5)]));
        assert!(!found(vec![Priority(5), FwMark(0x8_0000), FwMask(0xff_0000)]));
        assert!(found(vec![FwMark(0x100_0000), FwMask(0xff00_0000)]));
        assert!(found(vec![FwMask(0x8000_0000)]));
        assert!(found(vec![FwMark(0x8_0000)]));
        let marked = looks_at(&rule(vec![Priority(7), FwMark(1)]), OURS);
        assert_eq!(marked, Some(Marked { priority: 7, mark: 1, mask: u32::MAX }));
    }

    #[test]
    fn only_what_is_off_or_absent_is_noted() {
        assert!(is_off(Ok("0\n".to_owned())));
        assert!(!is_off(Ok("1\n".to_owned())));
        assert!(is_off(Err(io::Error::from(io::ErrorKind::NotFound))));
        assert!(!is_off(Err(io::Error::from(io::ErrorKind::PermissionDenied))));
    }
}
