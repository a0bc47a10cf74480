//! GroupQueryAttention over a cache, spelled out over one that grows.

use kiln_graph::{Attrs, Graph, INTERNAL_DOMAIN, NodeId, Op, Tensor, ValueId, ops};

use super::adopt_attention::Adopt;
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};

/// com.microsoft:GroupQueryAttention (ONNX Runtime `docs/ContribOperators.md`).
pub static EXPAND_GROUPED: Local = Local {
    name: "expand-grouped",
    about: "GroupQueryAttention becomes the internal attention over keys and values joined with those of earlier steps",
    why: "The operator counts tokens by itself: `seqlens_k` says how many each row has. Here all rows have as many as the cache \
         is long and as are new, so that query i stands behind the past at place i: that place rotates it, it sees the keys up \
         to its own, and of these the last `local_window_size`. A part of a compilation runs it for engines, on the way to \
         caches that are written into, where places are those of each row again (`write_indices`). What only the operator \
         itself can say is left alone: sinks, caches that are quantized or that forget, scores that are results.",
    exactness: Exactness::Rounding,
    since: 18,
    native: false,
    at: rewrite,
};

/// Why an operator is not spelled out; `None` if it is.
pub fn stays(op: &ops::GroupQueryAttention<'_>) -> Option<String> {
    let known = op.heads().is_some();
    let peculiar = op.peculiar();
    match (peculiar, known) {
        (Some(name), _) => Some(format!(
            "{name} of GroupQueryAttention says what no other operator does"
        )),
        (None, false) => Some("GroupQueryAttention does not say how many heads it has".into()),
        (None, true) => None,
    }
}

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let op = ops::GroupQueryAttention::of(g, root).ok_or_else(Miss::none)?;
    if !cx.target.facts.rewrites_attention {
        return Err(Miss::because("the target takes it"));
    }
    if let Some(why) = stays(&op) {
        return Err(Miss::because(why));
    }
    let write = Adopt::new(g, root, cx);
    Expansion { write, op }.patch()
}

struct Expansion<'a, 'c> {
    write: Adopt<'a, 'c>,
    op: ops::GroupQueryAttention<'a>,
}

impl Expansion<'_, '_> {
    fn patch(mut self) -> Result<Patch, Miss> {
        let output = self.op.output(0).ok_or_else(Miss::none)?;
        let (parts, size) = self.apart()?;
        let [mut q, mut k, v] = parts;
        let query = self.op.input(0).ok_or_else(Miss::none)?;
        let past = self.op.past();
        let first = past.map(|[keys, _]| self.write.length(keys.into(), 2));
        let places = self.places(query, first);
        if let Some(tables) = self.op.tables() {
            let at = match self.op.position_ids() {
                Some(given) => given.into(),
                None => self.write.along(places, &[0]),
            };
            [q, k] = self.rotated([q, k], tables, at, size)?;
        }
        let [k, v] = match past {
            Some(past) => [(past[0], k), (past[1], v)].map(|(past, new)| {
                let along = Attrs::new().with("axis", 2i64);
                self.write.node("Concat", &[past.into(), new], along)
            }),
            None => [k, v],
        };
        let bias = self.bias(places, k)?;
        let scale = self.op.scale().unwrap_or(1.0 / (size as f32).sqrt());
        let mut attrs = Attrs::new().with("scale", scale);
        if self.op.softcap() != 0.0 {
            attrs.set("softcap", self.op.softcap());
        }
        let op = Op::new(INTERNAL_DOMAIN, "Attention");
        let made = self.write.patch.node(op, [q, k, v, bias], attrs);
        for (result, of) in [(1, k), (2, v)] {
            if let Some(result) = self.op.output(result) {
                self.write.patch.replace(result, of);
            }
        }
        let made = self.write.together(made);
        self.write.patch.replace(output, made);
        Ok(self.write.patch)
    }

