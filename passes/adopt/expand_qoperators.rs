//! Operators that compute with quantized integers become float operators between DequantizeLinear and QuantizeLinear.

use kiln_graph::{Attrs, DType, Graph, Node, NodeId, Op, Tensor, ValueId};

use crate::core::pass::{Context, Exactness, Miss, Remark};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;
use crate::core::target::MICROSOFT;
use crate::precision::numbers::quantized::integers;

#[derive(Debug)]
pub struct ExpandQoperators;

impl Rule for ExpandQoperators {
    fn name(&self) -> &'static str {
        "expand-qoperators"
    }

    fn about(&self) -> &'static str {
        "write operators on quantized integers as float operators between Q/DQ for TensorRT"
    }

    fn details(&self) -> String {
        "ONNX Runtime quantizes models in forms that TensorRT has no operators for. Dynamic quantization \
         (DynamicQuantizeLinear, MatMulInteger or ConvInteger, Cast, Mul by the scales; also DynamicQuantizeMatMul and \
         MatMulIntegerToFloat) becomes a product of the float activation with the dequantized weight: the activation is \
         not quantized any more, as TensorRT cannot find a scale at run time. That is more exact than the original. The \
         QOperator format (QLinearMatMul, QLinearConv, QGemm and com.microsoft's QLinearAdd, Mul, Sigmoid, LeakyRelu, \
         Softmax, Concat, AveragePool and GlobalAveragePool) becomes the float operator between DequantizeLinear and \
         QuantizeLinear, the QDQ format. `symmetrize-qdq` then removes zero points."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let op = g.node(root).op();
        let write = writer(op).ok_or_else(Miss::none)?;
        if cx.target.facts.integer_operators {
            return Err(Miss::because("the target computes with integers"));
        }
        let mut expansion = Expansion {
            g,
            node: g.node(root),
            patch: Patch::new(),
            dynamic: false,
        };
        write(&mut expansion)?;
        let Expansion {
            mut patch, dynamic, ..
        } = expansion;
        patch.remark(Remark::Requantized {
            node: g.label(root),
            how: match dynamic {
                true => "an activation is not quantized at run time any more: more exact than the original",
                false => "an operator on integers became one on floats between Q/DQ",
            },
            exact: false,
        });
        Ok(patch)
    }
}

type Writer = fn(&mut Expansion<'_>) -> Result<(), Miss>;

/// How an operator is written in floats (ONNX `docs/Operators.md`, ONNX Runtime `docs/ContribOperators.md`).
fn writer(op: Op) -> Option<Writer> {
    let writer: Writer = match (op.domain(), op.name()) {
        ("", "MatMulInteger") => |e| e.integer("MatMul"),
        ("", "ConvInteger") => |e| e.integer("Conv"),
        ("", "QLinearMatMul") => |e| e.binary("MatMul"),
        ("", "QLinearConv") => |e| e.conv(),
        (MICROSOFT, "DynamicQuantizeMatMul") => |e| e.dynamic(),
        (MICROSOFT, "MatMulIntegerToFloat") => |e| e.integers_to_float(),
        (MICROSOFT, "QGemm") => |e| e.gemm(),
        (MICROSOFT, "QLinearAdd") => |e| e.binary("Add"),
        (MICROSOFT, "QLinearMul") => |e| e.binary("Mul"),
        (MICROSOFT, "QLinearSigmoid") => |e| e.unary("Sigmoid", &[]),
        (MICROSOFT, "QLinearLeakyRelu") => |e| e.unary("LeakyRelu", &["alpha"]),
        (MICROSOFT, "QLinearSoftmax") => |e| e.softmax(),
        (MICROSOFT, "QLinearConcat") => |e| e.concat(),
        (MICROSOFT, "QLinearAveragePool") => |e| e.pool("AveragePool"),
        (MICROSOFT, "QLinearGlobalAveragePool") => |e| e.pool("GlobalAveragePool"),
        _ => return None,
    };
    Some(writer)
}

struct Expansion<'g> {
    g: &'g Graph,
    node: &'g Node,
    patch: Patch,
    /// An activation lost its quantization.
    dynamic: bool,
}

impl<'g> Expansion<'g> {
    fn operand(&self, k: usize) -> Result<ValueId, Miss> {
        self.node.input(k).ok_or_else(Miss::none)
    }

