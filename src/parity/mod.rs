//! Parity: does a candidate still compute what its reference computes?
//!
//! [`compare`] runs two sessions on the same inputs, measures every output ([`metrics`]) and holds the numbers
//! against a named [`Tolerance`]. Inputs are made ([`make`]) or come from a file ([`from_npz`]).

mod inputs;
mod metrics;
mod npy;
pub mod npz;
mod number;
mod report;
mod tolerance;

use std::path::Path;

use kiln_graph::Tensor;

use crate::runtime::{self, Session};

pub use inputs::{
    INPUT_PREFIX, InputError, InputKind, InputSpec, OUTPUT_PREFIX, from_npz, make,
};
pub use metrics::{FloatMetrics, Metrics, Nonfinite, metrics};
pub use npz::{Npz, NpzError};
pub use report::{CaseReport, Comparison, OutputReport, Port, Report, Worst, compare_outputs};
pub use tolerance::{Failure, Limits, Preset, Tolerance, ToleranceError, Verdict};

/// Inputs under a name.
#[derive(Clone, Debug)]
pub struct Case {
    /// `smallest`, `typical`, `largest`, or the file the inputs came from.
    pub name: String,
    pub inputs: Vec<(String, Tensor)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ParityError {
    #[error("case {case}: the {side} did not run: {source}")]
    Run {
        case: String,
        side: Side,
        source: runtime::Error,
    },
    #[error("the tolerance names the output \"{output}\", which the model does not have; it has: {has}")]
    UnknownOutput { output: String, has: String },
}

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Reference,
    Candidate,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Reference => "reference",
            Side::Candidate => "candidate",
        })
    }
}

/// Runs both sessions on every case and compares their outputs by name.
///
/// For honest FP16 and BF16 numerics both sessions must have optimization disabled.
///
/// # Errors
/// When a session refuses the inputs or fails, and when the tolerance has limits for an output that the reference
/// does not have. Outputs that differ, are missing or have another shape are no error but part of the report.
pub fn compare(
    reference: &mut Session,
    candidate: &mut Session,
    cases: &[Case],
    tolerance: &Tolerance,
) -> Result<Report, ParityError> {
    refuse_unknown_outputs(reference, tolerance)?;
    let cases = cases
        .iter()
        .map(|case| {
            let expected = run(reference, case, Side::Reference)?;
            let found = run(candidate, case, Side::Candidate)?;
            Ok(compare_outputs(&case.name, &case.inputs, &expected, &found, tolerance))
        })
        .collect::<Result<_, ParityError>>()?;
    Ok(Report {
        tolerance: tolerance.clone(),
        cases,
    })
}

fn refuse_unknown_outputs(reference: &Session, tolerance: &Tolerance) -> Result<(), ParityError> {
    let outputs = reference.outputs();
    let unknown = |output: &&String| !outputs.iter().any(|o| o.name == **output);
    match tolerance.overrides.iter().map(|(output, _)| output).find(unknown) {
        None => Ok(()),
        Some(output) => {
            let names: Vec<_> = outputs.iter().map(|o| o.name.as_str()).collect();
            Err(ParityError::UnknownOutput {
                output: output.clone(),
                has: names.join(", "),
            })
        }
    }
}

fn run(
    session: &mut Session,
    case: &Case,
    side: Side,
) -> Result<Vec<(String, Tensor)>, ParityError> {
    session.run(&case.inputs).map_err(|source| ParityError::Run {
        case: case.name.clone(),
        side,
        source,
    })
}

/// Writes a case's inputs and outputs to an `.npz` file, as `in.NAME` and `out.NAME`, so that it can be run again.
///
/// # Errors
/// When the file cannot be written.
pub fn save(
    path: &Path,
    inputs: &[(String, Tensor)],
    outputs: &[(String, Tensor)],
) -> Result<(), NpzError> {
    let prefixed = |prefix, tensors: &[(String, Tensor)]| {
        let tensors = tensors.iter().cloned();
        tensors.map(move |(n, t)| (format!("{prefix}{n}"), t)).collect::<Vec<_>>()
    };
    let mut arrays = prefixed(INPUT_PREFIX, inputs);
    arrays.extend(prefixed(OUTPUT_PREFIX, outputs));
    npz::write(path, &arrays)
}
