//! What a bundle's manifest says of it as a whole, whichever kiln wrote it.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::MANIFEST;

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
    /// What proved it, and where.
    pub runtime: String,
    /// What `kiln compile -c manifest.json` compiles again.
    pub recipe: Value,
}

/// A manifest is not read.
#[derive(Debug, thiserror::Error)]
#[error("{MANIFEST} cannot be read: {0}")]
pub struct Unread(String);

/// Reads the manifest of a folder; `None` where it has none.
///
/// # Errors
/// When the manifest cannot be read, or is no JSON.
pub fn about(folder: &Path) -> Result<Option<About>, Unread> {
    let path = folder.join(MANIFEST);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(|e| Unread(e.to_string()))?;
    let manifest: Value = serde_json::from_slice(&text).map_err(|e| Unread(e.to_string()))?;
    Ok(Some(of(&manifest)))
}

fn of(m: &Value) -> About {
    let text = |place: &str| m.pointer(place).and_then(Value::as_str).unwrap_or_default();
    let sizes = m["sizes"].as_object().into_iter().flatten();
    let sizes = sizes.map(|(name, r)| match r {
        Value::Object(_) => format!("{name} {}:{}:{}", r["min"], r["opt"], r["max"]),
        other => format!("{name} {}", other.as_str().unwrap_or(&other.to_string())),
    });
    let runtime = match (text("/runtime"), text("/device/device")) {
        (runtime, "") => runtime.to_string(),
        (runtime, device) => format!("{runtime} on {device}"),
    };
    About {
        kiln: text("/kiln").into(),
        original: text("/source/path").into(),
        target: text("/target").replace(',', ", "),
        precision: text("/precision").into(),
        sizes: sizes.collect(),
        parity: parity(m),
        engine: engine(&m["engine"]),
        engine_parity: match m["engine_parity"]["status"].as_str() {
            Some("run") => format!("run by {}", text("/engine_parity/runner")),
            Some("not-run") => format!("not run: {}", text("/engine_parity/why")),
            _ => String::new(),
        },
        runtime,
        recipe: m["recipe"].clone(),
    }
}

/// `passes (fp16) at 9 cases: cosine ≥ 0.9999994, max abs ≤ 6.128e-3`
fn parity(m: &Value) -> String {
    let report = &m["parity"];
    let (Some(outcome), Some(cases)) = (m["parity_outcome"].as_str(), report["cases"].as_array())
    else {
        return "not run".into();
    };
    let tolerance = report["tolerance"]["name"].as_str().unwrap_or_default();
    let outputs = cases.iter().filter_map(|c| c["outputs"].as_array());
    let floats = outputs
        .flatten()
        .map(|o| &o["comparison"]["metrics"]["float"]);
    let mut numbers: Option<(f64, f64)> = None;
    for float in floats {
        if let (Some(cosine), Some(error)) = (float["cosine"].as_f64(), float["max_abs"].as_f64()) {
            let (least, most) = numbers.unwrap_or((cosine, error));
            numbers = Some((least.min(cosine), most.max(error)));
        }
    }
    let numbers = numbers.map_or(String::new(), |(cosine, error)| {
        let cosine = (cosine * 1e7).floor() / 1e7;
        format!(": cosine ≥ {cosine:.7}, max abs ≤ {error:.3e}")
    });
    let (outcome, n) = (outcome.replace('-', " "), cases.len());
    let s = if n == 1 { "" } else { "s" };
    format!("{outcome} ({tolerance}) at {n} case{s}{numbers}")
}

fn engine(e: &Value) -> String {
    let Some(runtime) = e["runtime"].as_str() else {
        return "none".into();
    };
    let capabilities = e["capabilities"].as_array().into_iter().flatten();
    let capabilities: Vec<&str> = capabilities.filter_map(Value::as_str).collect();
    let size = e["bytes"].as_u64().unwrap_or(0);
    let size = crate::summary::bytes(usize::try_from(size).unwrap_or(usize::MAX));
    format!("{runtime} for {}, {size}", capabilities.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_manifest_is_told_in_words() {
        let float = |cosine: f64, error: f64| json!({"comparison": {"metrics": {"float": {"cosine": cosine, "max_abs": error}}}});
        let found = of(&json!({
            "kiln": "1.2.3", "source": {"path": "m.onnx"}, "target": "sm_86,sm_89", "precision": "fp16",
            "sizes": {"batch": {"min": 1, "opt": 2, "max": 8}, "seq": "1:128:512"},
            "parity_outcome": "not-proved",
            "parity": {"tolerance": {"name": "fp16"}, "cases": [{"outputs": [float(0.99999997, 0.5), float(0.99, 0.25)]}]},
            "engine": {"runtime": "TensorRT 1", "capabilities": ["sm_86", "sm_89"], "bytes": 1000},
            "engine_parity": {"status": "not-run", "why": "no CUDA device"},
            "runtime": "ONNX Runtime 1", "device": {"device": "cpu"},
        }));
        assert_eq!(found.target, "sm_86, sm_89");
        assert_eq!(found.sizes, ["batch 1:2:8", "seq 1:128:512"]);
        assert_eq!(
            found.parity,
            "not proved (fp16) at 1 case: cosine ≥ 0.9900000, max abs ≤ 5.000e-1"
        );
        assert!(found.engine.starts_with("TensorRT 1 for sm_86, sm_89, "));
        assert_eq!(found.engine_parity, "not run: no CUDA device");
        assert_eq!(found.runtime, "ONNX Runtime 1 on cpu");
    }

    #[test]
    fn any_json_is_taken() {
        for m in [
            json!(null),
            json!([1]),
            json!({"sizes": 3, "parity": [], "engine": "x"}),
        ] {
            assert_eq!(of(&m).parity, "not run");
        }
    }
}