    /// Queries, keys and values as [batch, heads, new, size], and the size.
    fn apart(&mut self) -> Result<([Ref; 3], i64), Miss> {
        let query = self.op.input(0).ok_or_else(Miss::none)?;
        let [heads, groups] = self.op.heads().ok_or_else(Miss::none)?;
        let width = self.write.size(query, 2)?;
        if !self.op.is_packed() {
            let size = self.write.head(width, heads)?;
            let flat = [query.into(), self.operand(1)?, self.operand(2)?];
            let counts = [heads, groups, groups];
            let mut at = flat;
            for (x, count) in at.iter_mut().zip(counts) {
                *x = self.write.apart(*x, count, size);
            }
            return Ok((at, size));
        }
        let size = self.write.head(width, heads + 2 * groups)?;
        let all = self.write.apart(query.into(), heads + 2 * groups, size);
        let parts = [heads, groups, groups];
        let parts = self.write.patch.constant(Tensor::vector(&parts));
        let axis = Attrs::new().with("axis", 1i64);
        let inputs = [Some(all), Some(parts)];
        let made = (self.write.patch).node_with(Op::onnx("Split"), inputs, 3, axis);
        Ok(([made[0], made[1], made[2]], size))
    }

    fn operand(&self, k: usize) -> Result<Ref, Miss> {
        let x = self.op.input(k).ok_or_else(Miss::none)?;
        match self.write.rank(x)? {
            3 => Ok(x.into()),
            _ => Err(Miss::at(x, 1, "its layout is not [batch, new, width]")),
        }
    }

    /// The places of the new tokens behind the past: [new].
    fn places(&mut self, query: ValueId, first: Option<Ref>) -> Ref {
        let new = self.write.length(query.into(), 1);
        let counted = self.write.counted(new);
        match first {
            Some(first) => self.write.node("Add", &[counted, first], Attrs::new()),
            None => counted,
        }
    }

    fn rotated(
        &mut self,
        operands: [Ref; 2],
        tables: [ValueId; 2],
        at: Ref,
        size: i64,
    ) -> Result<[Ref; 2], Miss> {
        let rotated = 2 * self.write.size(tables[0], 1)?;
        let rows = tables.map(|t| self.write.node("Gather", &[t.into(), at], Attrs::new()));
        let interleaved = i64::from(self.op.is_interleaved());
        Ok(operands.map(|x| {
            let mut attrs = Attrs::new().with("interleaved", interleaved);
            if rotated != size {
                attrs.set("rotary_embedding_dim", rotated);
            }
            let op = Op::new(INTERNAL_DOMAIN, "RotaryEmbedding");
            self.write.patch.node(op, [x, rows[0], rows[1]], attrs)
        }))
    }

    /// 0 or the model's own bias where a query sees a key, -∞ elsewhere: [1 or batch, 1 or heads, new, keys].
    fn bias(&mut self, places: Ref, k: Ref) -> Result<Ref, Miss> {
        let all = self.write.length(k, 2);
        let keys = self.write.counted(all);
        let queries = self.write.along(places, &[0, 1, 3]);
        let mut seen = (self.write).node("LessOrEqual", &[keys, queries], Attrs::new());
        if let Some(window) = self.op.window() {
            let window = self.write.patch.constant(Tensor::scalar(window));
            let first = self.write.node("Sub", &[queries, window], Attrs::new());
            let near = self.write.node("Greater", &[keys, first], Attrs::new());
            seen = self.write.node("And", &[seen, near], Attrs::new());
        }
        let shown = match self.op.attention_bias() {
            Some(bias) if self.write.rank(bias)? == 4 => bias.into(),
            Some(bias) => return Err(Miss::at(bias, 1, "its bias has not four axes")),
            None => self.write.number(0.0),
        };
        let hidden = self.write.number(f32::NEG_INFINITY);
        Ok((self.write).node("Where", &[seen, shown, hidden], Attrs::new()))
    }
}
