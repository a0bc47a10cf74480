//! What is asked of a builder, and what comes back.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memmap2::Mmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ComputeCapability, DataType, EngineError, Kernels, LogLine, Network, Profile, Progress, Version,
};

/// Makes engines out of ONNX models.
pub trait EngineBuilder {
    /// Builds an engine. It may take minutes, and blocks the calling thread; `progress` may be called from others.
    ///
    /// # Errors
    /// [`EngineError::Request`] and [`EngineError::Profile`] for a request that cannot be met, found before the
    /// building starts; [`EngineError::Parse`] and [`EngineError::Build`] for what TensorRT refuses;
    /// [`EngineError::Cancelled`] where `progress` says so.
    fn build(
        &self,
        request: &BuildRequest<'_>,
        progress: &dyn Progress,
    ) -> Result<Built, EngineError>;
}

/// An engine to build.
#[derive(Debug, Clone)]
pub struct BuildRequest<'a> {
    /// The serialized ONNX model, at most 2 GB. TensorRT copies what it keeps.
    pub onnx: &'a [u8],
    /// The file that holds `onnx`, if there is one: a builder in another process reads it there.
    pub onnx_path: Option<&'a Path>,
    /// The folder that the paths of external data are relative to; without it, the current folder.
    pub data_dir: Option<&'a Path>,
    /// Contents of initializers of the main graph by name, little-endian and as long as their dtype and shape say. They
    /// are read from where they lie, and take the place of what the model says: in `onnx`, such an initializer needs only
    /// a name, a dtype and a shape. So a model of any size goes through `onnx` in some kilobytes.
    pub weights: Vec<(&'a str, &'a [u8])>,
    /// The GPUs to build for, at least one.
    pub capabilities: Vec<ComputeCapability>,
    /// The sizes of the dynamic inputs. None is needed if all inputs are static.
    pub profiles: Vec<Profile>,
    /// Most bytes of scratch memory a kernel may use on the GPU; without it, all of the GPU's memory.
    pub workspace: Option<usize>,
    /// How hard TensorRT tries, from 0 to 5; without it, TensorRT's default.
    pub optimization_level: Option<u8>,
    /// List the engine's kernels, in what comes back and for TensorRT's engine inspector.
    pub detailed: bool,
    /// FP32 products round their factors to 10 bits of mantissa, where the GPU has TF32.
    pub tf32: bool,
    pub form: Form,
    /// A file to write the plan into while it is made, so that it is never in memory whole. A builder in another process chooses its own.
    pub plan: Option<&'a Path>,
}

/// What an engine can do beside running where it was built. TensorRT for RTX builds engines for several GPUs at once, keeps no
/// timings, and takes the first two only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// Its weights can be replaced.
    pub refittable: bool,
    /// It has no weights: whoever opens it puts in those of the model that it was built from.
    pub weight_stripped: bool,
    /// It runs in newer versions of TensorRT, too.
    pub version_compatible: bool,
    /// It runs on other GPUs, too.
    pub hardware: Option<Hardware>,
    /// Keeps the timing of kernels from build to build.
    pub timing_cache: Option<PathBuf>,
}

/// The other GPUs that an engine runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hardware {
    /// All from Ampere on.
    AmperePlus,
    /// Those of the same compute capability.
    SameCapability,
}

impl<'a> BuildRequest<'a> {
    /// A request with TensorRT's defaults.
    pub fn new(onnx: &'a [u8], capability: ComputeCapability) -> Self {
        Self {
            onnx,
            onnx_path: None,
            data_dir: None,
            weights: Vec::new(),
            capabilities: vec![capability],
            profiles: Vec::new(),
            workspace: None,
            optimization_level: None,
            detailed: false,
            tf32: true,
            form: Form::default(),
            plan: None,
        }
    }
}

/// A built engine, and what is known about it.
#[derive(Debug)]
pub struct Built {
    /// The serialized engine.
    pub plan: Plan,
    /// Time TensorRT took to read the model.
    pub parse_time: Duration,
    /// Time TensorRT took to build the engine.
    pub build_time: Duration,
    /// What TensorRT warned of, oldest first.
    pub warnings: Vec<LogLine>,
    /// What the parser made of the model. The engine has fewer, fused layers.
    pub network: Network,
    /// What the builder made; empty unless `detailed` was asked for.
    pub kernels: Kernels,
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    pub version: Version,
}

/// An input or output as TensorRT sees it.
///
/// The name differs from the model's where the same tensor is input and output, and the dtype where TensorRT has no such
/// type: FLOAT for an ONNX DOUBLE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: DataType,
    /// -1 stands for a dynamic dimension.
    pub shape: Vec<i64>,
}

/// A serialized engine, in the memory or file where it was written.
pub struct Plan(Memory);

enum Memory {
    Host(Box<dyn AsRef<[u8]> + Send + Sync>),
    Owned(Vec<u8>),
    File { path: PathBuf, map: Mmap },
}

impl Plan {
    /// One that lies in a file, mapped, which is this process's to move.
    pub(super) fn in_file(path: PathBuf, map: Mmap) -> Plan {
        Plan(Memory::File { path, map })
    }

    /// One in memory that TensorRT allocated.
    #[cfg(feature = "tensorrt")]
    pub(super) fn in_memory(memory: impl AsRef<[u8]> + Send + Sync + 'static) -> Plan {
        Plan(Memory::Host(Box::new(memory)))
    }

    /// Writes it to a file, or moves the file that it is in.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, to: &Path) -> io::Result<()> {
        match &self.0 {
            Memory::File { path, .. } => fs::rename(path, to),
            _ => fs::write(to, self),
        }
    }
}

impl From<Vec<u8>> for Plan {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Memory::Owned(bytes))
    }
}

impl Deref for Plan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Host(memory) => (**memory).as_ref(),
            Memory::Owned(bytes) => bytes,
            Memory::File { map, .. } => map,
        }
    }
}

impl AsRef<[u8]> for Plan {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({} bytes)", self.len())
    }
}
