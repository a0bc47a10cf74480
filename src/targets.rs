//! `--target`: what to compile for.

use std::str::FromStr;

use kiln_passes::Target;

use crate::engine::ComputeCapability;
use crate::nvidia::driver;
use crate::setting::TARGET;

/// What to compile for: ONNX Runtime's CPU or CUDA provider, or engines for GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    Cpu,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// One engine for the GPU of this machine; [`Targets::resolved`] says which that is.
    Local,
    /// One engine that holds kernels for all of these.
    Engines(Vec<ComputeCapability>),
    /// An engine, and a model for ONNX Runtime's CUDA provider beside it, in one bundle.
    EnginesAndCuda(Vec<ComputeCapability>),
}

/// The target list cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error(
        "unknown target '{0}'; known targets: cpu, cuda, local, sm_75, sm_80, sm_86, sm_89, sm_120, sm_121{more}",
        more = more(.0)
    )]
    Unknown(String),
    #[error("{TARGET} {0} cannot be combined with other targets")]
    Mixed(&'static str),
    /// Only a compilation writes two models.
    #[error("{TARGET} {0} stands for two results; give one of them")]
    Several(String),
    /// The engine can be built on a machine with a GPU only.
    #[error(
        "{TARGET} local: there is no CUDA device on this machine; name what to build for: sm_89"
    )]
    NoGpu,
    /// TensorRT proper builds for no other.
    #[error(
        "TensorRT builds for the GPU of the machine that it runs on: there is no CUDA device on this machine"
    )]
    NoGpuToBuildOn,
    /// There is a GPU, and the TensorRT that kiln was compiled for does not serve it.
    #[error(
        "{TARGET} local: this machine's GPU is {0}, which TensorRT for RTX does not serve; {PROPER}"
    )]
    NotServed(String),
    /// TensorRT proper takes no other target than the GPU at hand.
    #[error(
        "{TARGET} {0}: TensorRT builds for the GPU of the machine that it runs on: give {TARGET} local there"
    )]
    NotLocal(String),
}

const PROPER: &str =
    "a kiln that was built with `--features tensorrt-enterprise` serves it by TensorRT proper";

/// Capabilities of data-centre GPUs, which TensorRT proper serves.
const DATA_CENTRE: [&str; 3] = ["sm_90", "sm_100", "sm_103"];

fn more(name: &str) -> String {
    match DATA_CENTRE.contains(&name) {
        true => {
            format!(" ({TARGET} cuda serves it by ONNX Runtime; {PROPER}, with {TARGET} local)")
        }
        false => String::new(),
    }
}

/// GPUs that a portable engine serves: consumer and workstation cards since 2020.
pub const PORTABLE: [ComputeCapability; 3] = [
    ComputeCapability::Sm86,
    ComputeCapability::Sm89,
    ComputeCapability::Sm120,
];

/// The name of ONNX Runtime's CUDA provider as a target.
const CUDA: &str = "cuda";

impl FromStr for Targets {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Targets, TargetError> {
        let mut names: Vec<&str> = text.split(',').map(str::trim).collect();
        let beside = names.len() > 1 && names.contains(&CUDA);
        if beside {
            names.retain(|name| *name != CUDA);
        }
        for (alone, targets) in [
            ("cpu", Targets::Cpu),
            (CUDA, Targets::Cuda),
            ("local", Targets::Local),
        ] {
            if names.contains(&alone) {
                return match names.len() {
                    1 if !beside => Ok(targets),
                    _ => Err(TargetError::Mixed(alone)),
                };
            }
        }
        let mut capabilities = Vec::new();
        for name in names {
            let parsed: ComputeCapability = match name.parse() {
                Ok(ComputeCapability::Current) | Err(_) => {
                    return Err(TargetError::Unknown(name.to_string()));
                }
                Ok(capability) => capability,
            };
            if !capabilities.contains(&parsed) {
                capabilities.push(parsed);
            }
        }
        capabilities.sort();
        match beside {
            true if capabilities.is_empty() => Ok(Targets::Cuda),
            true => Ok(Targets::EnginesAndCuda(capabilities)),
            false => Ok(Targets::Engines(capabilities)),
        }
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Targets::Cpu => f.write_str("cpu"),
            Targets::Cuda => f.write_str("cuda"),
            Targets::Local => f.write_str("local"),
            Targets::Engines(all) => {
                let names: Vec<&str> = all.iter().map(|c| c.name()).collect();
                f.write_str(&names.join(","))
            }
            Targets::EnginesAndCuda(all) => {
                write!(f, "{CUDA},{}", Targets::Engines(all.clone()))
            }
        }
    }
}

impl Targets {
    /// Whether engines are built for it; ONNX Runtime's providers take the model.
    pub fn is_engine(&self) -> bool {
        !matches!(self, Targets::Cpu | Targets::Cuda)
    }

    /// The engine's and the CUDA provider's, where one bundle is for both.
    pub fn parts(&self) -> Option<[Targets; 2]> {
        match self {
            Targets::EnginesAndCuda(all) => Some([Targets::Engines(all.clone()), Targets::Cuda]),
            _ => None,
        }
    }

