//! ONNX Runtime: finding its library, loading it once, running models on kiln's tensors.
//!
//! The library is loaded at run time, so kiln itself builds and starts without it. [`Runtime::load`] finds and loads
//! it, [`Session`] holds one model.

mod builder;
mod carried;
pub mod cuda;
mod device;
mod error;
mod evaluator;
pub mod fault;
mod info;
mod library;
mod locate;
mod machine;
mod messages;
mod options;
mod parts;
mod placement;
pub mod rtx;
mod seat;
mod session;
pub mod setting;
pub mod talk;
#[doc(hidden)]
pub mod testing;
mod threads;
pub mod units;
mod values;
pub mod work;

use kiln_graph::Tensor;

pub use carried::Carried;
pub use device::{
    Chosen, Device, DeviceChoice, DeviceRequest, Gpu, GpuOptions, UnknownDevice, Unusable,
};
pub use error::Error;
pub use evaluator::OrtEvaluator;
pub use info::{Dim, TensorInfo};
pub use library::{Runtime, providers};
pub use locate::{Found, NotFound, Origin, locate};
pub use machine::{environment, loader, mapped, memory, nvidia, pysite, scratch};
pub use options::{Optimization, SessionOptions};
pub use placement::{Fallback, Placement, PlacementError};
pub use session::{Bound, Session};
pub use threads::{limit_threads, threads};

/// Runs a model once, with graph optimization disabled: what constant folding needs.
///
/// `model` is a whole ONNX file with its weights inside. The outputs come in the model's order.
///
/// # Errors
/// Those of [`Session::from_bytes`] and [`Session::run`].
pub fn run_model_bytes<S: AsRef<str>>(
    runtime: &'static Runtime,
    model: &[u8],
    inputs: &[(S, Tensor)],
) -> Result<Vec<(String, Tensor)>, Error> {
    let options = SessionOptions {
        optimization: Optimization::Disabled,
        ..SessionOptions::default()
    };
    Session::from_bytes(runtime, "model in memory", model, &options)?.run(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_loaded_once() {
        let Some(runtime) = testing::runtime() else {
            return;
        };
        let again = Runtime::load(Some(&runtime.library().path)).unwrap();
        assert!(std::ptr::eq(runtime, again));

        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("libonnxruntime.so.9.9.9");
        std::fs::write(&other, "not a library").unwrap();
        let refused = Runtime::load(Some(&other)).unwrap_err();
        assert!(
            matches!(&refused, Error::OtherLibrary { asked, .. } if asked.ends_with("libonnxruntime.so.9.9.9")),
            "{refused}"
        );
    }

    #[test]
    fn a_model_is_run_in_one_call() {
        let Some(runtime) = testing::runtime() else {
            return;
        };
        let model = testing::matmul_add();
        let x = Tensor::from_values([1usize, 2].as_slice(), &[3f32, 4.]).unwrap();
        let outputs = run_model_bytes(runtime, &model, &[("x", x)]).unwrap();
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].0, "y");
        assert_eq!(outputs[0].1.values::<f32>().unwrap(), [16., 23.]);
    }
}
