//! Where sessions run: the CPU, a GPU by ONNX Runtime's CUDA provider, or one by TensorRT for RTX's plugin.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// ONNX Runtime's name of a provider.
pub(super) const CUDA: &str = "CUDAExecutionProvider";

/// ONNX Runtime's name of a provider.
pub(super) const RTX: &str = "NvTensorRTRTXExecutionProvider";

/// Where a session runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// ONNX Runtime's CUDA provider.
    Cuda(Gpu),
    /// TensorRT for RTX, as a plugin of ONNX Runtime.
    Rtx(Gpu),
}

/// One GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// In the order of the provider.
    pub id: u32,
    /// The most bytes that a session's arena may take of its memory. Kernels may take more beside it.
    pub memory_limit: Option<u64>,
}

impl Device {
    pub fn is_cpu(self) -> bool {
        self == Device::Cpu
    }

    /// The name of ONNX Runtime's provider.
    pub fn provider(self) -> &'static str {
        match self {
            Device::Cpu => "CPUExecutionProvider",
            Device::Cuda(_) => CUDA,
            Device::Rtx(_) => RTX,
        }
    }
}

/// `cpu`, `cuda:0`, `rtx:0`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(gpu) => write!(f, "cuda:{}", gpu.id),
            Device::Rtx(gpu) => write!(f, "rtx:{}", gpu.id),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Device, D::Error> {
        let gpu = |id| Gpu {
            id,
            memory_limit: None,
        };
        match String::deserialize(from)?.parse() {
            Ok(DeviceChoice::Cpu) => Ok(Device::Cpu),
            Ok(DeviceChoice::Cuda(id)) => Ok(Device::Cuda(gpu(id))),
            Ok(DeviceChoice::Rtx(id)) => Ok(Device::Rtx(gpu(id))),
            Ok(DeviceChoice::Auto) => Err(serde::de::Error::custom("`auto` is no device")),
            Err(unknown) => Err(serde::de::Error::custom(unknown)),
        }
    }
}

/// It is written as text.
impl JsonSchema for Device {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

/// How a session uses a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
pub struct GpuOptions {
    /// FP32 products may round their operands to TF32 (10 bits of fraction). Never for a reference.
    pub tf32: bool,
    /// Kernels are recorded once as a CUDA graph and replayed. All nodes must be on the GPU, and sizes must not change.
    pub graph: bool,
    /// Times include copying inputs to the GPU and outputs from it.
    pub copies: bool,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRequest {
    pub choice: DeviceChoice,
    /// See [`Gpu::memory_limit`].
    pub memory_limit: Option<u64>,
}

/// `auto`, `cpu`, `cuda:0`, `rtx:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where there is a device and everything that it takes, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(u32),
    Rtx(u32),
}

impl DeviceChoice {
    /// The GPU that is meant, or the first one.
    pub fn gpu(self) -> u32 {
        match self {
            DeviceChoice::Auto | DeviceChoice::Cpu => 0,
            DeviceChoice::Cuda(id) | DeviceChoice::Rtx(id) => id,
        }
    }
}

/// There is no such device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown device '{0}'; known devices: auto, cpu, cuda, cuda:N, rtx, rtx:N")]
pub struct UnknownDevice(String);

/// As it is written.
impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(id) => write!(f, "cuda:{id}"),
            DeviceChoice::Rtx(id) => write!(f, "rtx:{id}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<DeviceChoice, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_string());
        let (kind, id) = text.split_once(':').unwrap_or((text, "0"));
        let id = id.parse().map_err(|_| unknown())?;
        match (kind, text.contains(':')) {
            ("auto", false) => Ok(DeviceChoice::Auto),
            ("cpu", false) => Ok(DeviceChoice::Cpu),
            ("cuda", _) => Ok(DeviceChoice::Cuda(id)),
            ("rtx", _) => Ok(DeviceChoice::Rtx(id)),
            _ => Err(unknown()),
        }
    }
}

/// The device that was chosen.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct Chosen {
    pub device: Device,
    /// The GPU's name, or why it is none.
    pub why: String,
    /// It was asked for by its name, so anything that runs elsewhere is a failure.
    pub asked: bool,
}

/// `cuda:0 (NVIDIA H100 80GB HBM3)`, `cpu (this machine shows no NVIDIA GPU)`.
impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why.is_empty() {
            true => self.device.fmt(f),
            false => write!(f, "{} ({})", self.device, self.why),
        }
    }
}

impl Chosen {
    /// The CPU, for a reason.
    pub fn cpu(why: impl Into<String>, asked: bool) -> Chosen {
        Chosen {
            device: Device::Cpu,
            why: why.into(),
            asked,
        }
    }
}

/// A device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub reason: String,
    /// The command that mends it.
    pub mend: String,
}

impl Unusable {
    pub(super) fn new(reason: impl Into<String>, mend: impl Into<String>) -> Unusable {
        Unusable {
            reason: reason.into(),
            mend: mend.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_frameworks_name_them() {
        let choice = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(choice("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(choice("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(choice("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(choice("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        assert_eq!(choice("rtx:1"), Ok(DeviceChoice::Rtx(1)));
        for bad in ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "", "cuda:-1"] {
            assert!(choice(bad).is_err(), "{bad}");
        }
        let gpu = Gpu {
            id: 2,
            memory_limit: None,
        };
        assert_eq!(Device::Cuda(gpu).to_string(), "cuda:2");
    }
}
