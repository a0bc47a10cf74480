//! A decoder of many layers, as exporters spell it: each attention with its mask, scales and rearrangements, a feed-forward
//! block with Gelu, two norms.

use kiln_graph::{Attrs, DType, Dim, Graph, Model, Op, Tensor, Type, ValueId};

const WIDTH: usize = 8;
const HEADS: usize = 2;

struct Builder {
    g: Graph,
}

impl Builder {
    fn node(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let inputs = inputs.iter().map(|&v| Some(v));
        let id = self.g.add_node(Op::onnx(op), "", inputs, 1, attrs);
        self.g.node(id).output(0).expect("one output")
    }

    fn number(&mut self, v: f32) -> ValueId {
        self.g.add_constant("", Tensor::scalar(v))
    }

    fn ints(&mut self, v: &[i64]) -> ValueId {
        self.g.add_constant("", Tensor::vector(v))
    }

    fn linear(&mut self, x: ValueId, seed: usize) -> ValueId {
        let numbers = |n: usize| (0..n).map(|k| (k + seed) as f32).collect::<Vec<f32>>();
        let w =
            Tensor::from_values(&[WIDTH, WIDTH][..], &numbers(WIDTH * WIDTH)).expect("a matrix");
        let w = self.g.add_constant("", w);
        let b = self.g.add_constant("", Tensor::vector(&numbers(WIDTH)));
        let y = self.node("MatMul", &[x, w], Attrs::new());
        self.node("Add", &[b, y], Attrs::new())
    }

    /// [batch, seq, width] as [batch, heads, seq, size] by a computed shape, or with the last two exchanged.
    fn heads(&mut self, x: ValueId, perm: [i64; 4]) -> ValueId {
        let shape = self.node("Shape", &[x], Attrs::new());
        let zero = self.g.add_constant("", Tensor::scalar(0i64));
        let one = self.g.add_constant("", Tensor::scalar(1i64));
        let axis = self.ints(&[0]);
        let size = self.ints(&[-1, (WIDTH / HEADS) as i64]);
        let batch = self.node("Gather", &[shape, zero], Attrs::new());
        let seq = self.node("Gather", &[shape, one], Attrs::new());
        let batch = self.node("Unsqueeze", &[batch, axis], Attrs::new());
        let seq = self.node("Unsqueeze", &[seq, axis], Attrs::new());
        let target = self.node(
            "Concat",
            &[batch, seq, size],
            Attrs::new().with("axis", 0i64),
        );
        let split = self.node("Reshape", &[x, target], Attrs::new());
        self.node(
            "Transpose",
            &[split],
            Attrs::new().with("perm", perm.to_vec()),
        )
    }

    fn norm(&mut self, x: ValueId) -> ValueId {
        let scale = self.g.add_constant("", Tensor::vector(&[1f32; WIDTH]));
        let bias = self.g.add_constant("", Tensor::vector(&[0f32; WIDTH]));
        self.node("LayerNormalization", &[x, scale, bias], Attrs::new())
    }

    fn layer(&mut self, x: ValueId, mask: ValueId, seed: usize) -> ValueId {
        let [q, k, v] = [0, 1, 2].map(|n| self.linear(x, seed + n));
        let q = self.heads(q, [0, 2, 1, 3]);
        let k = self.heads(k, [0, 2, 3, 1]);
        let v = self.heads(v, [0, 2, 1, 3]);
        let root = self.number(0.7);
        let q = self.node("Mul", &[q, root], Attrs::new());
        let k = self.node("Mul", &[k, root], Attrs::new());
        let scores = self.node("MatMul", &[q, k], Attrs::new());
        let (zero, lowest) = (self.number(0.0), self.number(f32::NEG_INFINITY));
        let bias = self.node("Where", &[mask, zero, lowest], Attrs::new());
        let masked = self.node("Add", &[scores, bias], Attrs::new());
        let p = self.node("Softmax", &[masked], Attrs::new().with("axis", -1i64));
        let nan = self.node("IsNaN", &[p], Attrs::new());
        let p = self.node("Where", &[nan, zero, p], Attrs::new());
        let o = self.node("MatMul", &[p, v], Attrs::new());
        let o = self.node(
            "Transpose",
            &[o],
            Attrs::new().with("perm", vec![0i64, 2, 1, 3]),
        );
        let flat = self.ints(&[0, 0, WIDTH as i64]);
        let o = self.node("Reshape", &[o, flat], Attrs::new());
        let o = self.linear(o, seed + 3);
        let x = self.node("Add", &[x, o], Attrs::new());
        let x = self.norm(x);
        let h = self.linear(x, seed + 4);
        let (root, one, half) = (
            self.number(std::f32::consts::SQRT_2),
            self.number(1.0),
            self.number(0.5),
        );
        let d = self.node("Div", &[h, root], Attrs::new());
        let e = self.node("Erf", &[d], Attrs::new());
        let a = self.node("Add", &[e, one], Attrs::new());
        let m = self.node("Mul", &[h, a], Attrs::new());
        let h = self.node("Mul", &[m, half], Attrs::new());
        let h = self.linear(h, seed + 5);
        let x = self.node("Add", &[x, h], Attrs::new());
        self.norm(x)
    }
}

/// A decoder of at least so many nodes.
pub fn model(nodes: usize) -> Model {
    let mut opsets = kiln_graph::graph::Opsets::default();
    opsets.set("", 20);
    let mut b = Builder {
        g: Graph::new(opsets),
    };
    let dim = |name: &str| Dim::Symbol(name.into());
    let shape = [dim("batch"), dim("seq"), Dim::Known(WIDTH)];
    let mut x = b.g.add_input(
        "x",
        Type::tensor(DType::F32, Some(shape.into_iter().collect())),
    );
    let shape = [dim("batch"), Dim::Known(1), dim("seq"), dim("seq")];
    let mask = b.g.add_input(
        "mask",
        Type::tensor(DType::Bool, Some(shape.into_iter().collect())),
    );
    let mut seed = 0;
    while b.g.node_count() < nodes {
        x = b.layer(x, mask, seed);
        seed += 6;
    }
    b.g.add_output("y", x);
    Model::new(b.g)
}
