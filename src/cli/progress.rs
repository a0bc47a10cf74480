//! A line that moves while something takes long.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::engine;
use crate::talk::Talk;

/// Draws on stderr where that is a terminal; warnings are printed in any case.
pub(super) struct Terminal {
    bar: ProgressBar,
    quiet: bool,
    phases: Mutex<Vec<(String, u32)>>,
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
            phases: Mutex::default(),
        }
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Talk for Terminal {
    fn stage(&self, what: &str) {
        self.bar.set_message(what.to_string());
    }

    fn warn(&self, what: &str) {
        if !self.quiet {
            // A closed stderr is no reason to fail.
            self.bar
                .suspend(|| drop(writeln!(io::stderr(), "warning: {what}")));
        }
    }

    fn note(&self, what: &str) {
        if !self.quiet {
            self.bar.suspend(|| drop(writeln!(io::stderr(), "{what}")));
        }
    }

    fn engine(&self) -> &dyn engine::Progress {
        self
    }
}

impl engine::Progress for Terminal {
    fn phase_start(&self, name: &str, _: Option<&str>, steps: u32) {
        if let Ok(mut phases) = self.phases.lock() {
            phases.push((name.to_string(), steps));
        }
        self.bar.set_message(format!("engine: {name}"));
    }

    fn step(&self, name: &str, step: u32) {
        let phases = self.phases.lock();
        let steps = phases
            .ok()
            .and_then(|p| p.iter().find(|(n, _)| n == name).map(|(_, s)| *s));
        if let Some(steps) = steps {
            self.bar
                .set_message(format!("engine: {name} {}/{steps}", step + 1));
        }
    }

    fn phase_finish(&self, name: &str) {
        if let Ok(mut phases) = self.phases.lock() {
            phases.retain(|(n, _)| n != name);
        }
    }
}
