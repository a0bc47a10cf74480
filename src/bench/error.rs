//! What can stop a measurement.

use std::path::PathBuf;

use kiln_graph::onnx::ReadError;

use super::profile::ProfileError;
use crate::bundle::BundleError;
use crate::engine::run::EngineRunError;
use crate::fault::Fault;
use crate::fixed::FixError;
use crate::manifest::ManifestError;
use crate::parity::{InputError, NpzError};
use crate::runtime;
use crate::shapes::{Point, SpecError};

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("there is nothing to measure")]
    NoSubjects,
    #[error(
        "at least {min_runs} runs and at most {max_runs} cannot both hold: the maximum is at least 1, and no less than the minimum"
    )]
    Runs { min_runs: usize, max_runs: usize },
    #[error("the baseline {}: {reason}", path.display())]
    Baseline { path: PathBuf, reason: String },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Fix(#[from] FixError),
    #[error(transparent)]
    Inputs(#[from] InputError),
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error("{0}")]
    Runtime(#[from] runtime::Error),
    #[error("{source}{}", hint(.source))]
    Engine { source: EngineRunError },
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("{subject} failed while it was measured: {source}")]
    Run {
        subject: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BenchError {
    /// With the sizes at which a subject failed.
    pub(super) fn at(self, point: &Point) -> BenchError {
        match self {
            BenchError::Run { subject, source } if !point.is_empty() => {
                let sizes = point.iter().map(|(name, n)| format!("{name}={n}"));
                let sizes = sizes.collect::<Vec<_>>().join(" ");
                BenchError::Run {
                    subject: format!("{subject} at {sizes}"),
                    source,
                }
            }
            other => other,
        }
    }
}

fn hint(source: &EngineRunError) -> String {
    source.hint().map_or(String::new(), |h| format!(" ({h})"))
}

impl From<EngineRunError> for BenchError {
    fn from(source: EngineRunError) -> BenchError {
        BenchError::Engine { source }
    }
}

impl BenchError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            BenchError::Baseline { .. }
            | BenchError::Runs { .. }
            | BenchError::Fix(_)
            | BenchError::Inputs(_)
            | BenchError::Npz(_)
            | BenchError::Io { .. } => Fault::Request,
            BenchError::Read(_) | BenchError::Manifest(_) => Fault::Model,
            BenchError::Bundle(e) => e.fault(),
            BenchError::Spec(e) => e.fault(),
            BenchError::Runtime(e) => e.fault(),
            BenchError::Engine { source } => source.fault(),
            BenchError::NoSubjects | BenchError::Profile(_) | BenchError::Run { .. } => {
                Fault::Timing
            }
        }
    }
}
