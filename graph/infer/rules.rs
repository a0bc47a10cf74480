//! Which rule an operator of the default domain has.

use smallvec::SmallVec;

use super::call::{Call, Outs, one};
use super::expr::Expr;
use super::fact::{Dims, Fact};
use super::{contrib, elementwise, generate, internal, layout, linear, rten, slice};
use crate::ops::kind::{Kind, kind};
use crate::{Attr, INTERNAL_DOMAIN};

/// Shapes and values of a node's outputs; `None` if nothing can be said.
pub(super) fn shapes(call: &Call<'_>) -> Option<Outs> {
    // A function's attribute has no value here, so its default must not be taken either.
    if call
        .node
        .attrs()
        .iter()
        .any(|(_, a)| matches!(a, Attr::Ref { .. }))
    {
        return None;
    }
    match call.node.op().domain() {
        "" => standard(call),
        "com.microsoft" => contrib::shapes(call),
        INTERNAL_DOMAIN => internal::shapes(call),
        _ => None,
    }
}

fn standard(call: &Call<'_>) -> Option<Outs> {
    match call.node.op().name() {
        "PRelu" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike" | "Bernoulli"
        | "ReverseSequence" | "QuantizeLinear" | "DequantizeLinear" | "FakeQuantize" => {
            call.like(0)
        }
        "CastLike" => elementwise::unary(call),
        "Where" => elementwise::broadcast(call),
        "GatherElements" => call.like(1),
        "Dropout" => {
            let same = call.like(0)?;
            Some(same.iter().chain(&same).cloned().collect())
        }
        "LayerNormalization" | "SimplifiedLayerNormalization" => {
            linear::norm(call, call.int("axis")?)
        }
        "BatchNormalization" => batch_norm(call),
        "DynamicQuantizeLinear" => {
            let mut outs = call.like(0)?;
            outs.extend([Fact::of_dims(Dims::new()), Fact::of_dims(Dims::new())]);
            Some(outs)
        }
        "Shape" => generate::shape(call),
        "Size" => generate::size(call),
        "Reshape" => layout::reshape(call),
        "Flatten" => layout::flatten(call),
        "Squeeze" => layout::squeeze(call),
        "Unsqueeze" => layout::unsqueeze(call),
        "Transpose" => layout::transpose(call),
        "Expand" => layout::expand(call),
        "Concat" => layout::concat(call),
        "Split" => layout::split(call),
        "Slice" => slice::slice(call),
        "Gather" => layout::gather(call),
        "GatherND" => linear::gather_nd(call),
        "ConstantOfShape" => generate::constant_of_shape(call),
        "Range" => generate::range(call),
        "MatMul" | "MatMulInteger" => linear::matmul(call),
        "QLinearMatMul" => linear::product(call, call.dims(0)?, call.dims(3)?),
        "Gemm" => linear::gemm(call),
        "ArgMax" | "ArgMin" => linear::arg(call),
        "Conv" | "ConvInteger" => linear::conv(call, 1),
        "QLinearConv" => linear::conv(call, 3),
        "ConvTranspose" => linear::conv_transpose(call),
        "MaxPool" | "AveragePool" | "LpPool" => linear::pool(call),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => linear::global_pool(call),
        "Resize" if call.opset < 11 => linear::resize(call, 1, None),
        "Resize" => linear::resize(call, 2, Some(3)),
        "Upsample" => linear::resize(call, 1, None),
        "Pad" => rten::pad(call),
        "Attention" => rten::attention(call),
        "Constant" => constant(call),
        "RandomNormal" | "RandomUniform" => random(call),
        "Multinomial" => multinomial(call),
        "SpaceToDepth" => space_to_depth(call),
        "Det" => Some(one(call.dims(0)?.split_last_chunk::<2>()?.0.into())),
        "Compress" => compress(call),
        "Unique" => unique(call),
        "HannWindow" | "HammingWindow" | "BlackmanWindow" => window(call),
        "SequenceLength" => Some(one(Dims::new())),
        _ => by_kind(call),
    }
}

fn batch_norm(call: &Call<'_>) -> Option<Outs> {
    let mut outs = call.like(0)?;
    let statistics = call
        .dims(3)
        .map(|d| Fact::of_dims(d.into()))
        .unwrap_or_default();
    outs.extend(std::iter::repeat_n(statistics, 4));
    Some(outs)
}

fn random(call: &Call<'_>) -> Option<Outs> {
    let shape = call.list("shape")??;
    shape
        .iter()
        .all(|&d| d >= 0)
        .then(|| one(shape.iter().map(|&d| d.into()).collect()))
}

fn multinomial(call: &Call<'_>) -> Option<Outs> {
    let count = Expr::from(call.int("sample_size")?);
    Some(one(SmallVec::from_iter([
        call.dims(0)?.first()?.clone(),
        count,
    ])))
}

fn compress(call: &Call<'_>) -> Option<Outs> {
    let mut dims: Dims = call.dims(0)?.into();
    if call.node.attrs().get("axis").is_none() {
        return Some(one(call.fresh.shape(1)));
    }
    let axis = call.axis(call.int("axis")?, dims.len())?;
    dims[axis] = call.fresh.size();
    Some(one(dims))
}

fn unique(call: &Call<'_>) -> Option<Outs> {
    let count = call.fresh.shape(1);
    let list = Fact::of_dims(count);
    let first = if call.node.attrs().get("axis").is_none() {
        list.clone()
    } else {
        Fact::default()
    };
    Some(SmallVec::from_iter([
        first,
        list,
        Fact::of_dims(call.fresh.shape(1)),
    ]))
}

fn window(call: &Call<'_>) -> Option<Outs> {
    let size = call
        .values(0)
        .and_then(|v| v.first().cloned())
        .filter(Expr::is_nonnegative);
    Some(one(SmallVec::from_iter([call.size(size)])))
}

/// Operators whose kind says their shape.
fn by_kind(call: &Call<'_>) -> Option<Outs> {
    match kind(call.node.op()) {
        Kind::Unary => elementwise::unary(call),
        Kind::Binary | Kind::Variadic => elementwise::broadcast(call),
        Kind::Along | Kind::Update => call.like(0),
        Kind::Reduce => linear::reduce(call),
        _ => rten::plain(call),
    }
}

fn constant(call: &Call<'_>) -> Option<Outs> {
    let attrs = call.node.attrs();
    if let Some(tensor) = attrs.tensor("value") {
        return Some(SmallVec::from_iter([Fact::of_tensor(tensor)]));
    }
    let scalar = attrs
        .get("value_float")
        .or(attrs.get("value_int"))
        .or(attrs.get("value_string"));
    scalar.map(|_| one(Dims::new()))
}

fn space_to_depth(call: &Call<'_>) -> Option<Outs> {
    let block = Expr::from(call.int("blocksize").filter(|&b| b > 0)?);
    let [batch, channels, height, width] = call.dims(0)? else {
        return None;
    };
    let area = block.mul(&block)?;
    let dims = [
        batch.clone(),
        call.size(channels.mul(&area)),
        call.size(height.floor_div(&block)),
        call.size(width.floor_div(&block)),
    ];
    Some(one(SmallVec::from_iter(dims)))
}
