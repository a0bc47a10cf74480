//! Attention operators that a model came with become `internal::Attention`.

use kiln_graph::{Attrs, DType, Graph, INTERNAL_DOMAIN, NodeId, Op, Tensor, ValueId, ops};

use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};

/// Attention-23, and com.microsoft:Attention and MultiHeadAttention (ONNX Runtime `docs/ContribOperators.md`).
pub static ADOPT_ATTENTION: Local = Local {
    name: "adopt-attention",
    about: "attention operators that the model came with become the internal one, as if they had been fused",
    why: "The standard Attention (opset 23) and Attention and MultiHeadAttention of com.microsoft become \
         `internal::Attention(q, k, v, bias)` over [batch, heads, sequence, size]: packed projections become a product and \
         a Split, heads are split by Reshape and Transpose, masks become a bias. Keys and values of earlier steps of \
         com.microsoft's are joined in front and given back; the standard one's (`expand-attention` has them), buffers that \
         past and present share, and scores that are read are left alone. It is no part of `default`: such operators are fast as \
         they are. `kiln attention` runs it to see their probabilities.",
    exactness: Exactness::Rounding,
    since: 13,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let node = g.node(root);
    let read = |from: usize| {
        let mut later = node.outputs().iter().skip(from).flatten();
        later.any(|&v| !g.value(v).is_unused())
    };
    let mut adopt = Adopt::new(g, root, cx);
    let made = if let Some(attention) = ops::Attention::of(g, root) {
        adopt.standard(&attention, read(1))?
    } else if let Some(attention) = ops::MicrosoftAttention::of(g, root) {
        let scores = if attention.is_packed() { 2 } else { 3 };
        adopt.microsoft(&attention, read(scores))?
    } else if node.op().name().ends_with("Attention") && node.op().domain() != INTERNAL_DOMAIN {
        return Err(Miss::because(format!("{} is not one it knows", node.op())));
    } else {
        return Err(Miss::none());
    };
    let output = node.output(0).ok_or_else(Miss::none)?;
    adopt.patch.replace(output, made);
    Ok(adopt.patch)
}

fn refuse(stops: bool, why: &str) -> Result<(), Miss> {
    match stops {
        true => Err(Miss::because(why)),
        false => Ok(()),
    }
}

/// Attributes of the internal operator.
struct How {
    scale: f32,
    softcap: f32,
    causal: bool,
}

/// Writes an operator as the internal one and what stands around it.
pub(crate) struct Adopt<'a, 'c> {
    pub(crate) g: &'a Graph,
    pub(crate) cx: &'a Context<'c>,
    pub(crate) patch: Patch,
    pub(crate) dtype: Option<DType>,
}

impl<'a, 'c> Adopt<'a, 'c> {
    pub(crate) fn new(g: &'a Graph, root: NodeId, cx: &'a Context<'c>) -> Adopt<'a, 'c> {
        let first = g.node(root).input(0);
        Adopt {
            g,
            cx,
            patch: Patch::new(),
            dtype: first.and_then(|v| g.value(v).ty().dtype()),
        }
    }
}

impl Adopt<'_, '_> {
    pub(crate) fn node(&mut self, op: &str, inputs: &[Ref], attrs: Attrs) -> Ref {
        self.patch.node(Op::onnx(op), inputs.iter().copied(), attrs)
    }

    pub(crate) fn number(&mut self, value: f32) -> Ref {
        let t = Tensor::scalar(value);
        let narrow = self.dtype.and_then(|dtype| t.narrowed(dtype));
        self.patch.constant(narrow.unwrap_or(t))
    }

    fn reshape(&mut self, x: Ref, shape: &[i64]) -> Ref {
        let shape = self.patch.constant(Tensor::vector(shape));
        self.node("Reshape", &[x, shape], Attrs::new())
    }

    /// [batch, a, b, size] as [batch, b, a, size].
    fn turned(&mut self, x: Ref) -> Ref {
        let perm = Attrs::new().with("perm", vec![0i64, 2, 1, 3]);
        self.node("Transpose", &[x], perm)
    }

