//! What becomes of shapes where a value gets smaller and its readers broadcast it.

use kiln_graph::graph::Slot;
use kiln_graph::infer::{Expr, Facts};
use kiln_graph::ops::traits;
use kiln_graph::{Graph, Node, NodeId, Type, ValueId};
use rustc_hash::FxHashMap;

/// Values that one change may reach, counted as often as they are met.
const MAX_REACHED: usize = 256;

/// The dimensions of a graph's values, with changes on top.
#[derive(Debug)]
pub(crate) struct Shapes<'a> {
    facts: &'a Facts,
    changed: FxHashMap<ValueId, Vec<Expr>>,
}

impl<'a> Shapes<'a> {
    pub fn new(facts: &'a Facts) -> Shapes<'a> {
        Shapes {
            facts,
            changed: FxHashMap::default(),
        }
    }

    pub fn dims(&self, value: ValueId) -> Option<&[Expr]> {
        match self.changed.get(&value) {
            Some(dims) => Some(dims),
            None => self.facts.dims(value),
        }
    }

    pub fn has_changed(&self, value: ValueId) -> bool {
        self.changed.contains_key(&value)
    }

    /// Gives `value` these dimensions, if its readers only broadcast it, and so do theirs, until the old dimensions are
    /// there again. The values whose dimensions change lose the declared ones.
    ///
    /// # Errors
    /// In words: who asks for the old dimensions. Nothing is changed then.
    pub fn absorb(&mut self, g: &mut Graph, value: ValueId, dims: &[Expr]) -> Result<(), String> {
        let reached = self.reach(g, value, dims)?;
        for (value, dims) in reached {
            if let Some(dtype) = g.value(value).ty().dtype() {
                g.set_type(value, Type::tensor(dtype, None));
            }
            self.changed.insert(value, dims);
        }
        Ok(())
    }

    fn reach(
        &self,
        g: &Graph,
        value: ValueId,
        dims: &[Expr],
    ) -> Result<FxHashMap<ValueId, Vec<Expr>>, String> {
        let mut reached: FxHashMap<ValueId, Vec<Expr>> = FxHashMap::default();
        if self.dims(value) == Some(dims) {
            return Ok(reached);
        }
        reached.insert(value, dims.to_vec());
        let mut open = vec![value];
        let mut steps = 0;
        while let Some(value) = open.pop() {
            steps += 1;
            if steps > MAX_REACHED {
                return Err("too many values get other dimensions".into());
            }
            if g.value(value).is_output() {
                return Err(format!("'{}' is an output", g.value(value).name()));
            }
            for u in g.value(value).uses() {
                let asks = || format!("{} asks for the shape of its operand", g.label(u.node));
                let node = g.node(u.node);
                let now = match u.slot {
                    Slot::Input(_) => self.result(g, u.node, &reached),
                    Slot::Capture(_) => None,
                };
                let (now, out) = (now.ok_or_else(asks)?, node.output(0).ok_or_else(asks)?);
                let before = match reached.get(&out) {
                    Some(dims) => Some(dims.as_slice()),
                    None => self.dims(out),
                };
                if before != Some(now.as_slice()) {
                    reached.insert(out, now);
                    open.push(out);
                }
            }
        }
        Ok(reached)
    }

    /// The dimensions of the result of an operator that works element by element.
    fn result(
        &self,
        g: &Graph,
        id: NodeId,
        reached: &FxHashMap<ValueId, Vec<Expr>>,
    ) -> Option<Vec<Expr>> {
        let node: &Node = g.node(id);
        // The slope of a PRelu broadcasts, what it is applied to does not.
        let broadcasts = traits::is_elementwise(node.op()) && !node.op().is("PRelu");
        if !(broadcasts || node.op().is("Where")) || node.outputs().len() != 1 {
            return None;
        }
        let dims = |v: &ValueId| match reached.get(v) {
            Some(dims) => Some(dims.as_slice()),
            None => self.dims(*v),
        };
        let mut operands = node.inputs().iter().flatten();
        let mut out = dims(operands.next()?)?.to_vec();
        for operand in operands {
            let other = dims(operand)?;
            let (long, short) = match out.len() >= other.len() {
                true => (out.as_slice(), other),
                false => (other, out.as_slice()),
            };
            let (outer, inner) = long.split_at(long.len() - short.len());
            let joined = inner.iter().zip(short).map(|(a, b)| a.broadcast(b));
            let joined = joined.collect::<Option<Vec<_>>>()?;
            out = outer.iter().cloned().chain(joined).collect();
        }
        Some(out)
    }
}
