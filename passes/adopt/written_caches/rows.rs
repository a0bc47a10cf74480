//! Numbers that came of the past's length, which each row has its own of now.

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::ops::kind::{Kind, kind};
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::stays::{Sizes, Stays, because, whole};

/// The rewriting, node after node in the graph's order. Facts are those of the graph as it was.
pub(super) struct Rows<'a> {
    pub g: &'a mut Graph,
    pub facts: &'a Facts,
    pub sizes: &'a Sizes,
    /// How many tokens each row has: [rows].
    pub indices: ValueId,
    /// Old values and what they are for each row: one axis more, in front.
    lifted: FxHashMap<ValueId, ValueId>,
    /// What new values stand for.
    stands: FxHashMap<ValueId, ValueId>,
    /// Old values whose first axis was 1 and now counts rows.
    settled: FxHashSet<ValueId>,
    /// 0, 1, … along the new tokens, and their number.
    counted: Option<(ValueId, ValueId)>,
}

impl<'a> Rows<'a> {
    pub fn new(g: &'a mut Graph, facts: &'a Facts, sizes: &'a Sizes, indices: ValueId) -> Rows<'a> {
        Rows {
            g,
            facts,
            sizes,
            indices,
            lifted: FxHashMap::default(),
            stands: FxHashMap::default(),
            settled: FxHashSet::default(),
            counted: None,
        }
    }

    pub fn is_settled(&self, v: ValueId) -> bool {
        self.settled.contains(&v)
    }

    /// Whether the contents of a value are known and come of the past's length.
    pub fn counts_past(&self, v: ValueId) -> bool {
        let values = self.facts.values(v).unwrap_or_default();
        values.iter().any(|e| self.sizes.has_past(e))
    }

    pub fn make(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let inputs = inputs.iter().copied().map(Some);
        let node = self.g.add_node(Op::onnx(op), "", inputs, 1, attrs);
        self.g
            .notes_mut(node)
            .set("kiln.pass", "written-caches".into());
        // A node that was made with one output has it.
        self.g.node(node).output(0).unwrap_or(self.indices)
    }

    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.g.add_constant("", tensor)
    }

    fn axes(&mut self, op: &str, v: ValueId, axes: &[i64]) -> ValueId {
        let axes = self.constant(Tensor::vector(axes));
        self.make(op, &[v, axes], Attrs::new())
    }

    pub fn unsqueezed(&mut self, v: ValueId, axes: &[i64]) -> ValueId {
        self.axes("Unsqueeze", v, axes)
    }

    /// How many new tokens there are, as a scalar, and 0, 1, … below it; from any value that has as many along an axis.
    pub fn new_tokens(&mut self) -> Option<(ValueId, ValueId)> {
        if self.counted.is_some() {
            return self.counted;
        }
        let (of, axis) = match self.sizes.new.as_i64() {
            Some(_) => (None, 0),
            None => {
                let inputs = self.g.inputs().iter();
                let found = inputs.filter_map(|&v| {
                    let dims = self.facts.dims(v)?;
                    let axis = dims.iter().position(|d| *d == self.sizes.new)?;
                    Some((Some(v), axis as i64))
                });
                found.into_iter().next()?
            }
        };
        let count = match (of, self.sizes.new.as_i64()) {
            (Some(v), _) => {
                let part = Attrs::new().with("start", axis).with("end", axis + 1);
                let length = self.make("Shape", &[v], part);
                self.axes("Squeeze", length, &[0])
            }
            (None, n) => self.constant(whole(n?)),
        };
        let (zero, one) = (self.constant(whole(0)), self.constant(whole(1)));
        let counted = self.make("Range", &[zero, count, one], Attrs::new());
        self.counted = Some((count, counted));
        self.counted
    }

    /// A number that comes of the past's length, for each row: [rows].
    pub fn number(&mut self, e: &Expr) -> Option<ValueId> {
        let past = Expr::symbol(&self.sizes.past);
        let rest = e.sub(&past)?;
        if rest.as_i64() == Some(0) {
            return Some(self.indices);
        }
        let more = match (rest.as_i64(), rest == self.sizes.new) {
            (Some(n), _) => self.constant(whole(n)),
            (None, true) => self.new_tokens()?.0,
            (None, false) => {
                let beyond = rest.sub(&self.sizes.new)?.as_i64()?;
                let (count, beyond) = (self.new_tokens()?.0, self.constant(whole(beyond)));
                self.make("Add", &[count, beyond], Attrs::new())
            }
        };
        Some(self.make("Add", &[self.indices, more], Attrs::new()))
    }

