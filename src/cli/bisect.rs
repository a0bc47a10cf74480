//! `kiln bisect`

use super::conversion::Conversion;
use super::device::DeviceArgs;
use super::progress::Terminal;
use super::{Failure, Globals, help, print_json};
use crate::bisect::{self, Finding, Suspects};
use crate::compile::Options;
use crate::pipeline;
use crate::recipe::{self, Recipe};
use crate::report;
use kiln_passes::registry;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) conversion: Conversion,
    /// Print JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = help::DIAGNOSTICS)]
    passes: Option<String>,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let recipe = args.conversion.recipe(Recipe {
        passes: args.passes,
        ..Recipe::default()
    })?;
    let options = Options {
        device: args.device.request(),
        ort_lib: globals.ort_lib.clone(),
        check: true,
        ..recipe::resolve(&recipe).map_err(Failure::usage)?
    };
    let tolerance = pipeline::tolerance(&options, None)?;
    let steps = pipeline::steps(&options)?;
    let suspects = Suspects {
        steps: &steps,
        finish: registry::LOWER,
    };
    let terminal = Terminal::new(globals.quiet);
    let done = bisect::bisect(&options, suspects, &tolerance, &terminal);
    terminal.clear();
    let bisection = done?;
    match args.json {
        true => print_json(&bisection)?,
        false => globals.show(&report::bisection::text(&bisection))?,
    }
    Ok(match bisection.finding {
        Finding::Passes { .. } => 0,
        Finding::NotItself { .. } | Finding::Found(_) => 1,
    })
}
