//! `kiln doctor`

use super::{Failure, Globals, print, print_json};
use crate::doctor;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let found = doctor::examine(globals.ort_lib.as_deref(), globals.trt_lib.as_deref());
    if args.json {
        print_json(&found)?;
    } else {
        let mut text = format!("kiln {}\n", env!("CARGO_PKG_VERSION"));
        for f in &found {
            let mark = if f.found { "✓" } else { "✗" };
            text += &format!("\n{mark} {}: {}\n    for {}\n", f.what, f.detail, f.enables);
            if let Some(mend) = &f.mend {
                text += &format!("    mend: {mend}\n");
            }
        }
        print(&text)?;
    }
    // A GPU is a convenience, a runtime is not.
    let missing = found.iter().any(|f| !f.found && f.mend.is_some());
    Ok(if missing { 5 } else { 0 })
}
