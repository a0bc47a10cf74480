//! Operators that ONNX Runtime's optimizers fused, for a target that takes none of com.microsoft.

use kiln_graph::graph::Inputs;
use kiln_graph::{Attr, Attrs, Graph, Node, NodeId, Op, Tensor, ValueId, ops};

use super::adopt_attention::Adopt;
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::patch::Ref;
use crate::core::target::MICROSOFT;

/// Norms, activations and products of com.microsoft (ONNX Runtime `docs/ContribOperators.md`).
pub static EXPAND_FUSED: Local = Local {
    name: "expand-fused",
    about: "norms, activations and products that ONNX Runtime's optimizers fused become ONNX's own operators again",
    why: "A model that was saved by ONNX Runtime, or by the optimizer of its Transformers tools, has operators of com.microsoft: \
          EmbedLayerNormalization is three Gathers, two sums and a norm; SkipLayerNormalization and \
          SkipSimplifiedLayerNormalization are sums and a norm; BiasGelu, FastGelu, Gelu and QuickGelu are activations, the bias \
          in front; FusedMatMul is a product with turned operands and a factor; FusedGemm and FusedConv have an activation behind. \
          Written apart they are what the other passes know. Attention has `expand-attention`, rotary embeddings `expand-rotary`, \
          integers `expand-qoperators`. A target with com.microsoft keeps them.",
    exactness: Exactness::Rounding,
    since: 20,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let node = g.node(root);
    let write = writer(node.op()).ok_or_else(Miss::none)?;
    if cx.target.takes(MICROSOFT) {
        return Err(Miss::because("the target takes it"));
    }
    let mut expansion = Expansion {
        write: Adopt::new(g, root, cx),
        node,
    };
    write(&mut expansion)?;
    Ok(expansion.write.patch)
}

type Writer = fn(&mut Expansion<'_, '_>) -> Result<(), Miss>;

fn writer(op: Op) -> Option<Writer> {
    if op.domain() != MICROSOFT {
        return None;
    }
    let writer: Writer = match op.name() {
        "EmbedLayerNormalization" => |e| e.embed(),
        "SkipLayerNormalization" => |e| e.skip_norm(false),
        "SkipSimplifiedLayerNormalization" => |e| e.skip_norm(true),
        "Gelu" | "BiasGelu" => |e| e.gelu("none"),
        "FastGelu" => |e| e.gelu("tanh"),
        "QuickGelu" => |e| e.quick_gelu(),
        "FusedMatMul" | "TransposeMatMul" => |e| e.product(),
        "FusedGemm" => |e| e.gemm(),
        "FusedConv" => |e| e.conv(),
        _ => return None,
    };
    Some(writer)
}

/// Attributes of what a fused operator does behind its product.
const ACTIVATION: &str = "activation";

struct Expansion<'a, 'c> {
    write: Adopt<'a, 'c>,
    node: &'a Node,
}

impl Expansion<'_, '_> {
    fn operand(&self, k: usize) -> Result<ValueId, Miss> {
        self.node.input(k).ok_or_else(Miss::none)
    }

    fn attr(&self, name: &str) -> Option<Attr> {
        let given = self.node.attrs().get(name).cloned();
        let opset = self.write.g.opset();
        given.or_else(|| ops::schema::default_attr(self.node.op(), name, opset).cloned())
    }

    fn float(&self, name: &str) -> f32 {
        match self.attr(name) {
            Some(Attr::Float(x)) => x,
            _ => 0.0,
        }
    }

    fn int(&self, name: &str) -> i64 {
        match self.attr(name) {
            Some(Attr::Int(x)) => x,
            _ => 0,
        }
    }

    /// Refuses results that are read, but for those at `written`.
    fn only(&self, written: &[usize]) -> Result<(), Miss> {
        let outputs = self.node.outputs().iter().enumerate();
        let mut read = outputs.filter_map(|(k, v)| v.map(|v| (k, v)));
        match read.find(|(k, v)| !written.contains(k) && !self.write.g.value(*v).is_unused()) {
            Some((k, v)) => Err(Miss::at(v, 1, format!("its result {k} is read"))),
            None => Ok(()),
        }
    }

    fn give(&mut self, k: usize, made: Ref) {
        if let Some(output) = self.node.output(k) {
            self.write.patch.replace(output, made);
        }
    }

    fn add(&mut self, a: Ref, b: Option<ValueId>) -> Ref {
        match b {
            Some(b) => self.write.node("Add", &[a, b.into()], Attrs::new()),
            None => a,
        }
    }

