//! The one way in which kiln spells an attention mask.
//!
//! | term | nodes | shape |
//! |---|---|---|
//! | padding | `Unsqueeze(Cast(mask, bool), {1, 2})` | `[B, 1, 1, K]` |
//! | causal | `LessOrEqual(k, q + offset)` | `[1, 1, Q, K]` |
//! | window | `LessOrEqual(Abs(q - k), width)`, or two comparisons | `[1, 1, Q, K]` |
//!
//! where `k` and `q` are `Unsqueeze(Range)`. Where both sizes are numbers, and not large, the comparison is a constant.
//! Nodes that the graph has already are used again.

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{Attrs, DType, Graph, Op, Tensor, ValueId, limits};

use super::{Mask, Term};
use crate::core::patch::{Patch, Ref};

/// A condition in the canonical spelling.
#[derive(Debug)]
pub struct Spelling {
    /// Makes the nodes; it replaces nothing yet.
    pub patch: Patch,
    pub value: Ref,
    /// The condition's dimensions.
    pub dims: Vec<Expr>,
    /// How many nodes the patch makes.
    pub made: usize,
    /// Values of the graph that the nodes read, or that stand for the condition.
    pub reads: Vec<ValueId>,
}

/// Spells a condition of this rank that keeps what the mask keeps. `counted` gives the value `[0, 1, …]` (int64, rank 1)
/// of a size.
///
/// # Errors
/// In words: the mask has a part that is not understood, padding in less than four dimensions, or a size that nothing
/// counts up to.
pub fn spell(
    g: &Graph,
    facts: &Facts,
    mask: &Mask,
    rank: usize,
    counted: &dyn Fn(&Expr) -> Option<ValueId>,
) -> Result<Spelling, String> {
    let mut out = Speller {
        g,
        patch: Patch::new(),
        made: 0,
        reads: Vec::new(),
    };
    let mut joined: Option<(Ref, Vec<Expr>)> = None;
    for term in &mask.terms {
        let (value, dims) = match *term {
            Term::Padding { value } if rank == 4 => out.padding(facts, value)?,
            Term::Padding { .. } => return Err(format!("padding in {rank} dimensions")),
            Term::Causal { offset } => out.band(mask, rank, None, Some(offset), counted)?,
            Term::Window { left, right } => {
                let right = (right != i64::MAX).then_some(right);
                out.band(mask, rank, Some(left), right, counted)?
            }
            Term::Other(v) => return Err(format!("'{}' is not understood", g.value(v).name())),
        };
        joined = Some(match joined {
            None => (value, dims),
            Some((before, old)) => {
                let dims = broadcast(&old, &dims).ok_or("its parts have other sizes")?;
                (out.either("And", before, value), dims)
            }
        });
    }
    let (value, dims) = match joined {
        Some(joined) => joined,
        None => {
            let ones = vec![1usize; rank];
            let always =
                Tensor::from_values(ones.as_slice(), &[true]).map_err(|e| e.to_string())?;
            (out.patch.constant(always), vec![Expr::from(1); rank])
        }
    };
    if let Ref::Old(v) = value {
        out.reads.push(v);
    }
    Ok(Spelling {
        patch: out.patch,
        value,
        dims,
        made: out.made,
        reads: out.reads,
    })
}

/// The dimensions of two values of one rank, broadcast against each other.
fn broadcast(a: &[Expr], b: &[Expr]) -> Option<Vec<Expr>> {
    a.iter().zip(b).map(|(a, b)| a.broadcast(b)).collect()
}

/// Whether each element is in the band, if the dimensions are numbers.
fn constant_band(dims: &[Expr], left: Option<i64>, right: Option<i64>) -> Option<Tensor> {
    let sizes: Vec<usize> = (dims.iter())
        .map(|d| usize::try_from(d.as_i64()?).ok())
        .collect::<Option<_>>()?;
    let [.., queries, keys] = sizes.as_slice() else {
        return None;
    };
    if queries.checked_mul(*keys)? > limits::FOLDED_NODE {
        return None;
    }
    let (queries, keys) = (i64::try_from(*queries).ok()?, i64::try_from(*keys).ok()?);
    let near = |apart: i64| left.is_none_or(|n| -apart <= n) && right.is_none_or(|n| apart <= n);
    let elements = (0..queries).flat_map(|q| (0..keys).map(move |k| near(k - q)));
    let elements: Vec<bool> = elements.collect();
    Tensor::from_values(sizes.as_slice(), &elements).ok()
}

struct Speller<'g> {
    g: &'g Graph,
    patch: Patch,
    made: usize,
    reads: Vec<ValueId>,
}

enum Operand {
    Ref(Ref),
    Constant(Tensor),
}

