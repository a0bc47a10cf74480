//! How close the result must be to the original.

use super::Error;
use super::Rewritten;
use crate::options::Options;
use crate::parity::{Preset, Tolerance};
use crate::precision::Format;
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
    let precision = options.precision;
    Tolerance::from(match precision.linear.format() {
        None if rewritten.is_some_and(Rewritten::moves_steps) => Preset::Int8,
        None if precision.is_unchanged() => match rewritten.and_then(written) {
            Some(format) => format.tolerance(),
            None => precision.tolerance(),
        },
        _ => precision.tolerance(),
    })
}

/// The shorter of the formats that a model rounds to, which it may have come with.
fn written(rewritten: &Rewritten) -> Option<Format> {
    let formats = twin::formats(&rewritten.model);
    let found = |f: &Format| formats.iter().any(|&dtype| Format::of(dtype) == *f);
    [Format::Bf16, Format::Fp16].into_iter().find(found)
}
