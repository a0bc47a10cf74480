//! The GPUs an engine can be built for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A CUDA compute capability that TensorRT for RTX builds engines for.
///
/// All but [`Current`](Self::Current) can be built for on a machine without a GPU. An engine may hold several, which makes
/// it larger; `Current` stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ComputeCapability {
    /// The GPU of this machine.
    Current,
    /// Turing. It has no kernels for FP32 matrix products.
    Sm75,
    /// Ampere, data centre.
    Sm80,
    /// Ampere.
    Sm86,
    /// Ada Lovelace.
    Sm89,
    /// Blackwell.
    Sm120,
    /// GB10.
    Sm121,
}

/// The text names no compute capability that TensorRT for RTX knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compute capability that TensorRT for RTX supports: use one of {list}", list = ComputeCapability::names())]
pub struct UnknownCapability(pub String);

impl ComputeCapability {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::Current,
        Self::Sm75,
        Self::Sm80,
        Self::Sm86,
        Self::Sm89,
        Self::Sm120,
        Self::Sm121,
    ];

    /// `sm_89`, or `current`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Sm75 => "sm_75",
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm120 => "sm_120",
            Self::Sm121 => "sm_121",
        }
    }

    /// Whether it is this GPU or a newer one. `None` if the GPU is not known.
    pub fn is_since(self, least: Self) -> Option<bool> {
        (self != Self::Current).then_some(self >= least)
    }

    /// Whether TensorRT for RTX multiplies matrices of FP32 on it: from Ampere on. `None` if the GPU is not known.
    pub fn has_fp32_products(self) -> Option<bool> {
        self.is_since(Self::Sm80)
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads `sm_89`, and also `sm89`, `89` and `8.9`, in any case.
impl FromStr for ComputeCapability {
    type Err = UnknownCapability;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |s: &str| s.to_ascii_lowercase().replace(['_', '.'], "");
        let wanted = plain(text.trim());
        Self::ALL
            .into_iter()
            .find(|c| {
                let name = plain(c.name());
                wanted == name || Some(wanted.as_str()) == name.strip_prefix("sm")
            })
            .ok_or_else(|| UnknownCapability(text.to_owned()))
    }
}

impl From<ComputeCapability> for String {
    fn from(capability: ComputeCapability) -> Self {
        capability.name().to_owned()
    }
}

impl TryFrom<String> for ComputeCapability {
    type Error = UnknownCapability;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for capability in ComputeCapability::ALL {
            assert_eq!(capability.to_string().parse(), Ok(capability));
        }
    }

    #[test]
    fn common_spellings_are_read() {
        for text in ["sm_120", "SM120", "120", "12.0", " sm_120 "] {
            assert_eq!(text.parse(), Ok(ComputeCapability::Sm120), "{text}");
        }
    }

    #[test]
    fn the_order_is_by_age() {
        assert!(ComputeCapability::ALL.is_sorted());
    }

    #[test]
    fn an_unknown_one_lists_the_valid_ones() {
        for text in ["sm_90", "", "sm_", "turing"] {
            let error = text.parse::<ComputeCapability>().unwrap_err().to_string();
            assert!(
                error.contains(text) && error.contains("sm_75, sm_80, sm_86"),
                "{error}"
            );
        }
    }

    #[test]
    fn json_uses_the_name() {
        let json = serde_json::to_string(&ComputeCapability::Sm89).unwrap();
        assert_eq!(json, "\"sm_89\"");
        assert_eq!(
            serde_json::from_str::<ComputeCapability>(&json).unwrap(),
            ComputeCapability::Sm89
        );
        assert!(serde_json::from_str::<ComputeCapability>("\"sm_1\"").is_err());
    }
}
