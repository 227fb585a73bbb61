//! Malformed input for readers of bytes: known inputs, altered at random where it hurts, are fed to a reader that must neither
//! panic nor hang. Every execution has a random number generator of its own, so a seed and a number name one input.
//!
//! `TIDEMARK_SEED` is another run, `TIDEMARK_EXECUTIONS` so many of each reader.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Beyond it nothing new comes up.
const LONGEST: usize = 4_096;
/// Executions between two signs of life.
const STEP: u64 = 1_000;
/// Many times what so many take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Feeds so many altered inputs to a reader, which panics where something does not hold.
pub fn feed(name: &str, corpus: Vec<Vec<u8>>, executions: u64, reader: impl Fn(&[u8]) + Send + 'static) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TIDEMARK_SEED").unwrap_or(0);
    let executions = number("TIDEMARK_EXECUTIONS").unwrap_or(executions);
    let (alive, signs) = channel();
    let began = Instant::now();
    let of = name.to_owned();
    let feeding = std::thread::spawn(move || {
        for execution in 0..executions {
            let input = altered(&corpus, seed, execution);
            if catch_unwind(AssertUnwindSafe(|| reader(&input))).is_err() {
                panic!("{of}: seed {seed}, execution {execution}: {:?}", String::from_utf8_lossy(&input));
            }
            if execution % STEP == 0 {
                let _ = alive.send(execution);
            }
        }
    });
    let mut last = 0;
    loop {
        match signs.recv_timeout(PATIENCE) {
            Ok(execution) => last = execution,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{name}: seed {seed}: hangs within {STEP} executions after {last}")
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(feeding.join().is_ok(), "{name}: see above");
    println!("{name}: {executions} executions from seed {seed} in {:.1?}", began.elapsed());
}

fn altered(corpus: &[Vec<u8>], seed: u64, execution: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(execution);
    let mut input = corpus.choose(&mut rng).unwrap().clone();
    for _ in 0..rng.random_range(1..=4) {
        alter(&mut rng, &mut input, corpus);
    }
    input.truncate(LONGEST);
    input
}

fn alter(rng: &mut ChaCha8Rng, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let (from, to) = stretch(rng, input.len());
    match rng.random_range(0..10) {
        0..=1 if !input.is_empty() => {
            let at = rng.random_range(0..input.len());
            input[at] ^= 1 << rng.random_range(0..8);
        }
        2 => input.truncate(from),
        3 => drop(input.drain(from..to)),
        4 => {
            let copied = input[from..to].to_vec();
            input.splice(from..from, copied);
        }
        5 => {
            let random: Vec<u8> = (0..rng.random_range(1..9)).map(|_| rng.random()).collect();
            input.splice(from..from, random);
        }
        6 => {
            let other = corpus.choose(rng).unwrap();
            let (of, until) = stretch(rng, other.len());
            input.splice(from..to, other[of..until].iter().copied());
        }
        7 => {
            let other = corpus.choose(rng).unwrap();
            let (of, _) = stretch(rng, other.len());
            input.truncate(from);
            input.extend_from_slice(&other[of..]);
        }
        _ => put_length(rng, input, from),
    }
}

/// A part of something so long.
fn stretch(rng: &mut ChaCha8Rng, length: usize) -> (usize, usize) {
    let from = rng.random_range(0..=length);
    let most = if rng.random_bool(0.8) { (from + 16).min(length) } else { length };
    (from, rng.random_range(from..=most))
}

/// Writes a number where a length or a count may stand, of any width and either order of bytes.
fn put_length(rng: &mut ChaCha8Rng, input: &mut [u8], at: usize) {
    let length = input.len() as u64;
    let near = [0, 1, length, length.wrapping_sub(1), length + 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, u64::MAX];
    let number = near.choose(rng).copied().unwrap();
    let width = *[1, 2, 4, 8].choose(rng).unwrap();
    let mut bytes = number.to_le_bytes()[..width].to_vec();
    if rng.random_bool(0.7) {
        bytes.reverse();
    }
    for (place, byte) in input.iter_mut().skip(at).zip(bytes) {
        *place = byte;
    }
}
