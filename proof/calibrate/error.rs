//! What can stop a calibration.

use kiln_graph::onnx::WriteError;
use kiln_passes::PassError;
use kiln_runtime as runtime;
use kiln_runtime::fault::Fault;

use super::batch::DataError;
use super::cache::CacheError;

/// A calibration stopped.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    #[error("the value \"{value}\" cannot be calibrated: {why}")]
    Value { value: String, why: String },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("calibration data: {0} has no samples")]
    NoData(String),
    #[error("the model cannot be prepared for calibration: {0}")]
    Pass(#[from] PassError),
    #[error("the model cannot be prepared for calibration: {0}")]
    Write(#[from] WriteError),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error("calibration on {batch}: {source}")]
    Run {
        batch: String,
        source: runtime::Error,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl CalibrateError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            CalibrateError::Data(_) | CalibrateError::NoData(_) | CalibrateError::Cache(_) => {
                Fault::Request
            }
            CalibrateError::Runtime(e) => e.fault(),
            _ => Fault::Model,
        }
    }
}
