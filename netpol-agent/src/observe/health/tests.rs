//! The checks on made-up vitals, and the server over real connections.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

fn kind(synced: bool, stale_for_seconds: Option<u64>) -> KindReport {
    let error = (!synced || stale_for_seconds.is_some()).then(|| "connection refused".to_owned());
    KindReport { kind: "Pod".into(), synced, stale_for_seconds, error, doing: None }
}

fn vitals(beat: Option<Instant>, synced: bool, applied_once: bool, kinds: Vec<KindReport>) -> Vitals {
    let source = SourceReport { kind: "kubernetes".into(), from: "https://a".into(), synced, kinds };
    Vitals { beat, applied_once, behind: None, source }
}

fn text(path: &str, vitals: &Vitals, now: Instant) -> (bool, String) {
    let report = probe(path, vitals, now).unwrap();
    (report.passes(), report.text(path))
}

#[test]
fn a_loop_that_does_not_turn_is_dead_and_one_that_starts_is_not() {
    let now = Instant::now();
    let later = now + STUCK + Duration::from_secs(12);
    let alive = vitals(Some(now), true, true, vec![]);
    assert_eq!(text("/livez", &alive, now + STUCK), (true, "[+]loop ok\nlivez check passed\n".into()));
    let stuck = "[-]loop failed: it has not turned for 42 s\nlivez check failed\n";
    assert_eq!(text("/livez", &alive, later), (false, stuck.into()));
    assert!(!text("/readyz", &alive, later).0);
    assert!(text("/startupz", &alive, later).0);
    let starting = vitals(None, false, false, vec![]);
    assert_eq!(text("/livez", &starting, later), (true, "[+]loop ok: starting\nlivez check passed\n".into()));
}

#[test]
fn nobody_is_ready_before_everything_was_read_and_applied_once() {
    let now = Instant::now();
    let unread = vitals(Some(now), false, false, vec![kind(false, None)]);
    let expected = "[+]loop ok\n[-]source failed: Pod not listed yet (connection refused); what was enforced before stays so\n\
                    [-]apply failed: nothing was applied yet\nreadyz check failed\n";
    assert_eq!(text("/readyz", &unread, now), (false, expected.into()));
    assert!(!text("/startupz", &unread, now).0);
    let unapplied = vitals(Some(now), true, false, vec![kind(true, None)]);
    assert!(!text("/readyz", &unapplied, now).0);
}

#[test]
fn an_api_server_that_is_away_makes_nobody_unready() {
    let now = Instant::now();
    let mut away = vitals(Some(now), true, true, vec![kind(true, Some(120))]);
    let (ready, said) = text("/readyz", &away, now);
    assert!(ready, "{said}");
    let line = "[+]source ok: stale: Pod for 120 s (connection refused); enforcement goes on with what is known\n";
    assert!(said.contains(line), "{said}");
    away.behind = Some("no room".into());
    let (ready, said) = text("/readyz", &away, now);
    assert!(ready && said.contains("[+]apply ok: behind, tried again every second: no room"), "{said}");
}

#[test]
fn an_address_is_one_or_off() {
    assert_eq!("off".parse(), Ok(HealthAddress::Off));
    assert_eq!("[::1]:80".parse(), Ok(HealthAddress::At("[::1]:80".parse().unwrap())));
    assert!("localhost".parse::<HealthAddress>().unwrap_err().contains("127.0.0.1:9879"));
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_server_answers_while_the_state_changes() {
    let (sender, watched) = watch::channel(Vitals::default());
    let here = HealthAddress::At("127.0.0.1:0".parse().unwrap());
    let server = HealthServer::start(here, watched.clone()).await.unwrap().unwrap();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let before = ask(server.address(), &get("/readyz?verbose")).await;
    assert!(before.starts_with("HTTP/1.1 503"), "{before}");
    sender.send_replace(vitals(Some(Instant::now()), true, true, vec![]));
    for path in ["/livez", "/readyz", "/startupz"] {
        let after = ask(server.address(), &get(path)).await;
        assert!(after.starts_with("HTTP/1.1 200") && after.contains("[+]"), "{after}");
    }
    assert!(ask(server.address(), &get("/metricz")).await.starts_with("HTTP/1.1 404"));
    assert!(ask(server.address(), "POST /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    assert!(ask(server.address(), "junk\r\n\r\n").await.starts_with("HTTP/1.1 400"));

    let taken = HealthServer::start(HealthAddress::At(server.address()), watched.clone()).await.unwrap_err();
    let message = taken.to_string();
    assert!(message.contains("--health-address") && message.contains("in use") && message.contains("off"), "{message}");
    assert!(HealthServer::start(HealthAddress::Off, watched).await.unwrap().is_none());
}
