//! Compiles many models in one process: the middle of `make conformance`.
//!
//! Reads lines `MODE MODEL BUNDLE`, separated by tabs, and answers each with one line of JSON as soon as it is done, so
//! that whoever runs this knows which model was in work if the process dies. Modes are those of `options`. Nothing is
//! proved here unless the mode says so: what a proof would refuse is to be seen by the one who compares.

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kiln::compile::{CompileError, Options, compile};
use kiln::engine::ComputeCapability;
use kiln::talk::Silent;
use kiln::targets::Targets;

fn options(mode: &str, model: &str) -> Result<Options, String> {
    let mut options = Options {
        engine: false,
        check: false,
        latency: Some(false),
        targets: Some(Targets::Cpu),
        ..Options::new(model)
    };
    match mode {
        "cpu" => {}
        "standard" => options.standard = true,
        "tensorrt" => {
            let capability: ComputeCapability = "sm_89".parse().map_err(|e| format!("{e}"))?;
            options.targets = Some(Targets::Engines(vec![capability]));
        }
        // As `kiln compile --target cpu` does by itself.
        "proved" => options.check = true,
        other => return Err(format!("there is no mode '{other}'")),
    }
    Ok(options)
}

fn answer(line: &str) -> Result<serde_json::Value, String> {
    let mut fields = line.split('\t');
    let (Some(mode), Some(model), Some(bundle)) = (fields.next(), fields.next(), fields.next())
    else {
        return Err(format!("'{line}' is no line of three fields"));
    };
    let mut options = options(mode, model)?;
    options.output = Some(bundle.into());
    let done = catch_unwind(AssertUnwindSafe(|| compile(&options, &Silent)));
    Ok(match done {
        Ok(Ok(outcome)) => {
            let passes = outcome.manifest.passes.iter().map(|p| p.applications);
            serde_json::json!({"status": "compiled", "applications": passes.sum::<usize>()})
        }
        Ok(Err(e)) => {
            let status = match e {
                CompileError::NotTheSame { .. } => "refused by the proof",
                _ => "unsupported",
            };
            serde_json::json!({"status": status, "why": e.to_string(), "code": kiln::cli::exit::code(e.fault())})
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            serde_json::json!({"status": "crashed", "why": text.unwrap_or("a panic without text")})
        }
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        writeln!(out, "{}", answer(&line?)?)?;
        out.flush()?;
    }
    Ok(())
}
