//! Processes: their CPU time and memory, as the kernel tells.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinHandle;

use crate::sql;

/// The unit of `/proc/PID/stat`, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time so far, in ticks, and whether the process has ended and waits to be waited for.
fn stat(pid: u32) -> Option<(u64, bool)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(u64, bool)> {
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?, fields.first() == Some(&"Z")))
}

/// CPU seconds of a running process.
pub fn cpu_seconds(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |(ticks, _)| ticks as f64 / TICKS_PER_SECOND)
}

/// CPU seconds of the children of a process that have ended.
pub fn reaped_cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit_once(") ").map(|(_, fields)| fields.split(' ').collect()).unwrap_or_default();
    let ticks = |field: usize| fields.get(field).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    (ticks(13) + ticks(14)) as f64 / TICKS_PER_SECOND
}

/// The processes that a process started and has not yet waited for.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// How often a thread gave up its processor to wait.
fn switches(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or_default()
}

/// CPU seconds and waits of a process' threads, by name, the busiest first; those below a hundredth of all left out.
pub fn threads(pid: u32) -> String {
    let mut by_name: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let name = text.split_once('(').and_then(|(_, rest)| Some(rest.rsplit_once(") ")?.0.to_owned()));
        if let (Some(name), Some((ticks, _))) = (name, parse_stat(&text)) {
            let (all_ticks, all_switches) = by_name.entry(name).or_default();
            *all_ticks += ticks;
            *all_switches += switches(&entry.path());
        }
    }
    let mut by_ticks: Vec<_> = by_name.into_iter().map(|(name, (ticks, switches))| (ticks, switches, name)).collect();
    by_ticks.sort_by(|a, b| b.cmp(a));
    let all: u64 = by_ticks.iter().map(|(ticks, ..)| ticks).sum();
    let shown = by_ticks.iter().filter(|(ticks, ..)| *ticks > 0 && ticks * 100 >= all);
    let shown = shown.map(|(ticks, switches, name)| {
        format!("{name} {:.2} s ({} k switches)", *ticks as f64 / TICKS_PER_SECOND, switches / 1_000)
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The most memory a running process has had, in MiB.
pub fn peak_memory(pid: u32) -> u64 {
    status(pid, "VmHWM:") / 1024
}

/// A number of `/proc/PID/status`; sizes are in KiB. 0 where there is no such process.
pub fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

/// Descriptors that a process has open.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Wall and CPU seconds of a program that must succeed, and what it printed, which must be little.
pub async fn timed(command: &mut Command) -> anyhow::Result<(f64, f64, String)> {
    let started = Instant::now();
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("{command:?}"))?;
    let ticks = loop {
        match stat(child.id()) {
            Some((ticks, true)) => break ticks,
            Some(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            None => break 0,
        }
    };
    let wall = started.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((wall, ticks as f64 / TICKS_PER_SECOND, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Watches the walsender of a slot, for its CPU time.
pub struct Walsender {
    ticks: Arc<AtomicU64>,
    watching: JoinHandle<anyhow::Result<()>>,
}

impl Walsender {
    /// From when somebody reads from the slot.
    pub async fn watch(url: &str, slot: &str) -> anyhow::Result<Self> {
        let client = sql::connect(url).await?;
        let active = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'");
        let ticks = Arc::new(AtomicU64::new(0));
        let last = Arc::clone(&ticks);
        let watching = tokio::spawn(async move {
            let pid = loop {
                if let Ok(pid) = sql::value(&client, &active).await?.parse::<u32>() {
                    break pid;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            while let Some((now, _)) = stat(pid) {
                last.store(now, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        });
        Ok(Walsender { ticks, watching })
    }

    /// Its CPU seconds.
    pub fn end(self) -> f64 {
        self.watching.abort();
        self.ticks.load(Ordering::Relaxed) as f64 / TICKS_PER_SECOND
    }
}
