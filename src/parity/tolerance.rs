//! What difference from the reference is accepted, by name.

use std::fmt;

use serde::Serialize;

use super::metrics::Metrics;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToleranceError {
    #[error("there is no tolerance \"{name}\"; there are: {}", Preset::names().join(", "))]
    Unknown { name: String },
    #[error(
        "\"{text}\" is not OUTPUT:METRIC=LIMIT[,METRIC=LIMIT…] (for example logits:cosine=0.999,max_abs=1e-3): {reason}"
    )]
    Override { text: String, reason: String },
}

/// Limits on metrics. `None` does not check a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Every bit must be equal.
    pub same_bits: bool,
    /// The most that [`max_scaled`](super::FloatMetrics::max_scaled) may be.
    pub max_scaled: Option<f64>,
    /// The most that [`max_abs`](super::FloatMetrics::max_abs) may be.
    pub max_abs: Option<f64>,
    /// The most that [`p99_abs`](super::FloatMetrics::p99_abs) may be.
    pub p99_abs: Option<f64>,
    /// The most that [`relative_l2`](super::FloatMetrics::relative_l2) may be.
    pub relative_l2: Option<f64>,
    /// The least that [`cosine`](super::FloatMetrics::cosine) may be.
    pub cosine: Option<f64>,
    /// The least that [`sqnr_db`](super::FloatMetrics::sqnr_db) may be.
    pub sqnr_db: Option<f64>,
    /// The least that [`argmax`](super::FloatMetrics::argmax) may be, where there is one.
    pub argmax: Option<f64>,
    /// The most places where NaN or infinity on one side meets something else on the other.
    pub nonfinite: Option<f64>,
    /// The largest fraction of unequal elements, for dtypes other than floats.
    pub unequal: Option<f64>,
}

/// The named tolerances.
///
/// All of them demand that NaN and infinity stay where they are, and that outputs of integers, bools and strings are
/// equal. `max_scaled` is there beside the norms because one wrong element among many moves neither cosine nor
/// relative L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// `fp32-exact`: every bit is equal. For passes that only rename, reorder or remove nodes, or fold constants.
    Fp32Exact,
    /// `fp32-rewrite`: the same mathematics in another order of operations. FP32 has a rounding unit of 6e-8; sums
    /// over some thousand terms and a dozen layers turn it into errors of about 1e-6 of the output's magnitude. A
    /// rewrite that is wrong (an epsilon forgotten, tanh-GELU for erf-GELU, a mask of -1e4 for -inf) is off by 1e-4
    /// or more.
    Fp32Rewrite,
    /// `fp16`: 11 significant bits, a rounding unit of 5e-4. Through a Transformer errors stay near 1e-3 relative
    /// because residual connections carry the signal; ten times that is no longer rounding. Overflow beyond 65504
    /// shows as infinity or NaN.
    Fp16,
    /// `bf16`: 8 significant bits, a rounding unit of 4e-3, eight times that of FP16. The range is that of FP32.
    Bf16,
    /// `int8`: 8-bit weights and activations with a scale per tensor or channel. A step is 1/127 of the largest
    /// value, so elements well below it lose most of their digits: single elements may be off by as much as the
    /// typical magnitude, the direction of the whole must stay.
    Int8,
    /// `fp8`: E4M3 weights and activations have 4 significant bits, so an element is off by up to 6 %; sums of many
    /// average it out.
    Fp8,
}

impl Preset {
    pub const ALL: [Preset; 6] = [
        Preset::Fp32Exact,
        Preset::Fp32Rewrite,
        Preset::Fp16,
        Preset::Bf16,
        Preset::Int8,
        Preset::Fp8,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Preset::Fp32Exact => "fp32-exact",
            Preset::Fp32Rewrite => "fp32-rewrite",
            Preset::Fp16 => "fp16",
            Preset::Bf16 => "bf16",
            Preset::Int8 => "int8",
            Preset::Fp8 => "fp8",
        }
    }

    fn names() -> [&'static str; 6] {
        Preset::ALL.map(Preset::name)
    }

    pub fn limits(self) -> Limits {
        let floats = |max_scaled, relative_l2, cosine| Limits {
            max_scaled: Some(max_scaled),
            relative_l2: Some(relative_l2),
            cosine: Some(cosine),
            nonfinite: Some(0.),
            unequal: Some(0.),
            ..Limits::default()
        };
        match self {
            Preset::Fp32Exact => Limits {
                same_bits: true,
                ..Limits::default()
            },
            Preset::Fp32Rewrite => floats(1e-4, 1e-5, 0.999_999),
            Preset::Fp16 => floats(0.1, 0.02, 0.999),
            Preset::Bf16 => floats(0.4, 0.03, 0.999),
            Preset::Int8 => floats(1.5, 0.15, 0.99),
            Preset::Fp8 => floats(2., 0.25, 0.97),
        }
    }
}

/// A named tolerance, with other limits for some outputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    pub name: String,
    pub limits: Limits,
    /// By output name; the last one of a name counts.
    pub overrides: Vec<(String, Limits)>,
}

