//! Progress reporting: a line that moves on a terminal, and elsewhere a line for each stage.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::width;
use crate::engine;
use crate::talk::Talk;

/// How often the share that is done is printed where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Draws on stderr where that is a terminal, prints a line for each stage where it is none; and warnings in any case.
pub(super) struct Terminal {
    bar: ProgressBar,
    quiet: bool,
    /// Stages are lines.
    lines: bool,
    start: Instant,
    now: Mutex<Now>,
}

/// What is being done.
#[derive(Default)]
struct Now {
    stage: String,
    /// The stages that are lines already.
    printed: Vec<String>,
    /// When the share that is done was printed last.
    shared: Option<Instant>,
    /// Phases of the engine's build with their steps.
    phases: Vec<(String, u32)>,
}

impl Terminal {
    pub fn new(quiet: bool) -> Terminal {
        let bar = match quiet {
            true => ProgressBar::hidden(),
            false => ProgressBar::new_spinner(),
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Terminal {
            bar,
            quiet,
            lines: !quiet && !io::stderr().is_terminal(),
            start: Instant::now(),
            now: Mutex::default(),
        }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of a log, with the seconds since the beginning.
    fn line(&self, what: &str) {
        // A closed stderr is no reason to fail.
        let _ = writeln!(
            io::stderr(),
            "[{:.1} s] {what}",
            self.start.elapsed().as_secs_f64()
        );
    }

    fn print(&self, text: &str) {
        let text = width::wrapped(text, width::width(io::stderr()));
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{text}")));
    }
}

impl Talk for Terminal {
    fn stage(&self, what: &str) {
        tracing::info!(target: "kiln", "{what}");
        self.bar.set_message(what.to_string());
        let mut now = self.now();
        // Parts of a stage have its name in front of a colon.
        let (head, part) = match what.split_once(": ") {
            Some((head, _)) => (head, true),
            None => (what, false),
        };
        let known = now.printed.iter().any(|p| p == head);
        let again = now.printed.last().is_some_and(|p| p == head) || (part && known);
        if self.lines && !again {
            self.line(head);
            now.printed.push(head.to_string());
        }
        now.stage = what.to_string();
        now.shared = None;
    }

    fn done(&self, done: usize, of: usize) {
        let mut now = self.now();
        let what = format!("{}, {done} of {of} done", now.stage);
        tracing::debug!(target: "kiln", "{what}");
        let since = *now.shared.get_or_insert_with(Instant::now);
        if self.lines && since.elapsed() >= EVERY {
            self.line(&what);
            now.shared = Some(Instant::now());
        }
        self.bar.set_message(what);
    }

    fn warn(&self, what: &str) {
        tracing::warn!(target: "kiln", "{what}");
        if !self.quiet {
            self.print(&format!("warning: {what}"));
        }
    }

    fn note(&self, what: &str) {
        tracing::info!(target: "kiln", "{what}");
        if !self.quiet {
            self.print(what);
        }
    }

    fn engine(&self) -> &dyn engine::Progress {
        self
    }
}

impl engine::Progress for Terminal {
    fn phase_start(&self, name: &str, _: Option<&str>, steps: u32) {
        tracing::debug!(target: "tensorrt", "{name} begins, {steps} steps");
        self.now().phases.push((name.to_string(), steps));
        self.bar.set_message(format!("engine: {name}"));
    }

    fn step(&self, name: &str, step: u32) {
        let steps = self
            .now()
            .phases
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, s)| *s);
        if let Some(steps) = steps {
            self.bar
                .set_message(format!("engine: {name} {}/{steps}", step + 1));
        }
    }

    fn phase_finish(&self, name: &str) {
        tracing::debug!(target: "tensorrt", "{name} ends");
        self.now().phases.retain(|(n, _)| n != name);
    }
}
