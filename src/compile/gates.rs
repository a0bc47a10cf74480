//! Gates on latency and size; parity has its own.

use super::{CompileError, Options};
use crate::check::{Multiplication, Precision};
use crate::engine_parity::NotRun;
use crate::manifest::Manifest;
use crate::nvidia::driver;
use crate::report;

/// Whether the gates can pass on this machine at all, before any work is done.
///
/// # Errors
/// [`CompileError::Gates`] where an engine must run and nothing could.
pub(super) fn possible(options: &Options) -> Result<(), CompileError> {
    if !options.gates.engine_parity {
        return Ok(());
    }
    let why = match (options.engine, options.check, driver::probe()) {
        (false, ..) => NotRun::no_engine(),
        (_, false, _) => NotRun::unchecked(),
        (_, _, Err(_)) => NotRun::no_device(),
        (true, true, Ok(_)) => return Ok(()),
    };
    Err(CompileError::Gates {
        model: options.model.clone(),
        failed: format!("engine parity: not run, {}", why.0),
    })
}

/// Why the engine does not multiply as it must, or why that is not known.
fn lacks(asked: Precision, m: &Manifest) -> Option<String> {
    let Some(engine) = &m.engine else {
        return Some(format!("{asked}: no engine was built"));
    };
    let multiplied = Multiplication::of(&engine.kernels, &engine.otherwise);
    let why = multiplied.lacks(asked)?;
    Some(format!("{asked}: {why}"))
}

/// # Errors
/// [`CompileError::Gates`] with all that failed.
pub(super) fn pass(options: &Options, m: &Manifest) -> Result<(), CompileError> {
    let gates = &options.gates;
    let mut failed = Vec::new();
    if let Some(limit) = gates.latency_ratio {
        match m.latency.as_ref().and_then(|l| l.ratios.first()) {
            None => failed.push("the latency was not measured, and the gate wants it".to_string()),
            Some(ratio) => {
                let found = 1.0 / ratio.speedup;
                // Noise is no reason to fail: the interval must be beyond the limit.
                let least = ratio.interval.map_or(found, |i| 1.0 / i.high);
                if least > limit {
                    failed.push(format!(
                        "the latency is {found:.3} of the original's, the limit {limit}"
                    ));
                }
            }
        }
    }
    if let (true, Some(why)) = (gates.engine_parity, m.engine_parity.not_run()) {
        failed.push(format!("engine parity: not run, {why}"));
    }
    if let Some(asked) = gates.precision {
        failed.extend(lacks(asked, m));
    }
    let bytes = report::model_bytes(m);
    if let Some(limit) = gates.bytes.filter(|&limit| bytes > limit) {
        failed.push(format!("the model has {bytes} bytes, the limit is {limit}"));
    }
    let ratio = bytes as f64 / m.source.bytes.max(1) as f64;
    if let Some(limit) = gates.bytes_ratio.filter(|&limit| ratio > limit) {
        failed.push(format!(
            "the model has {ratio:.3} of the original's size, the limit is {limit}"
        ));
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(CompileError::Gates {
            model: options.model.clone(),
            failed: failed.join("; "),
        }),
    }
}
