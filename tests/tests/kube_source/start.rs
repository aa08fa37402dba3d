//! How it begins: all at once, and nothing before everything is known.

use std::time::{Duration, Instant};

use netpol_tests::apiserver::{Faults, Refusal, Spoil};

use super::scene::{LONG, Named, Scene, impatient, pod, run};

#[test]
fn everything_comes_as_one_batch_and_changes_follow() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        assert_eq!(scene.batches.len(), 1, "{:#?}", scene.batches);
        assert!(scene.server.take_requests().iter().all(|request| request.contains("sendInitialEvents=true")));
        assert!(!scene.source.health().is_stale());
        scene.change();
        scene.converge().await;
        assert!(scene.server.take_requests().is_empty(), "following needs no request");
    });
}

/// Each way in which the beginning can go wrong.
fn broken_starts() -> Vec<Named<fn(&mut Faults)>> {
    vec![
        ("no streaming lists", |faults| faults.no_streaming = true),
        ("sendInitialEvents is not known", |faults| faults.ignore_streaming = true),
        ("internal errors", |faults| faults.refuse = vec![Refusal { status: 500, retry_after: None }; 6]),
        ("overload", |faults| faults.refuse = vec![Refusal { status: 429, retry_after: Some(1) }]),
        ("lists cut in the middle", |faults| faults.spoil = (1..40).map(|n| Spoil::CutAfter(n * 37)).collect()),
        ("lists that stall", |faults| faults.spoil = (0..5).map(|n| Spoil::StallAfter(n * 100)).collect()),
        ("bytes that trickle", |faults| {
            faults.spoil_all = Some(Spoil::Trickle { bytes: 40, pause: Duration::from_millis(1) });
        }),
        ("compressed lists", |faults| (faults.no_streaming, faults.gzip_from) = (true, 0)),
        ("compressed lists cut in the middle", |faults| {
            (faults.no_streaming, faults.gzip_from) = (true, 0);
            faults.spoil = (1..20).map(|n| Spoil::CutAfter(n * 23)).collect();
        }),
    ]
}

#[test]
fn a_start_that_goes_wrong_gives_nothing_until_everything_is_known() {
    run(async {
        for (what, faults) in broken_starts() {
            println!("{what}");
            let mut scene = Scene::on(Scene::server(faults), impatient()).await;
            let deadline = Instant::now() + LONG;
            while !scene.source.is_synced() {
                assert!(Instant::now() < deadline, "{what}: {:#?}", scene.source.health());
                scene.take();
                assert!(scene.batches.is_empty(), "{what}: {:#?}", scene.batches);
                scene.next(Duration::from_millis(20)).await;
            }
            scene.converge().await;
            scene.change();
            scene.converge().await;
        }
    });
}

#[test]
fn pages_of_a_list_are_put_together_and_an_expired_token_starts_it_again() {
    run(async {
        for expired in [false, true] {
            let server = Scene::server(|faults| (faults.no_streaming, faults.expired_continue) = (true, expired));
            for number in 0..1200 {
                server.apply(&pod(&format!("pod-{number:04}"), "many", 3));
            }
            let mut scene = Scene::on(server, impatient()).await;
            scene.converge().await;
            let requests = scene.server.take_requests();
            let pages =
                requests.iter().filter(|request| request.contains("/pods?") && request.contains("limit=")).count();
            // 500, 500, 202; or 500, expired, 1000, expired, 2000.
            assert_eq!(pages, if expired { 5 } else { 3 }, "{requests:#?}");
            assert_eq!(scene.batches.len(), 1);
        }
    });
}