    /// [batch, seq, heads · size] as [batch, heads, seq, size].
    pub(crate) fn apart(&mut self, x: Ref, heads: i64, size: i64) -> Ref {
        let split = self.reshape(x, &[0, 0, heads, size]);
        self.turned(split)
    }

    /// [batch, heads, seq, size] as [batch, seq, heads · size].
    pub(crate) fn together(&mut self, x: Ref) -> Ref {
        let turned = self.turned(x);
        self.reshape(turned, &[0, 0, -1])
    }

    pub(crate) fn rank(&self, v: ValueId) -> Result<usize, Miss> {
        let dims = self.cx.facts.dims(v);
        dims.map(|d| d.len())
            .ok_or_else(|| Miss::at(v, 1, "its rank is unknown"))
    }

    pub(crate) fn size(&self, v: ValueId, axis: usize) -> Result<i64, Miss> {
        let size = (self.cx.facts.dims(v)).and_then(|d| d.get(axis)?.as_i64());
        size.ok_or_else(|| Miss::at(v, 1, format!("its size along axis {axis} is unknown")))
    }

    /// The size of a head, where heads lie side by side in `width`.
    pub(crate) fn head(&self, width: i64, heads: i64) -> Result<i64, Miss> {
        match heads > 0 && width % heads == 0 {
            true => Ok(width / heads),
            false => Err(Miss::because(format!(
                "{heads} heads do not divide a width of {width}"
            ))),
        }
    }

    fn attention(&mut self, operands: [Ref; 3], bias: Option<Ref>, how: &How) -> Ref {
        let mut attrs = Attrs::new().with("scale", how.scale);
        if how.softcap != 0.0 {
            attrs.set("softcap", how.softcap);
        }
        if how.causal {
            attrs.set("is_causal", 1i64);
        }
        if bias.is_some() {
            // The operators give numbers where a bias hides all keys, not NaN.
            attrs.set("guarded", 1i64);
        }
        let op = Op::new(INTERNAL_DOMAIN, "Attention");
        self.patch.node(op, operands.into_iter().chain(bias), attrs)
    }

    fn standard(&mut self, attention: &ops::Attention<'_>, read: bool) -> Result<Ref, Miss> {
        let past = [attention.past_key(), attention.past_value()];
        refuse(
            past.iter().any(Option::is_some),
            "it has keys and values of earlier steps",
        )?;
        refuse(read, "its keys, values or scores are read")?;
        let lengths = attention.nonpad_kv_seqlen().is_some();
        refuse(lengths, "it is told the lengths of its sequences")?;
        // Versions of the standard differ in which comes first.
        let capped = attention.softcap() != 0.0 && attention.mask().is_some();
        refuse(capped, "it has both a cap on the scores and a mask")?;
        let heads = [
            attention.q_num_heads(),
            attention.kv_num_heads(),
            attention.kv_num_heads(),
        ];
        let mut operands = Vec::with_capacity(3);
        let mut flat = false;
        let mut scale = attention.scale();
        for (k, heads) in heads.into_iter().enumerate() {
            let x = attention.input(k).ok_or_else(Miss::none)?;
            let rank = self.rank(x)?;
            let width = || self.size(x, rank.saturating_sub(1));
            let size = match (rank, heads) {
                (4, _) if k == 0 && scale.is_none() => width()?,
                (4, _) => 0,
                (3, Some(heads)) => self.head(width()?, heads)?,
                _ => return Err(Miss::at(x, 1, "its heads are unknown")),
            };
            if k == 0 {
                flat = rank == 3;
                scale = scale.or(Some(1.0 / (size as f32).sqrt()));
            }
            operands.push(match (rank, heads) {
                (3, Some(heads)) => self.apart(x.into(), heads, size),
                _ => x.into(),
            });
        }
        let bias = match attention.mask() {
            Some(mask) if self.g.value(mask).ty().dtype() == Some(DType::Bool) => {
                let (shown, hidden) = (self.number(0.0), self.number(f32::NEG_INFINITY));
                Some(self.node("Where", &[mask.into(), shown, hidden], Attrs::new()))
            }
            mask => mask.map(Ref::Old),
        };
        let how = How {
            scale: scale.unwrap_or(1.0),
            softcap: attention.softcap(),
            causal: attention.is_causal(),
        };
        let [q, k, v] = operands[..] else {
            return Err(Miss::none());
        };
        let made = self.attention([q, k, v], bias, &how);
        Ok(match flat {
            true => self.together(made),
            false => made,
        })
    }

