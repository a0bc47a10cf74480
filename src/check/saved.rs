//! Judging again what `kiln check --json` printed, by other limits and without running anything.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::parity::{Comparison, Margin, Report, Tolerance, ToleranceError};
use crate::setting::JSON;

/// A saved result cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("{} is not what `kiln check {JSON}` prints: {reason}", path.display())]
    Unread { path: PathBuf, reason: String },
    #[error(transparent)]
    Tolerance(#[from] ToleranceError),
}

#[derive(Deserialize)]
struct Saved {
    parity: Report,
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
    let mut tolerance = named.unwrap_or(saved.parity.tolerance.clone());
    for limit in limits {
        tolerance = tolerance.with_override(limit)?;
    }
    let outputs = saved.parity.cases.iter().flat_map(|c| &c.outputs);
    let outputs = outputs.map(|o| o.name.as_str());
    tolerance.names_outputs_of(outputs)?;
    let mut cases = saved.parity.cases;
    for output in cases.iter_mut().flat_map(|c| &mut c.outputs) {
        if let Comparison::Compared { metrics, verdict } = &mut output.comparison {
            *verdict = tolerance.check_above(&output.name, metrics, output.floor.as_ref());
        }
        // The limit is the tolerance's, which may be another now.
        if let (Some(margin), Some(limit)) = (output.margin, tolerance.margin(&output.name)) {
            output.excuse(Margin { limit, ..margin });
        }
    }
    Ok(Report { cases, tolerance })
}
