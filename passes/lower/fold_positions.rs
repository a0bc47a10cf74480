//! Tables of relative positions are constants where the sizes are.

use std::collections::BTreeMap;

use kiln_graph::infer::{self, Expr, Facts};
use kiln_graph::{DType, Dim, Graph, Model, NodeId, Shape, Tensor, Type, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss, Options, Pass, PassFailure, Remark};
use crate::core::patch;
use crate::fold::fold_constants;

#[derive(Debug)]
pub struct FoldPositions;

impl Pass for FoldPositions {
    fn name(&self) -> &'static str {
        "fold-positions"
    }

    fn about(&self) -> &'static str {
        "compute what is added to attention's scores and depends on fixed sizes alone"
    }

    fn details(&self) -> String {
        "T5 looks a bias up for each distance of a query and a key: with a length that is fixed for all runs, the table is a \
         constant. TensorRT computes it in a kernel of its own and writes it; the attention kernels read it either way. The \
         model takes the fixed sizes only from then on, and says so. Masks, tables of cosines and whatever else TensorRT \
         computes inside of other kernels stay: as constants they cost kernels (measured by the builder's list of kernels, \
         TensorRT for RTX 1.7.1)."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let options = cx.options;
        if options.sizes.is_empty() || !cx.target.facts.computes_positions_apart {
            return Ok(0);
        }
        let g = &mut model.graph;
        let facts = infer::infer(g);
        let mut applied = 0;
        for table in tables(g) {
            let Some(parts) = Parts::of(g, &facts, options, table)? else {
                let why = "it depends on more than constants and fixed sizes";
                if let Some(root) = g.producer(table) {
                    cx.record("fold-positions", g, root, Miss::at(table, 1, why));
                }
                continue;
            };
            let bytes = bytes(g, &facts, options, table);
            if bytes.is_none_or(|n| n > options.fold_total) {
                continue;
            }
            let Some(evaluator) = cx.evaluator else {
                let why = "positions were not folded: there is no runtime to compute them".into();
                cx.remarks.push(Remark::Skipped { why });
                return Ok(applied);
            };
            let label = g.producer(table).map_or(String::new(), |n| g.label(n));
            if !cx.admit("fold-positions", || label) {
                return Ok(applied);
            }
            let mut known = g.clone();
            for (v, tensor) in parts.sizes {
                known.make_constant(v, tensor);
            }
            let found = fold_constants::compute(&known, &parts.nodes, &[table], evaluator);
            match found.map(|t| t.into_iter().next()) {
                Ok(Some(tensor)) => {
                    g.make_constant(table, tensor);
                    patch::remove_dead(g, parts.nodes.into_iter().rev().collect());
                    applied += 1;
                }
                Ok(None) => {}
                Err(e) => {
                    let why = format!("positions were not folded: {e}");
                    cx.remarks.push(Remark::Skipped { why });
                }
            }
        }
        if applied > 0 {
            fix_inputs(g, options.sizes);
        }
        Ok(applied)
    }
}

/// What is added to products of two activations.
fn tables(g: &Graph) -> Vec<ValueId> {
    let is_scores = |v: ValueId| {
        let product = g.producer_if(v, "MatMul").map(|n| g.node(n));
        let activation = |k: usize| {
            product
                .and_then(|p| p.input(k))
                .is_some_and(|v| g.constant(v).is_none())
        };
        activation(0) && activation(1)
    };
    let mut found = Vec::new();
    for (_, node) in g.nodes().filter(|(_, node)| node.op().is("Add")) {
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else {
            continue;
        };
        let added = match (is_scores(a), is_scores(b)) {
            (true, false) => b,
            (false, true) => a,
            _ => continue,
        };
        let computed = g.producer(added).is_some() && !g.value(added).is_output();
        if computed && !found.contains(&added) {
            found.push(added);
        }
    }
    found
}

/// What makes a table.
struct Parts {
    /// Each behind what it reads.
    nodes: Vec<NodeId>,
    /// Sizes of other values, as numbers.
    sizes: Vec<(ValueId, Tensor)>,
}

impl Parts {
    /// `None` where it takes more than constants and fixed sizes.
    fn of(
        g: &Graph,
        facts: &Facts,
        options: &Options<'_>,
        table: ValueId,
    ) -> Result<Option<Parts>, PassFailure> {
        let mut wanted = vec![table];
        let mut seen = vec![false; g.value_bound()];
        let (mut inside, mut known) = (Vec::new(), Vec::new());
        while let Some(v) = wanted.pop() {
            if g.constant(v).is_some() || std::mem::replace(&mut seen[v.index()], true) {
                continue;
            }
            let Some(id) = g.producer(v) else {
                return Ok(None);
            };
            if let Some(size) = whole_numbers(g, facts, options, v) {
                known.push((v, size));
                continue;
            }
            let node = g.node(id);
            let plain = node.captures().is_empty()
                && !node.has_subgraphs()
                && node.op().domain().is_empty()
                && ops::traits::node_is_deterministic(g, id);
            if !plain {
                return Ok(None);
            }
            inside.push(id);
            wanted.extend(node.inputs().iter().flatten());
        }
        let order = g.topo_order()?;
        let nodes = order.iter().copied().filter(|id| inside.contains(id));
        Ok(Some(Parts {
            nodes: nodes.collect(),
            sizes: known,
        }))
    }
}

