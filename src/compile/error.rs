//! What can stop a compilation, and the exit code of each.

use std::path::PathBuf;

use kiln_passes::{PassError, PassFailure};

use crate::bench::BenchError;
use crate::bundle::BundleError;
use crate::calibrate::CalibrateError;
use crate::engine::run::EngineRunError;
use crate::engine::{DataType, EngineError};
use crate::manifest::Manifest;
use crate::parity;
use crate::runtime;
use crate::shapes::SpecError;
use crate::targets::TargetError;

/// A compilation stopped.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Read(#[from] kiln_graph::onnx::ReadError),
    #[error(transparent)]
    Write(#[from] kiln_graph::onnx::WriteError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    UnknownPass(#[from] kiln_passes::registry::UnknownPass),
    #[error("{}: {source}", model.display())]
    Pass {
        model: PathBuf,
        source: kiln_passes::PassError,
    },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: std::io::Error,
    },
    #[error("{}: the original does not run at these sizes; give others with --dim: {why}", model.display())]
    Sizes { model: PathBuf, why: String },
    #[error("{}: an engine has one profile of sizes, for which TensorRT builds all branches, and the model runs at others with each value of a control: {sizes}; no bundle was written. Choose one: {commands}", model.display())]
    Ways {
        model: PathBuf,
        sizes: String,
        commands: String,
    },
    #[error("{source}{}", hint(.source))]
    Engine { source: EngineError },
    /// TensorRT built no engine of a model whose branches inputs select.
    #[error("{source}. An engine has all branches, and {} among them: --input {} leaves only those of that value", select(.controls), .controls.join(" --input "))]
    Branches {
        source: Box<CompileError>,
        /// As `--input` takes them. Never empty.
        controls: Vec<String>,
    },
    #[error("{source}{}", run_hint(.source))]
    Run { source: EngineRunError },
    #[error("{0}")]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Parity(#[from] parity::ParityError),
    #[error(transparent)]
    Inputs(#[from] parity::InputError),
    #[error(transparent)]
    Fix(#[from] crate::fixed::FixError),
    #[error(transparent)]
    Tolerance(#[from] parity::ToleranceError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Npz(#[from] parity::NpzError),
    #[error("the result is not the same function as {}: {}{}; no bundle was written. {advice}", model.display(), on(.engine), parity::failures(.parity))]
    NotTheSame {
        model: PathBuf,
        /// What ran the engine, if it is the engine that differs.
        engine: Option<String>,
        parity: Box<parity::Report>,
        advice: &'static str,
    },
    #[error("the result generates something else than {}: {failed}; no bundle was written. --keep names nodes that keep their precision, --tolerance another one", model.display())]
    Generation { model: PathBuf, failed: String },
    #[error("ONNX Runtime runs {} and refuses what kiln made of it, which is a defect of kiln; no bundle was written: {source}", model.display())]
    Refused {
        model: PathBuf,
        source: runtime::Error,
    },
    #[error("{}: the search for nodes that must keep their precision stopped; no bundle was written. --no-search leaves it out, --keep names nodes: {source}", model.display())]
    Search {
        model: PathBuf,
        source: Box<CompileError>,
    },
    #[error("{}: {failed}; no bundle was written", model.display())]
    Gates {
        model: PathBuf,
        failed: String,
        /// All that was found out, unless it was clear before that a gate cannot pass.
        manifest: Option<Box<Manifest>>,
    },
    #[error("{} has the SHA-256 {found}, and the recipe asks for {asked}: it is not the model that the recipe was made for", model.display())]
    OtherModel {
        model: PathBuf,
        found: String,
        asked: String,
    },
    #[error("the engine did not run at the case {case}: {source}")]
    EngineRun {
        case: String,
        source: crate::engine_parity::RunnerError,
    },
    #[error("{}: {why}; no bundle was written. Nodes of other precisions can be kept, or the CPU be taken (--device cpu)", model.display())]
    Fallback { model: PathBuf, why: String },
    #[error("{} changed while it was compiled; no bundle was written", .0.display())]
    Changed(PathBuf),
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
    #[error("TensorRT reads {} without {}, which it was asked to be in; no bundle was written", model.display(), list(.absent))]
    Precision {
        model: PathBuf,
        absent: Vec<DataType>,
    },
    #[error("{option} matches no node whose precision it could keep{gone}; there are: {instead}")]
    Keep {
        option: String,
        gone: &'static str,
        instead: String,
    },
    #[error("{what}: {why}")]
    Unsupported { what: &'static str, why: String },
    #[error(transparent)]
    Calibrate(#[from] crate::calibrate::CalibrateError),
    #[error(transparent)]
    Golden(#[from] crate::check::GoldenError),
    #[error("the manifest cannot be written: {0}")]
    Manifest(serde_json::Error),
}

fn on(engine: &Option<String>) -> String {
    let runner = engine.as_ref();
    runner.map_or(String::new(), |runner| format!("the engine on {runner}: "))
}

fn list(precisions: &[DataType]) -> String {
    let names: Vec<String> = precisions.iter().map(DataType::to_string).collect();
    names.join(", ")
}

fn run_hint(source: &EngineRunError) -> String {
    source.hint().map_or(String::new(), |h| format!(" ({h})"))
}

fn hint(source: &EngineError) -> String {
    source.hint().map_or(String::new(), |h| format!(" ({h})"))
}

fn select(controls: &[String]) -> String {
    let names = controls.iter().filter_map(|c| c.split('=').next());
    let names: Vec<&str> = names.collect();
    let verb = if names.len() == 1 {
        "selects"
    } else {
        "select"
    };
    format!("{} {verb}", names.join(" and "))
}

impl From<EngineRunError> for CompileError {
    fn from(source: EngineRunError) -> CompileError {
        CompileError::Run { source }
    }
}

impl From<EngineError> for CompileError {
    fn from(source: EngineError) -> CompileError {
        CompileError::Engine { source }
    }
}

/// A defect of kiln's, which a report of the model would help to mend.
pub const DEFECT: u8 = 7;
/// The search for nodes that keep their precision was aborted.
pub const SEARCH: u8 = 8;
/// Something could not be timed.
pub const TIMING: u8 = 9;

impl CompileError {
    /// With what would leave branches out that these inputs select, if it was the engine that could not be built.
    pub(super) fn beside(self, controls: &[String]) -> CompileError {
        let built = matches!(
            &self,
            CompileError::Engine {
                source: EngineError::Build { .. } | EngineError::Parse { .. }
            }
        );
        match built && !controls.is_empty() {
            true => CompileError::Branches {
                source: Box::new(self),
                controls: controls.to_vec(),
            },
            false => self,
        }
    }

    /// What stopped a search. What the search found out, and what has nothing to do with it, stays what it is.
    pub(super) fn in_search(self, options: &crate::options::Options) -> CompileError {
        match self {
            known @ (CompileError::NotTheSame { .. }
            | CompileError::Refused { .. }
            | CompileError::Fallback { .. }) => known,
            known if matches!(known.exit_code(), 2 | 5) => known,
            other => CompileError::Search {
                model: options.model.clone(),
                source: Box::new(other),
            },
        }
    }

    /// The exit code of the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            CompileError::NotTheSame { .. }
            | CompileError::Generation { .. }
            | CompileError::Precision { .. }
            | CompileError::Fallback { .. }
            | CompileError::EngineRun { .. }
            | CompileError::Gates { .. } => 1,
            CompileError::OtherModel { .. } | CompileError::Changed(_) => 3,
            CompileError::Target(TargetError::NoGpu { .. }) => 5,
            CompileError::Target(_) => 2,
            CompileError::Recipe(_) => 2,
            CompileError::Bundle(BundleError::NoBundle { .. }) => 3,
            CompileError::Bundle(_) => 2,
            CompileError::Spec(SpecError::NotTensor { .. } | SpecError::NoType { .. }) => 3,
            CompileError::Spec(_)
            | CompileError::UnknownPass(_)
            | CompileError::Keep { .. }
            | CompileError::Unsupported { .. }
            | CompileError::Io { .. }
            | CompileError::Inputs(_)
            | CompileError::Fix(_)
            | CompileError::Npz(_)
            | CompileError::Golden(_)
            | CompileError::Tolerance(_)
            | CompileError::Sizes { .. }
            | CompileError::Write(_) => 2,
            CompileError::Refused { .. }
            | CompileError::Manifest(_)
            | CompileError::Pass {
                source:
                    PassError::Broken { .. }
                    | PassError::Failed {
                        failure: PassFailure::Unsettled { .. },
                        ..
                    },
                ..
            } => DEFECT,
            CompileError::Ways { .. } => 4,
            CompileError::Branches { source, .. } => source.exit_code(),
            CompileError::Search { .. } => SEARCH,
            CompileError::Parity(parity::ParityError::Tolerance(_)) => 2,
            CompileError::Read(_) | CompileError::Pass { .. } | CompileError::Parity(_) => 3,
            CompileError::Bench(BenchError::Baseline { .. } | BenchError::Runs { .. }) => 2,
            CompileError::Bench(_) => TIMING,
            CompileError::Engine { source } => match source {
                EngineError::NotFound { .. }
                | EngineError::Load { .. }
                | EngineError::Version { .. } => 5,
                EngineError::Request(_) | EngineError::Profile(_) | EngineError::Write { .. } => 2,
                _ => 4,
            },
            CompileError::Run { source } => match source {
                EngineRunError::Cuda(_) | EngineRunError::Library(_) => 5,
                EngineRunError::Inputs(_) | EngineRunError::Sizes(_) => 2,
                _ => 3,
            },
            CompileError::Calibrate(e) => match e {
                CalibrateError::Data(_) | CalibrateError::NoData(_) | CalibrateError::Cache(_) => 2,
                CalibrateError::Runtime(e) if e.is_missing_runtime() => 5,
                _ => 3,
            },
            CompileError::Runtime(e) if e.is_missing_runtime() => 5,
            CompileError::Runtime(_) => 3,
        }
    }
}
