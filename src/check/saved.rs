//! Judging again what `kiln check --json` printed, by other limits and without running anything.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::parity::{
    CaseReport, Comparison, Floor, Margin, Metrics, OutputReport, Port, Report, Tolerance,
    ToleranceError, Unproved,
};

/// A saved result cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("{} is not what `kiln check --json` prints: {reason}", path.display())]
    Unread { path: PathBuf, reason: String },
    #[error(transparent)]
    Tolerance(#[from] ToleranceError),
}

#[derive(Deserialize)]
struct Saved {
    parity: SavedReport,
}

#[derive(Deserialize)]
struct SavedReport {
    tolerance: Tolerance,
    cases: Vec<SavedCase>,
}

#[derive(Deserialize)]
struct SavedCase {
    name: String,
    inputs: Vec<Port>,
    outputs: Vec<SavedOutput>,
}

#[derive(Deserialize)]
struct SavedOutput {
    name: String,
    comparison: SavedComparison,
    // Older results have none of these.
    #[serde(default)]
    unproved: Option<Unproved>,
    #[serde(default)]
    floor: Option<Floor>,
    #[serde(default)]
    margin: Option<Margin>,
    #[serde(default)]
    became: Option<String>,
}

/// [`Comparison`] without its verdict.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
enum SavedComparison {
    Compared { metrics: Metrics },
    Mismatch { reference: Port, candidate: Port },
    Missing { reference: Port },
    Extra { candidate: Port },
    Incomparable { reference: Port },
}

/// The saved numbers under another tolerance, or under their own, with other limits (`OUTPUT:METRIC=LIMIT`) in both cases.
///
/// # Errors
/// When the file is no saved result, or a limit is for no output of it.
pub fn judge_again(
    path: &Path,
    named: Option<Tolerance>,
    limits: &[String],
) -> Result<Report, SavedError> {
    let fail = |reason: String| SavedError::Unread {
        path: path.to_path_buf(),
        reason,
    };
    let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let saved: Saved = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    let mut tolerance = named.unwrap_or(saved.parity.tolerance);
    for limit in limits {
        tolerance = tolerance.with_override(limit)?;
    }
    let output = |o: SavedOutput| {
        let mut output = judged(o, &tolerance);
        // The limit is the tolerance's, which may be another now.
        if let (Some(margin), Some(limit)) = (output.margin, tolerance.margin(&output.name)) {
            output.excuse(Margin { limit, ..margin });
        }
        output
    };
    let case = |c: SavedCase| CaseReport {
        name: c.name,
        inputs: c.inputs,
        outputs: c.outputs.into_iter().map(output).collect(),
    };
    let outputs = saved.parity.cases.iter().flat_map(|c| &c.outputs);
    let outputs = outputs.map(|o| o.name.as_str());
    tolerance.names_outputs_of(outputs)?;
    Ok(Report {
        cases: saved.parity.cases.into_iter().map(case).collect(),
        tolerance,
    })
}

fn judged(o: SavedOutput, tolerance: &Tolerance) -> OutputReport {
    OutputReport {
        comparison: match o.comparison {
            SavedComparison::Compared { metrics } => Comparison::Compared {
                verdict: tolerance.check_above(&o.name, &metrics, o.floor.as_ref()),
                metrics,
            },
            SavedComparison::Mismatch {
                reference,
                candidate,
            } => Comparison::Mismatch {
                reference,
                candidate,
            },
            SavedComparison::Missing { reference } => Comparison::Missing { reference },
            SavedComparison::Extra { candidate } => Comparison::Extra { candidate },
            SavedComparison::Incomparable { reference } => Comparison::Incomparable { reference },
        },
        name: o.name,
        unproved: o.unproved,
        floor: o.floor,
        margin: o.margin,
        became: o.became,
    }
}