    fn attrs(&self, names: &[&str]) -> Attrs {
        let attrs = self.node.attrs().iter();
        let kept = attrs.filter(|(name, _)| names.contains(&&***name));
        kept.fold(Attrs::new(), |all, (name, value)| {
            all.with(name, value.clone())
        })
    }

    /// The floats that integers stand for: what DynamicQuantizeLinear was given, or a DequantizeLinear. `axis` is that of
    /// a scale with several numbers.
    fn real(
        &mut self,
        q: ValueId,
        scale: ValueId,
        zero: Option<ValueId>,
        axis: i64,
    ) -> Result<Ref, Miss> {
        let g = self.g;
        if let Some(id) = g.producer_if(q, "DynamicQuantizeLinear") {
            let made = g.node(id);
            let all = [Some(q), Some(scale), zero];
            let own = (0..3).all(|k| made.output(k) == all[k]);
            let x = made.input(0).filter(|_| own);
            self.dynamic = true;
            return x.map(Ref::from).ok_or_else(|| {
                Miss::at(
                    q,
                    1,
                    "it is scaled by other numbers than it was quantized by",
                )
            });
        }
        let several = g.constant(scale).is_some_and(|t| t.len() > 1);
        let mut inputs = vec![self.shaped(scale)];
        if let Some(zero) = zero {
            inputs.push(self.zero(zero, scale)?);
        }
        inputs.insert(0, q.into());
        let attrs = match several {
            true => Attrs::new().with("axis", axis),
            false => Attrs::new(),
        };
        Ok(self.patch.node(Op::onnx("DequantizeLinear"), inputs, attrs))
    }

    /// A scale of one number as a scalar, so that it fits any tensor.
    fn shaped(&mut self, v: ValueId) -> Ref {
        let scalar = self.g.constant(v).filter(|t| t.len() == 1 && t.rank() > 0);
        match scalar.and_then(|t| t.reshaped(&[][..]).ok()) {
            Some(scalar) => self.patch.constant(scalar),
            None => v.into(),
        }
    }

    /// A zero point of the shape of its scale, which DequantizeLinear wants.
    fn zero(&mut self, zero: ValueId, scale: ValueId) -> Result<Ref, Miss> {
        let (Some(z), Some(s)) = (self.g.constant(zero), self.g.constant(scale)) else {
            return Ok(zero.into());
        };
        if z.len() == s.len() {
            return Ok(self.shaped(zero));
        }
        let one = integers(z).filter(|all| all.len() == 1);
        let (Some(one), &[n]) = (one, s.dims()) else {
            return Err(Miss::at(zero, 1, "its zero points do not fit its scales"));
        };
        let all = match z.dtype() {
            DType::U8 => Tensor::vector(&vec![one[0] as u8; n]),
            DType::I8 => Tensor::vector(&vec![one[0] as i8; n]),
            _ => return Err(Miss::at(zero, 1, "it is of no 8-bit integers")),
        };
        Ok(self.patch.constant(all))
    }

    /// The operand at `k`, with its scale and zero point behind it.
    fn triple(&mut self, k: usize, axis: i64) -> Result<Ref, Miss> {
        let (q, scale) = (self.operand(k)?, self.operand(k + 1)?);
        self.real(q, scale, self.node.input(k + 2), axis)
    }

    /// The result in integers, by the scale and zero point at `k`.
    fn quantized(&mut self, real: Ref, k: usize) -> Result<(), Miss> {
        let output = self.node.output(0).ok_or_else(Miss::none)?;
        let scale = self.operand(k)?;
        let zero = match self.node.input(k + 1) {
            Some(zero) => self.shaped(zero),
            // com.microsoft's operators take the type of their operands then.
            None => self
                .patch
                .constant(match self.g.value(output).ty().dtype() {
                    Some(DType::I8) => Tensor::scalar(0i8),
                    _ => Tensor::scalar(0u8),
                }),
        };
        let scale = self.shaped(scale);
        let quantize = Op::onnx("QuantizeLinear");
        let q = self.patch.node(quantize, [real, scale, zero], Attrs::new());
        self.patch.replace(output, q);
        Ok(())
    }

