//! Operands of attention in the layout [batch, heads, sequence, head size].

use kiln_graph::{Attrs, DType, Graph, Op, Tensor, ValueId};

use crate::analysis::attention::keyless;
use crate::analysis::attention::scores::{Addend, Bias, Scores};
use crate::analysis::view::View;
use crate::core::expand::number;
use crate::core::pass::{Context, Miss};
use crate::core::patch::{Patch, Ref};

fn places(cx: &Context<'_>, scores: &Scores) -> Option<[i64; 4]> {
    scores.stretches.iter().find_map(|&[start, _]| {
        let dims = cx.facts.dims(start).filter(|d| d.len() == 5)?;
        let sizes: Vec<i64> = dims[1..].iter().filter_map(|d| d.as_i64()).collect();
        sizes.try_into().ok()
    })
}

/// Brings operands into the layout.
pub(super) struct Heads<'a, 'c> {
    g: &'a Graph,
    pub(super) cx: &'a Context<'c>,
    pub(super) patch: Patch,
    /// Of the product of queries and keys: 4, or 3 for [batch · heads, queries, keys].
    pub(super) rank: usize,
    pub(super) depth: usize,
    /// How many heads there are where the product has one dimension for batch and heads, if something tells.
    heads: Option<i64>,
    pub(super) queries: ValueId,
    /// Rows and columns of queries and of keys, where something added tells them apart.
    pub(super) places: Option<[i64; 4]>,
    /// Keys and values are both repeated for heads that share them, or neither is.
    unrepeats: bool,
}

impl<'a, 'c> Heads<'a, 'c> {
    /// For the operands of the product and these values.
    ///
    /// # Errors
    /// When the number of heads is needed and unknown.
    pub(super) fn of(
        g: &'a Graph,
        cx: &'a Context<'c>,
        scores: &Scores,
        v: ValueId,
    ) -> Result<Heads<'a, 'c>, Miss> {
        let mut heads = Heads {
            g,
            cx,
            patch: Patch::new(),
            rank: cx.facts.dims(scores.q).map_or(0, <[_]>::len),
            depth: scores.depth + 1,
            heads: None,
            queries: scores.q,
            places: places(cx, scores),
            unrepeats: true,
        };
        if heads.rank == 3 {
            let from_scores = scores.stretches.iter().find_map(|&[start, _]| {
                let dims = cx.facts.dims(start).filter(|d| d.len() == 4)?;
                dims[1].as_i64()
            });
            let mut operands = [scores.q, scores.kt, v].into_iter();
            heads.heads = from_scores.or_else(|| operands.find_map(|v| heads.told(v)));
            let apart = scores.biases.iter().any(|b| b.rank == 4);
            if apart && heads.heads.is_none() {
                return Err(Miss::at(scores.q, heads.depth, "its heads are unknown"));
            }
        }
        heads.unrepeats = heads.repeats(scores.kt) == heads.repeats(v);
        Ok(heads)
    }

    /// Whether keys or values repeat heads.
    fn repeats(&self, v: ValueId) -> bool {
        let view = View::of(self.g, &self.cx.facts, v);
        view.is_some_and(|mut view| {
            self.lift(&mut view) && view.unrepeated(self.g, &self.cx.facts, 1).is_some()
        })
    }

    /// How many heads a value's own rearrangement tells of.
    fn told(&self, v: ValueId) -> Option<i64> {
        let view = View::of(self.g, &self.cx.facts, v)?;
        let [_, heads] = view.dims.first()?.as_slice() else {
            return None;
        };
        view.size(*heads).as_i64()
    }

    fn view(&self, v: ValueId) -> Result<View, Miss> {
        let view = View::of(self.g, &self.cx.facts, v);
        view.ok_or_else(|| Miss::at(v, self.depth, "its shape is unknown"))
    }

    /// [batch · heads, …] as [batch, heads, …], or as [batch · heads, 1, …] where nothing tells how many heads there are.
    /// `false` where the view does not tell batch and heads apart, and has to.
    fn lift(&self, view: &mut View) -> bool {
        if self.rank != 3 || view.dims.len() != 3 {
            return true;
        }
        let second = match self.heads {
            None => Vec::new(),
            Some(n) => match view.dims[0].as_slice() {
                [_, heads] if view.size(*heads).as_i64() == Some(n) => view.dims[0].split_off(1),
                _ => return false,
            },
        };
        view.dims.insert(1, second);
        true
    }

