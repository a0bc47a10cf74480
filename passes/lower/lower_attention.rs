//! `internal::Attention` in the words of the target.

use kiln_graph::infer::Expr;
use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, DType, Graph, INTERNAL_DOMAIN, NodeId, Tensor, ValueId};

use super::attention_words::Lower;
use super::packed_projections::Packed;
use super::standard_attention;
use crate::analysis::view::{View, declared};
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::target::{AttentionForm, microsoft};

pub static LOWER_ATTENTION: Local = Local {
    name: "lower-attention",
    about: "write attention as the target takes it: Attention, MultiHeadAttention, or MatMul-Softmax-MatMul",
    why: "ONNX Runtime takes MultiHeadAttention of com.microsoft, whose operands are [batch, seq, heads · size], and ONNX's own \
         Attention where queries share heads of keys, or keys and values are joined with those of earlier steps, which it does \
         itself. What neither takes (a cap on the scores), TensorRT and plain ONNX get the two products with the scale on the \
         query. TensorRT makes one kernel of them and of all that is computed on the scores between them, where the standard \
         Attention costs it another one for the mask and one behind the result. Rows whose keys are all hidden give zeros \
         where the original guards them, and what the original gives elsewhere: in half precision, where a mask does not \
         absorb the scores, those of such a row are made equal.",
    exactness: Exactness::Rounding,
    since: 18,
    native: true,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    if g.node(root).op().domain() != INTERNAL_DOMAIN {
        return Err(Miss::none());
    }
    let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
    let Operands { q, k, v, output } = Operands::of(&attention).ok_or_else(Miss::none)?;
    let mut lower = Lower {
        g,
        cx,
        attention,
        patch: Patch::new(),
        dtype: g.value(q).ty().dtype().unwrap_or(DType::F32),
    };
    let facts = cx.target.facts;
    let standard = facts.standard_attention.contains(&lower.dtype)
        && g.opset() >= standard_attention::SINCE
        && standard_attention::wanted(g, &lower.attention);
    // No operator of a target gives probabilities.
    let form = match lower.attention.probabilities() {
        None => facts.attention_over(lower.dtype),
        Some(_) => AttentionForm::Products,
    };
    let mut one = match form {
        AttentionForm::Grouped => lower.grouped([q, k, v]),
        AttentionForm::Packed => lower.packed([q, k, v]),
        _ => None,
    };
    if one.is_none() && standard {
        lower.patch = Patch::new();
        one = lower.standard(q, k, v);
    }
    if one.is_none() {
        // What was made for a form that did not fit is not part of the change.
        lower.patch = Patch::new();
        one = match form {
            _ if lower.attention.probabilities().is_some() => None,
            _ if facts.attends_to_caches && lower.is_cached(k, v) => lower.cached(q, k, v),
            AttentionForm::MultiHead { projects } => lower.multi_head([q, k, v], projects),
            AttentionForm::Grouped | AttentionForm::Packed => lower.multi_head([q, k, v], false),
            AttentionForm::Standard if g.opset() >= standard_attention::SINCE => {
                lower.standard(q, k, v)
            }
            AttentionForm::Standard | AttentionForm::Products => None,
        };
    }
    let made = match one {
        Some(made) => made,
        None => {
            lower.patch = Patch::new();
            let (weights, made) = lower.products(q, k, v)?;
            if let Some(wanted) = lower.attention.probabilities() {
                let guarded = lower.guard(weights);
                lower.patch.replace(wanted, guarded);
            }
            lower.guard(made)
        }
    };
    lower.patch.replace(output, made);
    Ok(lower.patch)
}

struct Operands {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    output: ValueId,
}

impl Operands {
    fn of(attention: &InternalAttention<'_>) -> Option<Operands> {
        Some(Operands {
            q: attention.input(0)?,
            k: attention.input(1)?,
            v: attention.input(2)?,
            output: attention.output(0)?,
        })
    }
}

