//! Each function is one schedule: threads as the engine has them, over what they share, and what each may count on. Included
//! once for the engine's files and once for each mistake, so it names them by `super`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::sync::{Mutex, mpsc};
use shuttle::thread::{self, JoinHandle};

use super::boundary::BoundaryWatch;
use super::change::Lsn;
use super::engine::Unavailable;
use super::materialization::{AggregateId, Catalog};
use super::published::{Newest, Published};
use super::shared::Shared;
use super::snapshot::{AsOf, Snapshot};
use super::source::{SourceIdentity, SourceState, SourceStatus};
use super::sync::watch;

/// No time runs out here.
const EVER: Duration = Duration::MAX;

/// The position of a commit by its number.
fn lsn(sequence: u64) -> Lsn {
    Lsn(sequence * 10)
}

fn as_of(sequence: u64) -> AsOf {
    AsOf { lsn: lsn(sequence), commit_time_us: 0, sequence }
}

/// A catalog that tells of which commit it is.
fn catalog(sequence: u64) -> Catalog {
    Catalog { covered_from: [(AggregateId(0), sequence as i64)].into(), ..Catalog::default() }
}

fn number(catalog: &Catalog) -> u64 {
    catalog.covered_from[&AggregateId(0)] as u64
}

/// A store in which something is committed already.
fn stored(sequence: u64, scrubbed: bool) -> Arc<Published> {
    Arc::new(Published::new(as_of(sequence), catalog(sequence), true, scrubbed))
}

/// What the committer does once a batch is written.
fn commit(published: &Published, sequence: u64) -> Weak<Snapshot> {
    let snapshot = Arc::new(Snapshot { as_of: as_of(sequence), catalog: Arc::new(catalog(sequence)) });
    let weak = Arc::downgrade(&snapshot);
    published.publish(as_of(sequence), Newest::Snapshot(snapshot), lsn(sequence));
    weak
}

