//! What is installed, what is missing, what does not fit together, and the command that mends each.

mod facts;
mod finding;
mod findings;
mod version;

use std::path::Path;

use serde::Serialize;

use crate::nvidia::gpus::Managed;
use crate::nvidia::{Driver, NoDevice};
use crate::runtime::cuda::Provider;

pub use facts::{Facts, Library, Ort};
pub use finding::Finding;

/// The whole examination.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    pub kiln: &'static str,
    pub findings: Vec<Finding>,
    /// `null` where none answers; `no_device` says why.
    pub driver: Option<Driver>,
    pub no_device: Option<NoDevice>,
    /// What NVML tells of the GPUs.
    pub gpus: Option<Managed>,
    /// ONNX Runtime's CUDA provider, and the libraries that it needs.
    pub cuda_provider: Option<Provider>,
    /// The providers that ONNX Runtime was built with.
    pub providers: Vec<String>,
}

impl Examination {
    /// Whether everything is there that must be.
    pub fn pass(&self) -> bool {
        self.findings.iter().all(|f| f.found || !f.needed)
    }
}

/// Looks at everything. Loads ONNX Runtime and TensorRT, and asks the driver, but runs no model.
pub fn examine(ort_lib: Option<&Path>, trt_lib: Option<&Path>) -> Examination {
    let facts = Facts::gather(ort_lib, trt_lib);
    let (driver, no_device) = match &facts.driver {
        Ok(driver) => (Some(driver.clone()), None),
        Err(why) => (None, Some(why.clone())),
    };
    Examination {
        kiln: env!("CARGO_PKG_VERSION"),
        findings: findings::of(&facts),
        driver,
        no_device,
        gpus: facts.managed.ok(),
        providers: facts
            .ort
            .as_ref()
            .map_or(Vec::new(), |o| o.providers.clone()),
        cuda_provider: facts.ort.ok().and_then(|o| o.provider.ok().flatten()),
    }
}
