//! All passes and the pipelines made of them, as static slices.

use kiln_graph::verify::Phase;

use crate::core::driver::Step;
use crate::core::fusion::Fusion;
use crate::core::pass::Pass;
use crate::{adopt, clean, fold, fuse, lower, precision};

/// Every pass, in the order of `kiln passes list`.
pub static ALL: &[&dyn Pass] = &[
    &adopt::raise_opset::RaiseOpset,
    &clean::eliminate_dead::EliminateDead,
    &clean::eliminate_noop::EliminateNoop,
    &clean::expand_einsum::ExpandEinsum,
    &clean::join_slices::JoinSlices,
    &clean::merge_chains::MergeChains,
    &clean::sink_scales::SinkScales,
    &clean::take_rows::TakeRows,
    &clean::merge_views::MergeViews,
    &clean::unflatten_gemm::UnflattenGemm,
    &clean::deduplicate::Deduplicate,
    &fold::fold_shapes::FoldShapes,
    &fold::fold_branches::FoldBranches,
    &fold::fold_constants::FoldConstants,
    &clean::simplify_masks::SimplifyMasks,
    &clean::normalize_axes::NormalizeAxes,
    &clean::normalize_powers::NormalizePowers,
    &clean::normalize_scores::NormalizeScores,
    &adopt::adopt_attention::ADOPT_ATTENTION,
    &fuse::drop_key_bias::DROP_KEY_BIAS,
    &fuse::fuse_attention::FuseAttention,
    &fuse::fuse_conv_batch_norm::FuseConvBatchNorm,
    &fuse::fuse_gelu::FUSE_GELU,
    &fuse::fuse_group_norm::FUSE_GROUP_NORM,
    &fuse::fuse_layer_norm::FUSE_LAYER_NORM,
    &fuse::fuse_qkv::FuseQkv,
    &fuse::fuse_rms_norm::FUSE_RMS_NORM,
    &fuse::fuse_rotary::FuseRotary,
    &fuse::fuse_swish::FUSE_SWISH,
    &fuse::move_value_bias::MOVE_VALUE_BIAS,
    &fuse::sink_query_bias::SINK_QUERY_BIAS,
    &fuse::weigh_biases::WEIGH_BIASES,
    &precision::eight::quantize_int8::QuantizeInt8,
    &precision::eight::quantize_fp8::QuantizeFp8,
    &precision::four::quantize_int4::QuantizeInt4,
    &precision::half::convert_fp16::ConvertFp16,
    &precision::half::convert_bf16::ConvertBf16,
    &adopt::absorb_offsets::AbsorbOffsets,
    &adopt::dequantize_constants::DequantizeConstants,
    &lower::detach_heads::DetachHeads,
    &adopt::expand_attention::EXPAND_ATTENTION,
    &adopt::expand_grouped::EXPAND_GROUPED,
    &adopt::expand_fused::EXPAND_FUSED,
    &adopt::expand_qoperators::ExpandQoperators,
    &adopt::expand_rotary::EXPAND_ROTARY,
    &lower::flatten_branches::FlattenBranches,
    &lower::fold_positions::FoldPositions,
    &lower::join_biases::JOIN_BIASED_GELU,
    &lower::join_biases::JOIN_SKIP_NORM,
    &lower::lower_activations::LowerActivations,
    &lower::lower_attention::LOWER_ATTENTION,
    &lower::lower_axes::LowerAxes,
    &lower::lower_eye_like::LowerEyeLike,
    &lower::lower_int4::LowerInt4,
    &adopt::lower_nbits::LowerNbits,
    &lower::lower_norms::LowerNorms,
    &lower::lower_one_hot::LowerOneHot,
    &lower::lower_rotary::LowerRotary,
    &lower::pad_columns::PadColumns,
    &lower::raise_for_attention::RaiseForAttention,
    &lower::rotate_together::RotateTogether,
    &lower::separate_gates::SeparateGates,
    &lower::separate_weights::SeparateWeights,
    &lower::split_heads::SplitHeads,
    &lower::split_skip_norm::SplitSkipNorm,
    &adopt::split_transposed_conv::SplitTransposedConv,
    &lower::spread_offsets::SpreadOffsets,
    &adopt::symmetrize_qdq::SymmetrizeQdq,
];

