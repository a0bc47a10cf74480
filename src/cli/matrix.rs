//! `kiln matrix`

use std::path::PathBuf;

use super::device::DeviceArgs;
use super::progress::Terminal;
use super::{Failure, Globals, exit, print, print_json};
use crate::matrix::collect::collect;
use crate::matrix::{self, Engine, MatrixError, Plan, Run};
use crate::options::Options;
use crate::report;

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// A plan (.yaml): its cells are printed as JSON.
    #[arg(required = true)]
    plan: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Print the cells of a plan as JSON: names, commands, what they need, and what they write.
    Cells { plan: PathBuf },
    /// Compile one cell, unless it was done; one that failed or was killed is done again.
    Run {
        plan: PathBuf,
        /// Its name, or its number.
        cell: String,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Merge what the cells left into one report. Exit code 1: not all of them passed.
    Collect {
        plan: PathBuf,
        /// Write a report: .md, .html, .json, or .xml (JUnit). May be given several times.
        #[arg(long, value_name = "FILE", value_parser = super::report_file())]
        report: Vec<report::Target>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a script that has an engine run every cell.
    Template { engine: Engine, plan: PathBuf },
}

impl From<MatrixError> for Failure {
    fn from(e: MatrixError) -> Failure {
        Failure::usage(e)
    }
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let what = match (args.what, args.plan) {
        (Some(what), _) => what,
        (None, plan) => What::Cells {
            plan: plan.unwrap_or_default(),
        },
    };
    match what {
        What::Cells { plan } => print_json(&Plan::read(&plan)?.cells).map(|()| 0),
        What::Template { engine, plan } => {
            print(&Plan::read(&plan)?.template(engine))?;
            Ok(0)
        }
        What::Run { plan, cell, device } => one(globals, &plan, &cell, &device),
        What::Collect { plan, report, json } => {
            let fleet = collect(&Plan::read(&plan)?);
            for target in &report {
                target.write(&fleet)?;
            }
            match json {
                true => print_json(&fleet)?,
                false => {
                    let (header, rows) = fleet.overview();
                    let header: Vec<&str> = header.iter().map(String::as_str).collect();
                    globals.show(&globals.table(&header, &rows))?;
                    globals.show(&format!("\n  {}\n", fleet.sentence()))?;
                }
            }
            Ok(if fleet.pass() { 0 } else { 1 })
        }
    }
}

fn one(
    globals: &Globals,
    plan: &std::path::Path,
    cell: &str,
    device: &DeviceArgs,
) -> Result<u8, Failure> {
    let plan = Plan::read(plan)?;
    let cell = plan.find(cell)?;
    let how = Options {
        device: device.request(),
        ort_lib: globals.ort_lib.clone(),
        trt_lib: globals.trt_lib.clone(),
        builder: Some(super::this_program()),
        ..Options::new("")
    };
    let terminal = Terminal::new(globals.quiet);
    let done = matrix::run(&plan, cell, &how, exit::code, &terminal);
    terminal.clear();
    let (ended, when) = match done? {
        Run::Before(ended) => (ended, "was done before"),
        Run::Now(ended) => (ended, "done"),
    };
    if let Some(error) = &ended.error {
        globals.fail(format!("{}: {error}", ended.id));
    } else {
        globals.say(format!("{}: {when}, {:.1} s", ended.id, ended.seconds));
    }
    Ok(ended.exit_code)
}