impl Speller<'_> {
    fn padding(&mut self, facts: &Facts, value: ValueId) -> Result<(Ref, Vec<Expr>), String> {
        let missing = || "the mask's dimensions are unknown".to_string();
        let dims = facts.dims(value).ok_or_else(missing)?;
        let mut mask = Ref::Old(value);
        if facts.ty(value).dtype() != Some(DType::Bool) {
            let to = Attrs::new().with("to", i64::from(DType::Bool.to_onnx()));
            mask = self.node("Cast", vec![Operand::Ref(mask)], to);
        }
        match dims {
            [batch, keys] => {
                let one = || Expr::from(1);
                let spread = self.unsqueeze(mask, &[1, 2]);
                Ok((spread, vec![batch.clone(), one(), one(), keys.clone()]))
            }
            [_, _, _, _] => Ok((mask, dims.to_vec())),
            _ => Err(missing()),
        }
    }

    /// `q - left <= k <= q + right`, as far as the bounds are given.
    fn band(
        &mut self,
        mask: &Mask,
        rank: usize,
        left: Option<i64>,
        right: Option<i64>,
        counted: &dyn Fn(&Expr) -> Option<ValueId>,
    ) -> Result<(Ref, Vec<Expr>), String> {
        let mut dims = vec![Expr::from(1); rank - 2];
        dims.extend([mask.queries.clone(), mask.keys.clone()]);
        if let Some(known) = constant_band(&dims, left, right) {
            return Ok((self.patch.constant(known), dims));
        }
        let mut coordinate = |size: &Expr, axis: usize| {
            let range = counted(size).ok_or_else(|| format!("nothing counts up to {size}"))?;
            let axes: Vec<i64> = (0..rank).filter(|&a| a != axis).map(|a| a as i64).collect();
            Ok::<Ref, String>(self.unsqueeze(Ref::Old(range), &axes))
        };
        let (k, q) = (
            coordinate(&mask.keys, rank - 1)?,
            coordinate(&mask.queries, rank - 2)?,
        );
        let number = |n: i64| Operand::Constant(Tensor::scalar(n));
        let value = match (left, right) {
            (None, Some(0)) => self.binary("LessOrEqual", k, Operand::Ref(q)),
            (None, Some(n)) => {
                let limit = self.binary("Add", q, number(n));
                self.binary("LessOrEqual", k, Operand::Ref(limit))
            }
            (Some(n), Some(m)) if n == m => {
                // The sign does not matter: the graph may have either difference.
                let apart =
                    match self.find("Sub", &[Operand::Ref(k), Operand::Ref(q)], &Attrs::new()) {
                        Some(found) => Ref::Old(found),
                        None => self.binary("Sub", q, Operand::Ref(k)),
                    };
                let apart = self.node("Abs", vec![Operand::Ref(apart)], Attrs::new());
                self.binary("LessOrEqual", apart, number(n))
            }
            (Some(n), right) => {
                let apart = self.binary("Sub", q, Operand::Ref(k));
                let near = self.binary("LessOrEqual", apart, number(n));
                match right.and_then(i64::checked_neg) {
                    None => near,
                    Some(least) => {
                        let past = self.binary("GreaterOrEqual", apart, number(least));
                        self.either("And", near, past)
                    }
                }
            }
            (None, None) => return Err("a window without bounds".into()),
        };
        Ok((value, dims))
    }

    fn unsqueeze(&mut self, value: Ref, axes: &[i64]) -> Ref {
        let axes = Operand::Constant(Tensor::vector(axes));
        self.node("Unsqueeze", vec![Operand::Ref(value), axes], Attrs::new())
    }

    fn binary(&mut self, op: &str, a: Ref, b: Operand) -> Ref {
        self.node(op, vec![Operand::Ref(a), b], Attrs::new())
    }

    /// A node whose operands may stand in either order.
    fn either(&mut self, op: &str, a: Ref, b: Ref) -> Ref {
        match self.find(op, &[Operand::Ref(b), Operand::Ref(a)], &Attrs::new()) {
            Some(found) => Ref::Old(found),
            None => self.binary(op, a, Operand::Ref(b)),
        }
    }

    fn node(&mut self, op: &str, inputs: Vec<Operand>, attrs: Attrs) -> Ref {
        if let Some(found) = self.find(op, &inputs, &attrs) {
            return Ref::Old(found);
        }
        let mut refs = Vec::with_capacity(inputs.len());
        for input in inputs {
            refs.push(match input {
                Operand::Constant(tensor) => self.patch.constant(tensor),
                Operand::Ref(r) => r,
            });
        }
        let old = refs.iter().filter_map(|r| match r {
            Ref::Old(v) => Some(*v),
            Ref::New(_) => None,
        });
        self.reads.extend(old);
        self.made += 1;
        self.patch.node(Op::onnx(op), refs, attrs)
    }

    /// The result of such a node, if the graph has one.
    fn find(&self, op: &str, inputs: &[Operand], attrs: &Attrs) -> Option<ValueId> {
        let Some(Operand::Ref(Ref::Old(first))) = inputs.first() else {
            return None;
        };
        let is = |found: &Option<ValueId>, wanted: &Operand| match (found, wanted) {
            (Some(v), Operand::Ref(Ref::Old(w))) => v == w,
            (Some(v), Operand::Constant(t)) => self.g.constant(*v).is_some_and(|c| c.same_bits(t)),
            _ => false,
        };
        let same = |id: kiln_graph::NodeId| {
            let node = self.g.node(id);
            let alike = node.inputs().iter().zip(inputs).all(|(v, w)| is(v, w));
            let said = node
                .attrs()
                .iter()
                .all(|(k, a)| attrs.get(k).is_some_and(|b| a.same(b)));
            node.op().is(op)
                && node.inputs().len() == inputs.len()
                && node.attrs().iter().count() == attrs.iter().count()
                && alike
                && said
        };
        let mut readers: Vec<_> = self.g.value(*first).uses().iter().map(|u| u.node).collect();
        readers.sort_unstable();
        let found = readers.into_iter().find(|&id| same(id))?;
        self.g.node(found).sole_output()
    }
}