    fn microsoft(
        &mut self,
        attention: &ops::MicrosoftAttention<'_>,
        read: bool,
    ) -> Result<Ref, Miss> {
        refuse(
            attention.shares_past(),
            "its past and present share a buffer",
        )?;
        refuse(read, "its scores are read")?;
        refuse(attention.rotates(), "it rotates queries and keys itself")?;
        let heads = attention.num_heads();
        let heads = heads.ok_or_else(|| Miss::because("its number of heads is unknown"))?;
        let (flat, widths) = match attention.is_packed() {
            true => self.projected(attention)?,
            false => self.biased(attention)?,
        };
        let size = self.head(widths[0], heads)?;
        let mut operands = [flat[0]; 3];
        for (k, (x, width)) in flat.into_iter().zip(widths).enumerate() {
            let rank = match x {
                Ref::Old(v) => self.rank(v)?,
                Ref::New(_) => 3,
            };
            operands[k] = match rank {
                4 => x,
                _ => self.apart(x, heads, self.head(width, heads)?),
            };
        }
        let first = self.joined(attention, &mut operands);
        let mut bias = self.mask(attention)?;
        if let Some(first) = first.filter(|_| attention.is_causal()) {
            bias = Some(self.behind(first, operands, bias));
        }
        let how = How {
            scale: attention.scale().unwrap_or(1.0 / (size as f32).sqrt()),
            softcap: 0.0,
            causal: attention.is_causal() && first.is_none(),
        };
        let made = self.attention(operands, bias, &how);
        Ok(self.together(made))
    }

    /// Joins keys and values with those of earlier steps, whose number it gives, and gives them back as results.
    fn joined(
        &mut self,
        attention: &ops::MicrosoftAttention<'_>,
        operands: &mut [Ref; 3],
    ) -> Option<Ref> {
        let past = match (attention.is_packed(), attention.past()) {
            (_, [None, _]) => None,
            (true, [Some(both), _]) => Some([0i64, 1].map(|k| {
                let at = self.patch.constant(Tensor::scalar(k));
                let axis = Attrs::new().with("axis", 0i64);
                self.node("Gather", &[both.into(), at], axis)
            })),
            (false, [Some(keys), Some(values)]) => Some([keys.into(), values.into()]),
            (false, [Some(_), None]) => None,
        };
        for (k, past) in past.into_iter().flatten().enumerate() {
            let along = Attrs::new().with("axis", 2i64);
            operands[k + 1] = self.node("Concat", &[past, operands[k + 1]], along);
        }
        let [_, keys, values] = *operands;
        let result = |k: usize| attention.output(k);
        match attention.is_packed() {
            true => {
                if let Some(both) = result(1) {
                    let parts = [keys, values].map(|x| self.along(x, &[0]));
                    let axis = Attrs::new().with("axis", 0i64);
                    let joined = self.node("Concat", &parts, axis);
                    self.patch.replace(both, joined);
                }
            }
            false => {
                for (result, of) in [(result(1), keys), (result(2), values)] {
                    if let Some(result) = result {
                        // An operand may be an input of the graph, which is no output by another name.
                        let present = self.node("Identity", &[of], Attrs::new());
                        self.patch.replace(result, present);
                    }
                }
            }
        }
        past.map(|[keys, _]| self.length(keys, 2))
    }

