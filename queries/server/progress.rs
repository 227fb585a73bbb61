//! What is shown while something takes long: on standard error, and only where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// How often what moves is drawn.
const TICK: Duration = Duration::from_millis(120);

/// Runs something that does not tell how far it is.
pub fn waiting<R>(what: &'static str, run: impl FnOnce() -> R) -> R {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_style(style("{spinner} {msg} {elapsed}"));
    spinner.set_message(what);
    spinner.enable_steady_tick(TICK);
    let result = run();
    spinner.finish_and_clear();
    result
}

/// How far an aggregate is filled.
pub struct Filling(ProgressBar);

impl Filling {
    /// Of this aggregate.
    pub fn of(name: &str) -> Filling {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {msg} [{bar:30}] {human_pos} of about {human_len} rows, {eta} to go"));
        bar.set_message(name.to_owned());
        Filling(bar)
    }

    /// It is so far: `progress` of `/backfill`.
    pub fn show(&self, progress: &Value) {
        let rows = |name: &str| progress.get(name).and_then(Value::as_u64).unwrap_or_default();
        self.0.set_length(rows("rows_estimated").max(rows("rows_done")));
        self.0.set_position(rows("rows_done"));
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A template that cannot be read leaves the library's own.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
