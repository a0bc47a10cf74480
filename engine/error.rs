//! What can go wrong, and what to do about it.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ComputeCapability, ENV_DIR, INSTALL, LIBRARY, LogLine, ProfileError, Refusal};
use super::{hints, log};
use kiln_runtime::fault::Fault;
use kiln_runtime::setting::{EXPLAIN, FP16, NO_ENGINE, TARGET};

/// Why there is no engine.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineError {
    /// kiln was built without the feature `tensorrt`.
    #[error("this kiln was built without TensorRT, so it neither builds nor runs engines")]
    Absent,
    /// No TensorRT on this machine.
    #[error("{LIBRARY} not found; looked in {}", list(.looked))]
    NotFound { looked: Vec<PathBuf> },
    /// A file was found, but the dynamic loader refuses it or a function is missing in it.
    #[error("cannot load {}: {reason}", .path.display())]
    Load { path: PathBuf, reason: String },
    /// The library is older than the headers kiln was compiled with, or of another major version.
    #[error("{} is {LIBRARY} {found}, but at least {needed} of the same major version is needed", .path.display())]
    Version {
        path: PathBuf,
        found: Version,
        needed: Version,
    },
    /// TensorRT would not make one of its own objects.
    #[error("TensorRT could not make {what}{}", because(.log))]
    Refused {
        what: Cow<'static, str>,
        log: Vec<LogLine>,
    },
    /// The request contradicts itself or leaves out what is needed.
    #[error("{0}")]
    Request(Cow<'static, str>),
    /// The profiles do not fit the inputs of the model.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The model holds what TensorRT would refuse or misread; it was not handed over. Never empty.
    #[error("the model is not in TensorRT's dialect: {}", some(.0))]
    Dialect(Vec<Refusal>),
    /// The GPU multiplies no matrices of FP32, and these nodes do; the model was not handed over. Never empty.
    #[error("{capability} has no FP32 matrix products, and {} FP32: {}{}", count(.nodes), named(.nodes), reason(.kept))]
    Fp32Products {
        capability: ComputeCapability,
        nodes: Vec<String>,
        /// Half precision was asked for; why the first of the nodes kept FP32, if that is known.
        half: bool,
        kept: Option<String>,
    },
    /// TensorRT's ONNX parser refused the model. `failures` is never empty; `log` is what TensorRT wrote, unedited.
    #[error("TensorRT cannot read the model: {}", some(.failures))]
    Parse {
        failures: Vec<ParseFailure>,
        log: Vec<LogLine>,
    },
    /// TensorRT read the model and built no engine. `log` is what TensorRT wrote, unedited.
    #[error("TensorRT built no engine: {}", some(.failures))]
    Build {
        failures: Vec<BuildFailure>,
        log: Vec<LogLine>,
    },
    /// TensorRT read the model without these of its inputs. Never empty.
    #[error("TensorRT drops {} when it reads the model: values given there would not affect the engine", inputs(.0))]
    Dropped(Vec<String>),
    /// The process that built the engine ended without a result. `log` is the last that TensorRT wrote.
    #[error("the process that builds the engine ended by {how}{}{}", during(.phase), because(.log))]
    Died {
        how: String,
        phase: Option<String>,
        log: Vec<LogLine>,
    },
    /// No process can be started to build the engine, or it cannot read the model.
    #[error("{}: no process can be started to build the engine: {reason}", .program.display())]
    Child { program: PathBuf, reason: String },
    /// The engine, or what it is built from, cannot be written.
    #[error("{}: cannot be written: {reason}", .path.display())]
    Write { path: PathBuf, reason: String },
    /// [`Progress::cancelled`](super::Progress::cancelled) said so, or a `Progress` panicked.
    #[error("the engine build was cancelled")]
    Cancelled,
}

/// A node, or a part of the model outside all nodes, that TensorRT's parser refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParseFailure {
    /// Position of the node in the graph.
    pub index: Option<usize>,
    /// Name of the node.
    pub node: Option<String>,
    /// Operator of the node, without its domain: the parser ignores domains.
    pub op: Option<String>,
    /// What TensorRT says, without its source positions.
    pub reason: String,
    /// TensorRT has no implementation of this op at all.
    pub unknown_op: bool,
}

/// One reason why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// The node TensorRT names, if it names one. Names of fused nodes are TensorRT's own.
    pub node: Option<String>,
    /// What TensorRT says, without its source positions.
    pub reason: String,
}

fn inputs(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    match names.len() {
        1 => format!("its input {}", names.join("")),
        _ => format!("its inputs {}", names.join(", ")),
    }
}