    /// MatMulInteger or ConvInteger, whose result is cast and multiplied with the scales of both operands.
    fn integer(&mut self, op: &str) -> Result<(), Miss> {
        let g = self.g;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let sum = self.node.output(0).ok_or_else(Miss::none)?;
        let reader = |v: ValueId, op: &str| {
            let node = g.node(g.single_use(v)?.node);
            node.op().is(op).then_some(node)
        };
        let cast = reader(sum, "Cast").and_then(|n| n.output(0));
        let cast = cast.ok_or_else(|| Miss::at(sum, 1, "it is not cast to floats"))?;
        let scaled = reader(cast, "Mul").ok_or_else(|| Miss::at(cast, 2, "it is not scaled"))?;
        let other = |node: &Node, v: ValueId| {
            let mut inputs = node.inputs().iter().flatten().copied();
            inputs.find(|&u| u != v)
        };
        let why = "it is not scaled by the product of its operands' scales";
        let scales = other(scaled, cast).and_then(|v| Some((v, g.producer_if(v, "Mul")?)));
        let (_, product) = scales.ok_or_else(|| Miss::at(cast, 3, why))?;
        let product = g.node(product);
        let (Some(p), Some(q)) = (product.input(0), product.input(1)) else {
            return Err(Miss::none());
        };
        let made = g.producer_if(a, "DynamicQuantizeLinear");
        let own = made.and_then(|id| g.node(id).output(1));
        let (a_scale, b_scale) = match own {
            Some(own) if own == p => (p, q),
            Some(own) if own == q => (q, p),
            _ => return Err(Miss::at(a, 3, why)),
        };
        // The scale multiplies the result, so that several numbers are one for each of its columns.
        let count = g.constant(b_scale).map(Tensor::len);
        if op == "Conv" && count != Some(1) {
            return Err(Miss::at(b_scale, 4, "a convolution has one scale"));
        }
        if g.constant(b_scale)
            .is_some_and(|t| t.len() > 1 && t.rank() != 1)
        {
            return Err(Miss::at(b_scale, 4, "its scales are no vector"));
        }
        let x = self.real(a, a_scale, self.node.input(2), -1)?;
        let w = self.real(b, b_scale, self.node.input(3), -1)?;
        let attrs = self.node.attrs().clone();
        let y = self.patch.node(Op::onnx(op), [x, w], attrs);
        let output = scaled.output(0).ok_or_else(Miss::none)?;
        self.patch.replace(output, y);
        Ok(())
    }

    /// `A, a_scale, a_zero, B, b_scale, b_zero, y_scale, y_zero`.
    fn binary(&mut self, op: &str) -> Result<(), Miss> {
        let (a, b) = (self.triple(0, -2)?, self.triple(3, -1)?);
        let y = self.patch.node(Op::onnx(op), [a, b], Attrs::new());
        self.quantized(y, 6)
    }

    /// `X, x_scale, x_zero, y_scale, y_zero`.
    fn unary(&mut self, op: &str, attrs: &[&str]) -> Result<(), Miss> {
        let x = self.triple(0, 1)?;
        let attrs = self.attrs(attrs);
        let y = self.patch.node(Op::onnx(op), [x], attrs);
        self.quantized(y, 3)
    }

    fn softmax(&mut self) -> Result<(), Miss> {
        // Before operator set 13, Softmax flattened what is behind its axis.
        let opset = self.node.attrs().int("opset").unwrap_or(13);
        if opset < 13 && self.node.attrs().int("axis") != Some(-1) {
            return Err(Miss::because("it is a Softmax of before operator set 13"));
        }
        self.unary("Softmax", &["axis"])
    }

    fn pool(&mut self, op: &str) -> Result<(), Miss> {
        if self.node.attrs().int("channels_last").unwrap_or(0) != 0 {
            return Err(Miss::because("its channels are last"));
        }
        let attrs = [
            "auto_pad",
            "ceil_mode",
            "count_include_pad",
            "kernel_shape",
            "pads",
            "strides",
        ];
        self.unary(op, &attrs)
    }

    /// `y_scale, y_zero`, and a triple for each operand.
    fn concat(&mut self) -> Result<(), Miss> {
        let operands = (2..self.node.inputs().len()).step_by(3);
        let parts: Result<Vec<Ref>, Miss> = operands.map(|k| self.triple(k, 1)).collect();
        let attrs = self.attrs(&["axis"]);
        let y = self.patch.node(Op::onnx("Concat"), parts?, attrs);
        self.quantized(y, 0)
    }

