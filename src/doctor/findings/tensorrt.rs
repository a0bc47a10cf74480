//! TensorRT for RTX, which builds engines, and TensorRT proper.

use super::super::facts::Facts;
use super::super::finding::Finding;
use super::kinds::{absent, found, mismatch, told};
use crate::runtime::cuda;

pub(super) fn builder(facts: &Facts) -> Finding {
    let (what, enables) = (
        "TensorRT for RTX",
        "engines for sm_75 to sm_121, built with or without a GPU",
    );
    match &facts.builder {
        Ok(b) => found(
            what,
            enables,
            format!("{} at {}", b.version, b.path.display()),
        ),
        Err((why, mend)) => Finding {
            needed: true,
            ..absent(what, enables, why.clone(), mend.clone())
        },
    }
}

pub(super) fn proper(facts: &Facts) -> Finding {
    let (what, enables) = (
        "TensorRT",
        "engines for data-centre GPUs (sm_90, sm_100), by a kiln built with tensorrt-enterprise",
    );
    match &facts.tensorrt {
        Some(library) => match &library.broken {
            None => found(what, enables, told(library)),
            Some(why) => Finding {
                found: false,
                ..found(what, enables, format!("{}: {why}", library.path.display()))
            },
        },
        None => absent(
            what,
            enables,
            "libnvinfer is not found".into(),
            "install it from https://developer.nvidia.com/tensorrt and name its folder in LD_LIBRARY_PATH".into(),
        ),
    }
}

/// A driver that TensorRT is too new for.
pub(super) fn mismatches(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let Ok(driver) = &facts.driver else {
        return all;
    };
    // Wheels of TensorRT for RTX for CUDA 13 are what kiln installs; its kernels are compiled by the driver's CUDA.
    if let (Ok(b), true) = (&facts.builder, driver.cuda.major() < 13) {
        let cu13 = b
            .path
            .components()
            .any(|c| c.as_os_str().to_string_lossy().contains("cu13"));
        let why = cuda::too_old(driver, 13).filter(|_| cu13);
        all.extend(why.map(|why| mismatch(facts, "driver older than TensorRT for RTX", why)));
    }
    all
}