    fn rank(&self, v: ValueId) -> Option<usize> {
        let known = self.facts.dims(v).map(<[Expr]>::len);
        // What was made since is known by its type.
        known.or_else(|| self.g.value(v).ty().rank())
    }

    /// The value for each row: what was lifted, or a number with one axis in front.
    fn row_of(&mut self, v: ValueId) -> Option<ValueId> {
        if let Some(lifted) = self.lifted.get(&v) {
            return Some(*lifted);
        }
        if !self.counts_past(v) {
            return None;
        }
        let values = self.facts.values(v)?;
        let [one] = values else { return None };
        let one = one.clone();
        let number = self.number(&one)?;
        let dtype = self.facts.ty(v).dtype();
        let number = match dtype {
            Some(d) if d != kiln_graph::DType::I64 => {
                let to = Attrs::new().with("to", i64::from(d.to_onnx()));
                self.make("Cast", &[number], to)
            }
            _ => number,
        };
        let axes: Vec<i64> = (1..=self.rank(v)? as i64).collect();
        let lifted = match axes.is_empty() {
            true => number,
            false => self.unsqueezed(number, &axes),
        };
        self.lifted.insert(v, lifted);
        Some(lifted)
    }

    /// Makes a value of each row stand for an old one. Where the old one's first axis is 1, the rows take its place.
    pub fn stand_for(&mut self, old: ValueId, lifted: ValueId) {
        let dims = self.facts.dims(old).unwrap_or_default();
        if dims.first().and_then(Expr::as_i64) == Some(1) {
            let settled = self.axes("Squeeze", lifted, &[1]);
            self.settle(old, settled);
        } else {
            self.lifted.insert(old, lifted);
            self.stands.insert(lifted, old);
        }
    }

    /// The value of the graph as it was that a new one stands for; others are themselves.
    pub fn origin(&self, v: ValueId) -> ValueId {
        self.stands.get(&v).copied().unwrap_or(v)
    }

    pub fn settle(&mut self, old: ValueId, new: ValueId) {
        self.g.replace_uses(old, new);
        self.stands.insert(new, old);
        self.settled.insert(old);
        self.settled.insert(new);
    }

    /// One node: numbers that it computes with are those of each row.
    pub fn node(&mut self, id: NodeId) -> Result<(), Stays> {
        let node = self.g.node(id);
        let op = node.op();
        let Some(out) = node.sole_output() else {
            return self.refuse_lifted(id);
        };
        // Contents that are followed are met where they are used.
        if op.is_any(&["Shape", "Size"]) || self.facts.values(out).is_some() {
            return Ok(());
        }
        if op.is("Mul") {
            self.stride(id)?;
        }
        if !self.reads_row(id) {
            self.spread(id, out);
            return Ok(());
        }
        let label = self.g.label(id);
        let lost = || {
            Stays::Because(format!(
                "{label} computes with the length of the past in a way that is not known"
            ))
        };
        let inputs: Vec<ValueId> = (self.g.node(id).inputs().iter())
            .copied()
            .collect::<Option<_>>()
            .ok_or_else(lost)?;
        let attrs = self.g.node(id).attrs().clone();
        let elementwise =
            matches!(kind(op), Kind::Unary | Kind::Binary | Kind::Variadic) || op.is("Where");
        let made = match op.name() {
            _ if elementwise => self.elementwise(op, &inputs, out, attrs.clone()),
            "Unsqueeze" => self.unsqueeze(&inputs, out),
            "Transpose" => self.transpose(&inputs, &attrs),
            "Gather" => self.gather(&inputs, attrs.clone()),
            _ => None,
        };
        let made = made.ok_or_else(lost)?;
        match elementwise && self.meets_rows(&inputs, out) {
            true => self.settle(out, made),
            false => self.stand_for(out, made),
        }
        Ok(())
    }

