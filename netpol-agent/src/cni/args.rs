//! CNI_ARGS as the kubelet's runtimes fill it: which pod a container is.

/// A pod as its runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodArgs {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// Empty if the runtime does not tell.
    pub(super) uid: String,
}

/// Why arguments name no pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArgsError {
    /// Not `KEY=VALUE;KEY=VALUE`.
    #[error("{0:?} in CNI_ARGS is not KEY=VALUE")]
    Pair(String),
    /// One of the two names only.
    #[error("CNI_ARGS has {present} and no {missing}: a runtime gives both, or neither for a container that is no pod")]
    Half {
        /// The name that is there.
        present: &'static str,
        /// The name that is not.
        missing: &'static str,
    },
}

const NAMESPACE: &str = "K8S_POD_NAMESPACE";
const NAME: &str = "K8S_POD_NAME";
const UID: &str = "K8S_POD_UID";

/// The pairs of `KEY=VALUE;KEY=VALUE`.
pub(super) fn pairs(args: &str) -> Result<Vec<(&str, &str)>, ArgsError> {
    let pairs = args.split(';').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').ok_or_else(|| ArgsError::Pair(pair.to_owned()))).collect()
}

/// The pod that the pairs name; none if the container is no pod's (of nerdctl, ctr, podman).
pub(super) fn pod<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<PodArgs>, ArgsError> {
    let mut found = PodArgs { namespace: String::new(), pod: String::new(), uid: String::new() };
    for (key, value) in pairs {
        let place = match key {
            NAMESPACE => &mut found.namespace,
            NAME => &mut found.pod,
            UID => &mut found.uid,
            // Infra container, IgnoreUnknown, and whatever others come to say.
            _ => continue,
        };
        value.clone_into(place);
    }
    match (found.namespace.is_empty(), found.pod.is_empty()) {
        (false, false) => Ok(Some(found)),
        (true, true) => Ok(None),
        (false, true) => Err(ArgsError::Half { present: NAMESPACE, missing: NAME }),
        (true, false) => Err(ArgsError::Half { present: NAME, missing: NAMESPACE }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &str) -> Result<Option<PodArgs>, ArgsError> {
        pod(pairs(args)?)
    }

    #[test]
    fn a_pod_is_named_by_namespace_and_name() {
        let args =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=api;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u=1";
        let pod = of(args).unwrap().unwrap();
        assert_eq!((pod.namespace.as_str(), pod.pod.as_str(), pod.uid.as_str()), ("shop", "api", "u=1"));
        assert_eq!(of("").unwrap(), None);
        assert_eq!(of("IgnoreUnknown=1;").unwrap(), None);
    }

    #[test]
    fn half_a_pod_and_half_a_pair_are_errors() {
        assert_eq!(of("K8S_POD_NAME"), Err(ArgsError::Pair("K8S_POD_NAME".to_owned())));
        assert!(matches!(of("K8S_POD_NAME=a"), Err(ArgsError::Half { missing: NAMESPACE, .. })));
        assert!(matches!(of("K8S_POD_NAMESPACE=a;K8S_POD_NAME="), Err(ArgsError::Half { missing: NAME, .. })));
    }
}
