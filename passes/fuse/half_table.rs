//! Half-width tables of cosines and sines, from full-width ones whose halves are proven to be equal.

use kiln_graph::{Attrs, Def, Dim, Graph, Node, NodeId, Tensor, ValueId, ops};
use rustc_hash::FxHashMap;

use crate::core::pass::Miss;
use crate::core::patch::{Patch, Ref};

/// How a full-width table repeats its half along the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[a, b, a, b]`
    Halves,
    /// `[a, a, b, b]`
    Pairs,
}

/// Builds half-width copies of tables into a patch; what two tables share is built once.
pub(super) struct Halver<'a> {
    g: &'a Graph,
    layout: Layout,
    /// Elements of the full width.
    width: usize,
    pub patch: Patch,
    made: FxHashMap<ValueId, Ref>,
}

const UNARY: &[&str] = &["Cast", "Cos", "Identity", "Neg", "Sin"];
const BINARY: &[&str] = &["Add", "Div", "Mul", "Sub"];

/// Steps back from the table; a real one has fewer than ten.
const LIMIT: usize = 32;

impl<'a> Halver<'a> {
    pub fn new(g: &'a Graph, layout: Layout, width: usize) -> Halver<'a> {
        Halver {
            g,
            layout,
            width,
            patch: Patch::new(),
            made: FxHashMap::default(),
        }
    }

    /// The half of a table, of the same rank.
    ///
    /// # Errors
    /// A miss at the value whose halves are not known to be equal.
    pub fn half(&mut self, table: ValueId) -> Result<Ref, Miss> {
        self.walk(table, LIMIT)
    }

    fn walk(&mut self, v: ValueId, left: usize) -> Result<Ref, Miss> {
        if let Some(made) = self.made.get(&v) {
            return Ok(*made);
        }
        let left = left
            .checked_sub(1)
            .ok_or_else(|| Miss::at(v, DEPTH, "the table is computed in too many steps"))?;
        let made = match self.g.value(v).def() {
            Def::Constant(tensor) => {
                let half = halved(tensor, self.layout).ok_or_else(|| unproven(v))?;
                self.patch.constant(half)
            }
            Def::Node(id, 0) => self.node(*id, v, left)?,
            _ => return Err(unproven(v)),
        };
        self.made.insert(v, made);
        Ok(made)
    }

    fn node(&mut self, id: NodeId, v: ValueId, left: usize) -> Result<Ref, Miss> {
        let node = self.g.node(id);
        let first = node.input(0).ok_or_else(|| unproven(v))?;
        if let Some(half) = self.repeated(id) {
            return Ok(half.into());
        }
        let passes = match node.op().name() {
            _ if !node.op().domain().is_empty() => false,
            name if BINARY.contains(&name) => return self.binary(node, v, left),
            name if UNARY.contains(&name) => true,
            "Unsqueeze" => {
                let axes = ops::Unsqueeze::of(self.g, id).and_then(|u| u.axes());
                axes.is_some_and(|axes| self.spares_last(v, &axes))
            }
            "Squeeze" => {
                let axes = ops::Squeeze::of(self.g, id).and_then(|s| s.axes());
                axes.is_some_and(|axes| self.spares_last(first, &axes))
            }
            "Slice" => {
                let ranges = ops::Slice::of(self.g, id).and_then(|s| s.axes());
                ranges.is_some_and(|axes| self.spares_last(first, &axes))
            }
            "Gather" => ops::Gather::of(self.g, id)
                .is_some_and(|gather| self.spares_last(first, &[gather.axis()])),
            "Transpose" => {
                let perm = ops::Transpose::of(self.g, id).and_then(|t| t.perm());
                perm.is_some_and(|p| p.last() == p.len().checked_sub(1).as_ref())
            }
            _ => false,
        };
        if !passes || self.last(first) != Some(self.width) {
            return Err(unproven(v));
        }
        let half = self.walk(first, left)?;
        let rest = node.inputs().iter().skip(1).map(|v| v.map(Ref::Old));
        let inputs = std::iter::once(Some(half)).chain(rest);
        let made = self
            .patch
            .node_with(node.op(), inputs, 1, node.attrs().clone());
        made.first().copied().ok_or_else(|| unproven(v))
    }

    /// Operands as wide as the table are halved; those of one element in the last axis stay.
    fn binary(&mut self, node: &Node, v: ValueId, left: usize) -> Result<Ref, Miss> {
        let mut inputs = Vec::with_capacity(2);
        for operand in node.inputs().iter().flatten() {
            inputs.push(match self.last(*operand) {
                Some(1) => Ref::Old(*operand),
                Some(n) if n == self.width => self.walk(*operand, left)?,
                _ if self.g.value(*operand).ty().rank() == Some(0) => Ref::Old(*operand),
                _ => return Err(unproven(v)),
            });
        }
        Ok(self.patch.node(node.op(), inputs, Attrs::new()))
    }

    /// The half itself, where the node does nothing but repeat it.
    fn repeated(&self, id: NodeId) -> Option<ValueId> {
        match self.layout {
            Layout::Halves => self.concatenated_twice(id),
            Layout::Pairs => self.stacked_twice(id).or_else(|| self.picked_twice(id)),
        }
    }

    fn concatenated_twice(&self, id: NodeId) -> Option<ValueId> {
        let concat = ops::Concat::of(self.g, id)?;
        let [Some(a), Some(b)] = concat.node().inputs() else {
            return None;
        };
        let last = self.spares_last(concat.output(0)?, &[concat.axis()?]);
        (a == b && !last && self.last(*a)? * 2 == self.width).then_some(*a)
    }

    /// `Reshape` of the half, unsqueezed at its end and then concatenated with itself, tiled or expanded to 2.
    fn stacked_twice(&self, id: NodeId) -> Option<ValueId> {
        let reshape = ops::Reshape::of(self.g, id)?;
        let stacked = reshape.input(0)?;
        let shape = self.g.value(stacked).ty().shape()?;
        let repeat = self.g.producer(stacked)?;
        let node = self.g.node(repeat);
        let twice = match node.op().name() {
            _ if !node.op().domain().is_empty() => false,
            "Concat" => {
                let axis = ops::Concat::of(self.g, repeat)?.axis()?;
                matches!(node.inputs(), [Some(a), Some(b)] if a == b)
                    && !self.spares_last(stacked, &[axis])
            }
            "Tile" | "Expand" => true,
            _ => false,
        };
        let unsqueezed = node.input(0)?;
        let unsqueeze = ops::Unsqueeze::of(self.g, self.g.producer(unsqueezed)?)?;
        let axes = unsqueeze.axes()?;
        let half = unsqueeze.input(0)?;
        let half_shape = self.g.value(half).ty().shape()?;
        let at_end = axes.len() == 1 && !self.spares_last(unsqueezed, &axes);
        // Only the new axis has grown, and Reshape has merged it into the last one.
        let grown =
            matches!(shape.split_last(), Some((Dim::Known(2), lead)) if same(lead, half_shape));
        let whole = self.g.value(reshape.output(0)?).ty().shape()?;
        let merged = match (whole.split_last(), half_shape.split_last()) {
            (Some((Dim::Known(w), a)), Some((Dim::Known(h), b))) => {
                *w == self.width && h * 2 == *w && same(a, b)
            }
            _ => false,
        };
        (twice && at_end && grown && merged).then_some(half)
    }

    /// `Gather` of the elements `0, 0, 1, 1, …` of the last axis.
    fn picked_twice(&self, id: NodeId) -> Option<ValueId> {
        let gather = ops::Gather::of(self.g, id).filter(|g| g.node().op().is("Gather"))?;
        let half = gather.input(0)?;
        let wanted = (0..self.width as i64).map(|k| k / 2);
        let picked = gather.ints(1)?;
        let along = !self.spares_last(half, &[gather.axis()]);
        (along && self.last(half)? * 2 == self.width && wanted.eq(picked)).then_some(half)
    }

    /// Whether none of the axes of `v` is the last one.
    fn spares_last(&self, v: ValueId, axes: &[i64]) -> bool {
        let Some(rank) = self.g.value(v).ty().rank() else {
            return false;
        };
        let resolved = ops::resolve_axes(axes, rank);
        resolved.is_some_and(|axes| axes.iter().all(|a| a + 1 < rank))
    }

    fn last(&self, v: ValueId) -> Option<usize> {
        self.g.value(v).ty().shape()?.last()?.known()
    }
}

/// Nodes of a rotation that have matched when its tables are looked at.
pub(super) const DEPTH: usize = 7;

fn unproven(v: ValueId) -> Miss {
    let why = "the two halves of the table are not known to be equal";
    Miss::at(v, DEPTH, why)
}

/// Whether two shapes are certainly the same.
pub(super) fn same(a: &[Dim], b: &[Dim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.certainly_equals(b))
}

/// The half of a constant whose rows repeat it, bit for bit.
fn halved(tensor: &Tensor, layout: Layout) -> Option<Tensor> {
    let (&width, lead) = tensor.dims().split_last()?;
    let size = tensor.dtype().packed_len(1)?;
    let half = width / 2;
    if width == 0 || width % 2 != 0 || !tensor.dtype().is_float() || tensor.dtype().bits() < 8 {
        return None;
    }
    let bytes = tensor.bytes();
    let mut kept = Vec::with_capacity(bytes.len() / 2);
    for row in bytes.chunks_exact(width * size) {
        match layout {
            Layout::Halves => {
                let (a, b) = row.split_at(half * size);
                if a != b {
                    return None;
                }
                kept.extend_from_slice(a);
            }
            Layout::Pairs => {
                for pair in row.chunks_exact(2 * size) {
                    let (a, b) = pair.split_at(size);
                    if a != b {
                        return None;
                    }
                    kept.extend_from_slice(a);
                }
            }
        }
    }
    let mut dims = lead.to_vec();
    dims.push(half);
    Tensor::from_raw(tensor.dtype(), dims.as_slice(), kept.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_halved_where_they_repeat() {
        let table = |v: &[f32]| Tensor::from_values([2, 4].as_slice(), v).unwrap();
        let halves = table(&[1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        let pairs = table(&[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
        for (table, layout, other) in [
            (&halves, Layout::Halves, Layout::Pairs),
            (&pairs, Layout::Pairs, Layout::Halves),
        ] {
            let half = halved(table, layout).unwrap();
            assert_eq!(half.dims(), [2, 2]);
            assert_eq!(half.to_f64s().unwrap(), [1.0, 2.0, 3.0, 4.0]);
            assert!(halved(table, other).is_none());
        }
        assert!(halved(&Tensor::scalar(1f32), Layout::Halves).is_none());
        assert!(halved(&Tensor::vector(&[1f32, 1.0, 1.0]), Layout::Halves).is_none());
    }
}