    fn indices(&mut self, values: &[i64]) -> Ref {
        self.write.patch.constant(Tensor::vector(values))
    }

    /// A norm over the last axis.
    fn norm(&mut self, x: Ref, scale: ValueId, shift: Option<ValueId>) -> Ref {
        let attrs = Attrs::new()
            .with("axis", -1i64)
            .with("epsilon", self.float("epsilon"));
        let mut inputs = vec![x, scale.into()];
        inputs.extend(shift.map(Ref::Old));
        self.write.node("LayerNormalization", &inputs, attrs)
    }

    fn skip_norm(&mut self, rms: bool) -> Result<(), Miss> {
        self.only(&[0, 3])?;
        let (x, skip, scale) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let (shift, bias) = match rms {
            true => (None, self.node.input(3)),
            false => (self.node.input(3), self.node.input(4)),
        };
        let layer = self.add(x.into(), bias);
        let sum = self.add(layer, Some(skip));
        let made = match rms {
            true => self.rms(sum, scale),
            false => self.norm(sum, scale, shift),
        };
        self.give(0, made);
        self.give(3, sum);
        Ok(())
    }

    /// x / √(mean(x²) + ε) · scale, which `fuse-rms-norm` knows.
    fn rms(&mut self, x: Ref, scale: ValueId) -> Ref {
        let square = self.write.node("Mul", &[x, x], Attrs::new());
        let axes = self.indices(&[-1]);
        let keep = Attrs::new().with("keepdims", 1i64);
        let mean = self.write.node("ReduceMean", &[square, axes], keep);
        let epsilon = self.float("epsilon");
        let epsilon = self.write.number(epsilon);
        let sum = self.write.node("Add", &[mean, epsilon], Attrs::new());
        let root = self.write.node("Sqrt", &[sum], Attrs::new());
        let unit = self.write.node("Div", &[x, root], Attrs::new());
        self.write.node("Mul", &[unit, scale.into()], Attrs::new())
    }

    /// Ids, segments, three tables, scale and shift of the norm, mask, positions.
    fn embed(&mut self) -> Result<(), Miss> {
        let (ids, words, places) = (self.operand(0)?, self.operand(2)?, self.operand(3)?);
        let (scale, shift) = (self.operand(5)?, self.operand(6)?);
        self.write.dtype = self.write.g.value(words).ty().dtype();
        let rows = |e: &mut Self, table: ValueId, at: ValueId| {
            e.write
                .node("Gather", &[table.into(), at.into()], Attrs::new())
        };
        let words = rows(self, words, ids);
        let places = match self.node.input(8) {
            Some(positions) => rows(self, places, positions),
            None => {
                let sizes = Attrs::new().with("start", 1i64).with("end", 2i64);
                let length = self.write.node("Shape", &[ids.into()], sizes);
                let (from, axes) = (self.indices(&[0]), self.indices(&[0]));
                let inputs = [places.into(), from, length, axes];
                self.write.node("Slice", &inputs, Attrs::new())
            }
        };
        let mut sum = self.write.node("Add", &[words, places], Attrs::new());
        if let (Some(segments), Some(table)) = (self.node.input(1), self.node.input(4)) {
            let segments = rows(self, table, segments);
            sum = self.write.node("Add", &[sum, segments], Attrs::new());
        }
        let made = self.norm(sum, scale, Some(shift));
        self.give(0, made);
        self.give(2, sum);
        self.lengths(ids)
    }

    /// How many tokens of each sequence the mask keeps; 0 without a mask.
    fn lengths(&mut self, ids: ValueId) -> Result<(), Miss> {
        let read = self.node.output(1);
        if read.is_none_or(|v| self.write.g.value(v).is_unused()) {
            return Ok(());
        }
        let counted = match self.node.input(7) {
            Some(mask) => mask.into(),
            None => self
                .write
                .node("Sub", &[ids.into(), ids.into()], Attrs::new()),
        };
        let axes = self.indices(&[1]);
        let drop = Attrs::new().with("keepdims", 0i64);
        let made = self.write.node("ReduceSum", &[counted, axes], drop);
        self.give(1, made);
        Ok(())
    }

    fn gelu(&mut self, approximate: &'static str) -> Result<(), Miss> {
        let x = self.operand(0)?;
        let x = self.add(x.into(), self.node.input(1));
        let attrs = Attrs::new().with("approximate", Attr::Str(approximate.as_bytes().into()));
        let made = self.write.node("Gelu", &[x], attrs);
        self.give(0, made);
        Ok(())
    }

