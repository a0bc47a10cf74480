//! Group normalization, from an instance normalization of reshaped channels.

use std::sync::OnceLock;

use kiln_graph::{Attrs, Dim, Graph, NodeId, Op, Tensor, ValueId};

use crate::core::fusion::{self, Parsed};
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::pattern::{self, Match};
use crate::core::rule::Rule;
use crate::core::target::Dialect;

/// What PyTorch exports `GroupNorm` as. The inputs after x are constants and shapes that the rule looks into.
pub const BODY: &str =
    "GroupNormalization <epsilon> (x, groups, ones, zeros, whole, scale, bias) => (y) {
    r = Reshape <allowzero: int = @allowzero> (x, groups)
    n = InstanceNormalization <epsilon: float = @epsilon> (r, ones, zeros)
    b = Reshape <allowzero: int = @allowzero> (n, whole)
    w = Mul(b, scale)
    y = Add(w, bias)
}";

#[derive(Debug)]
pub struct FuseGroupNorm;

impl Rule for FuseGroupNorm {
    fn name(&self) -> &'static str {
        "fuse-group-norm"
    }

    fn about(&self) -> &'static str {
        "Reshape-InstanceNormalization-Reshape-Mul-Add becomes GroupNormalization, for TensorRT"
    }

    fn details(&self) -> String {
        format!(
            "Groups of channels are reshaped into one channel each, normalized, and reshaped back; scale and bias are of \
             the channels, as GroupNormalization-21 has them (18 has them of the groups). Only for targets that have \
             the operator, in a model of operator set 21 or later.\n\nReplaces this by one call:\n\n{BODY}\n"
        )
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &["Add"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        static PARSED: OnceLock<Option<Parsed>> = OnceLock::new();
        let body = PARSED.get_or_init(|| fusion::parse(BODY).ok());
        let body = body.as_ref().ok_or_else(Miss::none)?;
        let ways = pattern::find(&body.function, g, root)?;
        let mut miss = Miss::none();
        for way in ways {
            match call(g, &way, cx) {
                Ok(patch) => return Ok(patch),
                Err(m) => miss = m,
            }
        }
        Err(miss)
    }
}

const DEPTH: usize = 5;

fn call(g: &Graph, m: &Match, cx: &Context<'_>) -> Result<Patch, Miss> {
    let [x, ones, zeros, scale, bias] = [0, 2, 3, 5, 6].map(|k| m.input(k));
    let (x, scale, bias) = (x?, scale?, bias?);
    let shape = |v: ValueId| g.value(v).ty().shape().unwrap_or_default();
    let from = shape(x);
    let groups = filled(g, ones?, 1.0)?;
    if filled(g, zeros?, 0.0)? != groups {
        return Err(Miss::at(x, DEPTH, "scale and bias differ in size"));
    }
    // The root, the scaled value and so on: found from the output, as the matcher visits them.
    let normalized = m.nodes().get(3).and_then(|&n| g.node(n).input(0));
    let between = normalized.map(shape).unwrap_or_default();
    let grouped = matches!((from, between), ([n, _, _, ..], [b, c, _])
        if n.certainly_equals(b) && c.known() == Some(groups));
    if !grouped {
        let why = format!("it is not reshaped to [batch, {groups}, rest]");
        return Err(Miss::at(x, DEPTH, why));
    }
    let back = m.nodes().get(2).and_then(|&n| g.node(n).output(0));
    let to = back.map(shape).unwrap_or_default();
    if from.len() != to.len() || !from.iter().zip(to).all(|(a, b)| a.certainly_equals(b)) {
        return Err(Miss::at(x, DEPTH, "it is not reshaped back to what it was"));
    }
    let channels = from.get(1).and_then(Dim::known);
    let channels = channels
        .filter(|c| groups > 0 && c % groups == 0)
        .ok_or_else(|| Miss::at(x, DEPTH, "its channels are unknown, or no groups"))?;
    let scale = per_channel(g, scale, channels, from.len())?;
    let bias = per_channel(g, bias, channels, from.len())?;
    if cx.target.dialect != Dialect::TensorRt || g.opset() < 21 {
        return Err(Miss::because(
            "the target has no GroupNormalization with a scale for each channel",
        ));
    }
    let mut attrs = Attrs::new().with("num_groups", groups as i64);
    if let Some(epsilon) = m.attr("epsilon") {
        attrs.set("epsilon", epsilon.clone());
    }
    let mut patch = Patch::new();
    let (scale, bias) = (patch.constant(scale), patch.constant(bias));
    let made = patch.node(
        Op::onnx("GroupNormalization"),
        [x.into(), scale, bias],
        attrs,
    );
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
