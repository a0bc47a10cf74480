//! From facts to findings: what is there, what is missing, and what does not fit together.

mod cuda;
mod gpu;
mod onnx_runtime;
mod tensorrt;
#[cfg(test)]
mod tests;

use super::Finding;
use super::facts::{Facts, Library};
use crate::nvidia::packages;
use crate::runtime::Unusable;

/// Everything that there is to say.
pub(super) fn of(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![
        onnx_runtime::library(facts),
        tensorrt::builder(facts),
        gpu::driver(facts),
    ];
    all.extend(gpu::gpus(facts));
    all.push(onnx_runtime::provider(facts));
    all.push(cuda::runtime(facts));
    all.push(cuda::cudnn(facts));
    all.push(onnx_runtime::plugin(facts));
    all.push(tensorrt::proper(facts));
    all.extend(mismatches(facts));
    all
}

/// Pairs of things that are there and do not fit.
fn mismatches(facts: &Facts) -> Vec<Finding> {
    let rooms = [
        onnx_runtime::mismatches,
        cuda::mismatches,
        gpu::mismatches,
        tensorrt::mismatches,
    ];
    rooms.iter().flat_map(|room| room(facts)).collect()
}

fn found(what: &str, enables: &str, detail: String) -> Finding {
    Finding {
        what: what.into(),
        enables: enables.into(),
        found: true,
        needed: false,
        detail,
        mend: None,
    }
}

/// Something that this machine may do without.
fn absent(what: &str, enables: &str, detail: String, mend: String) -> Finding {
    Finding {
        found: false,
        mend: Some(mend),
        ..found(what, enables, detail)
    }
}

/// Something that is there and cannot work. Without a device nobody minds.
fn mismatch(facts: &Facts, what: &str, why: Unusable) -> Finding {
    Finding {
        needed: facts.driver.is_ok(),
        ..absent(what, "what is installed already", why.reason, why.mend)
    }
}

/// The CUDA that libraries should be of: the provider's.
fn cuda_major(facts: &Facts) -> u32 {
    facts.provider().and_then(|p| p.cuda).unwrap_or(13)
}

fn requirement(facts: &Facts, library: &str) -> String {
    let wheel = packages::requirement(library, cuda_major(facts)).unwrap_or_default();
    format!("{} install {wheel}", facts.pip())
}

fn told(library: &Library) -> String {
    let version = library.version.as_deref().unwrap_or("of unknown version");
    format!("{version} at {}", library.path.display())
}