    /// A value of rank 3 as [batch, heads, …], by a Reshape.
    fn regrouped(&mut self, v: ValueId) -> Result<Ref, Miss> {
        let n = self.heads.ok_or_else(Miss::none)?;
        Ok(self.grouped_by(v.into(), n))
    }

    fn grouped_by(&mut self, v: Ref, n: i64) -> Ref {
        let last = Attrs::new().with("start", 1i64).with("end", 3i64);
        let last = self.patch.node(Op::onnx("Shape"), [v], last);
        let first = self.patch.constant(Tensor::vector(&[-1, n]));
        let axis = Attrs::new().with("axis", 0i64);
        let shape = self.patch.node(Op::onnx("Concat"), [first, last], axis);
        self.patch
            .node(Op::onnx("Reshape"), [v, shape], Attrs::new())
    }

    /// A value [batch · heads or 1, …] of rank 3 as one of rank 4.
    pub(super) fn apart(&mut self, v: Ref, shared: bool) -> Ref {
        match self.heads.filter(|_| !shared) {
            Some(n) => self.grouped_by(v, n),
            None => {
                let axes = self.patch.constant(Tensor::vector(&[1i64]));
                self.patch
                    .node(Op::onnx("Unsqueeze"), [v, axes], Attrs::new())
            }
        }
    }

    /// The value by a Reshape, if something tells how many heads there are.
    fn regrouped_or(&mut self, v: ValueId, why: Miss) -> Result<Ref, Miss> {
        match self.heads {
            Some(_) => self.regrouped(v),
            None => Err(why),
        }
    }

    fn emit(&mut self, view: &View, v: ValueId) -> Result<Ref, Miss> {
        let made = view.emit(self.g, &mut self.patch);
        let why = "its layout would have to be computed";
        Ok(made.ok_or_else(|| Miss::at(v, self.depth, why))?.0)
    }

    fn turned(&mut self, v: Ref) -> Ref {
        let perm = Attrs::new().with("perm", vec![0i64, 1, 3, 2]);
        self.patch.node(Op::onnx("Transpose"), [v], perm)
    }

    pub(super) fn queries(&mut self, q: ValueId) -> Result<Ref, Miss> {
        if self.rank == 4 {
            return Ok(q.into());
        }
        let mut view = self.view(q)?;
        match self.lift(&mut view) {
            true => self.emit(&view, q).or_else(|why| self.regrouped_or(q, why)),
            false => self.regrouped(q),
        }
    }

    /// Keys, with their last two axes exchanged if `turned`, or values.
    pub(super) fn keys(&mut self, v: ValueId, turned: bool) -> Result<Ref, Miss> {
        let as_it_is = |heads: &mut Self, v: Ref| match turned {
            true => heads.turned(v),
            false => v,
        };
        let Ok(mut view) = self.view(v) else {
            return match self.rank {
                4 => Ok(as_it_is(self, v.into())),
                _ => Err(Miss::at(v, self.depth, "its shape is unknown")),
            };
        };
        if !self.lift(&mut view) {
            let apart = self.regrouped(v)?;
            return Ok(as_it_is(self, apart));
        }
        if self.rank == 3 && view.emit(self.g, &mut Patch::new()).is_none() {
            let why = Miss::at(v, self.depth, "its layout would have to be computed");
            let apart = self.regrouped_or(v, why)?;
            return Ok(as_it_is(self, apart));
        }
        if turned {
            view = view.with_last_two_swapped().ok_or_else(Miss::none)?;
        }
        if self.unrepeats
            && let Some((inner, _)) = view.unrepeated(self.g, &self.cx.facts, 1)
        {
            view = inner;
        } else if self.rank == 4 {
            return Ok(as_it_is(self, v.into()));
        }
        self.emit(&view, v)
    }

