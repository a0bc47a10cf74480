//! `kiln diff`

use std::path::PathBuf;

use super::{Failure, Globals, help, print_json};
use crate::diff::diff;
use crate::report::{self, diff as page};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// A model or bundle: an ONNX file, ONNX text (.onnxtxt), or a bundle's folder.
    a: PathBuf,
    /// The one that it is compared with.
    b: PathBuf,
    /// Write a report: .md, .html, .json, or .xml (JUnit).
    ///
    /// Can be given several times.
    #[arg(long, value_name = "FILE", value_parser = super::report_file(), help_heading = help::OUTPUT)]
    report: Vec<report::Target>,
    /// Print JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
}

/// The exit code is that of `diff`: 0 where the two are the same, 1 where they are not.
pub(super) fn run(globals: &Globals, args: &Args) -> Result<u8, Failure> {
    let found = diff(&args.a, &args.b)?;
    for target in &args.report {
        target.write(&page::Page(&found))?;
    }
    match args.json {
        true => print_json(&found)?,
        false => {
            let table = |header: &[&str], rows: &[Vec<String>]| globals.table(header, rows);
            globals.show(&page::text(&found, &table))?;
        }
    }
    Ok(u8::from(!found.same))
}