/// What `compile` runs unless told otherwise.
pub static DEFAULT: &[Step] = &[
    // First, so that every pass meets one signature of each operator (axes as inputs, LayerNormalization, Gelu).
    Step::Run(&adopt::raise_opset::RaiseOpset),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    // Before fusions, which know float operators only.
    Step::Run(&adopt::expand_qoperators::ExpandQoperators),
    Step::Run(&adopt::expand_fused::EXPAND_FUSED),
    Step::Run(&adopt::lower_nbits::LowerNbits),
    Step::Run(&clean::eliminate_noop::EliminateNoop),
    Step::Run(&fold::fold_shapes::FoldShapes),
    // Conditions on sizes are constants now. Before anything is folded that only the other branch reads.
    Step::Run(&fold::fold_branches::FoldBranches),
    // Weights that it turns are folded below.
    Step::Run(&clean::expand_einsum::ExpandEinsum),
    // Writes the new weights as arithmetic on constants, which the next pass folds.
    Step::Run(&fuse::fuse_conv_batch_norm::FuseConvBatchNorm),
    // Whole shape mazes are gone by now, so that the runtime computes only real numbers.
    Step::Run(&fold::fold_constants::FoldConstants),
    Step::Run(&fold::fold_branches::FoldBranches),
    // Constants that were quantized in the graph are integers by now, and what is small is folded.
    Step::Run(&adopt::dequantize_constants::DequantizeConstants),
    Step::Run(&adopt::symmetrize_qdq::SymmetrizeQdq),
    Step::Run(&adopt::absorb_offsets::AbsorbOffsets),
    Step::Run(&clean::merge_chains::MergeChains),
    Step::Run(&clean::merge_views::MergeViews),
    Step::Run(&clean::unflatten_gemm::UnflattenGemm),
    // The linear layers' Reshapes meet those around them.
    Step::Run(&clean::merge_views::MergeViews),
    // What was a Gemm is a product now.
    Step::Run(&clean::join_slices::JoinSlices),
    // Folding and merging leave Reshapes to the same shape and Casts to the same type.
    Step::Run(&clean::eliminate_noop::EliminateNoop),
    // Masks read sizes that are written out by now; equal masks of several layers are shared afterwards.
    Step::Run(&clean::simplify_masks::SimplifyMasks),
    Step::Run(&clean::deduplicate::Deduplicate),
    Step::Run(&clean::normalize_axes::NormalizeAxes),
    Step::Run(&clean::normalize_powers::NormalizePowers),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Canonical),
    Step::Run(&fuse::fuse_gelu::FUSE_GELU),
    Step::Run(&fuse::fuse_swish::FUSE_SWISH),
    Step::Run(&fuse::fuse_group_norm::FUSE_GROUP_NORM),
    Step::Run(&fuse::fuse_layer_norm::FUSE_LAYER_NORM),
    Step::Run(&fuse::fuse_rms_norm::FUSE_RMS_NORM),
    Step::Run(&fuse::fuse_rotary::FuseRotary),
    // Its tables are shared below like those of what was fused.
    Step::Run(&adopt::expand_rotary::EXPAND_ROTARY),
    // A factor between two rearrangements keeps them apart. Not before Gelu has found its own.
    Step::Run(&clean::sink_scales::SinkScales),
    Step::Run(&clean::merge_views::MergeViews),
    // What the model came with is then like what is fused.
    Step::Run(&adopt::expand_attention::EXPAND_ATTENTION),
    Step::Run(&clean::normalize_scores::NormalizeScores),
    Step::Run(&fuse::fuse_attention::FuseAttention),
    // The query of one row is of another input than keys and values.
    Step::Run(&clean::take_rows::TakeRows),
    Step::Run(&fuse::fuse_qkv::FuseQkv),
    // What fusions rearrange meets the rearrangements around it.
    Step::Run(&clean::merge_views::MergeViews),
    // Every rotation made half tables of its own.
    Step::Run(&clean::deduplicate::Deduplicate),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Fused),
];

