//! Agents that start again while the API server is away: what is in force stays, and what came meanwhile waits.

use std::time::Instant;

use netpol_tests::agent::Agent;
use netpol_tests::level::has_agent;
use netpol_tests::probe::{Outcome, PATIENCE};
use serde_json::json;

use super::site::{LONG, Site, client, pods_start_by_our_plugin, server, stranger};

const SERVER: &str = "shop/server";

/// The agent has looked at everything that is on the node now.
fn look(agent: &Agent) {
    agent.request(&json!({ "request": "sync" }), PATIENCE).unwrap();
}

/// Until this pod is served every way: an address that the agent heard of a moment ago may still be on its way.
fn is_served_soon(site: &Site, pod: &str) {
    let limit = Instant::now() + LONG;
    while site.reaches(pod, SERVER) != vec![Outcome::Answered; 4] {
        assert!(Instant::now() < limit, "{pod} is never let through");
    }
}

#[test]
fn an_agent_that_is_killed_before_it_saw_the_cluster_cuts_nothing_off_and_neither_does_the_next() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["worker"]);
    let is_open = |site: &Site, pods: &[&str]| {
        for pod in pods {
            assert_eq!(site.reaches(pod, SERVER), vec![Outcome::Answered; 4], "{pod}");
        }
    };
    // Pods from before netpol.
    for spec in [server("server"), client("client"), stranger("stranger")] {
        let sandbox = site.start(0, &spec);
        site.kubelets[0].report(&sandbox);
    }
    site.api.set_away(true);
    site.agent_without_api(0).kill().unwrap();
    is_open(&site, &["shop/client", "other/stranger"]);
    let agent = site.agent_without_api(0);
    site.start_around(0, &client("late"));
    look(&agent);
    // Nothing was ever enforced here, so nothing is to be cut off for want of knowledge.
    is_open(&site, &["shop/client", "other/stranger", "shop/late"]);
    site.api.set_away(false);
    site.wait("the agent never sees the cluster", || agent.status().unwrap()["source"]["synced"] == true);
    agent.sync().unwrap();
    assert!(site.is_refused("other/stranger", SERVER));
    is_open(&site, &["shop/client"]);
    is_served_soon(&site, "shop/late");
    agent.stop().unwrap();
}

#[test]
fn a_pod_that_came_around_the_plugin_while_nobody_knew_the_cluster_is_held_until_somebody_does() {
    if !has_agent() {
        return;
    }
    let mut site = Site::new(&["worker"]);
    let agent = site.agent(0);
    pods_start_by_our_plugin(&site, 0);
    for spec in [server("server"), client("client"), stranger("stranger")] {
        let sandbox = site.start(0, &spec);
        site.kubelets[0].report(&sandbox);
    }
    let is_as_before = |site: &Site| {
        assert_eq!(site.reaches("shop/client", SERVER), vec![Outcome::Answered; 4]);
        assert!(site.is_refused("other/stranger", SERVER));
    };
    site.api.set_away(true);
    agent.kill().unwrap();
    site.start_around(0, &client("before"));
    let agent = site.agent_without_api(0);
    site.start_around(0, &client("after"));
    look(&agent);
    for held in ["shop/before", "shop/after"] {
        assert!(site.is_refused(held, SERVER), "{held}");
        // Also what nothing would refuse if the pod were known: the stranger's pod is not isolated.
        assert!(site.is_refused(held, "other/stranger"), "{held}");
    }
    is_as_before(&site);
    site.api.set_away(false);
    for freed in ["shop/before", "shop/after"] {
        is_served_soon(&site, freed);
    }
    is_as_before(&site);
    agent.stop().unwrap();
}
