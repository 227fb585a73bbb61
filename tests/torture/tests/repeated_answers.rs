//! Somebody asks again for what is being written: while the write waits for space, the second answer waits as the first one
//! does, because a crash would take both away. Nothing here goes on by itself; what is held is the committer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../../support/model.rs"]
#[allow(dead_code)]
mod model;

use engine::change::Lsn;
use engine::engine::{Engine, EngineConfig, OnChange, RegisterError, Registered};
use engine::simulation::{Actor, Simulation};
use engine::source::{SourceEvent, SourceIdentity};
use tokio::task::JoinHandle;

use model::expected::definitions;
use model::{TABLE, schema};

/// More than anything here takes.
const STEPS: usize = 300;

/// Has all go on but for the committer, or with it.
async fn go_on(simulation: &mut Simulation, held: bool) {
    for _ in 0..STEPS {
        for actor in simulation.actors() {
            if !(held && actor == Actor::Committer) {
                simulation.step(actor);
            }
        }
        tokio::task::yield_now().await;
    }
}

fn register(engine: &Engine, which: usize) -> JoinHandle<Result<Registered, RegisterError>> {
    let engine = engine.clone();
    let definition = definitions("payments", false)[which].clone();
    tokio::spawn(async move { engine.register_or("sums", definition, OnChange::Refuse).await })
}

#[tokio::test]
async fn what_is_not_durable_is_not_answered_to_the_second_who_asks() {
    let directory = tempfile::tempdir().unwrap();
    let (mut simulation, context) = Simulation::start(&EngineConfig::new(directory.path())).unwrap();
    let engine = simulation.engine.clone();
    let tables = vec![schema(TABLE, "payments")];
    context.events.send(SourceEvent::Tables { identity: SourceIdentity::default(), tables }).await.unwrap();
    context.events.send(SourceEvent::SnapshotDone { lsn: Lsn(1), time_us: 0 }).await.unwrap();
    go_on(&mut simulation, false).await;

    let (first, second, other) = (register(&engine, 0), register(&engine, 0), register(&engine, 1));
    go_on(&mut simulation, true).await;
    assert!(!first.is_finished() && !second.is_finished() && !other.is_finished());
    go_on(&mut simulation, false).await;
    assert!(matches!(first.await.unwrap(), Ok(Registered::Created(_))));
    let Ok(Registered::Unchanged(same)) = second.await.unwrap() else { panic!() };
    assert_eq!(same.name, "sums");
    assert!(matches!(other.await.unwrap(), Err(RegisterError::Conflict { .. })));

    // What has long been durable is answered also while nothing can be written.
    let again = register(&engine, 0);
    go_on(&mut simulation, true).await;
    assert!(again.is_finished());

    let [first, second] = [0, 1].map(|_| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.drop_aggregate("sums").await })
    });
    go_on(&mut simulation, true).await;
    let cancelled = tokio::spawn({
        let engine = engine.clone();
        async move { engine.cancel("sums").await }
    });
    go_on(&mut simulation, true).await;
    assert!(!first.is_finished() && !second.is_finished() && !cancelled.is_finished());
    go_on(&mut simulation, false).await;
    let answers = [first.await.unwrap(), second.await.unwrap(), cancelled.await.unwrap()];
    assert_eq!(answers.map(Result::unwrap), [true, false, false]);
}