    fn quick_gelu(&mut self) -> Result<(), Miss> {
        let x = Ref::Old(self.operand(0)?);
        let alpha = self.float("alpha");
        let alpha = self.write.number(alpha);
        let gate = self.write.node("Mul", &[x, alpha], Attrs::new());
        let gate = self.write.node("Sigmoid", &[gate], Attrs::new());
        let made = self.write.node("Mul", &[x, gate], Attrs::new());
        self.give(0, made);
        Ok(())
    }

    /// An operand with its last two axes in each other's place.
    fn turned(&mut self, v: ValueId, turn: &str) -> Result<Ref, Miss> {
        if self.int(turn) == 0 {
            return Ok(v.into());
        }
        let rank = self.write.rank(v)?;
        // A vector has nothing to turn.
        if rank < 2 {
            return Ok(v.into());
        }
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(rank - 1, rank - 2);
        let perm = Attrs::new().with("perm", perm);
        Ok(self.write.node("Transpose", &[v.into()], perm))
    }

    fn product(&mut self) -> Result<(), Miss> {
        if self.int("transBatchA") != 0 || self.int("transBatchB") != 0 {
            return Err(Miss::because("it moves its operands' batches"));
        }
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let (a, b) = (self.turned(a, "transA")?, self.turned(b, "transB")?);
        let mut made = self.write.node("MatMul", &[a, b], Attrs::new());
        let alpha = self.float("alpha");
        if alpha != 1.0 {
            let alpha = self.write.number(alpha);
            made = self.write.node("Mul", &[made, alpha], Attrs::new());
        }
        self.give(0, made);
        Ok(())
    }

    /// The node as another operator, without what stands for an activation.
    fn plain(&mut self, op: &str, operands: usize) -> Ref {
        let attrs = self.node.attrs().iter();
        let attrs = attrs.filter(|(name, _)| !name.starts_with(ACTIVATION));
        let attrs = attrs.fold(Attrs::new(), |all, (name, value)| {
            all.with(name, value.clone())
        });
        let inputs: Inputs = self.node.inputs().iter().take(operands).copied().collect();
        let inputs = inputs.into_iter().map(|v| v.map(Ref::Old));
        self.write.patch.node_with(Op::onnx(op), inputs, 1, attrs)[0]
    }

    fn gemm(&mut self) -> Result<(), Miss> {
        let numbers = [
            self.float("activation_alpha"),
            self.float("activation_beta"),
        ];
        let made = self.plain("Gemm", 3);
        self.activated(made, &numbers)
    }

    fn conv(&mut self) -> Result<(), Miss> {
        let numbers = match self.attr("activation_params") {
            Some(Attr::Floats(all)) => all.to_vec(),
            _ => Vec::new(),
        };
        let made = self.plain("Conv", 3);
        let made = self.add(made, self.node.input(3));
        self.activated(made, &numbers)
    }

    /// What the activation makes of it, by its numbers: alpha and beta, or the bounds of Clip.
    fn activated(&mut self, made: Ref, numbers: &[f32]) -> Result<(), Miss> {
        let name = match self.attr(ACTIVATION) {
            Some(Attr::Str(name)) => String::from_utf8_lossy(&name).into_owned(),
            _ => String::new(),
        };
        let first = numbers.first().copied();
        let second = numbers.get(1).copied();
        let made = match (name.as_str(), first, second) {
            ("", ..) => made,
            ("Relu" | "Tanh" | "Sigmoid" | "Softplus" | "Softsign", ..) => {
                self.write.node(&name, &[made], Attrs::new())
            }
            ("LeakyRelu" | "Elu", Some(alpha), _) => {
                self.write
                    .node(&name, &[made], Attrs::new().with("alpha", alpha))
            }
            ("HardSigmoid", Some(alpha), Some(beta)) => {
                let attrs = Attrs::new().with("alpha", alpha).with("beta", beta);
                self.write.node(&name, &[made], attrs)
            }
            ("Clip", Some(low), Some(high)) => {
                let bounds = [self.write.number(low), self.write.number(high)];
                self.write
                    .node("Clip", &[made, bounds[0], bounds[1]], Attrs::new())
            }
            _ => {
                let why = format!("its activation {name} is not one it knows");
                return Err(Miss::because(why));
            }
        };
        self.give(0, made);
        Ok(())
    }
}
