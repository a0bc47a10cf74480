//! What is installed, what is missing, and the command that mends it.

use std::path::Path;

use serde::Serialize;

use crate::engine;
use crate::runtime;
use crate::targets;

/// One thing that kiln can use.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub what: &'static str,
    /// What it is for.
    pub enables: &'static str,
    pub found: bool,
    /// Version, path, or what is wrong.
    pub detail: String,
    /// The command that mends it.
    pub mend: Option<String>,
}

/// Looks at everything.
pub fn examine(ort_lib: Option<&Path>, trt_lib: Option<&Path>) -> Vec<Finding> {
    vec![onnx_runtime(ort_lib), tensorrt(trt_lib), gpu()]
}

fn onnx_runtime(lib: Option<&Path>) -> Finding {
    let loaded = runtime::Runtime::load(lib);
    Finding {
        what: "ONNX Runtime",
        enables: "constant folding, parity, latency",
        found: loaded.is_ok(),
        detail: match &loaded {
            Ok(r) => format!(
                "{} at {}",
                r.version().unwrap_or("unknown version"),
                r.library().path.display()
            ),
            Err(e) => e.to_string(),
        },
        mend: loaded
            .is_err()
            .then(|| "pip install onnxruntime==1.31.1".into()),
    }
}

fn tensorrt(lib: Option<&Path>) -> Finding {
    let located = engine::locate(lib);
    let built = located
        .and_then(|libraries| Ok((libraries.core.clone(), engine::RtxBuilder::new(&libraries)?)));
    Finding {
        what: "TensorRT for RTX",
        enables: "engines for sm_75 to sm_121, built with or without a GPU",
        found: built.is_ok(),
        detail: match &built {
            Ok((path, builder)) => {
                format!("{} at {}", builder.version(), path.display())
            }
            Err(e) => e.to_string(),
        },
        mend: built
            .err()
            .map(|e| e.hint().unwrap_or_else(|| engine::INSTALL.into())),
    }
}

fn gpu() -> Finding {
    let (found, detail) = match targets::local_gpu() {
        Some(Ok(c)) => (true, c.name().to_string()),
        Some(Err(name)) => (
            true,
            format!("{name}, which TensorRT for RTX does not serve"),
        ),
        None => (
            false,
            "no NVIDIA driver answers; engines are built for --target and are not run here".into(),
        ),
    };
    Finding {
        what: "GPU",
        enables: "the default target",
        found,
        detail,
        mend: None,
    }
}
