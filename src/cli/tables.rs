//! Tables as wide as the terminal.

use std::io;

use super::globals::Globals;
use super::width::width;
use crate::parity::Report;
use crate::report::{self, table};

/// Columns of a table where there is no terminal, such as in the log of a job.
const WIDE: usize = 110;

/// Columns that a line of a table has; `None` where everything is to be shown, and nobody's terminal breaks it.
fn columns(verbose: bool) -> Option<usize> {
    let known = width(io::stdout());
    match verbose {
        true => known,
        false => known.or(Some(WIDE)),
    }
}

impl Globals {
    /// A table that fits the terminal.
    pub(super) fn table(&self, header: &[&str], rows: &[Vec<String>]) -> String {
        table::fitted(header, rows, columns(self.verbose))
    }

    /// A comparison: each output at its worst case, or all of it with --verbose.
    pub(super) fn parity(&self, parity: &Report) -> String {
        if self.verbose {
            let (header, rows) = report::parity_rows(parity);
            return self.table(&header, &rows);
        }
        let brief = report::brief(parity);
        let mut out = match brief.rows.is_empty() {
            true => String::new(),
            false => self.table(&brief.header, &brief.rows),
        };
        for note in brief.notes {
            out += &format!("  {note}\n");
        }
        out
    }
}
