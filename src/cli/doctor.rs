//! `kiln doctor`

use super::{Failure, Globals, print, print_json};
use crate::doctor::{self, Examination};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let found = doctor::examine(globals.ort_lib.as_deref(), globals.trt_lib.as_deref());
    match args.json {
        true => print_json(&found)?,
        false => print(&text(&found))?,
    }
    // A GPU is a convenience, a runtime is not; and what is installed should work.
    Ok(if found.pass() { 0 } else { 5 })
}

fn text(found: &Examination) -> String {
    let mut text = format!("kiln {}\n", found.kiln);
    for f in &found.findings {
        let mark = match (f.found, f.needed) {
            (true, _) => "✓",
            (false, true) => "✗",
            (false, false) => "–",
        };
        text += &format!("\n{mark} {}: {}\n    for {}\n", f.what, f.detail, f.enables);
        if let Some(mend) = &f.mend {
            text += &format!("    fix: {mend}\n");
        }
    }
    text
}