/// A size, or a vector of them, that is the same in all runs.
fn whole_numbers(g: &Graph, facts: &Facts, options: &Options<'_>, v: ValueId) -> Option<Tensor> {
    let values = numbers(facts.values(v)?, options)?;
    let rank = facts.dims(v)?.len();
    match (g.value(v).ty().dtype()?, rank, values.as_slice()) {
        (DType::I64, 0, [one]) => Some(Tensor::scalar(*one)),
        (DType::I64, 1, all) => Some(Tensor::vector(all)),
        _ => None,
    }
}

fn numbers(dims: &[Expr], options: &Options<'_>) -> Option<Vec<i64>> {
    let dims = dims.iter().map(|d| options.held(d));
    dims.collect()
}

fn bytes(g: &Graph, facts: &Facts, options: &Options<'_>, table: ValueId) -> Option<usize> {
    let dims = numbers(facts.dims(table)?, options)?;
    let mut dims = dims.into_iter().map(|d| usize::try_from(d).ok());
    let count = dims.try_fold(1usize, |n, d| n.checked_mul(d?))?;
    g.value(table).ty().dtype()?.packed_len(count)
}

/// Writes the sizes into the types of the graph's inputs.
fn fix_inputs(g: &mut Graph, sizes: &BTreeMap<String, usize>) {
    for v in g.inputs().to_vec() {
        let ty = g.value(v).ty();
        let (Some(dtype), Some(shape)) = (ty.dtype(), ty.shape()) else {
            continue;
        };
        let fixed = |d: &Dim| match d {
            Dim::Symbol(name) => sizes.get(&**name).map_or(d.clone(), |&n| Dim::Known(n)),
            _ => d.clone(),
        };
        let new: Shape = shape.iter().map(fixed).collect();
        g.set_type(v, Type::tensor(dtype, Some(new)));
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::onnx;

    use super::*;
    use crate::core::pass::{Evaluator, EvaluatorError};
    use crate::core::target::Target;

    /// Whatever it is asked for.
    struct Zeros;

    impl Evaluator for Zeros {
        fn evaluate(&self, model: &Model) -> Result<Vec<Tensor>, EvaluatorError> {
            let outputs = model.graph.outputs().iter();
            Ok(outputs.map(|_| Tensor::vector(&[0f32])).collect())
        }
    }

    fn applications(table: &str, sizes: &[(&str, usize)], target: Target) -> usize {
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : 23]>\n\
             g (float[b, seq, 4] q, float[b, 4, seq] k, int64 offset) => (float[b, seq, seq] y) <int64 zero = {{0}}, int64 one = {{1}}>\n\
             {{ shape = Shape(q) length = Gather(shape, one) at = Range(zero, length, one) {table} far = Cast<to = 1>(place) \
                scores = MatMul(q, k) sum = Add(scores, far) y = Softmax(sum) }}"
        );
        let mut model = onnx::read_text(&text).unwrap();
        infer::annotate(&mut model.graph);
        let sizes = sizes
            .iter()
            .map(|&(name, n)| (name.to_string(), n))
            .collect();
        let options = Options {
            sizes: &sizes,
            ..Options::default()
        };
        let mut cx = Context::new(&target, &options);
        cx.evaluator = Some(&Zeros);
        FoldPositions.run(&mut model, &mut cx).unwrap()
    }

    #[test]
    fn only_what_fixed_sizes_make_is_folded() {
        let tensorrt = || Target::tensorrt("sm_89");
        let table = "place = Mul(at, one)";
        assert_eq!(applications(table, &[("seq", 4)], tensorrt()), 1);
        assert_eq!(applications(table, &[("b", 4)], tensorrt()), 0);
        assert_eq!(applications(table, &[], tensorrt()), 0);
        assert_eq!(applications(table, &[("seq", 4)], Target::cpu()), 0);
        // Data, a random number, and more bytes than folding may add.
        assert_eq!(
            applications("place = Mul(at, offset)", &[("seq", 4)], tensorrt()),
            0
        );
        let random = "place = RandomUniformLike(at)";
        assert_eq!(applications(random, &[("seq", 4)], tensorrt()), 0);
        assert_eq!(applications(table, &[("seq", 1 << 40)], tensorrt()), 0);
    }
}