impl From<Preset> for Tolerance {
    fn from(preset: Preset) -> Tolerance {
        Tolerance {
            name: preset.name().to_owned(),
            limits: preset.limits(),
            overrides: Vec::new(),
        }
    }
}

impl Tolerance {
    /// The tolerance of this name (`fp16`).
    ///
    /// # Errors
    /// When there is none; the message lists the names.
    pub fn named(name: &str) -> Result<Tolerance, ToleranceError> {
        let preset = Preset::ALL.into_iter().find(|p| p.name() == name);
        let preset = preset.ok_or_else(|| ToleranceError::Unknown {
            name: name.to_owned(),
        })?;
        Ok(preset.into())
    }

    /// Changes limits for one output: `logits:cosine=0.999,max_abs=1e-3`. Limits not mentioned stay; `off` drops
    /// one. The metrics are the fields of [`Limits`].
    ///
    /// # Errors
    /// When the text is not of that form.
    pub fn with_override(mut self, text: &str) -> Result<Tolerance, ToleranceError> {
        let bad = |reason: String| ToleranceError::Override {
            text: text.to_owned(),
            reason,
        };
        // Names of outputs can hold colons, metrics and limits cannot.
        let (output, changes) = text
            .rsplit_once(':')
            .filter(|(output, _)| !output.is_empty())
            .ok_or_else(|| bad("it names no output".to_owned()))?;
        let mut limits = *self.limits_of(output);
        for change in changes.split(',') {
            set(&mut limits, change).map_err(bad)?;
        }
        self.overrides.push((output.to_owned(), limits));
        Ok(self)
    }

    /// The limits for an output.
    pub fn limits_of(&self, output: &str) -> &Limits {
        let own = self.overrides.iter().rev().find(|(o, _)| o == output);
        own.map_or(&self.limits, |(_, limits)| limits)
    }

    /// Whether an output's metrics are within its limits.
    pub fn check(&self, output: &str, metrics: &Metrics) -> Verdict {
        self.limits_of(output).check(metrics)
    }
}

fn set(limits: &mut Limits, change: &str) -> Result<(), String> {
    let (metric, value) = change
        .split_once('=')
        .ok_or_else(|| format!("\"{change}\" has no ="))?;
    let (metric, value) = (metric.trim(), value.trim());
    let limit = match value {
        "off" => None,
        number => match number.parse::<f64>() {
            Ok(limit) if !limit.is_nan() => Some(limit),
            _ => return Err(format!("\"{value}\" is not a number")),
        },
    };
    let field = match metric {
        "max_scaled" => &mut limits.max_scaled,
        "max_abs" => &mut limits.max_abs,
        "p99_abs" => &mut limits.p99_abs,
        "relative_l2" => &mut limits.relative_l2,
        "cosine" => &mut limits.cosine,
        "sqnr_db" => &mut limits.sqnr_db,
        "argmax" => &mut limits.argmax,
        "nonfinite" => &mut limits.nonfinite,
        "unequal" => &mut limits.unequal,
        "same_bits" if limit.is_none() => {
            limits.same_bits = false;
            return Ok(());
        }
        _ => return Err(format!("there is no metric \"{metric}\" to limit so")),
    };
    *field = limit;
    Ok(())
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub pass: bool,
    /// The limits that were exceeded.
    pub failed: Vec<Failure>,
}

/// A metric beyond its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    pub metric: &'static str,
    pub value: f64,
    pub limit: f64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            metric,
            value,
            limit,
        } = self;
        write!(f, "{metric} is {value:.6}, the limit is {limit}")
    }
}

impl Limits {
    /// Whether the metrics are within the limits.
    pub fn check(&self, metrics: &Metrics) -> Verdict {
        let mut failed = Vec::new();
        // A comparison with NaN is false, and then the check fails.
        let mut check = |metric, value: f64, limit: Option<f64>, within: fn(&f64, &f64) -> bool| {
            if let Some(limit) = limit.filter(|limit| !within(&value, limit)) {
                failed.push(Failure {
                    metric,
                    value,
                    limit,
                });
            }
        };
        let exact = self.same_bits.then_some(1.);
        check("same_bits", f64::from(u8::from(metrics.same_bits)), exact, f64::ge);
        if let Some(float) = &metrics.float {
            let differ = float.nonfinite.differ as f64;
            check("nonfinite", differ, self.nonfinite, f64::le);
            check("max_scaled", float.max_scaled, self.max_scaled, f64::le);
            check("max_abs", float.max_abs, self.max_abs, f64::le);
            check("p99_abs", float.p99_abs, self.p99_abs, f64::le);
            check("relative_l2", float.relative_l2, self.relative_l2, f64::le);
            check("cosine", float.cosine, self.cosine, f64::ge);
            check("sqnr_db", float.sqnr_db, self.sqnr_db, f64::ge);
            check("argmax", float.argmax.unwrap_or(1.), self.argmax, f64::ge);
        } else {
            let fraction = metrics.unequal as f64 / metrics.elements.max(1) as f64;
            check("unequal", fraction, self.unequal, f64::le);
        }
        Verdict {
            pass: failed.is_empty(),
            failed,
        }
    }
}
