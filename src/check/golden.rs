//! Comparing with outputs that were recorded, without the model that gave them.

use std::path::Path;

use kiln_graph::{Model, Tensor};

use super::Error;
use super::Options;
use crate::parity::{self, Case, Npz, OUTPUT_PREFIX, Placed, Report, Tolerance};
use crate::prove;
use crate::runtime::Chosen;

/// What a comparison gave, and by what.
pub(super) struct Golden {
    pub report: Report,
    pub runtime: String,
    pub device: Chosen,
    pub placements: Vec<Placed>,
}

/// Runs the candidate on the recorded inputs and compares with the recorded outputs.
pub(super) fn compare(
    options: &Options,
    file: &Path,
    path: &Path,
    candidate: &Model,
    tolerance: &Tolerance,
) -> Result<Golden, Error> {
    let mut opened =
        prove::Candidate::open(path, candidate, options.device, options.ort_lib.as_deref())?;
    let mut npz = Npz::open(file)?;
    let inputs = parity::from_npz(&mut npz, opened.session.inputs())?;
    let names: Vec<String> = (npz.names())
        .filter_map(|n| Some(n.strip_prefix(OUTPUT_PREFIX)?.to_string()))
        .collect();
    let mut expected: Vec<(String, Tensor)> = Vec::new();
    for name in names {
        let info = opened.session.outputs().iter().find(|o| o.name == name);
        let dtype = info.map(|o| o.dtype);
        if let Some(tensor) = npz.read(&format!("{OUTPUT_PREFIX}{name}"), dtype)? {
            expected.push((name, tensor));
        }
    }
    if expected.is_empty() {
        return Err(Error::NoOutputs {
            path: file.to_path_buf(),
        });
    }
    let name = file.file_name().unwrap_or_default();
    let case = Case {
        name: name.to_string_lossy().into_owned(),
        inputs,
    };
    let found = parity::outputs(&mut opened.session, &case, parity::Side::Candidate)?;
    let compared = parity::compare_outputs(&case.name, &case.inputs, &expected, &found, tolerance);
    let report = Report {
        cases: vec![compared.mark(&expected)],
        tolerance: tolerance.clone(),
    };
    Ok(Golden {
        report,
        runtime: opened.version(),
        placements: opened.placements()?,
        device: opened.device,
    })
}
