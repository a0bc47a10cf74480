//! Running a bundle's engine for a comparison.

use std::path::Path;

use kiln_graph::Tensor;

use crate::bundle;
use crate::engine::run::{EngineRunError, RunOptions, Session};
use crate::engine_parity::{NotRun, Runner, RunnerError};
use crate::nvidia::driver;

/// What runs the engine of a bundle, which is this file, on a GPU of this machine, counted as CUDA counts them.
///
/// # Errors
/// Why nothing does. An engine that ought to run here and cannot be opened is opened all the same, and fails when it is run:
/// it is a broken one, not one that was left out.
pub fn open(plan: &Path, device: usize, trt_lib: Option<&Path>) -> Result<Box<dyn Runner>, NotRun> {
    // Before anything else: without a device there is nothing to say about the engine.
    driver::probe().map_err(|_| NotRun::no_device())?;
    let options = RunOptions {
        device,
        libraries: trt_lib.map(Path::to_owned),
        ..RunOptions::default()
    };
    let not_read = |e: std::io::Error| NotRun(format!("the engine cannot be read: {e}"));
    let bytes = std::fs::read(plan).map_err(not_read)?;
    // A bundle's engine and model are one folder.
    let model = plan.with_file_name(bundle::MODEL);
    match Session::open(
        &bytes,
        Some(&model).filter(|m| m.is_file()).map(|m| m.as_path()),
        &options,
    ) {
        Ok(session) => Ok(Box::new(Opened(session))),
        Err(
            error @ (EngineRunError::Deserialize { .. }
            | EngineRunError::Refit { .. }
            | EngineRunError::Refused { .. }),
        ) => Ok(Box::new(Broken(error.to_string()))),
        Err(error) => Err(NotRun(error.to_string())),
    }
}

struct Opened(Session);

impl Runner for Opened {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError> {
        self.0.run(inputs).map_err(|e| RunnerError(e.to_string()))
    }
}

/// An engine that TensorRT refuses, though it was built for this GPU and this version.
struct Broken(String);

impl Runner for Broken {
    fn describe(&self) -> String {
        "an engine that cannot be opened".into()
    }

    fn run(&mut self, _: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError> {
        Err(RunnerError(self.0.clone()))
    }
}