struct Projected {
    view: View,
    bias: Option<Tensor>,
}

fn zeros(width: i64, dtype: DType) -> Option<Tensor> {
    let zeros = Tensor::vector(&vec![0f32; declared(width)?]);
    match dtype {
        DType::F32 => Some(zeros),
        narrow => zeros.narrowed(narrow),
    }
}

impl Lower<'_, '_> {
    /// Whether keys and values are caches that new ones were written into.
    fn is_cached(&self, k: ValueId, v: ValueId) -> bool {
        let written = |v| self.g.producer_if(v, "TensorScatter").is_some();
        self.g.opset() >= 24 && written(k) && written(v)
    }

    /// The standard Attention, which reads caches where they are, whatever number of queries shares a head.
    fn cached(&mut self, q: ValueId, k: ValueId, v: ValueId) -> Option<Ref> {
        if self.attention.softcap() != 0.0 || self.attention.is_causal() {
            return None;
        }
        let query = self.zeroed(q);
        let mut inputs = vec![query, Ref::Old(k), Ref::Old(v)];
        if let Some(bias) = self.attention.bias() {
            let hiding = self.hiding(bias);
            inputs.push(self.full_bias(hiding, q, k)?);
        }
        let attrs = Attrs::new().with("scale", self.attention.scale());
        let made = self.node("Attention", &inputs, attrs);
        Some(self.guard(made))
    }

    /// com.microsoft:MultiHeadAttention (ONNX Runtime `docs/ContribOperators.md`): one number of heads, operands [batch,
    /// seq, heads · size], the bias as large as the scores in its last two dimensions.
    fn multi_head(&mut self, operands: [ValueId; 3], projects: bool) -> Option<Ref> {
        let [q, k, v] = operands;
        let (heads, size) = (self.size(q, 1)?, self.size(v, 3)?);
        if self.size(k, 1)? != heads || self.size(v, 1)? != heads || self.attention.softcap() != 0.0
        {
            return None;
        }
        let bias = match self.attention.bias() {
            Some(bias) => Some(self.full_bias(bias.into(), q, k)?),
            None => None,
        };
        if projects && let Some(made) = self.projecting(operands, heads, bias) {
            return Some(made);
        }
        let projected = operands.map(|x| self.projected(x));
        // One operand that brings its bias along pays for the zeros of the others.
        let biased = projected.iter().flatten().any(|p| p.bias.is_some());
        let mut flat = Vec::with_capacity(3);
        let mut offsets = Vec::with_capacity(3);
        for (x, projected) in operands.into_iter().zip(projected) {
            let width = heads.checked_mul(self.size(x, 3)?)?;
            let view = projected
                .as_ref()
                .and_then(|p| p.view.emit(self.g, &mut self.patch));
            flat.push(Some(match view {
                Some((at, _)) => at,
                None => self.together(x, width),
            }));
            let offset = projected.and_then(|p| p.bias).filter(|_| view.is_some());
            offsets.push(offset.or_else(|| zeros(width, self.dtype))?);
        }
        let mut attrs = Attrs::new()
            .with("num_heads", heads)
            .with("scale", self.attention.scale());
        if self.attention.is_causal() {
            attrs.set("unidirectional", 1i64);
        }
        let mut inputs = flat;
        if biased {
            let offsets = Tensor::joined(&offsets.iter().collect::<Vec<_>>())?;
            inputs.push(Some(self.patch.constant(offsets)));
        }
        if bias.is_some() {
            inputs.resize(5, None);
            inputs.push(bias);
        }
        let op = microsoft("MultiHeadAttention");
        let made = self.patch.node_with(op, inputs, 1, attrs)[0];
        Some(self.apart(made, heads, size))
    }

