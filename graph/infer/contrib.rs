//! Operators of the domain `com.microsoft`.

use smallvec::SmallVec;

use super::call::{Call, Outs, one};
use super::expr::Expr;
use super::fact::{Dims, Fact};
use super::{linear, rten};

pub(super) fn shapes(call: &Call<'_>) -> Option<Outs> {
    match call.node.op().name() {
        "Gelu"
        | "FastGelu"
        | "BiasGelu"
        | "QuickGelu"
        | "BiasSoftmax"
        | "BiasSplitGelu"
        | "RotaryEmbedding"
        | "Inverse"
        | "QLinearSoftmax"
        | "QLinearSigmoid"
        | "QLinearLeakyRelu"
        | "QuantizeLinear"
        | "DequantizeLinear"
        | "NhwcFusedConv"
        | "GroupNorm"
        | "SkipGroupNorm"
        | "MoE"
        | "QMoE"
        | "BifurcationDetector"
        | "PackedAttention"
        | "LongformerAttention"
        | "Trilu"
        | "BitmaskDropout" => call.like(0),
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => linear::norm(call, -1),
        "EmbedLayerNormalization" => embed_norm(call),
        "FusedMatMul" | "TransposeMatMul" => linear::fused_matmul(call),
        "GemmFastGelu" | "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" | "MatMulInteger16" => {
            linear::matmul(call)
        }
        "FusedGemm" => linear::gemm(call),
        "FusedConv" => linear::conv(call, 1),
        "MatMulNBits" | "MatMulFpQ4" | "MatMulBnb4" => {
            let (_, lead) = call.dims(0)?.split_last()?;
            let columns = Expr::from(call.int("N").filter(|&n| n >= 0)?);
            Some(one(lead.iter().cloned().chain([columns]).collect()))
        }
        "Attention" | "QAttention" => packed_attention(call),
        "MultiHeadAttention" | "GroupQueryAttention" => rten::attention(call),
        "RelativePositionBias" => {
            let heads = call.dims(0)?.get(1)?.clone();
            let length = |k: usize| call.size(call.values(k).and_then(|v| v.first().cloned()));
            Some(one(SmallVec::from_iter([
                Expr::from(1),
                heads,
                length(1),
                length(2),
            ])))
        }
        "QLinearAdd" | "QLinearMul" => {
            let dims = call.broadcast(call.dims(0)?, call.dims(3)?)?;
            Some(one(dims))
        }
        "GatherND" => linear::gather_nd(call),
        _ => None,
    }
}

fn embed_norm(call: &Call<'_>) -> Option<Outs> {
    let [batch, sequence] = call.dims(0)? else {
        return None;
    };
    let hidden = call.dims(2)?.get(1)?;
    let dims: Dims = SmallVec::from_iter([batch.clone(), sequence.clone(), hidden.clone()]);
    let mask = Fact::of_dims(SmallVec::from_iter([batch.clone()]));
    Some(SmallVec::from_iter([
        Fact::of_dims(dims.clone()),
        mask,
        Fact::of_dims(dims),
    ]))
}

/// Attention over one input and one packed weight.
fn packed_attention(call: &Call<'_>) -> Option<Outs> {
    let [batch, sequence, _] = call.dims(0)? else {
        return None;
    };
    let hidden = match call.list("qkv_hidden_sizes")? {
        Some(sizes) => sizes.get(2).map(|&v| Expr::from(v)),
        None => call.dims(1)?.get(1)?.floor_div(&Expr::from(3)),
    };
    let dims = [batch.clone(), sequence.clone(), call.size(hidden)];
    Some(one(SmallVec::from_iter(dims)))
}
