//! ONNX Runtime, and what it loads to run on GPUs.

use super::super::facts::Facts;
use super::super::finding::Finding;
use super::kinds::{absent, found, mismatch};
use crate::runtime::{Unusable, cuda, rtx};
use crate::setting::DEVICE;

const ORT: &str = "pip install onnxruntime==1.31.1";

pub(super) fn library(facts: &Facts) -> Finding {
    let (what, enables) = ("ONNX Runtime", "constant folding, parity, latency");
    match &facts.ort {
        Ok(ort) => {
            let version = ort.version.as_deref().unwrap_or("unknown version");
            let providers: Vec<&str> = ort.providers.iter().map(|p| short(p)).collect();
            let detail = format!(
                "{version} at {} (providers: {})",
                ort.path.display(),
                providers.join(", ")
            );
            found(what, enables, detail)
        }
        Err(why) => Finding {
            needed: true,
            ..absent(what, enables, why.clone(), ORT.into())
        },
    }
}

fn short(provider: &str) -> &str {
    provider
        .strip_suffix("ExecutionProvider")
        .unwrap_or(provider)
}

pub(super) fn provider(facts: &Facts) -> Finding {
    let (what, enables) = ("CUDA provider of ONNX Runtime", &*format!("{DEVICE} cuda"));
    let pip = facts.pip();
    let install = format!(
        "{pip} uninstall -y onnxruntime && {pip} install '{}'",
        cuda::WHEEL
    );
    let Ok(ort) = &facts.ort else {
        return absent(what, enables, "not found".into(), install);
    };
    let provider = match &ort.provider {
        Ok(Some(provider)) => provider,
        Ok(None) => {
            let detail = format!("{} is not beside ONNX Runtime", cuda::LIBRARY);
            return absent(what, enables, detail, install);
        }
        Err(why) => {
            let mend = format!("{pip} install --force-reinstall '{}'", cuda::WHEEL);
            return absent(what, enables, why.clone(), mend);
        }
    };
    let built = provider
        .cuda
        .map_or(String::new(), |c| format!("for CUDA {c} "));
    let detail = format!("{built}at {}", provider.path.display());
    // The driver and the GPU are judged below.
    let judged = |cuda| {
        let driver = facts.driver.as_ref().ok()?;
        let unserved = |gpu| cuda::unserved(gpu, cuda);
        cuda::too_old(driver, cuda).or_else(|| driver.gpus.iter().find_map(unserved))
    };
    let trial = facts.trial.clone();
    let trial = trial.filter(|_| provider.cuda.and_then(judged).is_none());
    match provider.obstacle().or(trial) {
        None => match provider.gap() {
            None => found(what, enables, format!("{detail}, with all that it needs")),
            Some(Unusable { reason, mend }) => Finding {
                mend: Some(mend),
                ..found(
                    what,
                    enables,
                    format!("{detail}; some operators will fail: {reason}"),
                )
            },
        },
        Some(Unusable { reason, mend }) => Finding {
            // Without a device nobody wants it.
            needed: facts.driver.is_ok(),
            ..absent(what, enables, format!("{detail}: {reason}"), mend)
        },
    }
}

pub(super) fn plugin(facts: &Facts) -> Finding {
    let (what, enables) = (
        "TensorRT for RTX in ONNX Runtime",
        &*format!("{DEVICE} rtx"),
    );
    match &facts.plugin {
        Some((path, version)) => {
            let version = version.as_deref().unwrap_or("unknown version");
            found(what, enables, format!("{version} at {}", path.display()))
        }
        None => absent(
            what,
            enables,
            "the plugin is not installed".into(),
            format!("{} install '{}'", facts.pip(), rtx::WHEEL),
        ),
    }
}

/// Wheels that do not fit together.
pub(super) fn mismatches(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let pip = facts.pip();
    if let Ok(ort) = &facts.ort {
        if ort.wheels.len() > 1 {
            all.push(mismatch(
                facts,
                "two wheels of ONNX Runtime",
                Unusable {
                    reason: format!(
                        "{} write into the same folder, so that one has overwritten parts of the other",
                        ort.wheels.join(" and ")
                    ),
                    mend: format!(
                        "{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install '{}'",
                        match facts.driver {
                            Ok(_) => cuda::WHEEL,
                            Err(_) => "onnxruntime==1.31.1",
                        }
                    ),
                },
            ));
        }
        let built = ort.providers.iter().any(|p| p == "CUDAExecutionProvider");
        if matches!(ort.provider, Ok(Some(_))) && !built {
            all.push(mismatch(
                facts,
                "ONNX Runtime without CUDA beside its CUDA provider",
                Unusable {
                    reason: format!(
                        "{} was built without CUDA, and cannot load {}",
                        ort.path.display(),
                        cuda::LIBRARY
                    ),
                    mend: format!(
                        "{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install '{}'",
                        cuda::WHEEL
                    ),
                },
            ));
        }
    }
    all
}