    /// com.microsoft:Attention, which projects its one input itself: measured faster than MultiHeadAttention behind three
    /// products (0.94 to 0.98 of the original's latency against 0.96 to 1.00, MiniLM-L3 and BERT-base at 128 tokens).
    fn projecting(&mut self, operands: [ValueId; 3], heads: i64, bias: Option<Ref>) -> Option<Ref> {
        let packed = Packed::of(self.g, &self.cx.facts, operands)?;
        let [q, k, v] = packed.widths;
        (q == k && heads > 0 && v % heads == 0).then_some(())?;
        let mut x = Ref::Old(packed.x);
        if packed.seq_first {
            x = self.node(
                "Transpose",
                &[x],
                Attrs::new().with("perm", vec![1i64, 0, 2]),
            );
        }
        let mut attrs = Attrs::new()
            .with("num_heads", heads)
            .with("scale", self.attention.scale());
        if v != q {
            attrs.set("qkv_hidden_sizes", packed.widths.to_vec());
        }
        if self.attention.is_causal() {
            attrs.set("unidirectional", 1i64);
        }
        let weight = self.patch.constant(packed.weight);
        let offsets = self.patch.constant(packed.bias);
        let mut inputs = vec![Some(x), Some(weight), Some(offsets)];
        if bias.is_some() {
            inputs.extend([None, None, bias]);
        }
        let made = self
            .patch
            .node_with(microsoft("Attention"), inputs, 1, attrs)[0];
        Some(self.apart(made, heads, v / heads))
    }

    /// com.microsoft:MultiHeadAttention over queries, keys and values side by side in each head, [batch, seq, heads, 3, size], of one
    /// product. What the projection adds is added in front: not all kernels take it (`multihead_attention_helper.h`).
    fn packed(&mut self, operands: [ValueId; 3]) -> Option<Ref> {
        let [q, k, v] = operands;
        let (heads, size) = (self.size(q, 1)?, self.size(q, 3)?);
        let alike = [k, v].map(|x| (self.size(x, 1), self.size(x, 3)));
        (alike == [(Some(heads), Some(size)); 2] && self.attention.softcap() == 0.0)
            .then_some(())?;
        let packed = Packed::of(self.g, &self.cx.facts, operands)?;
        let bias = match self.attention.bias() {
            Some(bias) => Some(self.full_bias(bias.into(), q, k)?),
            None => None,
        };
        let mut x = Ref::Old(packed.x);
        if packed.seq_first {
            let perm = Attrs::new().with("perm", vec![1i64, 0, 2]);
            x = self.node("Transpose", &[x], perm);
        }
        let weight = packed.by_heads(&packed.weight, heads, size)?;
        let offsets = packed.by_heads(&packed.bias, heads, size)?;
        let (weight, offsets) = (self.patch.constant(weight), self.patch.constant(offsets));
        let product = self.node("MatMul", &[x, weight], Attrs::new());
        let all = self.node("Add", &[product, offsets], Attrs::new());
        let all = self.reshape(all, &[0, 0, heads, 3, size]);
        let mut attrs = Attrs::new()
            .with("num_heads", heads)
            .with("scale", self.attention.scale());
        if self.attention.is_causal() {
            attrs.set("unidirectional", 1i64);
        }
        let mut inputs = vec![Some(all)];
        if bias.is_some() {
            inputs.extend([None, None, None, None, bias]);
        }
        let op = microsoft("MultiHeadAttention");
        let made = self.patch.node_with(op, inputs, 1, attrs)[0];
        Some(self.apart(made, heads, size))
    }

    /// [batch, seq, heads · size] as [batch, heads, seq, size], with zeros in rows whose keys are all hidden.
    fn apart(&mut self, mut made: Ref, heads: i64, size: i64) -> Ref {
        // A condition of each head, or one without heads, fits the result apart only.
        let shared = self.attention.bias().is_some_and(|bias| {
            let dims = self.cx.facts.dims(bias);
            dims.is_some_and(|d| d.len() == 4 && d[1].as_i64() == Some(1))
        });
        let visible = if shared { self.visible() } else { None };
        if let Some(visible) = visible {
            // The same condition for all heads, in the layout of the result.
            let axes = self.patch.constant(Tensor::vector(&[1i64]));
            let visible = self.node("Squeeze", &[visible, axes], Attrs::new());
            let zero = self.number(0.0);
            made = self.node("Where", &[visible, made, zero], Attrs::new());
        }
        let apart = self.split(made, heads, size);
        match shared {
            true => apart,
            false => self.guard(apart),
        }
    }

