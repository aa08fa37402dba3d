use super::*;
use crate::node::state::{Link, Update};

const CNI0: u32 = 2;
const VETH1: u32 = 11;
const VETH2: u32 = 12;
const MAC1: Mac = [2, 0, 0, 0, 0, 1];
const MAC2: Mac = [2, 0, 0, 0, 0, 2];
const POD: &str = "10.244.0.11";
const OTHER: &str = "10.244.0.12";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| address(text)).collect()
}

fn link(name: &str, kind: LinkKind) -> Link {
    Link { name: name.to_owned(), kind, carrier: true, has_link_header: true }
}

/// A node with a bridge and two pod veths.
struct Scene {
    state: State,
    locator: Locator,
    now: Instant,
}

impl Scene {
    fn new(wanted: &[&str]) -> Self {
        let mut scene = Self { state: State::default(), locator: Locator::default(), now: Instant::now() };
        scene.says(Update::Link(CNI0, link("cni0", LinkKind::Bridge)));
        scene.says(Update::Address(CNI0, "10.244.0.1/24".parse().unwrap()));
        scene.says(Update::Link(VETH1, link("veth1", LinkKind::VethToElsewhere)));
        scene.says(Update::Link(VETH2, link("veth2", LinkKind::VethToElsewhere)));
        scene.locator.want(set(wanted));
        scene
    }

    fn says(&mut self, update: Update) -> bool {
        self.state.apply(update)
    }

    fn learns(&mut self, text: &str, mac: Mac, port: u32) {
        self.says(Update::Neighbour(CNI0, address(text), Neighbour::Known(mac)));
        self.says(Update::Forwarding(CNI0, mac, port));
    }

    fn after(&mut self, seconds: u64) -> Look {
        self.now += Duration::from_secs(seconds);
        self.look()
    }

    fn look(&mut self) -> Look {
        self.locator.look(&self.state, |name| name.starts_with("veth"), self.now)
    }
}

fn behind(look: &Look, ifindex: u32) -> BTreeSet<IpAddr> {
    look.view.interfaces[&ifindex].addresses.clone()
}

fn ask(text: &str, forget: bool) -> Probe {
    Probe { ifindex: CNI0, address: address(text), forget }
}

#[test]
fn an_unknown_address_on_a_bridges_subnet_is_asked_for_with_growing_pauses() {
    let mut scene = Scene::new(&[POD]);
    let look = scene.look();
    assert_eq!(look.probes, [ask(POD, false)]);
    assert_eq!(look.view.unresolved, set(&[POD]));
    assert_eq!(look.again, Some(scene.now + Duration::from_secs(1)));
    let asked: Vec<u64> = (1..40).filter(|_| !scene.after(1).probes.is_empty()).collect();
    assert_eq!(asked, [1, 3, 7, 15, 30]);
}

#[test]
fn an_address_that_leads_nowhere_is_not_here_and_nobody_is_asked() {
    for text in ["10.244.1.11", "192.0.2.1", "fd00::1", "10.244.0.1"] {
        let mut scene = Scene::new(&[text]);
        let look = scene.look();
        assert_eq!((look.probes, look.view.unresolved, look.again), (vec![], set(&[]), None), "{text}");
    }
}

#[test]
fn a_failed_neighbour_counts_only_after_asking() {
    let mut scene = Scene::new(&[POD]);
    scene.says(Update::Neighbour(CNI0, address(POD), Neighbour::Failed));
    assert_eq!(scene.look().view.unresolved, set(&[POD]));
    scene.says(Update::Neighbour(CNI0, address(POD), Neighbour::Pending));
    assert_eq!(scene.look().view.unresolved, set(&[POD]));
    scene.says(Update::Neighbour(CNI0, address(POD), Neighbour::Failed));
    assert_eq!(scene.look().view.unresolved, set(&[]));
    // A veth that comes up may be that pod's.
    scene.says(Update::Link(13, link("veth3", LinkKind::VethToElsewhere)));
    let look = scene.look();
    assert_eq!((look.view.unresolved, look.probes), (set(&[POD]), vec![ask(POD, false)]));
}

#[test]
fn a_search_without_any_answer_is_given_up_after_a_while_but_goes_on() {
    let mut scene = Scene::new(&[POD]);
    scene.look();
    assert_eq!(scene.after(3).view.unresolved, set(&[POD]));
    assert_eq!(scene.after(1).view.unresolved, set(&[]));
    assert!((0..15).any(|_| !scene.after(1).probes.is_empty()));
    scene.learns(POD, MAC1, VETH1);
    assert_eq!(behind(&scene.look(), VETH1), set(&[POD]));
}

