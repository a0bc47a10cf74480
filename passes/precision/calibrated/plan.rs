//! How the weights of one activation's layers become INT4, as calibration decided it (`four/plan.rs`).

use kiln_graph::{NodeId, ValueId};
use rustc_hash::FxHashMap;

use super::smooth::Norm;
use crate::precision::numbers::weights::Quantized;

/// Plans by the activation that the layers read.
pub type Plans = FxHashMap<ValueId, Plan>;

/// The layers that read one activation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the activation is divided by, if that pays.
    pub(in crate::precision) factors: Option<Factors>,
    /// Of the activation's channels, up to a factor.
    pub(in crate::precision) moments: Vec<f64>,
    pub(in crate::precision) layers: FxHashMap<NodeId, Rounded>,
}

/// A weight in INT4, multiplied by the factors of its plan.
#[derive(Clone, Debug)]
pub(in crate::precision) struct Rounded {
    pub numbers: Quantized,
    pub block: usize,
    pub by: Method,
    /// Root of the squared error of the products on the calibration data, over their square.
    pub error: f64,
}

/// How a weight is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::precision) enum Method {
    Nearest,
    /// With errors that make up for each other.
    Compensated,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Nearest => "nearest",
            Method::Compensated => "compensated",
        }
    }
}

/// Factors for an activation that are worth it.
#[derive(Clone, Debug)]
pub(in crate::precision) struct Factors {
    pub x: ValueId,
    /// What takes them for free.
    pub norm: Option<Norm>,
    pub factors: Vec<f32>,
}