    /// An operand [batch, heads, seq, size] as [batch, seq, heads · size], from the far side of the bias of its
    /// projection if it has one: MultiHeadAttention adds it while it rearranges.
    fn projected(&self, x: ValueId) -> Option<Projected> {
        let mut view = View::of(self.g, &self.cx.facts, x)?;
        let [batch, heads, seq, size] = view.dims.as_slice() else {
            return None;
        };
        let width = [heads.as_slice(), size].concat();
        let channels = view.from.last().is_some_and(|last| *last == width) && !view.is_part();
        view.dims = vec![batch.clone(), seq.clone(), width];
        let mut bias = None;
        let add = self
            .g
            .producer_if(view.source, "Add")
            .map(|id| self.g.node(id));
        if let (true, Some(add)) = (channels, add)
            && let (Some(a), Some(b)) = (add.input(0), add.input(1))
        {
            let vector = |v: ValueId| self.g.constant(v).filter(|t| t.rank() == 1 && t.len() > 1);
            let found = match (vector(a), vector(b)) {
                (Some(t), None) => Some((b, t)),
                (None, Some(t)) => Some((a, t)),
                _ => None,
            };
            if let Some((inner, t)) = found
                .filter(|(inner, _)| self.cx.facts.dims(*inner) == self.cx.facts.dims(view.source))
            {
                view.source = inner;
                bias = Some(t.clone());
            }
        }
        Some(Projected { view, bias })
    }

    /// The bias as [batch or 1, heads or 1, queries, keys]: MultiHeadAttention broadcasts the first two only.
    pub(super) fn full_bias(&mut self, bias: Ref, q: ValueId, k: ValueId) -> Option<Ref> {
        let facts = &self.cx.facts;
        let dims = facts.dims(self.attention.bias()?)?;
        let (queries, keys) = (
            facts.dims(q)?.get(2)?.clone(),
            facts.dims(k)?.get(2)?.clone(),
        );
        let rank = dims.len();
        let one = Expr::from(1);
        let rows = rank.checked_sub(2).and_then(|k| dims.get(k)).cloned();
        let (rows, columns) = (
            rows.unwrap_or(one.clone()),
            dims.last().cloned().unwrap_or(one),
        );
        let mut at = bias;
        if rank < 4 {
            let axes: Vec<i64> = (0..4 - rank as i64).collect();
            let axes = self.patch.constant(Tensor::vector(&axes));
            at = self.node("Unsqueeze", &[at, axes], Attrs::new());
        }
        if rows == queries && columns == keys {
            return Some(at);
        }
        // Sizes of the bias itself where they are the same, so that all layers share one Expand.
        let length = |lower: &mut Self, of: Ref, axis: i64| {
            let attrs = Attrs::new().with("start", axis).with("end", axis + 1);
            lower.node("Shape", &[of], attrs)
        };
        let rows = match queries == columns {
            true => length(self, at, 3),
            false => length(self, q.into(), 2),
        };
        let columns = match columns == keys {
            true => length(self, at, 3),
            false => length(self, k.into(), 2),
        };
        let ones = self.patch.constant(Tensor::vector(&[1i64, 1]));
        let shape = self.node(
            "Concat",
            &[ones, rows, columns],
            Attrs::new().with("axis", 0i64),
        );
        Some(self.node("Expand", &[at, shape], Attrs::new()))
    }

