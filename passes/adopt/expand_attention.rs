//! Attention operators that a model came with, for a target that does not take them as they are.

use kiln_graph::{Attrs, DType, Graph, INTERNAL_DOMAIN, Node, NodeId, Op, Tensor, ValueId, ops};

use super::adopt_attention::{ADOPT_ATTENTION, Adopt};
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::target::MICROSOFT;

/// Attention-23 and 24 in full, and com.microsoft:Attention and MultiHeadAttention as far as `adopt-attention` goes.
pub static EXPAND_ATTENTION: Local = Local {
    name: "expand-attention",
    about: "attention operators of the model become the internal one where the target does not take them as they are",
    why: "The standard Attention becomes `internal::Attention(q, k, v, bias)` over [batch, heads, sequence, size], which \
         lowering writes in the target's words. Keys and values of earlier steps are joined in front and are results \
         where they are asked for; a mask, the lengths of the sequences and causality become one bias, with query i at \
         the position after the earlier steps, or at the end of its sequence where lengths are given; the cap comes \
         before the mask; scores that are results are products of their own (ONNX `Attention-24`, whose reference \
         implementation and ONNX Runtime 1.31 agree on this for 23, too). Operators of com.microsoft become it as \
         `adopt-attention` says.",
    exactness: Exactness::Rounding,
    since: 18,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let standard = ops::Attention::of(g, root);
    if standard.is_none() && ops::MicrosoftAttention::of(g, root).is_none() {
        return Err(Miss::none());
    }
    let foreign = standard.is_none() && !cx.target.takes(MICROSOFT);
    if !cx.target.facts.rewrites_attention && !foreign {
        return Err(Miss::because("the target takes it"));
    }
    match standard {
        Some(attention) => {
            is_known(attention.node())?;
            Expansion::new(g, root, cx, attention)?.patch()
        }
        None => (ADOPT_ATTENTION.at)(g, root, cx),
    }
}

/// Attributes whose meaning is written here, those of Attention-24, and kiln's own mark for TensorRT. Later versions have more
/// (windows in 25), so the schema cannot stand in for this list.
const ATTRIBUTES: &[&str] = &[
    "is_causal",
    "kv_num_heads",
    "q_num_heads",
    "qk_matmul_output_mode",
    "scale",
    "softcap",
    "softmax_precision",
    "TRT_decomposable",
];

/// What another attribute means would be lost.
fn is_known(node: &Node) -> Result<(), Miss> {
    let mut names = node.attrs().iter().map(|(name, _)| &**name);
    match names.find(|name| !ATTRIBUTES.contains(name)) {
        Some(name) => Err(Miss::because(format!(
            "the attribute {name} of Attention is not one that is spelled out"
        ))),
        None => Ok(()),
    }
}

/// What the fourth result of Attention holds (`qk_matmul_output_mode`).
const CAPPED: i64 = 1;
const BIASED: i64 = 2;
const PROBABILITIES: i64 = 3;

struct Expansion<'a, 'c> {
    write: Adopt<'a, 'c>,
    op: ops::Attention<'a>,
    /// Operands are [batch, seq, heads · size].
    flat: bool,
    scale: f32,
    /// Of queries and of keys.
    heads: [Option<i64>; 2],
    q: Ref,
    k: Ref,
    v: Ref,
}

