//! Products with constant weights: what quantization is about.

use kiln_graph::{DType, Graph, Model, NodeId, Tensor, ValueId, ops};

/// `x · w` with a constant w [rows, columns].
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Linear {
    pub node: NodeId,
    pub input: ValueId,
    pub weight: ValueId,
    /// The weight is stored as [columns, rows].
    pub transposed: bool,
    pub rows: usize,
    pub columns: usize,
}

impl Linear {
    /// The node as a product with a float matrix, or why it cannot be quantized; `None` if it has no weight.
    pub fn of(g: &Graph, id: NodeId) -> Option<Result<Linear, String>> {
        let node = g.node(id);
        let gemm = ops::Gemm::of(g, id);
        if gemm.is_none() && !node.op().is("MatMul") {
            return None;
        }
        let float = |v: &ValueId| g.constant(*v).is_some_and(|t| t.dtype().is_float());
        let Some(weight) = node.input(1).filter(float) else {
            let left = node.input(0).filter(float)?;
            return (g.constant(left)?.len() > 1)
                .then(|| Err("its weight is the left operand".into()));
        };
        let input = node.input(0)?;
        let transposed = gemm.is_some_and(|gemm| gemm.trans_b());
        let stored = g.constant(weight)?;
        let (rows, columns) = match (stored.dims(), transposed) {
            (&[rows, columns], false) | (&[columns, rows], true) => (rows, columns),
            _ => return Some(Err(format!("its weight has rank {}", stored.rank()))),
        };
        Some(Ok(Linear {
            node: id,
            input,
            weight,
            transposed,
            rows,
            columns,
        }))
    }

    /// The weight as [rows, columns].
    pub fn matrix(&self, g: &Graph) -> Option<Tensor> {
        let stored = g.constant(self.weight)?;
        match self.transposed {
            true => stored.transposed(),
            false => Some(stored.clone()),
        }
    }

    /// Whether it is `alpha · x · w + beta · c` with factors, or a transposed x.
    pub fn is_scaled(&self, g: &Graph) -> bool {
        ops::Gemm::of(g, self.node).is_some_and(|gemm| {
            gemm.trans_a() || gemm.alpha() != 1.0 || gemm.c().is_some() && gemm.beta() != 1.0
        })
    }
}

/// The inputs of all linear layers of the outermost graph that fewer bits could be for.
pub(in crate::precision) fn wanted(model: &Model) -> Vec<ValueId> {
    let g = &model.graph;
    let layers = g.nodes().filter_map(|(id, _)| Linear::of(g, id)?.ok());
    floats(g, layers.map(|l| l.input))
}

/// Those that are computed in FP32 or FP16, in ascending order.
pub(in crate::precision) fn floats(
    g: &Graph,
    values: impl Iterator<Item = ValueId>,
) -> Vec<ValueId> {
    let float = |v: &ValueId| {
        matches!(g.value(*v).ty().dtype(), Some(DType::F32 | DType::F16))
            && g.constant(*v).is_none()
    };
    let mut all: Vec<ValueId> = values.filter(float).collect();
    all.sort_unstable();
    all.dedup();
    all
}
