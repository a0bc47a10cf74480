mod control;
mod demands;
mod robust;
mod rules;
mod shapes;

use super::*;
use crate::graph::Opsets;
use crate::{Attr, Attrs, DType, Dim, Op, Tensor};

struct Build {
    graph: Graph,
}

impl Build {
    fn new(opset: i64) -> Build {
        let mut opsets = Opsets::default();
        opsets.set("", opset);
        opsets.set("com.microsoft", 1);
        Build {
            graph: Graph::new(opsets),
        }
    }

    fn input(&mut self, dtype: DType, dims: &[&str]) -> ValueId {
        let dims = dims.iter().map(|d| match d.parse() {
            Ok(n) => Dim::Known(n),
            Err(_) if *d == "?" => Dim::Unknown,
            Err(_) => Dim::Symbol((*d).into()),
        });
        let ty = Type::tensor(dtype, Some(dims.collect()));
        self.graph.add_input("x", ty)
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_constant("c", Tensor::vector(values))
    }

    fn int(&mut self, value: i64) -> ValueId {
        self.graph.add_constant("c", Tensor::scalar(value))
    }

    fn op(&mut self, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        self.ops(Op::onnx(name), inputs, 1, attrs)[0]
    }

    fn ops(&mut self, op: Op, inputs: &[ValueId], outputs: usize, attrs: Attrs) -> Vec<ValueId> {
        let inputs = inputs.iter().map(|v| Some(*v));
        let node = self.graph.add_node(op, "n", inputs, outputs, attrs);
        self.graph
            .node(node)
            .outputs()
            .iter()
            .flatten()
            .copied()
            .collect()
    }

    fn ty(&self, value: ValueId) -> String {
        infer(&self.graph).ty(value).to_string()
    }

    fn values(&self, value: ValueId) -> String {
        let facts = infer(&self.graph);
        facts.values(value).map_or("none".into(), call::text)
    }

    fn conflicts(&self) -> Vec<String> {
        infer(&self.graph)
            .conflicts()
            .iter()
            .map(|c| c.message.clone())
            .collect()
    }
}

fn none() -> Attrs {
    Attrs::new()
}

/// Size `k` of `x` as a vector of one, as exporters by tracing write it.
fn size_of(b: &mut Build, x: ValueId, k: i64) -> ValueId {
    let shape = b.op("Shape", &[x], none());
    let at = b.int(k);
    let size = b.op("Gather", &[shape, at], none().with("axis", 0));
    let axes = b.ints(&[0]);
    b.op("Unsqueeze", &[size, axes], none())
}
