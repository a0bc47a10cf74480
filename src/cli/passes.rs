//! `kiln passes`

use clap::Subcommand;
use kiln_passes::registry;

use serde_json::json;

use super::{Failure, print, print_json, table::table};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum What {
    /// List the passes and the default pipeline.
    List,
    /// Say what a pass does, with the patterns it looks for.
    Explain { name: String },
}

pub(super) fn run(args: Args) -> Result<u8, Failure> {
    match args.what.unwrap_or(What::List) {
        What::List if args.json => {
            let passes: Vec<_> = (registry::ALL.iter())
                .map(|p| json!({"name": p.name(), "results": p.exactness().to_string(), "about": p.about()}))
                .collect();
            print_json(&passes)?;
        }
        What::List => {
            let rows: Vec<Vec<String>> = (registry::ALL.iter())
                .map(|p| vec![p.name().into(), p.exactness().to_string(), p.about().into()])
                .collect();
            let names = |steps: &[kiln_passes::Step]| {
                let shown: Vec<String> = (steps.iter())
                    .map(|s| match s {
                        kiln_passes::Step::Run(p) => p.name().to_string(),
                        kiln_passes::Step::Enter(phase) => format!("[{phase:?}]"),
                    })
                    .collect();
                shown.join(" ")
            };
            print(&table(&["pass", "results", "what it does"], &rows))?;
            print(&format!("\n  default: {}\n", names(registry::DEFAULT)))?;
            print(&format!("  --int4:  {}\n", names(registry::INT4)))?;
            print(&format!("  --fp16:  {}\n", names(registry::FP16)))?;
            print(&format!("  --bf16:  {}\n", names(registry::BF16)))?;
        }
        What::Explain { name } => {
            let pass = registry::find(&name).map_err(Failure::usage)?;
            if args.json {
                print_json(&json!({
                    "name": pass.name(), "results": pass.exactness().to_string(), "about": pass.about(), "details": pass.details()
                }))?;
                return Ok(0);
            }
            print(&format!(
                "{}: {} ({})\n\n{}\n",
                pass.name(),
                pass.about(),
                pass.exactness(),
                pass.details()
            ))?;
        }
    }
    Ok(0)
}
