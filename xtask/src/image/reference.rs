//! The image's name: `[REGISTRY/]PATH:TAG`.
//!
//! Kubernetes and containerd know an image by its full name, with docker's registry where none is written; docker by the
//! short one. Digests are no names that one can give.

use std::str::FromStr;

use anyhow::{Error, Result, bail, ensure};

/// Where docker and Kubernetes look when no registry is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The part that docker puts before a path of one word there.
const DEFAULT_OWNER: &str = "library";

/// A name with a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    registry: Option<String>,
    path: String,
    tag: String,
}

impl Reference {
    /// As it was written.
    pub(crate) fn short(&self) -> String {
        let registry = self.registry.as_ref().map(|registry| format!("{registry}/")).unwrap_or_default();
        format!("{registry}{}:{}", self.path, self.tag)
    }

    /// With the registry, as Kubernetes looks it up.
    pub(crate) fn full(&self) -> String {
        let registry = self.registry.as_deref().unwrap_or(DEFAULT_REGISTRY);
        let owner = if registry == DEFAULT_REGISTRY && !self.path.contains('/') {
            format!("{DEFAULT_OWNER}/")
        } else {
            String::new()
        };
        format!("{registry}/{owner}{}:{}", self.path, self.tag)
    }

    /// The tag alone.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(!text.contains('@'), "{text:?} has a digest, which is what the build finds: give NAME:TAG");
        // A colon before the last slash is that of a registry's port.
        let name_end = text.rfind('/').map_or(0, |slash| slash + 1);
        let Some((last, tag)) = text.get(name_end..).and_then(|last| last.split_once(':')) else {
            bail!("{text:?} has no tag: give NAME:TAG")
        };
        let name = format!("{}{last}", text.get(..name_end).unwrap_or_default());
        let (registry, path) = match name.split_once('/') {
            // As docker tells a registry from an owner.
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, name.as_str()),
        };
        let good_tag = !tag.is_empty()
            && tag.len() <= 128
            && !tag.starts_with(['.', '-'])
            && tag.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '_' | '.' | '-'));
        ensure!(good_tag, "{tag:?} is no tag: letters, digits, `_`, `.` and `-`, 128 at most, and first no sign");
        ensure!(
            path.split('/').all(is_path_part),
            "{path:?} is no name: lower-case words, digits, `_`, `.`, `-` and `/`"
        );
        Ok(Self { registry: registry.map(str::to_owned), path: path.to_owned(), tag: tag.to_owned() })
    }
}

fn is_path_part(part: &str) -> bool {
    let inner = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    !part.is_empty()
        && part.starts_with(inner)
        && part.ends_with(inner)
        && part.chars().all(|it| inner(it) || matches!(it, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_as_kubernetes_does() {
        for (short, full) in [
            ("netpol:dev", "docker.io/library/netpol:dev"),
            ("someone/netpol:1.0", "docker.io/someone/netpol:1.0"),
            ("ghcr.io/netpol/netpol:v1.0.0-rc.1", "ghcr.io/netpol/netpol:v1.0.0-rc.1"),
            ("localhost/netpol:dev", "localhost/netpol:dev"),
            ("registry:5000/netpol:dev", "registry:5000/netpol:dev"),
        ] {
            let reference: Reference = short.parse().unwrap();
            assert_eq!((reference.short().as_str(), reference.full().as_str()), (short, full));
        }
        assert_eq!("registry:5000/netpol:dev".parse::<Reference>().unwrap().tag(), "dev");
    }

    #[test]
    fn what_no_registry_would_take_is_refused() {
        for (text, word) in [
            ("netpol", "no tag"),
            ("registry:5000/netpol", "no tag"),
            ("netpol:", "is no tag"),
            ("netpol:-x", "is no tag"),
            ("Netpol:dev", "is no name"),
            ("a//b:dev", "is no name"),
            (":dev", "is no name"),
            ("netpol@sha256:00", "digest"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