#[test]
fn neighbour_and_forwarding_together_give_the_interface() {
    let mut scene = Scene::new(&[POD, OTHER]);
    scene.learns(POD, MAC1, VETH1);
    scene.says(Update::Neighbour(CNI0, address(OTHER), Neighbour::Known(MAC2)));
    let look = scene.look();
    assert_eq!(behind(&look, VETH1), set(&[POD]));
    assert_eq!(look.view.interfaces[&VETH1].mac, Some(MAC1));
    assert_eq!((look.view.unresolved, look.probes), (set(&[OTHER]), vec![ask(OTHER, true)]));
}

#[test]
fn a_port_that_is_no_pods_veth_is_no_place_for_a_pod() {
    let mut scene = Scene::new(&[POD]);
    scene.says(Update::Link(20, link("flannel.1", LinkKind::Other)));
    scene.learns(POD, MAC1, 20);
    let look = scene.look();
    assert_eq!((look.view.unresolved, look.probes), (set(&[]), vec![]));
}

#[test]
fn a_found_address_stays_where_it_is_until_its_interface_is_gone() {
    let mut scene = Scene::new(&[POD]);
    scene.learns(POD, MAC1, VETH1);
    scene.look();
    scene.learns(POD, MAC2, VETH2);
    let look = scene.look();
    assert_eq!((behind(&look, VETH1), behind(&look, VETH2)), (set(&[POD]), set(&[])));
    scene.says(Update::LinkGone(VETH1));
    assert_eq!(behind(&scene.look(), VETH2), set(&[POD]));
    scene.locator.want(set(&[]));
    assert_eq!(behind(&scene.look(), VETH2), set(&[]));
}

#[test]
fn an_interface_has_one_mac_address_so_a_second_one_is_refused_until_the_first_is_unwanted() {
    let mut scene = Scene::new(&[POD, OTHER]);
    scene.learns(POD, MAC1, VETH1);
    scene.look();
    scene.learns(OTHER, MAC2, VETH1);
    let look = scene.look();
    assert_eq!(behind(&look, VETH1), set(&[POD]));
    assert_eq!(look.view.unresolved, set(&[]));
    assert_eq!(look.view.problems.len(), 1);
    let text = look.view.problems[0].to_string();
    assert!(
        text.contains(OTHER) && text.contains("veth1, which belongs to the pod with address 10.244.0.11"),
        "{text}"
    );
    scene.locator.want(set(&[OTHER]));
    let look = scene.look();
    assert_eq!((behind(&look, VETH1), look.view.problems), (set(&[OTHER]), vec![]));
}

#[test]
fn a_host_route_gives_the_interface_and_the_neighbour_on_it_the_mac_address() {
    let mut scene = Scene::new(&["10.9.0.7"]);
    scene.says(Update::HostRoute(VETH2, address("10.9.0.7")));
    let look = scene.look();
    assert_eq!(look.probes, [Probe { ifindex: VETH2, address: address("10.9.0.7"), forget: false }]);
    scene.says(Update::Neighbour(VETH2, address("10.9.0.7"), Neighbour::Known(MAC2)));
    assert_eq!(behind(&scene.look(), VETH2), set(&["10.9.0.7"]));
}

#[test]
fn a_route_through_anything_but_a_pods_veth_does_not_count() {
    let mut scene = Scene::new(&["10.9.0.7"]);
    scene.says(Update::HostRoute(CNI0, address("10.9.0.7")));
    let look = scene.look();
    assert_eq!((look.probes, look.view.unresolved), (vec![], set(&[])));
}

#[test]
fn what_changes_nothing_is_no_change() {
    let mut scene = Scene::new(&[]);
    scene.learns(POD, MAC1, VETH1);
    assert!(!scene.says(Update::Neighbour(CNI0, address(POD), Neighbour::Known(MAC1))));
    assert!(!scene.says(Update::Forwarding(CNI0, MAC1, VETH1)));
    assert!(!scene.says(Update::ForwardingGone(CNI0, MAC1, VETH2)), "it moved meanwhile");
    assert!(scene.says(Update::ForwardingGone(CNI0, MAC1, VETH1)));
    assert!(!scene.says(Update::LinkGone(99)));
}

#[test]
fn a_veth_whose_other_end_left_becomes_a_pod_interface() {
    let mut scene = Scene::new(&[]);
    scene.says(Update::Link(30, link("veth30", LinkKind::VethToHere(31))));
    assert!(!scene.look().view.interfaces.contains_key(&30));
    scene.says(Update::Link(31, link("veth31", LinkKind::VethToHere(30))));
    scene.says(Update::LinkGone(31));
    assert!(scene.look().view.interfaces.contains_key(&30));
}
