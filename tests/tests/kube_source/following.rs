//! How it goes on: after each fault all is as the server has it.

use std::time::Duration;

use netpol_tests::apiserver::{ApiServer, Refusal, Spoil};

use super::scene::{Named, Scene, impatient, namespace, pod, policy, run, service};

/// Each way in which following can go wrong, with what is changed meanwhile.
fn breaks() -> Vec<Named<fn(&ApiServer)>> {
    vec![
        ("connections break in the middle of an object", ApiServer::break_connections),
        ("gone, said by an event", |server| {
            server.compact();
            server.break_connections();
        }),
        ("gone, said by the status", |server| {
            server.faults(|faults| faults.gone_as_status = true);
            server.compact();
            server.break_connections();
        }),
        ("gone, and no streaming", |server| {
            server.faults(|faults| faults.no_streaming = true);
            server.compact();
            server.break_connections();
        }),
        ("garbage", |server| server.faults(|faults| faults.garbage = 6)),
        ("errors in the stream", |server| server.faults(|faults| faults.errors = vec![500, 410, 504, 429, 410, 500])),
        ("watches that stall", |server| {
            server.faults(|faults| faults.spoil = vec![Spoil::StallAfter(90); 8]);
            server.break_connections();
        }),
        ("watches that are cut again and again", |server| {
            server.faults(|faults| faults.spoil = (0..16).map(|n| Spoil::CutAfter(n * 61)).collect());
            server.break_connections();
        }),
        ("a relist that is cut again and again", |server| {
            server.faults(|faults| faults.spoil = (0..24).map(|n| Spoil::CutAfter(n * 61)).collect());
            server.compact();
            server.break_connections();
        }),
        ("a relist that stalls", |server| {
            server.faults(|faults| faults.spoil = vec![Spoil::StallAfter(200); 8]);
            server.compact();
            server.break_connections();
        }),
        ("overload", |server| {
            server.faults(|faults| faults.refuse = vec![Refusal { status: 429, retry_after: Some(1) }; 5]);
            server.break_connections();
        }),
        ("internal errors", |server| {
            server.faults(|faults| faults.refuse = vec![Refusal { status: 500, retry_after: None }; 20]);
            server.break_connections();
        }),
    ]
}

#[test]
fn after_each_fault_all_is_as_the_server_has_it_and_meanwhile_nothing_is_taken_back() {
    run(async {
        for (what, fault) in breaks() {
            println!("{what}");
            let mut scene = Scene::new(|_| {}).await;
            scene.guard();
            fault(&scene.server);
            // What comes is heard through the fault; what is there stays.
            scene.server.apply(&pod("later", "one", 20));
            scene.server.apply(&policy("later", "one"));
            scene.server.apply(&namespace("later", "dev"));
            scene.server.apply(&service("later", 20));
            scene.converge().await;
            scene.change();
            scene.converge().await;
        }
    });
}

#[test]
fn what_was_deleted_while_nobody_watched_goes_with_the_next_whole_list() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        scene.server.set_away(true);
        scene.change();
        scene.server.compact();
        scene.until("it is stale", |scene| scene.source.health().is_stale()).await;
        let before = scene.batches.len();
        scene.server.set_away(false);
        scene.converge().await;
        // Kinds that are listed at the same time move together.
        assert_eq!(scene.batches.len(), before + 1, "{:#?}", scene.batches);
    });
}

#[test]
fn a_silent_watch_is_opened_again_and_bookmarks_keep_one_alive() {
    run(async {
        let mut scene = Scene::new(|_| {}).await;
        drop(scene.server.take_requests());
        tokio::time::sleep(impatient().silence * 2).await;
        assert_eq!(scene.server.take_requests(), [""; 0], "bookmarks came");
        // Without them: the connection is there, and nobody speaks.
        scene.server.faults(|faults| faults.bookmark_every = Duration::from_secs(3600));
        scene.server.break_connections();
        scene.until("opened again", |scene| scene.server.watches() == 4 && !scene.source.health().is_stale()).await;
        drop(scene.server.take_requests());
        let silent = |scene: &Scene| {
            let health = scene.source.health();
            health.kinds.iter().any(|kind| kind.error.as_ref().is_some_and(|error| error.contains("nothing came")))
        };
        scene.until("it is noticed", silent).await;
        scene.guard();
        scene.server.apply(&pod("late", "one", 30));
        scene.converge().await;
    });
}
