//! Reading `spec` and `status` of objects that policy only looks at: pods, services, namespaces.
//!
//! Their types gain fields with every Kubernetes release, so an unknown one is only noted, unless it looks like a slip of
//! one that is read: `hostnetwork`, `podIps`.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::report::{Report, child, suggestion, typed};
use crate::near::near_miss;

const HARMLESS: &str = "none: it is ignored";

/// Reads `object[name]`; missing and null are empty. `None` if it cannot be taken; `read` are the fields that count, and
/// what refusing does.
pub(super) fn read_section<T: DeserializeOwned + Default>(
    report: &mut Report,
    object: &Map<String, Value>,
    name: &str,
    (read, effect): (&[&str], &str),
) -> Option<T> {
    let section = match object.get(name) {
        None | Some(Value::Null) => return Some(T::default()),
        Some(section) => section,
    };
    match typed::<T>(name, section) {
        Err(wrong) => {
            report.refuse(&wrong.path, wrong.message, effect);
            None
        }
        Ok(found) => {
            let mut sound = true;
            for path in &found.unknown {
                sound &= unknown(report, path, read, effect);
            }
            sound.then_some(found.value)
        }
    }
}

/// Looks for fields beside `spec` and `status`; false if one may have been meant as something that counts.
pub(super) fn stray_fields(report: &mut Report, object: &Map<String, Value>, read: &[&str], effect: &str) -> bool {
    const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    let stray = object.keys().filter(|key| !TOP.contains(&key.as_str()));
    let mut known = vec!["metadata"];
    known.extend(read);
    let mut sound = true;
    for key in stray {
        sound &= unknown(report, &child("", key), &known, effect);
    }
    sound
}

fn unknown(report: &mut Report, path: &str, read: &[&str], effect: &str) -> bool {
    let word = path.rsplit('.').next().unwrap_or(path);
    let message = format!("unknown field{}", suggestion(word, read));
    if near_miss(word, read).is_some() {
        report.refuse(path, message, effect);
        false
    } else {
        report.note(path, message, HARMLESS);
        true
    }
}