fn with<T: Send + 'static>(
    published: &Arc<Published>,
    run: impl FnOnce(&Arc<Published>) -> T + Send + 'static,
) -> JoinHandle<T> {
    let published = Arc::clone(published);
    thread::spawn(move || run(&published))
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// The first tables are read, and then the stream begins: whatever tells somebody of a commit, its Snapshot is there, with its
/// catalog; nothing goes back, and nothing is durable that is not visible.
pub fn whoever_is_told_finds_it() {
    let published = Arc::new(Published::new(as_of(0), catalog(0), false, true));
    let (dirty_in, dirty) = mpsc::channel();
    let committer = with(&published, move |published| {
        published.publish(as_of(1), Newest::Registered(Arc::new(catalog(1))), lsn(1));
        for sequence in 2..=3 {
            commit(published, sequence);
            dirty_in.send(lsn(sequence)).unwrap();
        }
    });
    let durability = with(&published, move |published| {
        while let Ok(lsn) = dirty.recv() {
            published.made_durable(lsn);
        }
    });
    let readers = [(); 2].map(|()| {
        with(&published, |published| {
            let (mut seen, mut seen_durable) = (0, Lsn::ZERO);
            for _ in 0..2 {
                let streaming = published.streaming();
                let told = published.as_of().sequence.max(published.committed().reached());
                let registered = number(&published.catalog());
                let found = published.snapshot();
                match &found {
                    None => assert!(!streaming && told < 2 && registered < 2 && seen == 0, "there is no Snapshot"),
                    Some(snapshot) => {
                        let sequence = snapshot.as_of().sequence;
                        assert!(sequence >= told && sequence >= registered && sequence >= seen, "taken back");
                        assert_eq!(number(snapshot.catalog()), sequence);
                        assert!(number(&published.catalog()) >= sequence);
                        seen = sequence;
                    }
                }
                let (applied, durable) = published.frontiers();
                assert!(durable <= applied.lsn, "{durable} is durable, {} is visible", applied.lsn);
                assert!(durable >= seen_durable);
                seen_durable = durable;
            }
        })
    });
    join([committer, durability]);
    join(readers);
    assert_eq!(published.frontiers(), (as_of(3), lsn(3)));
}

/// A store was opened, and its newest cells are being checked, where anybody does: whoever waits for a position is woken, and
/// only when a Snapshot of it may be shown.
pub fn whoever_waits_is_woken() {
    let published = stored(1, thread_rng().r#gen());
    let waiters = [1, 3].map(|sequence| {
        with(&published, move |published| {
            assert!(block_on(published.wait_for(lsn(sequence), EVER)));
            assert!(published.scrubbed());
            assert!(published.snapshot().unwrap().as_of().sequence >= sequence);
        })
    });
    let committer = with(&published, |published| (2..=3).for_each(|sequence| drop(commit(published, sequence))));
    let scrubber = with(&published, |published| {
        if !published.scrubbed() {
            assert!(block_on(published.wait_until(EVER, |_| published.snapshot().is_some())));
            published.newest_scrubbed();
        }
    });
    join([committer, scrubber]);
    join(waiters);
}

/// Readers of live answers come to the newest commit, each time to a newer one, however they are overtaken.
pub fn a_live_answer_misses_nothing() {
    let published = stored(0, true);
    let committer = with(&published, |published| (1..=3).for_each(|sequence| drop(commit(published, sequence))));
    let readers = [(); 2].map(|()| {
        with(&published, |published| {
            let mut seen = 0;
            while seen < 3 {
                block_on(published.newer_than(seen)).unwrap();
                let found = published.snapshot().unwrap().as_of().sequence;
                assert!(found > seen, "woken at {seen}, and found {found}");
                seen = found;
            }
        })
    });
    join([committer]);
    join(readers);
}

/// Two threads fail. Whoever waits for something learns of the end, by whatever way, only when the reason is there; and it is
/// the same one for ever.
pub fn whoever_learns_of_the_end_learns_why() {
    let (status, source) = watch::channel(SourceStatus { state: SourceState::Live, ..SourceStatus::default() });
    let published = Published::new(as_of(1), catalog(1), true, true);
    let shared = Arc::new(Shared::new(published, source, SourceIdentity::default()));
    let (answer_in, answer) = mpsc::channel::<()>();
    let fails = |code: &'static str, first: fn(&Published)| {
        let shared = Arc::clone(&shared);
        move || {
            first(&shared.published);
            shared.halt(code, "it failed", "restart");
        }
    };
    let write_fails = fails("write_failed", |published| drop(commit(published, 2)));
    let committer = thread::spawn(move || {
        write_fails();
        // Whoever waits for an answer of it finds the channel closed.
        drop(answer_in);
    });
    let durability = thread::spawn(fails("sync_failed", |_| {}));
    let reasons: Arc<Mutex<Vec<Unavailable>>> = Arc::default();
    let learns = |how: Box<dyn FnOnce(&Shared) + Send>| {
        let (shared, reasons) = (Arc::clone(&shared), Arc::clone(&reasons));
        thread::spawn(move || {
            how(&shared);
            let reason = shared.published.halted().expect("nobody knows why").clone();
            assert_eq!(shared.snapshot().err().as_ref(), Some(&reason));
            reasons.lock().unwrap().push(reason);
        })
    };
    let callers = [
        learns(Box::new(|shared| assert!(!block_on(shared.published.wait_for(lsn(9), EVER))))),
        learns(Box::new(|shared| while block_on(shared.published.newer_than(2)).is_ok() {})),
        learns(Box::new(move |_| assert!(answer.recv().is_err()))),
    ];
    join([committer, durability]);
    join(callers);
    let reasons = reasons.lock().unwrap();
    assert!(reasons.windows(2).all(|two| two[0] == two[1]), "{reasons:?}");
    drop(status);
}

/// Watchers come and go while commits go on. Each finds the Snapshot of a position that upstream had not passed when it came;
/// and where none is left, nothing is kept but what is shown.
pub fn whoever_watches_finds_the_boundary() {
    const COMMITS: u64 = 4;
    let published = stored(0, true);
    let upstream = Arc::new(AtomicU64::new(1));
    let first = commit(&published, 1);
    let reached = Arc::clone(&upstream);
    let committer = with(&published, move |published| {
        let mut published_so_far = vec![first];
        for sequence in 2..=COMMITS {
            reached.store(sequence, Ordering::SeqCst);
            published_so_far.push(commit(published, sequence));
        }
        published_so_far
    });
    let watchers = [1, 2].map(|times| {
        let upstream = Arc::clone(&upstream);
        with(&published, move |published| {
            for _ in 0..times {
                let watch = BoundaryWatch::start(Arc::clone(published));
                let sequence = upstream.load(Ordering::SeqCst);
                // Between two transactions, where another one comes.
                let position = Lsn(lsn(sequence).0 + if sequence < COMMITS { 5 } else { 0 });
                let found = block_on(watch.at(position, EVER)).unwrap();
                assert_eq!(found.as_of().sequence, sequence, "of {position}");
            }
        })
    });
    let all = committer.join().unwrap();
    join(watchers);
    let left: Vec<u64> = all.iter().filter_map(Weak::upgrade).map(|snapshot| snapshot.as_of().sequence).collect();
    assert_eq!(left, [COMMITS], "kept for nobody");
}

/// After a start nothing is shown before the position that upstream had then is reached, and from then on always something, no
/// older than before.
pub fn after_a_start_nobody_is_taken_back() {
    const UPSTREAM: u64 = 3;
    let (status, source) = watch::channel(SourceStatus::default());
    let published = Published::new(as_of(1), catalog(1), true, false);
    let shared = Arc::new(Shared::new(published, source, SourceIdentity::default()));
    let connector = thread::spawn(move || {
        status.send_modify(|status| {
            (status.upstream_lsn_at_start, status.upstream_lsn) = (Some(lsn(UPSTREAM)), lsn(UPSTREAM));
            status.state = SourceState::Live;
        });
        status
    });
    let committer = with(&shared.published, |published| (2..=4).for_each(|sequence| drop(commit(published, sequence))));
    let scrubber = with(&shared.published, |published| published.newest_scrubbed());
    let readers = [(); 2].map(|()| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let mut seen = 0;
            for _ in 0..3 {
                match shared.snapshot() {
                    Ok(snapshot) => {
                        let found = snapshot.as_of().sequence;
                        assert!(found >= UPSTREAM && found >= seen, "at {found}, seen {seen}");
                        seen = found;
                    }
                    Err(why) => assert_eq!(seen, 0, "{why:?}"),
                }
            }
        })
    });
    drop(connector.join().unwrap());
    join([committer, scrubber]);
    join(readers);
    assert_eq!(shared.snapshot().map(|snapshot| snapshot.as_of().sequence), Ok(4));
}