    /// `x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B`, with B [M] in INT32 of scale x_scale · w_scale.
    fn conv(&mut self) -> Result<(), Miss> {
        let (x, w) = (self.triple(0, 1)?, self.triple(3, 0)?);
        let mut inputs = vec![x, w];
        if let Some(bias) = self.node.input(8) {
            inputs.push(self.bias(bias, 1.0)?);
        }
        let attrs = self.node.attrs().clone();
        let y = self.patch.node(Op::onnx("Conv"), inputs, attrs);
        self.quantized(y, 6)
    }

    /// `A, a_scale, a_zero, B, b_scale, b_zero, C, y_scale, y_zero`, with C in INT32 of scale alpha · a_scale · b_scale;
    /// without y_scale the result is floats.
    fn gemm(&mut self) -> Result<(), Miss> {
        let attrs = self.attrs(&["alpha", "transA", "transB"]);
        let flag = |name: &str| attrs.int(name).unwrap_or(0) != 0;
        let columns = if flag("transB") { 0 } else { 1 };
        let alpha = attrs.float("alpha").unwrap_or(1.0);
        let (a, b) = (self.triple(0, 1)?, self.triple(3, columns)?);
        let mut inputs = vec![a, b];
        if let Some(bias) = self.node.input(6) {
            inputs.push(self.bias(bias, alpha)?);
        }
        let y = self.patch.node(Op::onnx("Gemm"), inputs, attrs);
        if self.node.input(7).is_some() {
            return self.quantized(y, 7);
        }
        let output = self.node.output(0).ok_or_else(Miss::none)?;
        self.patch.replace(output, y);
        Ok(())
    }

    /// A constant bias in INT32 as floats: by `factor` and the scales of the operands 0 and 3.
    fn bias(&mut self, bias: ValueId, factor: f32) -> Result<Ref, Miss> {
        let floats = |k: usize| -> Option<Vec<f32>> {
            let scale = self.g.constant(self.node.input(k)?)?.to_f64s()?;
            Some(scale.into_iter().map(|s| s as f32).collect())
        };
        let numbers = self.g.constant(bias).and_then(|t| Some((t, integers(t)?)));
        let (Some((tensor, numbers)), Some(a), Some(b)) = (numbers, floats(1), floats(4)) else {
            return Err(Miss::at(bias, 1, "its bias or a scale is no constant"));
        };
        let &[a] = a.as_slice() else {
            return Err(Miss::at(bias, 1, "its activation has several scales"));
        };
        if b.is_empty() || !numbers.len().is_multiple_of(b.len()) {
            return Err(Miss::at(bias, 1, "its bias does not fit its scales"));
        }
        let scaled = numbers.iter().zip(b.iter().cycle());
        let values: Vec<f32> = scaled.map(|(&q, b)| q as f32 * (factor * a * b)).collect();
        let values = Tensor::from_values(tensor.dims(), &values).map_err(|_| Miss::none())?;
        Ok(self.patch.constant(values))
    }

    /// `A, B, b_scale, b_zero, bias` with A in floats.
    fn dynamic(&mut self) -> Result<(), Miss> {
        let a = self.operand(0)?.into();
        self.dynamic = true;
        self.product(a, (1, 2, 3), 4)
    }

    /// `A, B, a_scale, b_scale, a_zero, b_zero, bias`.
    fn integers_to_float(&mut self) -> Result<(), Miss> {
        let (q, scale) = (self.operand(0)?, self.operand(2)?);
        let a = self.real(q, scale, self.node.input(4), -2)?;
        self.product(a, (1, 3, 5), 6)
    }

    /// The product of `a` with the weight, scale and zero point at these places, and a bias.
    fn product(&mut self, a: Ref, weight: (usize, usize, usize), bias: usize) -> Result<(), Miss> {
        let (q, scale, zero) = weight;
        let (q, scale) = (self.operand(q)?, self.operand(scale)?);
        let w = self.real(q, scale, self.node.input(zero), -1)?;
        let mut y = self.patch.node(Op::onnx("MatMul"), [a, w], Attrs::new());
        if let Some(bias) = self.node.input(bias) {
            y = (self.patch).node(Op::onnx("Add"), [y, bias.into()], Attrs::new());
        }
        let output = self.node.output(0).ok_or_else(Miss::none)?;
        self.patch.replace(output, y);
        Ok(())
    }
}