    /// What was asked for, or else what fits this machine: never [`Targets::Local`]. With a sentence where it was not said
    /// which.
    ///
    /// # Errors
    /// When it takes a GPU that is not here, or that TensorRT does not serve.
    pub fn resolved(asked: Option<&Targets>) -> Result<(Targets, Option<String>), TargetError> {
        let proper = cfg!(feature = "tensorrt-enterprise");
        match asked {
            None if proper => {
                let found = local_name().ok_or(TargetError::NoGpuToBuildOn)?;
                let why = format!("target: this machine's GPU ({found})");
                Ok((
                    Targets::Engines(vec![ComputeCapability::Current]),
                    Some(why),
                ))
            }
            None => {
                let (targets, why) = Targets::default_for_machine();
                Ok((targets, Some(why)))
            }
            Some(Targets::Local) => {
                let found = local_name().ok_or(TargetError::NoGpu)?;
                let capability = match proper {
                    true => ComputeCapability::Current,
                    false => found
                        .parse()
                        .map_err(|_| TargetError::NotServed(found.clone()))?,
                };
                let why = format!("target: this machine's GPU ({found})");
                Ok((Targets::Engines(vec![capability]), Some(why)))
            }
            Some(Targets::Engines(all)) if proper => {
                let local = local_name();
                match all.as_slice() {
                    [one] if Some(one.name()) == local.as_deref() => {
                        Ok((Targets::Engines(vec![ComputeCapability::Current]), None))
                    }
                    _ => Err(TargetError::NotLocal(
                        Targets::Engines(all.clone()).to_string(),
                    )),
                }
            }
            Some(given) => Ok((given.clone(), None)),
        }
    }

    /// The local GPU's, or the portable ones where there is none; with a sentence that says which.
    fn default_for_machine() -> (Targets, String) {
        match local_gpu() {
            Some(Ok(capability)) => (
                Targets::Engines(vec![capability]),
                format!("target: this machine's GPU ({})", capability.name()),
            ),
            Some(Err(found)) => (
                Targets::Cuda,
                format!(
                    "target: cuda, ONNX Runtime's provider, as TensorRT for RTX has no kernels for this machine's GPU ({found})"
                ),
            ),
            None => (
                Targets::Engines(PORTABLE.to_vec()),
                "target: no GPU on this machine; building a portable engine for sm_86, sm_89 and sm_120".into(),
            ),
        }
    }

    /// The passes' view of the target.
    pub fn for_passes(&self) -> Target {
        match self {
            Targets::Cpu => Target::cpu(),
            Targets::Cuda => Target::cuda(),
            Targets::Engines(all) => Target {
                fp32_products: !all.iter().any(|c| c.has_fp32_products() == Some(false)),
                ..Target::tensorrt(&self.to_string())
            },
            Targets::Local | Targets::EnginesAndCuda(_) => Target::tensorrt(&self.to_string()),
        }
    }
}

/// The first GPU's compute capability, as the driver tells it; `Err` if TensorRT for RTX does not serve it.
pub fn local_gpu() -> Option<Result<ComputeCapability, String>> {
    let name = local_name()?;
    let parsed: Result<ComputeCapability, _> = name.parse();
    Some(parsed.map_err(|_| name))
}

/// The first GPU's compute capability: `sm_90`.
pub(crate) fn local_name() -> Option<String> {
    let driver = driver::probe().ok()?;
    driver.gpus.first().map(driver::Gpu::target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_target_takes_a_gpu() {
        let resolved = Targets::resolved(Some(&Targets::Local));
        match local_name() {
            Some(_) => println!("not tried: this machine has a GPU"),
            None => {
                let error = resolved.unwrap_err();
                assert!(matches!(error, TargetError::NoGpu), "{error}");
                assert!(error.to_string().contains("no CUDA device"), "{error}");
            }
        }
        assert_eq!(
            Targets::resolved(Some(&Targets::Cpu)),
            Ok((Targets::Cpu, None))
        );
    }

    #[test]
    fn lists_are_sorted_and_checked() {
        let both: Targets = "sm_120, sm_89,sm_89".parse().unwrap();
        assert_eq!(both.to_string(), "sm_89,sm_120");
        assert_eq!("cpu".parse(), Ok(Targets::Cpu));
        assert_eq!("cuda".parse(), Ok(Targets::Cuda));
        assert!("cuda,cpu".parse::<Targets>().is_err());
        let beside: Targets = "sm_89,cuda".parse().unwrap();
        assert_eq!(beside.to_string(), "cuda,sm_89");
        assert_eq!(
            beside.parts(),
            Some(["sm_89".parse().unwrap(), Targets::Cuda])
        );
        assert_eq!("cuda,cuda".parse(), Ok(Targets::Cuda));
        assert!("cuda,local".parse::<Targets>().is_err());
        assert!(!Targets::Cuda.is_engine() && both.is_engine());
        assert_eq!(
            "cpu,sm_89".parse::<Targets>(),
            Err(TargetError::Mixed("cpu"))
        );
        assert_eq!("local".parse(), Ok(Targets::Local));
        assert!("sm_89,local".parse::<Targets>().is_err());
        let err = "sm_90".parse::<Targets>().unwrap_err().to_string();
        assert!(err.contains("sm_90") && err.contains("sm_121"));
        assert!(err.contains("tensorrt-enterprise"), "{err}");
    }
}
