//! How close the result must be to the original.

use kiln_graph::DType;
use kiln_passes::precision::HalfFormat;

use super::Error;
use super::Rewritten;
use crate::options::{Options, Quantization};
use crate::parity::{Preset, Tolerance};
use crate::twin;

/// The tolerance that was asked for, with its limits.
pub(crate) fn tolerance(
    options: &Options,
    rewritten: Option<&Rewritten>,
) -> Result<Tolerance, Error> {
    let named = options.tolerance.clone();
    let mut tolerance = named.unwrap_or_else(|| fitting(options, rewritten));
    for limit in &options.limits {
        tolerance = tolerance.with_override(limit)?;
    }
    Ok(tolerance)
}

/// The tolerance that fits the precision asked for, and the quantization that the original has.
fn fitting(options: &Options, rewritten: Option<&Rewritten>) -> Tolerance {
    Tolerance::from(match options.quantization() {
        Some(Quantization::Int8(_)) => Preset::Int8,
        Some(Quantization::Fp8) => Preset::Fp8,
        Some(Quantization::Int4(_)) => Preset::Int4,
        None if rewritten.is_some_and(Rewritten::moves_steps) => Preset::Int8,
        None => match options.half().or(rewritten.and_then(written)) {
            Some(HalfFormat::Fp16) => Preset::Fp16,
            Some(HalfFormat::Bf16) => Preset::Bf16,
            None => Preset::Fp32Rewrite,
        },
    })
}

/// The shorter of the formats that a model rounds to, which it may have come with.
fn written(rewritten: &Rewritten) -> Option<HalfFormat> {
    let formats = twin::formats(&rewritten.model);
    let (bf16, fp16) = (
        formats.contains(&DType::BF16),
        formats.contains(&DType::F16),
    );
    let shorter = bf16.then_some(HalfFormat::Bf16);
    shorter.or(fp16.then_some(HalfFormat::Fp16))
}