impl<'a, 'c> Expansion<'a, 'c> {
    /// Splits the heads, and joins keys and values of earlier steps in front.
    fn new(
        g: &'a Graph,
        root: NodeId,
        cx: &'a Context<'c>,
        op: ops::Attention<'a>,
    ) -> Result<Expansion<'a, 'c>, Miss> {
        let mut write = Adopt::new(g, root, cx);
        let query = op.input(0).ok_or_else(Miss::none)?;
        let flat = write.rank(query)? == 3;
        let counts = [op.q_num_heads(), op.kv_num_heads(), op.kv_num_heads()];
        let mut operands = [Ref::Old(query); 3];
        let (mut heads, mut size) = ([None; 2], None);
        for (k, count) in counts.into_iter().enumerate() {
            let x = op.input(k).ok_or_else(Miss::none)?;
            let rank = write.rank(x)?;
            let count = match (rank, count) {
                (4, _) => write.size(x, 1).ok(),
                (3, Some(count)) => Some(count),
                _ => return Err(Miss::at(x, 1, "its heads are unknown")),
            };
            let head = match (rank, count) {
                (3, Some(count)) => write.head(write.size(x, 2)?, count).ok(),
                _ => write.size(x, 3).ok(),
            };
            operands[k] = match (rank, count, head) {
                (3, Some(count), Some(head)) => write.apart(x.into(), count, head),
                (3, ..) => return Err(Miss::at(x, 1, "its heads are unknown")),
                _ => x.into(),
            };
            match k {
                0 => (heads[0], size) = (count, head),
                _ => heads[1] = count,
            }
        }
        let scale = op.scale().or(size.map(|s| 1.0 / (s as f32).sqrt()));
        let scale = scale.ok_or_else(|| Miss::at(query, 1, "the size of a head is unknown"))?;
        let [q, mut k, mut v] = operands;
        if let (Some(keys), Some(values)) = (op.past_key(), op.past_value()) {
            let along = || Attrs::new().with("axis", 2i64);
            k = write.node("Concat", &[keys.into(), k], along());
            v = write.node("Concat", &[values.into(), v], along());
        }
        Ok(Expansion {
            write,
            op,
            flat,
            scale,
            heads,
            q,
            k,
            v,
        })
    }

    fn patch(mut self) -> Result<Patch, Miss> {
        let output = self.op.node().output(0).ok_or_else(Miss::none)?;
        let wanted = |k: usize| {
            let v = self.op.node().output(k)?;
            (!self.write.g.value(v).is_unused()).then_some(v)
        };
        let (keys, values, scores) = (wanted(1), wanted(2), wanted(3));
        let mode = self.op.node().attrs().int("qk_matmul_output_mode");
        let mode = mode.unwrap_or(0);
        let boolean = (self.op.mask())
            .is_some_and(|v| self.write.g.value(v).ty().dtype() == Some(DType::Bool));
        let hides = boolean || self.op.is_causal() || self.op.nonpad_kv_seqlen().is_some();
        if scores.is_some() && mode == BIASED && hides {
            let why = "scores of hidden keys are read, which runtimes write differently";
            return Err(Miss::because(why));
        }
        // Where nothing else hides keys the operator does it itself.
        let (masked, lengths) = (self.op.mask().is_some(), self.op.nonpad_kv_seqlen());
        let alone = !masked && lengths.is_none() && self.op.past_key().is_none();
        let native = self.op.is_causal() && alone;
        let bias = self.bias(native)?;
        let mut attrs = Attrs::new().with("scale", self.scale);
        if self.op.softcap() != 0.0 {
            attrs.set("softcap", self.op.softcap());
        }
        if native {
            attrs.set("is_causal", 1i64);
        }
        // Causality alone leaves each query its own key.
        if masked || lengths.is_some() {
            attrs.set("guarded", 1i64);
        }
        let inputs = [self.q, self.k, self.v].into_iter().chain(bias).map(Some);
        let probabilities = scores.filter(|_| mode == PROBABILITIES);
        let count = 1 + usize::from(probabilities.is_some());
        let op = Op::new(INTERNAL_DOMAIN, "Attention");
        let made = self.write.patch.node_with(op, inputs, count, attrs);
        match (scores, made.get(1)) {
            (Some(scores), Some(&probabilities)) => {
                self.write.patch.replace(scores, probabilities);
            }
            (Some(scores), None) => {
                let shown = self.scores(mode, bias)?;
                self.write.patch.replace(scores, shown);
            }
            (None, _) => {}
        }
        for (result, of) in [(keys, self.k), (values, self.v)] {
            if let Some(result) = result {
                // An operand may be an input of the graph, which is no output by another name.
                let present = self.write.node("Identity", &[of], Attrs::new());
                self.write.patch.replace(result, present);
            }
        }
        let made = match self.flat {
            true => self.write.together(made[0]),
            false => made[0],
        };
        self.write.patch.replace(output, made);
        Ok(self.write.patch)
    }

