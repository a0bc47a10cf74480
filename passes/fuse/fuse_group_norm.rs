//! Group normalization, from an instance normalization of reshaped channels.

use std::sync::OnceLock;

use kiln_graph::{Attrs, Dim, Graph, Tensor, ValueId};

use crate::core::fusion::Fusion;
use crate::core::pass::{Context, Miss};
use crate::core::patch::Patch;
use crate::core::pattern::Match;

/// What PyTorch exports `GroupNorm` as. The inputs after x are constants and shapes that the rule looks into.
const BODY: &str =
    "GroupNormalization <epsilon> (x, groups, ones, zeros, whole, scale, bias) => (y) {
    r = Reshape <allowzero: int = @there> (x, groups)
    n = InstanceNormalization <epsilon: float = @epsilon> (r, ones, zeros)
    b = Reshape <allowzero: int = @back> (n, whole)
    w = Mul(b, scale)
    y = Add(w, bias)
}";

pub static FUSE_GROUP_NORM: Fusion = Fusion {
    name: "fuse-group-norm",
    about: "Reshape-InstanceNormalization-Reshape-Mul-Add becomes GroupNormalization, for TensorRT",
    why: "Groups of channels are reshaped into one channel each, normalized, and reshaped back; scale and bias are of the \
          channels, as GroupNormalization-21 has them (18 has them of the groups). Only for targets that have the operator, in a \
          model of operator set 21 or later.",
    bodies: &[BODY],
    guard: |_, _| Ok(()),
    build: Some(build),
    parsed: OnceLock::new(),
};

const DEPTH: usize = 5;

fn build(g: &Graph, m: &Match, cx: &Context<'_>) -> Result<Patch, Miss> {
    let (x, scale, bias) = (m.named("x")?, m.named("scale")?, m.named("bias")?);
    let shape = |v: ValueId| g.value(v).ty().shape().unwrap_or_default();
    let from = shape(x);
    let groups = filled(g, m.named("ones")?, 1.0)?;
    if filled(g, m.named("zeros")?, 0.0)? != groups {
        return Err(Miss::at(x, DEPTH, "scale and bias differ in size"));
    }
    let grouped = matches!((from, shape(m.named("r")?)), ([n, _, _, ..], [b, c, _])
        if n.certainly_equals(b) && c.known() == Some(groups));
    if !grouped {
        let why = format!("it is not reshaped to [batch, {groups}, rest]");
        return Err(Miss::at(x, DEPTH, why));
    }
    let to = shape(m.named("b")?);
    if from.len() != to.len() || !from.iter().zip(to).all(|(a, b)| a.certainly_equals(b)) {
        return Err(Miss::at(x, DEPTH, "it is not reshaped back to what it was"));
    }
    let channels = from.get(1).and_then(Dim::known);
    let channels = channels
        .filter(|c| groups > 0 && c % groups == 0)
        .ok_or_else(|| Miss::at(x, DEPTH, "its channels are unknown, or no groups"))?;
    let scale = per_channel(g, scale, channels, from.len())?;
    let bias = per_channel(g, bias, channels, from.len())?;
    let native = cx.target.facts.group_norm.as_ref();
    let native = native.and_then(|n| n.over(g, x)).ok_or_else(|| {
        Miss::because("the target has no GroupNormalization with a scale for each channel")
    })?;
    let mut attrs = Attrs::new().with("num_groups", groups as i64);
    if let Some(epsilon) = m.attr("epsilon") {
        attrs.set("epsilon", epsilon.clone());
    }
    let mut patch = Patch::new();
    let (scale, bias) = (patch.constant(scale), patch.constant(bias));
    let made = patch.node(native, [x.into(), scale, bias], attrs);
    if let Some(output) = m.output {
        patch.replace(output, made);
    }
    Ok(patch)
}

/// The size of a constant vector that holds nothing but `value`.
fn filled(g: &Graph, v: ValueId, value: f64) -> Result<usize, Miss> {
    let tensor = g.constant(v).filter(|t| t.rank() == 1);
    let all = tensor
        .and_then(Tensor::to_f64s)
        .filter(|all| all.iter().all(|&e| e == value));
    all.map(|all| all.len())
        .ok_or_else(|| Miss::at(v, DEPTH, format!("it is no constant vector of {value}")))
}

/// A constant that broadcasts over axis 1 alone, as a vector.
fn per_channel(g: &Graph, v: ValueId, channels: usize, rank: usize) -> Result<Tensor, Miss> {
    let along_channels = |t: &&Tensor| {
        let spatial = rank.saturating_sub(2);
        let ones = |dims: &[usize]| dims.iter().all(|&d| d == 1);
        let at = t.rank().checked_sub(spatial + 1);
        at.is_some_and(|at| ones(&t.dims()[..at]) && ones(&t.dims()[at + 1..]))
            && t.rank() <= rank
            && t.len() == channels
    };
    let tensor = g.constant(v).filter(along_channels);
    let vector = tensor.and_then(|t| t.reshaped([channels].as_slice()).ok());
    vector.ok_or_else(|| {
        let why = format!("it is no constant of {channels} channels");
        Miss::at(v, DEPTH, why)
    })
}