    /// What is multiplied with a number of tokens counts elements of rows that are as long as the cache now.
    fn stride(&mut self, id: NodeId) -> Result<(), Stays> {
        for k in 0..2 {
            let Some(v) = self.g.node(id).input(k) else {
                continue;
            };
            let Some([one]) = self.facts.values(v).filter(|_| self.counts_past(v)) else {
                continue;
            };
            let fixed = self.sizes.fixed(one).and_then(|e| e.as_i64());
            let dims = vec![1; self.rank(v).unwrap_or(0)];
            let made = fixed.and_then(|n| Tensor::from_values(dims, &[n]).ok());
            let Some(made) = made else {
                return self.refuse_lifted(id);
            };
            let made = self.constant(made);
            self.g.set_input(id, k, Some(made));
        }
        Ok(())
    }

    /// Whether the axis of rows in front of lifted operands is the one that the result has.
    fn meets_rows(&self, inputs: &[ValueId], out: ValueId) -> bool {
        let dims = self.facts.dims(out).unwrap_or_default();
        let lifted = |v: &&ValueId| self.lifted.contains_key(v);
        dims.first() == Some(&self.sizes.rows)
            && self.sizes.rows.as_i64() != Some(1)
            && (inputs.iter().filter(lifted)).all(|v| self.rank(*v).is_some_and(|r| r < dims.len()))
    }

    fn reads_row(&self, id: NodeId) -> bool {
        let inputs = self.g.node(id).inputs().iter().flatten();
        inputs
            .into_iter()
            .any(|v| self.lifted.contains_key(v) || self.counts_past(*v))
    }

    fn refuse_lifted(&self, id: NodeId) -> Result<(), Stays> {
        match self.reads_row(id) && !self.g.node(id).op().is_any(&["Shape", "Size"]) {
            true => because(format!(
                "{} computes with the length of the past in a way that is not known",
                self.g.label(id)
            )),
            false => Ok(()),
        }
    }

    /// Results of what has an axis of rows in front have one too.
    fn spread(&mut self, id: NodeId, out: ValueId) {
        let inputs = self.g.node(id).inputs().iter().flatten();
        let any = inputs.into_iter().any(|v| self.settled.contains(v));
        let first = self.facts.dims(out).and_then(|d| d.first()?.as_i64());
        if any && first == Some(1) {
            self.settled.insert(out);
        }
    }

    fn elementwise(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        out: ValueId,
        attrs: Attrs,
    ) -> Option<ValueId> {
        // Numbers are of each row first, so that it is known which are.
        for v in inputs {
            let _ = self.row_of(*v);
        }
        let meets = self.meets_rows(inputs, out);
        let rank = self.rank(out)? - usize::from(meets);
        let mut operands = Vec::with_capacity(inputs.len());
        for &v in inputs {
            let own = self.rank(v)?;
            operands.push(match self.row_of(v) {
                Some(lifted) => {
                    let axes: Vec<i64> = (1..=(rank - own) as i64).collect();
                    match axes.is_empty() {
                        true => lifted,
                        false => self.unsqueezed(lifted, &axes),
                    }
                }
                // What has rows in front stands one axis further left.
                None if self.settled.contains(&v) && !meets => {
                    let axis = [1 + (rank - own) as i64];
                    self.unsqueezed(v, &axis)
                }
                None => v,
            });
        }
        Some(self.make(op.name(), &operands, attrs))
    }

    fn unsqueeze(&mut self, inputs: &[ValueId], out: ValueId) -> Option<ValueId> {
        let rank = self.rank(out)? as i64;
        let axes = self.g.constant(*inputs.get(1)?)?.to_i64s()?;
        let axes: Vec<i64> = axes.iter().map(|a| a.rem_euclid(rank) + 1).collect();
        let lifted = self.row_of(inputs[0])?;
        Some(self.unsqueezed(lifted, &axes))
    }

    fn transpose(&mut self, inputs: &[ValueId], attrs: &Attrs) -> Option<ValueId> {
        let perm = attrs.ints("perm")?.iter().map(|p| p + 1);
        let perm: Vec<i64> = std::iter::once(0).chain(perm).collect();
        let lifted = self.row_of(*inputs.first()?)?;
        Some(self.make("Transpose", &[lifted], Attrs::new().with("perm", perm)))
    }

    /// Rows of a table that are the same for all.
    fn gather(&mut self, inputs: &[ValueId], attrs: Attrs) -> Option<ValueId> {
        let [table, at] = *inputs else { return None };
        let own = self.lifted.contains_key(&table) || self.counts_past(table);
        if attrs.int("axis").unwrap_or(0) != 0 || own {
            return None;
        }
        let lifted = self.row_of(at)?;
        Some(self.make("Gather", &[table, lifted], attrs))
    }
}
