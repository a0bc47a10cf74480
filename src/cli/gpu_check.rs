//! `kiln gpu-check`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;

use super::progress::Terminal;
use super::{Failure, Globals};
use crate::gpu_check::{self, GpuCheckError, Kiln, Limits, Request};

#[derive(clap::Args, Debug)]
pub(super) struct GpuCheckArgs {
    /// A folder with more models (.onnx) to check.
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Where <gpu>.json goes.
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    results: PathBuf,
    /// Where models and bundles go in the meantime, and stay [default: a temporary folder].
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// The CUDA device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
    /// What one step may take; a step that takes longer is stopped, and is a row that says so.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    step_limit: u64,
    /// What all steps together may take: those that come later are not run, which their rows say.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Run every step on the CPU, to see that it runs. Nothing that it measures is a GPU's.
    #[arg(long)]
    dry_run: bool,
    /// Write the page of all records in --results into this file instead, and measure nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["models", "work", "dry_run"])]
    page: Option<PathBuf>,
    /// The Python whose torch is timed as a comparison.
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,
}

pub(super) fn run(globals: &Globals, args: GpuCheckArgs) -> Result<u8, Failure> {
    if let Some(page) = &args.page {
        let written = gpu_check::page(&args.results).and_then(|text| std::fs::write(page, text));
        written.map_err(|e| Failure::usage(anyhow!("{}: {e}", page.display())))?;
        return Ok(0);
    }
    let temporary = tempfile::tempdir()?;
    let request = Request {
        models: args.models,
        results: args.results,
        work: args.work.unwrap_or_else(|| temporary.path().to_owned()),
        dry_run: args.dry_run,
        device: args.device,
        python: Some(args.python),
        ort_lib: globals.ort_lib.clone(),
    };
    let mut before = Vec::new();
    for (option, path) in [
        ("--ort-lib", &globals.ort_lib),
        ("--trt-lib", &globals.trt_lib),
        ("--log", &globals.log),
    ] {
        if let Some(path) = path {
            before.extend([option.to_string(), path.display().to_string()]);
        }
    }
    let kiln = Kiln {
        executable: std::env::current_exe()?,
        globals: before,
        limits: Limits::from_now(
            Duration::from_secs(args.step_limit),
            args.limit.map(Duration::from_secs),
        ),
    };
    let terminal = Terminal::new(globals.quiet);
    let done = gpu_check::check(&request, &kiln, &terminal);
    terminal.clear();
    let (record, path) = match done {
        Ok(done) => done,
        Err(e @ GpuCheckError::NoDevice { .. }) => {
            return Err(Failure {
                code: 5,
                error: e.into(),
            });
        }
        Err(e) => return Err(Failure::usage(e)),
    };
    let (header, rows) = record.table();
    let (forms_header, forms) = gpu_check::forms_table(&record.forms);
    let (aims_header, aims) = gpu_check::aims_table(&gpu_check::aims(&record));
    let of = (record.gpu.as_deref()).unwrap_or("a dry run on the CPU: no measurement of a GPU");
    globals.show(&format!(
        "{of}, batch {}, {} tokens\n\n{}\n{}\n{}\n  written to {}\n",
        record.batch,
        record.seq,
        globals.table(&header, &rows),
        globals.table(&forms_header, &forms),
        globals.table(&aims_header, &aims),
        path.display()
    ))?;
    Ok(u8::from(!record.pass()))
}