    /// Hides keys behind each query, the first of which is at a place of its own: [1, 1, queries, keys] or as the bias is.
    fn behind(&mut self, first: Ref, [q, k, _]: [Ref; 3], bias: Option<Ref>) -> Ref {
        let [new, all] = [q, k].map(|x| self.length(x, 2));
        let [counted, keys] = [new, all].map(|n| self.counted(n));
        let places = self.node("Add", &[counted, first], Attrs::new());
        let queries = self.along(places, &[0, 1, 3]);
        let seen = self.node("LessOrEqual", &[keys, queries], Attrs::new());
        let shown = bias.unwrap_or_else(|| self.number(0.0));
        let hidden = self.number(f32::NEG_INFINITY);
        self.node("Where", &[seen, shown, hidden], Attrs::new())
    }

    /// How long an axis of `x` is, as a scalar.
    pub(crate) fn length(&mut self, x: Ref, axis: i64) -> Ref {
        let part = Attrs::new().with("start", axis).with("end", axis + 1);
        let length = self.node("Shape", &[x], part);
        let axes = self.patch.constant(Tensor::vector(&[0i64]));
        self.node("Squeeze", &[length, axes], Attrs::new())
    }

    /// 0, 1, … below a scalar.
    pub(crate) fn counted(&mut self, length: Ref) -> Ref {
        let [from, step] = [0i64, 1].map(|k| self.patch.constant(Tensor::scalar(k)));
        self.node("Range", &[from, length, step], Attrs::new())
    }

    pub(crate) fn along(&mut self, x: Ref, axes: &[i64]) -> Ref {
        let axes = self.patch.constant(Tensor::vector(axes));
        self.node("Unsqueeze", &[x, axes], Attrs::new())
    }

    /// Queries, keys and values of packed weights, as [batch, seq, width], and their widths.
    fn projected(
        &mut self,
        attention: &ops::MicrosoftAttention<'_>,
    ) -> Result<([Ref; 3], [i64; 3]), Miss> {
        let (Some(x), Some(weight)) = (attention.input(0), attention.input(1)) else {
            return Err(Miss::none());
        };
        let width = self.size(weight, 1)?;
        let widths = match attention.qkv_hidden_sizes() {
            Some(sizes) => sizes.to_vec(),
            None => vec![width / 3; 3],
        };
        let widths = <[i64; 3]>::try_from(widths);
        let widths = widths.map_err(|_| Miss::because("its widths are not three"))?;
        let mut all = self.node("MatMul", &[x.into(), weight.into()], Attrs::new());
        if let Some(bias) = attention.projection_bias() {
            all = self.node("Add", &[all, bias.into()], Attrs::new());
        }
        let parts = self.patch.constant(Tensor::vector(&widths));
        let axis = Attrs::new().with("axis", -1i64);
        let made = (self.patch).node_with(Op::onnx("Split"), [Some(all), Some(parts)], 3, axis);
        Ok(([made[0], made[1], made[2]], widths))
    }

    /// Queries, keys and values with what their projections add, and their widths. Keys and values of rank 4 are
    /// [batch, heads, seq, size] already, and nothing is added to them.
    fn biased(
        &mut self,
        attention: &ops::MicrosoftAttention<'_>,
    ) -> Result<([Ref; 3], [i64; 3]), Miss> {
        let mut operands = [Ref::New(0); 3];
        let mut widths = [0; 3];
        let mut from = 0;
        let packed = attention.input(1).is_none() && attention.input(2).is_none();
        for k in 0..3 {
            let rank = match attention.input(if packed { 0 } else { k }) {
                Some(x) if packed => {
                    (operands[k], widths[k]) = self.part(x, k)?;
                    3
                }
                Some(x) => {
                    let rank = self.rank(x)?;
                    if rank != 3 && (k == 0 || rank != 4) {
                        return Err(Miss::at(x, 1, "its layout is not [batch, seq, width]"));
                    }
                    widths[k] = match rank {
                        4 => 0,
                        _ => self.size(x, 2)?,
                    };
                    operands[k] = x.into();
                    rank
                }
                None => return Err(Miss::because("its keys and values are packed")),
            };
            let (Some(bias), 3) = (attention.projection_bias(), rank) else {
                continue;
            };
            let bounds = [from, from + widths[k]].map(|at| Tensor::vector(&[at]));
            let bounds = bounds.map(|t| self.patch.constant(t));
            let part = self.node("Slice", &[bias.into(), bounds[0], bounds[1]], Attrs::new());
            operands[k] = self.node("Add", &[operands[k], part], Attrs::new());
            from += widths[k];
        }
        Ok((operands, widths))
    }

