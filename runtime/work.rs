//! What a model has to do at given sizes: multiplications and bytes.

use kiln_graph::infer::{self, Facts};
use kiln_graph::types::Shape;
use kiln_graph::{Dim, Graph, Node, ValueId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Floating-point operations and bytes of one run. What is computed elsewhere than in products is not counted: it is below
/// 2 % of a Transformer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Two for each multiplication and addition of a matrix product or convolution.
    pub flops: u64,
    /// Constants, read once.
    pub weight_bytes: u64,
    /// Inputs read and outputs written.
    pub io_bytes: u64,
    /// Products whose shapes are not known before the run; they are missing in `flops`.
    pub uncounted: usize,
}

impl Work {
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.io_bytes
    }
}

/// The work of the outermost graph with inputs of these shapes.
pub fn work(g: &Graph, inputs: &[(String, Vec<usize>)]) -> Work {
    let shape = |dims: &[usize]| dims.iter().map(|&d| Dim::Known(d)).collect::<Shape>();
    let sizes: Vec<(ValueId, Shape)> = (g.inputs().iter())
        .filter_map(|&v| {
            let found = inputs.iter().find(|(name, _)| name == g.value(v).name())?;
            Some((v, shape(&found.1)))
        })
        .collect();
    let facts = infer::with_inputs(g, &sizes);
    let mut work = Work {
        weight_bytes: (g.values())
            .filter_map(|(_, v)| v.constant())
            .map(|t| t.byte_len() as u64)
            .sum(),
        ..Work::default()
    };
    let outputs = g.outputs().iter().map(|o| o.value);
    for v in g.inputs().iter().copied().chain(outputs) {
        let elements = dims(&facts, v).map(|d| d.iter().product::<u64>());
        let bits = facts.ty(v).dtype().map_or(0, |d| d.bits()) as u64;
        work.io_bytes += elements.unwrap_or(0) * bits / 8;
    }
    for (_, node) in g.nodes() {
        match products(g, node, &facts) {
            None => {}
            Some(Some(n)) => work.flops = work.flops.saturating_add(n.saturating_mul(2)),
            Some(None) => work.uncounted += 1,
        }
    }
    work
}

fn dims(facts: &Facts, v: ValueId) -> Option<Vec<u64>> {
    let dims = facts.dims(v)?.iter();
    dims.map(|d| u64::try_from(d.as_i64()?).ok()).collect()
}

/// The multiplications of a node: `None` if it is no product, `Some(None)` if its shapes are unknown.
pub fn products(g: &Graph, node: &Node, facts: &Facts) -> Option<Option<u64>> {
    let of = |k: usize| {
        let v = node.input(k)?;
        match g.constant(v) {
            Some(t) => Some(t.dims().iter().map(|&d| d as u64).collect()),
            None => dims(facts, v),
        }
    };
    let result = || dims(facts, node.output(0)?);
    let all = |d: &[u64]| d.iter().product::<u64>();
    Some(match node.op().name() {
        "MatMul"
        | "FusedMatMul"
        | "MatMulInteger"
        | "QLinearMatMul"
        | "MatMulIntegerToFloat"
        | "DynamicQuantizeMatMul" => {
            let flipped = node.attrs().int("transA").unwrap_or(0) != 0;
            (|| {
                let a: Vec<u64> = of(0)?;
                let inner = match (flipped, a.len()) {
                    (true, n) if n > 1 => a.get(n - 2),
                    _ => a.last(),
                };
                match result() {
                    Some(y) => Some(all(&y) * inner?),
                    // Operators of ONNX Runtime, whose result is as wide as the right operand.
                    None => {
                        let place = if node.op().name() == "QLinearMatMul" {
                            3
                        } else {
                            1
                        };
                        Some(all(&a) * of(place)?.last()?)
                    }
                }
            })()
        }
        "Gemm" => (|| {
            let a = of(0)?;
            let inner = match node.attrs().int("transA").unwrap_or(0) != 0 {
                true => a.first(),
                false => a.last(),
            };
            Some(all(&result()?) * inner?)
        })(),
        "MatMulNBits" => (|| {
            let n = u64::try_from(node.attrs().int("N")?).ok()?;
            Some(all(&of(0)?) * n)
        })(),
        "Conv" => (|| {
            let kernel = of(1)?;
            Some(all(&result()?) * all(kernel.get(1..)?))
        })(),
        "Attention" | "MultiHeadAttention" | "GroupQueryAttention" => (|| {
            let query = of(0)?;
            let weights = of(1)?;
            if node.op().domain() == "com.microsoft" && node.op().name() == "Attention" {
                let (&length, rows) = (query.get(1)?, all(&query));
                let width = weights.last()? / 3;
                let batch = query.first()?;
                return Some(rows * weights.last()? + 2 * batch * length * length * width);
            }
            let keys = weights.get(weights.len().checked_sub(2)?)?;
            Some(2 * all(&query) * keys)
        })(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::onnx;

    #[test]
    fn products_are_counted_at_the_sizes_asked_for() {
        let model = onnx::read_text(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[batch, seq, 4] x) => (float[batch, seq, 2] y)
            <float[4, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3, 2] v = {1,2,3,4,5,6}>
            { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"#,
        )
        .unwrap();
        let found = work(&model.graph, &[("x".into(), vec![2, 5, 4])]);
        assert_eq!(found.flops, 2 * (10 * 4 * 3 + 10 * 3 * 2));
        assert_eq!(found.weight_bytes, 4 * 18);
        assert_eq!(found.io_bytes, 4 * (40 + 20));
        assert_eq!(found.uncounted, 0);
        let unknown = work(&model.graph, &[]);
        assert_eq!((unknown.flops, unknown.uncounted), (0, 2));
    }
}