    /// What is added to the scores, broadcasting to [batch, heads, queries, keys]: 0 or a float mask's number where the key
    /// is seen, -∞ elsewhere. `None` if all keys are seen, or if the operator hides later ones itself.
    fn bias(&mut self, native: bool) -> Result<Option<Ref>, Miss> {
        let boolean = |v: &ValueId| self.write.g.value(*v).ty().dtype() == Some(DType::Bool);
        let mask = self.op.mask();
        let mut seen: Vec<Ref> = mask.filter(boolean).map(Ref::Old).into_iter().collect();
        let numbers = mask.filter(|v| !boolean(v)).map(Ref::Old);
        let lengths = self.op.nonpad_kv_seqlen().map(|n| {
            let axes = (self.write.patch).constant(Tensor::vector(&[1i64, 2, 3]));
            self.write
                .node("Unsqueeze", &[n.into(), axes], Attrs::new())
        });
        if let Some(lengths) = lengths {
            let keys = self.positions(self.k, 0);
            seen.push(self.write.node("Less", &[keys, lengths], Attrs::new()));
        }
        if self.op.is_causal() && !native {
            let keys = self.positions(self.k, 0);
            let mut queries = self.positions(self.q, 1);
            if let Some(lengths) = lengths {
                let count = self.length(self.q);
                let first = self.write.node("Sub", &[lengths, count], Attrs::new());
                queries = self.write.node("Add", &[queries, first], Attrs::new());
            } else if let Some(past) = self.op.past_key() {
                // Each row may have places of its own later.
                queries = self.write.along(queries, &[0, 1]);
                let first = self.length(past.into());
                queries = self.write.node("Add", &[queries, first], Attrs::new());
            }
            seen.push(
                self.write
                    .node("LessOrEqual", &[keys, queries], Attrs::new()),
            );
        }
        let all = seen
            .into_iter()
            .reduce(|a, b| self.write.node("And", &[a, b], Attrs::new()));
        let Some(all) = all else {
            return Ok(numbers);
        };
        let shown = numbers.unwrap_or_else(|| self.write.number(0.0));
        let hidden = self.write.number(f32::NEG_INFINITY);
        Ok(Some(self.write.node(
            "Where",
            &[all, shown, hidden],
            Attrs::new(),
        )))
    }

    /// The length of the sequence of `x` [batch, heads, seq, size], as [1].
    fn length(&mut self, x: Ref) -> Ref {
        let part = Attrs::new().with("start", 2i64).with("end", 3i64);
        self.write.node("Shape", &[x], part)
    }

    /// 0, 1, … along the sequence of `x`, as a matrix whose other axis is `one`.
    fn positions(&mut self, x: Ref, one: i64) -> Ref {
        let length = self.length(x);
        let length = self.write.node("Squeeze", &[length], Attrs::new());
        let [from, step] = [0i64, 1].map(|k| self.write.patch.constant(Tensor::scalar(k)));
        let counted = (self.write).node("Range", &[from, length, step], Attrs::new());
        let axes = self.write.patch.constant(Tensor::vector(&[one]));
        self.write.node("Unsqueeze", &[counted, axes], Attrs::new())
    }

    /// The scores before the softmax, as far as `mode` says.
    fn scores(&mut self, mode: i64, bias: Option<Ref>) -> Result<Ref, Miss> {
        if self.heads[0].is_none() || self.heads[0] != self.heads[1] {
            return Err(Miss::because(
                "its scores are read, and its heads are grouped or unknown",
            ));
        }
        let scale = self.write.number(self.scale);
        let query = self.write.node("Mul", &[self.q, scale], Attrs::new());
        let perm = Attrs::new().with("perm", vec![0i64, 1, 3, 2]);
        let turned = self.write.node("Transpose", &[self.k], perm);
        let mut scores = self.write.node("MatMul", &[query, turned], Attrs::new());
        let cap = self.op.softcap();
        if cap != 0.0 && mode >= CAPPED {
            let (down, up) = (self.write.number(1.0 / cap), self.write.number(cap));
            scores = self.write.node("Mul", &[scores, down], Attrs::new());
            scores = self.write.node("Tanh", &[scores], Attrs::new());
            scores = self.write.node("Mul", &[scores, up], Attrs::new());
        }
        Ok(match bias.filter(|_| mode >= BIASED) {
            Some(bias) => self.write.node("Add", &[scores, bias], Attrs::new()),
            None => scores,
        })
    }
}
