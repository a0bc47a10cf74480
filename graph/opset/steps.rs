//! The table of operator versions that changed an operator's meaning or signature, with what carries a node over.
//!
//! Not in the table, because a node of the version before means the same without change: versions that admit more types
//! or negative axes; that add optional attributes with the old behaviour as default (`MaxPool-8` and 10,
//! `AveragePool-7`, 10 and 19, `ArgMax-12`, `GatherND-12`, `QuantizeLinear-13`, 19, 21 and 23,
//! `DequantizeLinear-13`, 21 and 23, `LSTM-14`, `Reshape-14`, `Shape-15`, `ScatterND-16`, `Resize-18`, `Cast-19` and 24,
//! …) or optional inputs (`Pad-18`, `Attention-24`); that make an input optional (`Gemm-11`, `OptionalHasElement-18`);
//! that broadcast more (`Max-8`) or mix types (`Pow-12`).

use rustc_hash::FxHashMap;

use super::cx::{Cx, Outcome};
use super::{below7, inputs, meaning, resize};
use crate::NodeId;
use crate::ops::REDUCTIONS_OF_18;

/// Carries a node to its version; says whether it changed anything.
pub(super) type Adapter = fn(&mut Cx<'_>, NodeId) -> Outcome;

/// `(operators, the version that changed them, adapter)`.
const STEPS: &[(&[&str], i64, Adapter)] = &[
    (
        &["GlobalLpPool", "LpPool", "Pad", "Split"],
        2,
        below7::too_old,
    ),
    (&["Concat"], 4, below7::concat),
    (&["Reshape"], 5, below7::reshape),
    (&["Cast"], 6, below7::cast),
    (&["Tile"], 6, below7::too_old),
    (&["Selu"], 6, below7::selu),
    (below7::CONSUMING, 6, below7::drop_consumed_inputs),
    (below7::BROADCASTING, 7, below7::broadcast),
    (&["BatchNormalization"], 7, below7::is_test),
    (&["Dropout"], 7, below7::is_test),
    (&["Gemm"], 7, below7::gemm),
    (&["GRU", "LSTM", "RNN"], 7, below7::recurrent),
    (&["PRelu"], 7, below7::prelu),
    (&["Upsample"], 7, below7::too_old),
    (&["BatchNormalization"], 9, meaning::batch_normalization_9),
    (&["Scan"], 9, meaning::scan_9),
    (&["Upsample"], 9, resize::upsample_9),
    (&["Dropout"], 10, meaning::dropout_10),
    (&["Slice"], 10, inputs::slice_10),
    (&["TopK"], 10, inputs::top_k_10),
    (&["Upsample"], 10, resize::upsample_10),
    (&["Clip"], 11, inputs::clip_11),
    (&["Pad"], 11, inputs::pad_11),
    (&["Resize", "Upsample"], 11, resize::resize_11),
    (&["Scatter"], 11, meaning::scatter_11),
    (&["Dropout"], 12, inputs::dropout_12),
    (
        &["Hardmax", "LogSoftmax", "Softmax"],
        13,
        meaning::softmax_13,
    ),
    (&["ReduceSum"], 13, inputs::reduce_axes),
    (&["Resize"], 13, resize::resize_13),
    (&["Split"], 13, inputs::split_13),
    (&["Squeeze"], 13, inputs::squeeze_13),
    (&["Unsqueeze"], 13, inputs::unsqueeze_13),
    (&["BatchNormalization"], 14, meaning::batch_normalization_14),
    (&["RoiAlign"], 16, meaning::roi_align_16),
    (REDUCTIONS_OF_18, 18, inputs::reduce_axes),
    (&["Split"], 18, inputs::split_18),
    (&["DFT"], 20, inputs::dft_20),
    (&["GridSample"], 20, meaning::grid_sample_20),
    (&["GroupNormalization"], 21, meaning::group_normalization_21),
];

/// Versions that changed an operator, in rising order, with their adapters.
pub(super) type Steps = FxHashMap<&'static str, Vec<(i64, Adapter)>>;

/// The table by operator name.
pub(super) fn by_operator() -> Steps {
    let mut steps = Steps::default();
    for (ops, version, adapter) in STEPS {
        for op in *ops {
            steps.entry(*op).or_default().push((*version, *adapter));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_has_one_adapter_per_version() {
        let mut seen = std::collections::HashSet::new();
        for (ops, version, _) in STEPS {
            for op in *ops {
                assert!(seen.insert((*op, *version)), "{op}-{version}");
            }
        }
        assert!(STEPS.is_sorted_by_key(|(_, version, _)| *version));
    }
}