    fn truth(&mut self, mask: ValueId) -> Ref {
        let to = Attrs::new().with("to", i64::from(DType::Bool.to_onnx()));
        self.node("Cast", &[mask.into()], to)
    }

    /// Which keys are within the length of their sequence, as [batch, keys].
    fn within(
        &mut self,
        attention: &ops::MicrosoftAttention<'_>,
        lengths: ValueId,
    ) -> Result<Ref, Miss> {
        let x = attention.input(0).ok_or_else(Miss::none)?;
        let batch = |v: ValueId| self.cx.facts.dims(v)?.first();
        // Twice as many are ends and starts, and 3 · batch + 2 a form of packed sequences.
        if batch(lengths).is_none() || batch(lengths) != batch(x) {
            let why = "its mask is not one length for each sequence";
            return Err(Miss::at(lengths, 1, why));
        }
        let keys = match attention.is_packed() {
            true => x,
            false => attention.input(1).ok_or_else(Miss::none)?,
        };
        // Packed heads are [batch, seq, heads, 3, size].
        let axis = match self.rank(keys)? {
            5 => 1,
            rank => rank as i64 - 2,
        };
        let size = Attrs::new().with("start", axis).with("end", axis + 1);
        let size = self.node("Shape", &[keys.into()], size);
        let [from, step] = [0i64, 1].map(|n| self.patch.constant(Tensor::scalar(n)));
        let none = self.patch.constant(Tensor::vector::<i64>(&[]));
        let count = self.node("Reshape", &[size, none], Attrs::new());
        let places = self.node("Range", &[from, count, step], Attrs::new());
        let to = Attrs::new().with("to", i64::from(DType::I64.to_onnx()));
        let lengths = self.node("Cast", &[lengths.into()], to);
        let axes = self.patch.constant(Tensor::vector(&[1i64]));
        let lengths = self.node("Unsqueeze", &[lengths, axes], Attrs::new());
        Ok(self.node("Less", &[places, lengths], Attrs::new()))
    }

    /// Queries, keys or values of [batch, seq, heads, 3, size] as [batch, seq, width], and their width.
    fn part(&mut self, x: ValueId, place: usize) -> Result<(Ref, i64), Miss> {
        let known = self.rank(x)? == 5 && self.size(x, 3)? == 3;
        refuse(!known, "its queries, keys and values are packed otherwise")?;
        let width = self.size(x, 2)?.checked_mul(self.size(x, 4)?);
        let width = width.ok_or_else(|| Miss::at(x, 1, "its width is too large"))?;
        let place = self.patch.constant(Tensor::scalar(place as i64));
        let axis = Attrs::new().with("axis", 3i64);
        let part = self.node("Gather", &[x.into(), place], axis);
        Ok((self.reshape(part, &[0, 0, width]), width))
    }

    /// The mask and the bias as one bias.
    fn mask(&mut self, attention: &ops::MicrosoftAttention<'_>) -> Result<Option<Ref>, Miss> {
        let bias = attention.attention_bias().map(Ref::Old);
        let Some(mask) = attention.mask() else {
            return Ok(bias);
        };
        let (axes, kept): (&[i64], Ref) = match self.rank(mask)? {
            1 => (&[1, 2], self.within(attention, mask)?),
            2 => (&[1, 2], self.truth(mask)),
            3 => (&[1], self.truth(mask)),
            _ => return Err(Miss::at(mask, 1, "its mask is not one number for each key")),
        };
        let axes = self.patch.constant(Tensor::vector(axes));
        let kept = self.node("Unsqueeze", &[kept, axes], Attrs::new());
        let (shown, hidden) = (self.number(0.0), self.number(attention.mask_filter_value()));
        let mask = self.node("Where", &[kept, shown, hidden], Attrs::new());
        Ok(Some(match bias {
            Some(bias) => self.node("Add", &[bias, mask], Attrs::new()),
            None => mask,
        }))
    }
}
