//! Places of a cache that no token was written to are hidden from attention.

use kiln_graph::{Attrs, DType, INTERNAL_DOMAIN, NodeId, Op, Tensor, ValueId};

use super::rows::Rows;

/// Nodes that are looked at in front of a Softmax.
const SEEN: usize = 256;

/// Hides them where the model has no condition on keys of its own: a mask, or what is later than the query.
pub(super) fn unwritten(rows: &mut Rows<'_>, order: &[NodeId]) {
    let mut written = None;
    for &id in order {
        let Some(node) = rows.g.get(id) else { continue };
        let softmax = node.op().is("Softmax");
        let attention = node.op() == Op::new(INTERNAL_DOMAIN, "Attention");
        let scores = match (softmax, attention) {
            (true, _) => node.input(0),
            (_, true) => node.input(3),
            _ => continue,
        };
        let long = match (softmax, node.input(1)) {
            (true, _) => scores.is_some_and(|v| is_long(rows, v)),
            (false, Some(keys)) => {
                let dims = rows.facts.dims(keys);
                dims.is_some_and(|d| d.len() == 4 && rows.sizes.has_past(&d[2]))
            }
            _ => false,
        };
        if !long || scores.is_some_and(|v| is_conditional(rows, v)) {
            continue;
        }
        let Some(kept) = written.or_else(|| condition(rows)) else {
            return;
        };
        written = Some(kept);
        let dtype = node_type(rows, id);
        let hidden = rows.constant(number(dtype, f64::NEG_INFINITY));
        let shown = match scores {
            Some(v) => v,
            None => rows.constant(number(dtype, 0.0)),
        };
        let masked = rows.make("Where", &[kept, shown, hidden], Attrs::new());
        match softmax {
            true => rows.g.set_input(id, 0, Some(masked)),
            false => {
                let mut inputs = rows.g.node(id).inputs().to_vec();
                inputs.resize(4, None);
                inputs[3] = Some(masked);
                rows.g.set_inputs(id, inputs.into_iter().collect());
                rows.g.attrs_mut(id).set("mask", "bias");
            }
        }
    }
}

fn node_type(rows: &Rows<'_>, id: NodeId) -> DType {
    let first = rows.g.node(id).input(0);
    first
        .and_then(|v| rows.facts.ty(v).dtype())
        .unwrap_or(DType::F32)
}

fn number(dtype: DType, x: f64) -> Tensor {
    let wide = Tensor::scalar(x as f32);
    wide.narrowed(dtype).unwrap_or(wide)
}

fn is_long(rows: &Rows<'_>, v: ValueId) -> bool {
    let last = rows.facts.dims(v).and_then(|d| d.last());
    last.is_some_and(|d| rows.sizes.has_past(d))
}

/// Whether a condition over keys decides some of what makes these scores.
fn is_conditional(rows: &Rows<'_>, scores: ValueId) -> bool {
    let mut open = vec![scores];
    let mut seen = 0;
    while let Some(v) = open.pop() {
        seen += 1;
        let Some(node) = rows.g.producer(v).filter(|_| seen < SEEN) else {
            continue;
        };
        let node = rows.g.node(node);
        if node.op().is_any(&["MatMul", "Gemm"]) {
            continue;
        }
        for &input in node.inputs().iter().flatten() {
            let truth = rows.facts.ty(input).dtype() == Some(DType::Bool)
                || rows.g.value(input).ty().dtype() == Some(DType::Bool);
            if truth && is_long(rows, input) {
                return true;
            }
            open.push(input);
        }
    }
    false
}

/// Whether a place has a token of its row: [rows, 1, 1, places].
fn condition(rows: &mut Rows<'_>) -> Option<ValueId> {
    let total = rows.sizes.total.clone();
    let behind = rows.number(&total)?;
    let behind = rows.unsqueezed(behind, &[1, 2, 3]);
    let places: Vec<i64> = (0..rows.sizes.capacity as i64).collect();
    let places = rows.constant(Tensor::vector(&places));
    Some(rows.make("Less", &[places, behind], Attrs::new()))
}