/// What is left of a model of which more is known, by constants that were inputs: branches that are not taken go.
pub static FOLD: &[Step] = &[
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Run(&fold::fold_shapes::FoldShapes),
    Step::Run(&fold::fold_branches::FoldBranches),
    Step::Run(&fold::fold_constants::FoldConstants),
    Step::Run(&fold::fold_branches::FoldBranches),
    // A branch may hold another condition on what is constant now.
    Step::Run(&fold::fold_constants::FoldConstants),
    Step::Run(&fold::fold_branches::FoldBranches),
    Step::Run(&fold::fold_shapes::FoldShapes),
    Step::Run(&clean::eliminate_dead::EliminateDead),
];

/// Runs after [`DEFAULT`] for `--int8`, and before [`FP16`], which narrows what is left.
pub static INT8: &[Step] = &[
    // Calibration measures what it leaves.
    Step::Run(&adopt::split_transposed_conv::SplitTransposedConv),
    Step::Run(&precision::eight::quantize_int8::QuantizeInt8),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Typed),
];

/// Runs after [`DEFAULT`] for `--fp8`, and before [`FP16`].
pub static FP8: &[Step] = &[
    Step::Run(&precision::eight::quantize_fp8::QuantizeFp8),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Typed),
];

/// Runs after [`DEFAULT`] for `--int4`, and before [`FP16`], which narrows the scales.
pub static INT4: &[Step] = &[
    Step::Run(&precision::four::quantize_int4::QuantizeInt4),
    Step::Enter(Phase::Typed),
];

/// Runs after [`DEFAULT`] for `--fp16`.
pub static FP16: &[Step] = &[
    // Projections that are quantized by now keep their biases: TensorRT multiplies them in 8 bits with these only.
    Step::Run(&fuse::weigh_biases::WEIGH_BIASES),
    // Where no norm is projected.
    Step::Run(&fuse::drop_key_bias::DROP_KEY_BIAS),
    Step::Run(&fuse::move_value_bias::MOVE_VALUE_BIAS),
    // What could not be moved away.
    Step::Run(&fuse::sink_query_bias::SINK_QUERY_BIAS),
    Step::Run(&precision::half::convert_fp16::ConvertFp16),
    Step::Run(&clean::merge_chains::MergeChains),
    Step::Run(&clean::deduplicate::Deduplicate),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Typed),
];

/// Runs after [`DEFAULT`] for `--bf16`.
pub static BF16: &[Step] = &[
    Step::Run(&fuse::weigh_biases::WEIGH_BIASES),
    Step::Run(&fuse::drop_key_bias::DROP_KEY_BIAS),
    Step::Run(&fuse::move_value_bias::MOVE_VALUE_BIAS),
    Step::Run(&fuse::sink_query_bias::SINK_QUERY_BIAS),
    Step::Run(&precision::half::convert_bf16::ConvertBf16),
    Step::Run(&clean::merge_chains::MergeChains),
    Step::Run(&clean::deduplicate::Deduplicate),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Typed),
];

/// Runs last, whatever else ran: internal operators never leave the compiler.
pub static LOWER: &[Step] = &[
    Step::Run(&lower::lower_activations::LowerActivations),
    Step::Run(&lower::lower_norms::LowerNorms),
    Step::Run(&lower::lower_rotary::LowerRotary),
    Step::Run(&lower::raise_for_attention::RaiseForAttention),
    Step::Run(&lower::lower_attention::LOWER_ATTENTION),
    // Masks and what is added to scores are apart by now.
    Step::Run(&lower::fold_positions::FoldPositions),
    // After attention, which takes the biases of projections for itself.
    Step::Run(&lower::lower_int4::LowerInt4),
    Step::Run(&lower::split_skip_norm::SplitSkipNorm),
    // Behind all that gives norms their last form.
    Step::Run(&lower::join_biases::JOIN_SKIP_NORM),
    Step::Run(&lower::join_biases::JOIN_BIASED_GELU),
    Step::Run(&lower::lower_axes::LowerAxes),
    Step::Run(&lower::lower_eye_like::LowerEyeLike),
    Step::Run(&lower::lower_one_hot::LowerOneHot),
    Step::Run(&lower::spread_offsets::SpreadOffsets),
    // After all that reads the types of results.
    Step::Run(&lower::flatten_branches::FlattenBranches),
    // The layouts that operators of the target want meet those around them.
    Step::Run(&clean::merge_views::MergeViews),
    // Those of heads are where they stay.
    Step::Run(&lower::split_heads::SplitHeads),
    Step::Run(&lower::detach_heads::DetachHeads),
    Step::Run(&lower::pad_columns::PadColumns),
    // Activations are spelled out, and no rearrangement is merged any more.
    Step::Run(&lower::separate_gates::SeparateGates),
    // Each layer squeezed or expanded the same tables.
    Step::Run(&clean::deduplicate::Deduplicate),
    // Tables are one by now, and heads where they stay.
    Step::Run(&lower::rotate_together::RotateTogether),
    // Equal weights are one by now.
    Step::Run(&lower::separate_weights::SeparateWeights),
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Enter(Phase::Lowered),
];

