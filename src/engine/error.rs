//! What can go wrong, and what to do about it.

use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseFailure {
    pub code: i32,
    pub index: Option<usize>,
    pub node: Option<String>,
    pub op: Option<String>,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version { pub major: i32, pub minor: i32, pub patch: i32, pub build: i32 }
impl Version {
    pub(super) fn of_headers() -> Self {
        unsafe { Self { major: trtx_sys::get_tensorrt_major_version() as i32, minor: trtx_sys::get_tensorrt_minor_version() as i32, patch: trtx_sys::get_tensorrt_patch_version() as i32, build: trtx_sys::get_tensorrt_build_version() as i32 } }
    }
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.major, self.minor, self.patch, self.build)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("load {path}: {reason}")]
    Load { path: PathBuf, reason: String },
    #[error("version {found} {needed} {path}")]
    Version { path: PathBuf, found: Version, needed: Version },
    #[error("TensorRT could not make {what}")]
    Refused { what: &'static str },
}
impl EngineError { pub(super) fn refused(what: &'static str) -> Self { Self::Refused { what } } }