    /// All that is added, as one value that broadcasts to [batch, heads, queries, keys].
    pub(super) fn bias(&mut self, scores: &Scores, dtype: DType) -> Result<Option<Ref>, Miss> {
        let mut sum: Option<Ref> = None;
        for added in &scores.biases {
            sum = Some(match (sum, added.bias) {
                // What replaces scores replaces what was added to them.
                (before, Bias::Selected { .. }) => self.selected(before, *added, dtype)?,
                (None, _) => self.term(*added, dtype)?,
                (Some(sum), _) => {
                    let term = self.term(*added, dtype)?;
                    self.patch.node(Op::onnx("Add"), [sum, term], Attrs::new())
                }
            });
        }
        Ok(sum)
    }

    /// What is added to scores of this rank, as a value that broadcasts to [batch, heads, queries, keys].
    fn lifted(&mut self, v: ValueId, rank: usize) -> Result<Ref, Miss> {
        let dims = self.cx.facts.dims(v);
        let dims =
            dims.ok_or_else(|| Miss::at(v, self.depth, "the rank of the bias is unknown"))?;
        if rank == 5 {
            return match self.rank {
                3 => self.by_position(v),
                _ => self.windowed(v),
            };
        }
        if rank != 3 || dims.len() < 3 {
            return Ok(v.into());
        }
        if dims[0].as_i64() != Some(1) && self.heads.is_some() {
            let mut view = self.view(v)?;
            let apart = self.lift(&mut view);
            if apart && let Some((inner, _)) = view.unrepeated(self.g, &self.cx.facts, 1) {
                view = inner;
            }
            if apart && let Ok(made) = self.emit(&view, v) {
                return Ok(made);
            }
            let all = self.cx.facts.dims(self.queries).and_then(|d| d.first());
            return match all == dims.first() {
                true => self.regrouped(v),
                false => Err(Miss::at(
                    v,
                    self.depth,
                    "the bias has other batches and heads",
                )),
            };
        }
        Ok(self.apart(v.into(), true))
    }

    fn term(&mut self, added: Addend, dtype: DType) -> Result<Ref, Miss> {
        let Bias::Added(v) = added.bias else {
            return self.selected(None, added, dtype);
        };
        let ty = self.g.value(v).ty().dtype();
        let added = self.lifted(v, added.rank)?;
        Ok(match ty == Some(dtype) {
            true => added,
            false => {
                let to = Attrs::new().with("to", i64::from(dtype.to_onnx()));
                self.patch.node(Op::onnx("Cast"), [added], to)
            }
        })
    }

    /// The number that replaces scores where a condition hides them, and what was added `before` elsewhere.
    fn selected(&mut self, before: Option<Ref>, added: Addend, dtype: DType) -> Result<Ref, Miss> {
        let Bias::Selected {
            condition,
            keeps_where,
            fill,
        } = added.bias
        else {
            return Err(Miss::none());
        };
        let condition = self.lifted(condition, added.rank)?;
        let number = |v: f64| number(v, Some(dtype)).unwrap_or_else(|| Tensor::scalar(v as f32));
        let kept = before.unwrap_or_else(|| self.patch.constant(number(0.0)));
        let fill = self.patch.constant(number(keyless::replaced(fill, dtype)));
        let branches = match keeps_where {
            true => [kept, fill],
            false => [fill, kept],
        };
        let inputs = [condition, branches[0], branches[1]];
        Ok(self.patch.node(Op::onnx("Where"), inputs, Attrs::new()))
    }

    /// The result in the layout of the product it replaces.
    pub(super) fn result(&mut self, made: Ref, v: ValueId, q: ValueId) -> Result<Ref, Miss> {
        if self.rank == 4 {
            return Ok(made);
        }
        let size = self.cx.facts.dims(v).and_then(|d| d.last()?.as_i64());
        let size = size.ok_or_else(|| Miss::at(v, self.depth, "the size of a head is unknown"))?;
        // [batch · heads, queries] of the product's own operand: sizes that a constant shape could not name.
        let lead = self.patch.node(
            Op::onnx("Shape"),
            [q.into()],
            Attrs::new().with("start", 0i64).with("end", 2i64),
        );
        let size = self.patch.constant(Tensor::vector(&[size]));
        let shape = self.patch.node(
            Op::onnx("Concat"),
            [lead, size],
            Attrs::new().with("axis", 0i64),
        );
        Ok(self
            .patch
            .node(Op::onnx("Reshape"), [made, shape], Attrs::new()))
    }
}