impl EngineError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            EngineError::Absent
            | EngineError::NotFound { .. }
            | EngineError::Load { .. }
            | EngineError::Version { .. } => Fault::Machine,
            EngineError::Request(_) | EngineError::Profile(_) | EngineError::Write { .. } => {
                Fault::Request
            }
            _ => Fault::Target,
        }
    }

    pub(super) fn refused(what: &'static str) -> Self {
        Self::Refused {
            what: what.into(),
            log: Vec::new(),
        }
    }

    /// What the user can do, in one sentence, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Absent => Some(format!(
                "`cargo build --release` with the feature `tensorrt`, which is on by default, makes one that does; {TARGET} cpu \
                 compiles for ONNX Runtime, and {NO_ENGINE} makes the model without its engine"
            )),
            Self::NotFound { .. } => Some(format!(
                "`{INSTALL}` in the active environment or in ./.venv installs it; or set {ENV_DIR} to the folder of its libraries"
            )),
            Self::Load { .. } | Self::Version { .. } => {
                Some(format!("`{INSTALL}` installs one that fits"))
            }
            Self::Profile(error) => error.hint(),
            Self::Parse { failures, .. } => failures.iter().find_map(ParseFailure::hint),
            Self::Build { failures, .. } => {
                let known = failures.iter().find_map(BuildFailure::hint);
                known.or_else(|| {
                    Some(format!(
                        "its parser takes the model, and its builder does not: {NO_ENGINE} makes the model without an engine, and \
                         {TARGET} cpu one for ONNX Runtime"
                    ))
                })
            }
            Self::Dialect(refusals) if refusals.iter().any(|r| r.quantization) => Some(format!(
                "TensorRT takes INT8 around zero with constant scales; `{EXPLAIN} all` says what kept kiln from writing it so"
            )),
            Self::Dialect(refusals) if refusals.iter().any(|r| r.foreign) => Some(format!(
                "operators of other domains come from optimizers: compile the model as it was exported, which kiln \
                 optimizes for the target itself; {NO_ENGINE} makes the model without an engine"
            )),
            Self::Dialect(refusals) if refusals.iter().all(|r| r.input) => None,
            Self::Dialect(_) => Some(format!(
                "replace it in the model by operators that TensorRT has; {NO_ENGINE} makes the model without an engine, \
                 and {TARGET} cpu one for ONNX Runtime"
            )),
            Self::Fp32Products { half: false, .. } => Some(format!("give {FP16}")),
            Self::Fp32Products { .. } => {
                Some("give targets from sm_80 on, or let these nodes become FP16".into())
            }
            Self::Died { .. } => Some(format!(
                "nothing of this compilation is left; the same command with {NO_ENGINE} makes the model without it"
            )),
            Self::Dropped(_) => Some(format!(
                "its parser does not know what reads them: {EXPLAIN} all says which nodes kiln left as they were"
            )),
            Self::Refused { .. }
            | Self::Request(_)
            | Self::Child { .. }
            | Self::Write { .. }
            | Self::Cancelled => None,
        }
    }
}

impl ParseFailure {
    /// What the user can do, where that is known.
    pub fn hint(&self) -> Option<String> {
        if self.unknown_op {
            let op = self.op.as_deref().unwrap_or("this op");
            return Some(format!(
                "TensorRT has no `{op}`: replace it by standard ONNX ops"
            ));
        }
        hints::parse_hint(self.op.as_deref(), &self.reason)
    }
}

impl BuildFailure {
    /// What the user can do, where that is known.
    pub fn hint(&self) -> Option<String> {
        hints::build_hint(&self.reason)
    }
}

impl fmt::Display for ParseFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, self.index) {
            (Some(name), _) => write!(f, "node `{name}`")?,
            (None, Some(index)) => write!(f, "node {index}")?,
            (None, None) => return f.write_str(&self.reason),
        }
        if let Some(op) = &self.op {
            write!(f, " ({op})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// A version of TensorRT for RTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
    pub build: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            patch,
            build,
        } = self;
        write!(f, "{major}.{minor}.{patch}.{build}")
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts: Vec<u32> = text.split('.').filter_map(|p| p.parse().ok()).collect();
        match parts[..] {
            [major, minor, patch, build] => Ok(Version {
                major,
                minor,
                patch,
                build,
            }),
            _ => Err(serde::de::Error::custom("a version has four numbers")),
        }
    }
}

fn during(phase: &Option<String>) -> String {
    phase
        .as_ref()
        .map_or_else(String::new, |p| format!(" in the phase `{p}`"))
}

fn count(nodes: &[String]) -> String {
    match nodes.len() {
        1 => "one node multiplies in".to_owned(),
        n => format!("{n} nodes multiply in"),
    }
}

fn named(nodes: &[String]) -> String {
    let shown: Vec<&str> = nodes.iter().take(3).map(String::as_str).collect();
    match nodes.len() > shown.len() {
        true => format!("{}, …", shown.join(", ")),
        false => shown.join(", "),
    }
}

fn reason(kept: &Option<String>) -> String {
    kept.as_ref()
        .map_or_else(String::new, |why| format!("; the first keeps it: {why}"))
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    shown.join(", ")
}

fn because(log: &[LogLine]) -> String {
    log.last()
        .map_or_else(String::new, |line| format!(": {}", log::clean(&line.text)))
}

fn some<T: fmt::Display>(failures: &[T]) -> String {
    match failures {
        [] => "it does not say why".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(reason: &str) -> String {
        let failures = vec![BuildFailure {
            node: None,
            reason: reason.into(),
        }];
        let log = Vec::new();
        EngineError::Build { failures, log }.hint().unwrap()
    }

    #[test]
    fn what_no_one_knows_of_the_builder_still_says_what_to_do() {
        assert!(hint("its check (false) failed").contains("`no-engine`"));
        assert!(hint("reshaping failed").contains("exported with fixed sizes"));
    }
}
