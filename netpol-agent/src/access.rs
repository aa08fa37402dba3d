//! What netpol may ask of the API server: one row for each resource, with the verbs that the code uses.
//!
//! RBAC rules are written from this table and compared with it (`cargo xtask chart`); who adds a call to the API server
//! adds its verb here. It grants nothing by itself.

/// Verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// The resource's plural, with a subresource as `pods/exec`.
    pub resource: &'static str,
    /// The verbs, sorted.
    pub verbs: &'static [&'static str],
    /// What for.
    pub why: &'static str,
}

/// The agent, in the whole cluster.
pub const AGENT: &[Access] = &[
    row("", "namespaces", &["list", "watch"], "namespace selectors"),
    row("", "pods", &["get", "list", "watch"], "pods; one by itself when the CNI plugin is ahead of the watch"),
    row("", "services", &["list", "watch"], "which addresses are translated"),
    row(
        "networking.k8s.io",
        "networkpolicies",
        &["get", "list", "watch"],
        "policies; one by itself to hang an event on",
    ),
    row("events.k8s.io", "events", &["create", "patch"], "what of a policy cannot be enforced"),
];

/// `netpol cleanup --all-nodes`, in the agents' namespace; `netpol status` and its like from outside need no less. An exec over
/// WebSocket is a GET request, so `get` is asked for; from 1.35 on API servers ask for `create` besides
/// (kubernetes/kubernetes#134577).
pub const CLIENT: &[Access] = &[
    row("", "pods", &["list"], "finds the agents"),
    row("", "pods/exec", &["create", "get"], "asks each agent in its own pod"),
];

const fn row(group: &'static str, resource: &'static str, verbs: &'static [&'static str], why: &'static str) -> Access {
    Access { group, resource, verbs, why }
}

/// Requests (`METHOD /path?query`) that a table does not allow, each once as `verb resource.group`.
#[must_use]
pub fn unlisted(table: &[Access], requests: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for request in requests {
        let Some((verb, group, resource)) = meaning(request) else { continue };
        let is_allowed =
            table.iter().any(|it| it.group == group && it.resource == resource && it.verbs.contains(&verb));
        let said = format!("{verb} {resource}.{group}");
        if !is_allowed && !found.contains(&said) {
            found.push(said);
        }
    }
    found
}

/// Verb, group and resource as the API server's authorizer sees a request; none for one of no resource.
fn meaning(request: &str) -> Option<(&'static str, String, String)> {
    let (method, target) = request.split_once(' ')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    let group = match parts.next()? {
        "api" => String::new(),
        "apis" => parts.next()?.to_owned(),
        _ => return None,
    };
    let _version = parts.next()?;
    let rest: Vec<&str> = parts.collect();
    let rest = match rest.as_slice() {
        ["namespaces", _namespace, inside @ ..] if !inside.is_empty() => inside,
        all => all,
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, None, None),
        [resource, name] => (*resource, Some(name), None),
        [resource, name, subresource, ..] => (*resource, Some(name), Some(subresource)),
        [] => return None,
    };
    let verb = match method {
        "GET" if query.split('&').any(|it| it == "watch=true" || it == "watch=1") => "watch",
        "GET" if name.is_none() => "list",
        "GET" => "get",
        "POST" => "create",
        "PATCH" => "patch",
        "PUT" => "update",
        "DELETE" => "delete",
        _ => return None,
    };
    let resource = subresource.map_or_else(|| resource.to_owned(), |it| format!("{resource}/{it}"));
    Some((verb, group, resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_the_authorizer_reads_them() {
        let said = |request: &str| meaning(request).map(|(verb, group, resource)| format!("{verb} {resource}.{group}"));
        for (request, wanted) in [
            ("GET /api/v1/pods?limit=500", "list pods."),
            ("GET /api/v1/pods?watch=true&resourceVersion=1", "watch pods."),
            ("GET /api/v1/namespaces", "list namespaces."),
            ("GET /api/v1/namespaces/x/pods/a", "get pods."),
            ("GET /api/v1/namespaces/x/pods/a/exec?command=b", "get pods/exec."),
            ("POST /apis/events.k8s.io/v1/namespaces/x/events?", "create events.events.k8s.io"),
            ("PATCH /apis/events.k8s.io/v1/namespaces/x/events/e", "patch events.events.k8s.io"),
        ] {
            assert_eq!(said(request).as_deref(), Some(wanted), "{request}");
        }
        assert_eq!(said("GET /version"), None);
    }

    #[test]
    fn what_no_row_allows_is_named_once() {
        let requests =
            ["GET /api/v1/pods", "GET /api/v1/secrets", "GET /api/v1/secrets", "DELETE /api/v1/namespaces/x/pods/a"];
        let requests: Vec<String> = requests.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(unlisted(AGENT, &requests), ["list secrets.", "delete pods."]);
    }
}
