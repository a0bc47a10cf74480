//! What passes say of what they did and left: misses of rules, and remarks for the user.

use std::borrow::Cow;

use kiln_graph::ValueId;

/// Why a rule did not apply: how far it matched, where it stopped, and what stopped it.
#[derive(Clone, Debug)]
pub struct Miss {
    pub at: Option<ValueId>,
    /// Nodes matched before it stopped; 0 if the pass was not interested.
    pub depth: usize,
    pub why: String,
}

impl Miss {
    /// The root is not of the rule's kind.
    pub fn none() -> Miss {
        Miss {
            at: None,
            depth: 0,
            why: String::new(),
        }
    }

    pub fn at(at: ValueId, depth: usize, why: impl Into<String>) -> Miss {
        Miss {
            at: Some(at),
            depth,
            why: why.into(),
        }
    }

    /// A miss right at the root.
    pub fn because(why: impl Into<String>) -> Miss {
        Miss {
            at: None,
            depth: 1,
            why: why.into(),
        }
    }
}

/// A miss in words, for `--explain`.
#[derive(Clone, Debug)]
pub struct MissReport {
    pub pass: &'static str,
    pub root: String,
    pub depth: usize,
    pub at: String,
    pub why: String,
}

/// Something a user should know of what a pass did or left.
#[derive(Clone, Debug, PartialEq)]
pub enum Remark {
    Clamped(Clamped),
    /// A linear layer, or its weight, was quantized.
    Quantized {
        layer: String,
    },
    /// A quantization that the model came with was written as the target takes it; `how` says what became of it.
    /// `exact`: the same numbers, but for rounding of floats.
    Requantized {
        node: String,
        how: &'static str,
        exact: bool,
    },
    /// An activation got a range; there is one remark for each layer that reads it.
    Ranged(Activation),
    /// There is also [`Remark::Quantized`].
    Rounded(Rounded),
    /// The node computes in half precision.
    Narrowed {
        node: String,
    },
    Kept(Kept),
    /// A node was left unfolded because its result is too large.
    OverBudget {
        node: String,
        bytes: usize,
    },
    /// A pass that needs a runtime could not do its work.
    Skipped {
        why: String,
    },
}

/// A table, such as a mask, with values beyond the range of FP16 or BF16 that stand for infinity, and were replaced.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Clamped {
    pub tensor: String,
    pub values: usize,
    pub abs_max: f32,
}

/// A weight that was rounded to INT4 on calibration data.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Rounded {
    pub layer: String,
    /// `nearest`, or `compensated` where errors make up for each other.
    pub method: Cow<'static, str>,
    /// Its input is divided by factors that the weight takes.
    pub factors: bool,
    /// Of the products on the calibration data, in relative L2.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "or_infinite"))]
    #[cfg_attr(feature = "serde", schemars(with = "Option<f64>"))]
    pub error: f64,
}

/// A node that keeps its precision.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Kept {
    pub node: String,
    pub why: String,
}

/// How an activation is quantized.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Activation {
    pub value: String,
    pub lo: f32,
    pub hi: f32,
    /// What chose the range: `min-max`, `percentile`, `entropy` or `mse`; `each run` where calibration found it, and each run
    /// has its own.
    pub method: Cow<'static, str>,
    /// Channels that are multiplied apart, in floats.
    pub outliers: usize,
    /// What divides it by the factors of SmoothQuant: `norm` or `mul`.
    pub smoothing: Option<Cow<'static, str>>,
    /// The expected power of the error in the products, over the power of what channels other than outliers add to them.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "or_infinite"))]
    #[cfg_attr(feature = "serde", schemars(with = "Option<f64>"))]
    pub noise: f64,
}

/// JSON has no infinity, and `null` stands for it.
#[cfg(feature = "serde")]
fn or_infinite<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    use serde::Deserialize;
    Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
}