    /// softmax(cap((scale · q) kᵀ) + bias), and its product with v: the scale on the query keeps the scores of half
    /// precision small.
    fn products(&mut self, q: ValueId, k: ValueId, v: ValueId) -> Result<(Ref, Ref), Miss> {
        let (k, v) = (self.repeated(q, k)?, self.repeated(q, v)?);
        let scale = f64::from(self.attention.scale());
        let mut query = self.attending(q);
        if scale != 1.0 {
            let scale = self.number(scale);
            query = self.node("Mul", &[query, scale], Attrs::new());
        }
        let turned = self.node(
            "Transpose",
            &[k],
            Attrs::new().with("perm", vec![0i64, 1, 3, 2]),
        );
        let mut scores = self.node("MatMul", &[query, turned], Attrs::new());
        let cap = f64::from(self.attention.softcap());
        if cap != 0.0 {
            let (down, up) = (self.number(1.0 / cap), self.number(cap));
            scores = self.node("Mul", &[scores, down], Attrs::new());
            scores = self.node("Tanh", &[scores], Attrs::new());
            scores = self.node("Mul", &[scores, up], Attrs::new());
        }
        scores = self.biased(scores);
        if self.attention.is_causal() {
            let (shown, hidden) = (self.number(0.0), self.number(f64::NEG_INFINITY));
            let later = self.later(q, turned);
            let mask = self.node("Where", &[later, hidden, shown], Attrs::new());
            scores = self.node("Add", &[scores, mask], Attrs::new());
        }
        let weights = self.node("Softmax", &[scores], Attrs::new().with("axis", -1i64));
        let weights = self.defined(weights);
        Ok((weights, self.node("MatMul", &[weights, v], Attrs::new())))
    }

    /// Whether a key comes after the query, as [queries, keys]: what `is_causal` of Attention-23 hides. The first key is
    /// never hidden, so no row is without one.
    fn later(&mut self, q: ValueId, turned: Ref) -> Ref {
        let queries = self.positions(q.into(), 2, 1);
        let keys = self.positions(turned, 3, 0);
        self.node("Greater", &[keys, queries], Attrs::new())
    }

    /// 0, 1, … along an axis of `x`, as a matrix whose other axis is `one`.
    fn positions(&mut self, x: Ref, axis: i64, one: i64) -> Ref {
        let part = Attrs::new().with("start", axis).with("end", axis + 1);
        let length = self.node("Shape", &[x], part);
        let length = self.node("Squeeze", &[length], Attrs::new());
        let [from, step] = [0i64, 1].map(|k| self.patch.constant(Tensor::scalar(k)));
        let counted = self.node("Range", &[from, length, step], Attrs::new());
        let axes = self.patch.constant(Tensor::vector(&[one]));
        self.node("Unsqueeze", &[counted, axes], Attrs::new())
    }

    /// Keys or values with as many heads as the queries.
    fn repeated(&mut self, q: ValueId, x: ValueId) -> Result<Ref, Miss> {
        let (have, want) = (self.size(x, 1), self.size(q, 1));
        // One head of keys and values for all queries is broadcast by the product itself.
        let broadcast = have == Some(1) && !self.cx.target.facts.joins_attention;
        if have == want || broadcast {
            return Ok(x.into());
        }
        let (Some(have), Some(want), Some(size)) = (have, want, self.size(x, 3)) else {
            return Err(Miss::at(x, 1, "the number of heads is unknown"));
        };
        if have <= 0 || want % have != 0 {
            return Err(Miss::at(x, 1, format!("{have} heads do not divide {want}")));
        }
        let axes = self.patch.constant(Tensor::vector(&[2i64]));
        let apart = self.node("Unsqueeze", &[x.into(), axes], Attrs::new());
        let shape = self
            .patch
            .constant(Tensor::vector(&[1i64, 1, want / have, 1, 1]));
        let repeated = self.node("Expand", &[apart, shape], Attrs::new());
        Ok(self.reshape(repeated, &[0, want, -1, size]))
    }
}
