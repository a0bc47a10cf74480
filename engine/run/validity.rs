//! Whether a plan fits this machine, by what stands in its header.

use std::fmt;

use serde::Serialize;

/// What TensorRT for RTX reads in a plan's header, before it reads the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Validity {
    /// It runs, if not as fast as one that was built here.
    pub runs: bool,
    /// It runs slower than one that was built here.
    pub slower: bool,
    /// Why it does not run.
    pub reasons: Vec<Reason>,
}

/// Why a plan does not run. The bits are those of `EngineInvalidityDiagnostics` in NvInferRuntime.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Version,
    Capability,
    Driver,
    Runtime,
    Memory,
    Malformed,
    Cuda,
    /// Of a TensorRT newer than kiln.
    Unknown,
}

impl Reason {
    #[cfg(any(test, all(feature = "tensorrt", not(feature = "tensorrt-enterprise"))))]
    const ALL: [(u64, Reason); 7] = [
        (1 << 0, Reason::Version),
        (1 << 1, Reason::Capability),
        (1 << 2, Reason::Driver),
        (1 << 3, Reason::Runtime),
        (1 << 4, Reason::Memory),
        (1 << 5, Reason::Malformed),
        (1 << 6, Reason::Cuda),
    ];

    fn text(self) -> &'static str {
        match self {
            Reason::Version => "it was built by another version of TensorRT for RTX",
            Reason::Capability => "it has no kernels for this GPU's compute capability",
            Reason::Driver => "the NVIDIA driver is older than the one it was built for",
            Reason::Runtime => "the CUDA runtime is older than the one it was built for",
            Reason::Memory => "the GPU's memory does not hold its weights",
            Reason::Malformed => "it is not an engine of TensorRT for RTX, or it is damaged",
            Reason::Cuda => {
                "CUDA does not work: no GPU was found, or its driver is not installed correctly"
            }
            Reason::Unknown => "TensorRT for RTX gives a reason that kiln does not know",
        }
    }

    fn mend(self) -> Option<&'static str> {
        match self {
            Reason::Version => Some("compile it again with the TensorRT that is installed here"),
            Reason::Capability => Some("compile it again for this GPU"),
            Reason::Driver | Reason::Runtime => Some("install a newer NVIDIA driver"),
            Reason::Memory => Some("use a GPU with more memory, or a lower precision"),
            Reason::Malformed => Some("compile it again"),
            Reason::Cuda => Some("`kiln doctor` says what is missing"),
            Reason::Unknown => None,
        }
    }
}

impl Validity {
    #[cfg(any(test, all(feature = "tensorrt", not(feature = "tensorrt-enterprise"))))]
    /// From what `getEngineValidity` returns (0 valid, 1 suboptimal, 2 invalid) and the bits that it writes.
    pub(crate) fn of(state: u32, diagnostics: u64) -> Validity {
        let known = Reason::ALL.iter().filter(|(bit, _)| diagnostics & bit != 0);
        let mut reasons: Vec<Reason> = known.map(|(_, reason)| *reason).collect();
        if state >= 2 && reasons.is_empty() {
            reasons.push(Reason::Unknown);
        }
        Validity {
            runs: state < 2,
            slower: state == 1,
            reasons,
        }
    }

    /// Whether the reasons are known.
    pub(super) fn is_explained(&self) -> bool {
        !self.reasons.contains(&Reason::Unknown)
    }

    /// What the user can do about the first reason.
    pub fn hint(&self) -> Option<String> {
        let mut mends = self.reasons.iter().filter_map(|r| r.mend());
        mends.next().map(str::to_owned)
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.is_empty() {
            return f.write_str(match self.slower {
                true => "it runs, but slower than an engine that was built for this GPU",
                false => "it fits this GPU",
            });
        }
        let texts: Vec<&str> = self.reasons.iter().map(|r| r.text()).collect();
        f.write_str(&texts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_its_sentence() {
        let all = Validity::of(2, 0b111_1111);
        assert_eq!(all.reasons.len(), 7);
        assert!(!all.runs && all.to_string().contains("another version"));
        let capability = Validity::of(2, 2);
        assert_eq!(capability.reasons, [Reason::Capability]);
        assert!(capability.hint().unwrap().contains("for this GPU"));
    }

    #[test]
    fn an_invalid_plan_always_has_a_reason() {
        assert_eq!(Validity::of(2, 0).reasons, [Reason::Unknown]);
        assert_eq!(Validity::of(2, 1 << 40).reasons, [Reason::Unknown]);
        assert!(Validity::of(0, 0).runs && Validity::of(1, 0).slower);
    }

    #[cfg(all(feature = "tensorrt", not(feature = "tensorrt-enterprise")))]
    #[test]
    fn the_bits_are_those_of_the_header() {
        use trtx_sys::EngineInvalidityDiagnostics as Raw;
        let raw = [
            Raw::VERSION_MISMATCH,
            Raw::UNSUPPORTED_CC,
            Raw::OLD_CUDA_DRIVER,
            Raw::OLD_CUDA_RUNTIME,
            Raw::INSUFFICIENT_GPU_MEMORY,
            Raw::MALFORMED_ENGINE,
            Raw::CUDA_ERROR,
        ];
        assert_eq!(raw.map(|r| r.bits()), Reason::ALL.map(|(bit, _)| bit));
    }
}
