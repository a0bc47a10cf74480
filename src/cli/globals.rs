//! What every verb is given, and how it talks: to the user on stderr, with data on stdout.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use super::failure::Failure;
use super::{colour, width};

/// What every verb is given.
#[derive(Debug)]
pub(super) struct Globals {
    pub(super) ort_lib: Option<PathBuf>,
    pub(super) trt_lib: Option<PathBuf>,
    pub(super) log: Option<PathBuf>,
    pub(super) quiet: bool,
    pub(super) verbose: bool,
}

impl Globals {
    /// Talks to the user, on stderr.
    pub(super) fn say(&self, line: impl fmt::Display) {
        tracing::info!(target: "kiln", "{line}");
        if !self.quiet {
            told(&line.to_string());
        }
    }

    /// Says why the exit code will not be 0, quiet or not.
    pub(super) fn fail(&self, line: impl fmt::Display) {
        tracing::error!(target: "kiln", "{line}");
        told(&format!("kiln: {line}"));
    }

    /// Prints what a command found, for people.
    pub(super) fn show(&self, text: &str) -> Result<(), Failure> {
        let text = width::wrapped(text, terminal());
        match (self.quiet, colour::wanted()) {
            (true, _) => Ok(()),
            (_, true) => print(&colour::paint(&text)),
            (_, false) => print(&text),
        }
    }
}

/// Columns of the terminal that stdout is, if it is one.
fn terminal() -> Option<usize> {
    width::width(io::stdout())
}

/// Lines on stderr, as wide as its terminal.
pub(super) fn told(text: &str) {
    let text = width::wrapped(text, width::width(io::stderr()));
    // A closed stderr is no reason to fail.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Data goes to stdout, so that it can be piped.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::usage)?;
    print(&(text + "\n"))
}
