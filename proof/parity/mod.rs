//! Parity: does a candidate still compute what its reference computes?
//!
//! [`compare`] runs two sessions on the same inputs, measures every output ([`metrics`]) and holds the numbers
//! against a named [`Tolerance`]. Inputs are made ([`make`]) or come from a file ([`from_npz`]).

mod floor;
mod inputs;
mod limits;
mod make;
mod metrics;
mod npy;
pub mod npz;
mod number;
mod padding;
mod placed;
mod proof;
mod random;
mod report;
mod spec;
mod tolerance;
mod words;

use std::path::Path;

use kiln_graph::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use kiln_runtime::{self as runtime, Session};

pub use floor::Floor;
pub use inputs::{INPUT_PREFIX, InputError, OUTPUT_PREFIX, from_npy, from_npz, from_text, texts};
pub use limits::{Failure, Limits, MARGIN_FACTOR, Margin, Preset, Verdict};
pub use make::make;
pub use metrics::{FloatMetrics, Metrics, Nonfinite, decades, metrics};
pub use npz::{Npz, NpzError};
pub use number::rounded;
pub use placed::{Placed, fallen};
pub use proof::{Outcome, Traits, Unproved};
pub use report::{CaseReport, Comparison, OutputReport, Port, Report, Worst, compare_outputs};
pub use spec::{Ids, InputKind, InputSpec, Masking};
pub use tolerance::{Tolerance, ToleranceError};
pub use words::floor7;
pub use words::{doubts, failed_output, failures, measured, verdict};

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
    #[error(transparent)]
    Tolerance(#[from] ToleranceError),
}

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    tolerance.names_outputs_of(reference.outputs().iter().map(|o| o.name.as_str()))?;
    let cases = cases
        .iter()
        .map(|case| {
            let expected = outputs(reference, case, Side::Reference)?;
            let found = outputs(candidate, case, Side::Candidate)?;
            Ok(compare_outputs(
                &case.name,
                &case.inputs,
                &expected,
                &found,
                tolerance,
            ))
        })
        .collect::<Result<_, ParityError>>()?;
    Ok(Report {
        tolerance: tolerance.clone(),
        cases,
    })
}

/// The outputs of a session at a case.
///
/// # Errors
/// When it refuses the inputs or fails; the error names the side.
pub fn outputs(
    session: &mut Session,
    case: &Case,
    side: Side,
) -> Result<Vec<(String, Tensor)>, ParityError> {
    session
        .run(&case.inputs)
        .map_err(|source| ParityError::Run {
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
        tensors
            .map(move |(n, t)| (format!("{prefix}{n}"), t))
            .collect::<Vec<_>>()
    };
    let mut arrays = prefixed(INPUT_PREFIX, inputs);
    arrays.extend(prefixed(OUTPUT_PREFIX, outputs));
    npz::write(path, &arrays)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::DType;
    use kiln_runtime::{SessionOptions, testing};

    fn cases() -> Vec<Case> {
        let case = |name: &str, batch| {
            let spec = InputSpec {
                name: "x".to_owned(),
                dtype: DType::F32,
                shape: vec![batch, 2],
                kind: InputKind::Normal { std: 1. },
            };
            Case {
                name: name.to_owned(),
                inputs: make(&[spec], 3).unwrap(),
            }
        };
        vec![case("smallest", 1), case("largest", 32)]
    }

    fn session(model: &[u8]) -> Option<Session> {
        let options = SessionOptions::default();
        let session = Session::from_bytes(testing::runtime()?, "m", model, &options);
        Some(session.unwrap())
    }

    #[test]
    fn a_model_is_equal_to_itself_and_not_to_another() {
        let model = testing::matmul_add();
        let (Some(mut reference), Some(mut same)) = (session(&model), session(&model)) else {
            return;
        };
        let mut other = session(&testing::scaled_matmul_add(1.1)).unwrap();
        let tolerance = Tolerance::from(Preset::Fp32Exact);
        let report = compare(&mut reference, &mut same, &cases(), &tolerance).unwrap();
        assert!(report.pass());

        let tolerance = Tolerance::from(Preset::Fp16);
        let report = compare(&mut reference, &mut other, &cases(), &tolerance).unwrap();
        assert!(!report.pass());
        let worst = report.worst().unwrap();
        let Comparison::Compared { verdict, .. } = &worst.output.comparison else {
            panic!("{worst:?}");
        };
        assert!(verdict.failed.iter().any(|f| f.metric == "relative_l2"));
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains("\"name\":\"smallest\""), "{json}");
    }

    #[test]
    fn a_tolerance_for_an_output_that_is_not_there_is_refused() {
        let model = testing::matmul_add();
        let (Some(mut a), Some(mut b)) = (session(&model), session(&model)) else {
            return;
        };
        let tolerance = Tolerance::named("fp16").unwrap();
        let tolerance = tolerance.with_override("logits:cosine=0.9").unwrap();
        let err = compare(&mut a, &mut b, &cases(), &tolerance).unwrap_err();
        assert!(err.to_string().contains("'logits'"), "{err}");
        let no_inputs = Case {
            name: "npz".to_owned(),
            inputs: Vec::new(),
        };
        let tolerance = Tolerance::named("fp16").unwrap();
        let err = compare(&mut a, &mut b, &[no_inputs], &tolerance).unwrap_err();
        let text = err.to_string();
        assert!(
            text.starts_with("case npz: the reference did not run: m needs"),
            "{text}"
        );
    }

    #[test]
    fn a_saved_case_runs_again() {
        let Some(mut session) = session(&testing::matmul_add()) else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case.npz");
        let case = cases().remove(1);
        let outputs = session.run(&case.inputs).unwrap();
        save(&path, &case.inputs, &outputs).unwrap();
        let mut npz = Npz::open(&path).unwrap();
        let inputs = from_npz(&mut npz, session.inputs()).unwrap();
        assert!(inputs[0].1.same_bits(&case.inputs[0].1));
        let saved = npz.read("out.y", None).unwrap().unwrap();
        assert!(saved.same_bits(&outputs[0].1));
    }
}