/// Makes every attention an internal operator, those that the model came with too, so that its probabilities can be asked
/// for; [`LOWER`] follows.
pub static ATTENTION: &[Step] = &[
    Step::Run(&adopt::adopt_attention::ADOPT_ATTENTION),
    Step::Run(&clean::eliminate_dead::EliminateDead),
];

/// Cleanup and folding alone.
pub static CLEANUP: &[Step] = &[
    Step::Run(&clean::eliminate_dead::EliminateDead),
    Step::Run(&clean::eliminate_noop::EliminateNoop),
    Step::Run(&fold::fold_shapes::FoldShapes),
    Step::Run(&fold::fold_constants::FoldConstants),
    Step::Run(&clean::merge_chains::MergeChains),
    Step::Run(&clean::eliminate_noop::EliminateNoop),
    Step::Run(&clean::deduplicate::Deduplicate),
    Step::Run(&clean::eliminate_dead::EliminateDead),
];

/// The passes that are [`Fusion`]s.
pub fn fusions() -> impl Iterator<Item = &'static Fusion> {
    ALL.iter().filter_map(|pass| pass.fusion())
}

/// No pass has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown pass '{name}'; known passes: {known}")]
pub struct UnknownPass {
    pub name: String,
    pub known: String,
}

/// The pass of this name.
///
/// # Errors
/// When the name is unknown; the error lists the known ones.
pub fn find(name: &str) -> Result<&'static dyn Pass, UnknownPass> {
    let found = ALL.iter().find(|p| p.name() == name).copied();
    found.ok_or_else(|| UnknownPass {
        name: name.to_string(),
        known: ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", "),
    })
}

/// The steps that a list such as `default,-fuse-gelu` or `fold-constants,fuse-gelu` names, given what `default` is.
///
/// # Errors
/// When a name is unknown.
pub fn select(list: &str, default: &[Step]) -> Result<Vec<Step>, UnknownPass> {
    let mut steps = Vec::new();
    for item in list.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        if item == "default" {
            steps.extend_from_slice(default);
        } else if item == "cleanup" {
            steps.extend_from_slice(CLEANUP);
        } else if let Some(name) = item.strip_prefix('-') {
            let name = find(name)?.name();
            steps.retain(|s| !matches!(s, Step::Run(p) if p.name() == name));
        } else {
            steps.push(Step::Run(find(item)?));
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_known() {
        for pass in ALL {
            assert_eq!(ALL.iter().filter(|p| p.name() == pass.name()).count(), 1);
            assert!(!pass.about().is_empty() && !pass.details().is_empty());
        }
        for step in DEFAULT
            .iter()
            .chain(INT8)
            .chain(FP8)
            .chain(INT4)
            .chain(FP16)
            .chain(BF16)
            .chain(LOWER)
            .chain(ATTENTION)
            .chain(CLEANUP)
        {
            if let Step::Run(pass) = step {
                assert!(find(pass.name()).is_ok());
            }
        }
    }

    #[test]
    fn lists_add_and_remove() {
        let names = |list: &str| {
            let steps = select(list, DEFAULT).unwrap();
            steps.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>()
        };
        assert_eq!(
            names("fold-constants, fuse-gelu"),
            ["fold-constants", "fuse-gelu"]
        );
        assert!(!names("default,-fuse-gelu").contains(&"fuse-gelu".to_string()));
        let err = select("default,fuse-gelo", DEFAULT).unwrap_err();
        assert!(err.to_string().contains("fuse-gelu"));
    }
}
