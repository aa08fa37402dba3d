//! The syntax of names, label keys and label values, as the API server checks it. Pure string predicates.

/// DNS-1123 label: at most 63 of lower-case letters, digits and `-`, with a letter or digit at both ends.
pub(super) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && ends_alphanumeric(text) && text.bytes().all(|b| is_lower(b) || b == b'-')
}

/// DNS-1123 subdomain: labels joined by dots, at most 253 in all.
pub(super) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| ends_alphanumeric(part) && part.bytes().all(|b| is_lower(b) || b == b'-'))
}

/// `IANA_SVC_NAME`: at most 15 of lower-case letters, digits and single `-` inside, at least one letter.
pub(super) fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && ends_alphanumeric(text)
        && text.bytes().all(|b| is_lower(b) || b == b'-')
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--")
}

/// A label key: a name of at most 63 characters, with an optional DNS subdomain and `/` before it.
pub(super) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_label_name(text),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
    }
}

/// A label value: empty, or a name of at most 63 characters.
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

fn is_label_name(text: &str) -> bool {
    text.len() <= 63
        && ends_alphanumeric(text)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Not empty, and an ASCII letter or digit at both ends. Case is the caller's business.
fn ends_alphanumeric(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    alphanumeric(text.as_bytes().first()) && alphanumeric(text.as_bytes().last())
}
