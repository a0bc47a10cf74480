//! `--target`: what to compile for.

use std::process::Command;
use std::str::FromStr;

use kiln_passes::Target;

use crate::engine::ComputeCapability;

/// What to compile for: ONNX Runtime's CPU provider, or engines for GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    Cpu,
    /// One engine that holds kernels for all of these.
    Engines(Vec<ComputeCapability>),
}

/// The target list cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("there is no target '{0}'; there are: cpu, sm_75, sm_80, sm_86, sm_89, sm_120, sm_121")]
    Unknown(String),
    #[error("--target cpu has no engine and stands alone")]
    Mixed,
}

/// GPUs that a portable engine serves: consumer and workstation cards since 2020.
pub const PORTABLE: [ComputeCapability; 3] = [
    ComputeCapability::Sm86,
    ComputeCapability::Sm89,
    ComputeCapability::Sm120,
];

impl FromStr for Targets {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Targets, TargetError> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        if names.contains(&"cpu") {
            return match names.len() {
                1 => Ok(Targets::Cpu),
                _ => Err(TargetError::Mixed),
            };
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
        Ok(Targets::Engines(capabilities))
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Targets::Cpu => f.write_str("cpu"),
            Targets::Engines(all) => {
                let names: Vec<&str> = all.iter().map(|c| c.name()).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl Targets {
    /// The local GPU's, or the portable ones where there is none; with a sentence that says which.
    pub fn default_for_machine() -> (Targets, String) {
        match local_gpu() {
            Some(Ok(capability)) => (
                Targets::Engines(vec![capability]),
                format!("target: this machine's GPU ({})", capability.name()),
            ),
            Some(Err(found)) => (
                Targets::Engines(PORTABLE.to_vec()),
                format!(
                    "target: TensorRT for RTX has no kernels for this machine's GPU ({found}); building a portable \
                     engine for sm_86, sm_89 and sm_120"
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
            Targets::Engines(_) => Target::tensorrt(&self.to_string()),
        }
    }
}

/// The first GPU's compute capability, as the driver's tool tells it; `Err` if TensorRT for RTX does not serve it.
pub fn local_gpu() -> Option<Result<ComputeCapability, String>> {
    let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8(output.stdout)
        .ok()
        .filter(|_| output.status.success())?;
    let name = format!("sm_{}", text.lines().next()?.trim().replace('.', ""));
    let parsed: Result<ComputeCapability, _> = name.parse();
    Some(parsed.map_err(|_| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_checked() {
        let both: Targets = "sm_120, sm_89,sm_89".parse().unwrap();
        assert_eq!(both.to_string(), "sm_89,sm_120");
        assert_eq!("cpu".parse(), Ok(Targets::Cpu));
        assert_eq!("cpu,sm_89".parse::<Targets>(), Err(TargetError::Mixed));
        let err = "sm_90".parse::<Targets>().unwrap_err().to_string();
        assert!(err.contains("sm_90") && err.contains("sm_121"));
    }
}
