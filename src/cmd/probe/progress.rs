//! What is being checked right now, where there is a terminal.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Between two turns of the spinner.
const TURN: Duration = Duration::from_millis(100);
/// Checks that are named while more run.
const NAMED: usize = 4;

/// One line that names the checks under way.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    done: usize,
    running: Vec<String>,
}

impl Progress {
    /// Draws on the terminal, if there is one.
    pub(super) fn new(bars: &MultiProgress) -> Self {
        let bar = bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TURN);
        Self {
            bar,
            state: Arc::default(),
        }
    }

    /// A check began.
    pub(super) fn begin(&self, group: &str, check: &str) {
        self.change(|state| state.running.push(format!("{group} {check}")));
    }

    /// A check ended.
    pub(super) fn end(&self, group: &str, check: &str) {
        self.change(|state| {
            let name = format!("{group} {check}");
            if let Some(at) = state.running.iter().position(|running| *running == name) {
                state.running.remove(at);
            }
            state.done += 1;
        });
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let named: Vec<_> = state.running.iter().take(NAMED).map(String::as_str).collect();
        let more = state.running.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        self.bar
            .set_message(format!("{} checked; {}{more}", state.done, named.join(", ")));
    }
}
