//! Where threads run. Those of a simulation wait for one another at each step: on one processor that is a change of thread, on two a
//! wake-up across them, and takes twice as long.

use rustix::process::nice;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps this thread, and those that it starts from now on, on one of the processors that are this process's. Where that cannot be
/// had it only goes slower.
pub fn stay_on(index: usize) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let ours: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor)).collect();
    let mut one = CpuSet::new();
    one.set(ours[index % ours.len()]);
    let _ = sched_setaffinity(None, &one);
}

/// Lets everybody else go first. A simulation holds its own time: how long it takes is nothing to it.
pub fn be_last() {
    let _ = nice(10);
}
