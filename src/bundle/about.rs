//! What a bundle's manifest says of it as a whole.

use std::path::Path;

use serde::Serialize;

use super::MANIFEST;
use crate::engine_parity::EngineParity;
use crate::manifest::{self, EngineFacts, Manifest, ManifestError};
use crate::parity::{self, Outcome};
use crate::recipe::Recipe;
use crate::summary;

/// What a bundle is, in words; what its manifest does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct About {
    /// The kiln that made it.
    pub kiln: String,
    pub original: String,
    pub target: String,
    pub precision: String,
    /// Of each symbolic dimension: `batch 1:1:8`.
    pub sizes: Vec<String>,
    pub parity: String,
    pub engine: String,
    pub engine_parity: String,
    /// What it has for other targets: `cuda, model.cuda.onnx: passes …`.
    pub also: Vec<String>,
    /// What proved it, and where.
    pub runtime: String,
    /// What `kiln compile -c manifest.json` compiles again.
    pub recipe: Recipe,
}

/// Reads the manifest of a folder; `None` where it has none.
///
/// # Errors
/// When the manifest cannot be read.
pub fn about(folder: &Path) -> Result<Option<About>, ManifestError> {
    if !folder.join(MANIFEST).is_file() {
        return Ok(None);
    }
    manifest::read(folder).map(|m| Some(of(m)))
}

pub fn of(m: Manifest) -> About {
    let sizes = m.sizes.iter();
    let sizes = sizes.map(|(name, r)| format!("{name} {}:{}:{}", r.min, r.opt, r.max));
    let runtime = m.runtime.clone().unwrap_or_default();
    About {
        original: m.source.path.clone(),
        target: m.target.replace(',', ", "),
        precision: m.precision.clone(),
        sizes: sizes.collect(),
        parity: parity(&m),
        engine: m.engine.as_ref().map_or("none".into(), engine),
        engine_parity: match &m.engine_parity {
            EngineParity::Run { runner, .. } => format!("run by {runner}"),
            EngineParity::NotRun { why } if why.is_empty() => String::new(),
            EngineParity::NotRun { why } => format!("not run: {why}"),
        },
        also: (m.also.iter())
            .map(|a| format!("{}, {}: {}", a.manifest.target, a.file, parity(&a.manifest)))
            .collect(),
        runtime: match &m.device {
            Some(chosen) => format!("{runtime} on {}", chosen.device),
            None => runtime,
        },
        kiln: m.kiln,
        recipe: m.recipe,
    }
}

/// `passes (fp16) at 9 cases: cosine ≥ 0.9999994, max abs ≤ 6.128e-3`
fn parity(m: &Manifest) -> String {
    let (Some(outcome), Some(report)) = (m.parity_outcome, &m.parity) else {
        return "not run".into();
    };
    let outcome = match outcome {
        Outcome::Passes => "passes",
        Outcome::NotProved => "not proved",
        Outcome::Fails => "fails",
    };
    let n = report.cases.len();
    let s = if n == 1 { "" } else { "s" };
    let told = format!("{outcome} ({}) at {n} case{s}", report.tolerance.name);
    match parity::measured(report) {
        numbers if numbers.is_empty() => told,
        numbers => format!("{told}: {numbers}"),
    }
}

fn engine(e: &EngineFacts) -> String {
    let size = summary::bytes(usize::try_from(e.bytes).unwrap_or(usize::MAX));
    format!("{} for {}, {size}", e.runtime, e.capabilities.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of_json(m: &Value) -> About {
        of(manifest::parse(Path::new(MANIFEST), m.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn a_manifest_is_told_in_words() {
        let output = |cosine: f64, error: f64| {
            let zero = [
                "mean_abs",
                "p99_abs",
                "max_scaled",
                "relative_l2",
                "sqnr_db",
            ];
            let mut float = json!({
                "max_abs": error, "max_abs_at": [0], "cosine": cosine, "argmax": null,
                "reference_max": 1.0, "reference_rms": 1.0,
                "nonfinite": {"reference_nan": 0, "candidate_nan": 0, "reference_inf": 0, "candidate_inf": 0, "differ": 0},
            });
            for key in zero {
                float[key] = json!(0.0);
            }
            json!({"name": "y", "comparison": {
                "outcome": "compared",
                "metrics": {"elements": 1, "unequal": 1, "same_bits": false, "float": float},
                "verdict": {"pass": true, "failed": []},
            }})
        };
        let case = json!({"name": "typical", "inputs": [], "outputs": [output(0.99999997, 0.5), output(0.99, 0.25)]});
        let limits = json!({"same_bits": false});
        let found = of_json(&json!({
            "kiln": "1.2.3", "source": {"path": "m.onnx"}, "target": "sm_86,sm_89", "precision": "fp16",
            "sizes": {"batch": {"min": 1, "opt": 2, "max": 8}},
            "parity_outcome": "not-proved",
            "parity": {"tolerance": {"name": "fp16", "limits": limits, "overrides": []}, "cases": [case]},
            "engine": {"runtime": "TensorRT 1", "capabilities": ["sm_86", "sm_89"], "bytes": 1000},
            "engine_parity": {"status": "not-run", "why": "no CUDA device"},
            "runtime": "ONNX Runtime 1", "device": {"device": "cpu", "why": "", "asked": false},
        }));
        assert_eq!(found.target, "sm_86, sm_89");
        assert_eq!(found.sizes, ["batch 1:2:8"]);
        assert_eq!(
            found.parity,
            "not proved (fp16) at 1 case: cosine ≥ 0.9900000, max abs ≤ 5.000e-1"
        );
        assert!(found.engine.starts_with("TensorRT 1 for sm_86, sm_89, "));
        assert_eq!(found.engine_parity, "not run: no CUDA device");
        assert_eq!(found.runtime, "ONNX Runtime 1 on cpu");
    }

    #[test]
    fn a_manifest_that_says_nothing_is_told_as_one() {
        let empty = of_json(&json!({}));
        assert_eq!(
            (empty.parity.as_str(), empty.engine.as_str()),
            ("not run", "none")
        );
        assert_eq!(empty.recipe, Recipe::default());
    }
}
