//! Rotary embeddings that a model came with, for a target that does not take them as they are.

use kiln_graph::{Attrs, Graph, INTERNAL_DOMAIN, NodeId, Op, Tensor, ValueId, ops};

use super::adopt_attention::Adopt;
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};

/// RotaryEmbedding-23 and com.microsoft:RotaryEmbedding.
pub static EXPAND_ROTARY: Local = Local {
    name: "expand-rotary",
    about: "rotary embeddings of the model become the internal one where the target does not take them as they are",
    why: "The standard RotaryEmbedding reads (x, cos, sin, positions), that of com.microsoft (x, positions, cos, sin). Both \
         become `internal::RotaryEmbedding(x, cos, sin)` over [batch, heads, length, size] with a row of the tables for \
         each place: gathered by positions, or from the one position that com.microsoft's may begin at (ONNX Runtime \
         `docs/ContribOperators.md`). Lowering writes it in the target's words, its tables repeated for the batch. What \
         scales, or packs sequences, is left alone.",
    exactness: Exactness::Rounding,
    since: 18,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let call = Call::of(g, root).ok_or_else(Miss::none)?;
    if !cx.target.facts.rewrites_attention {
        return Err(Miss::because("the target takes it"));
    }
    Expansion {
        write: Adopt::new(g, root, cx),
        call: call?,
    }
    .patch()
}

/// The operands and attributes of either operator.
struct Call {
    x: ValueId,
    tables: [ValueId; 2],
    positions: Option<ValueId>,
    output: ValueId,
    interleaved: bool,
    heads: Option<i64>,
    /// Elements of a head that are rotated; 0 for all.
    rotated: i64,
}

impl Call {
    fn of(g: &Graph, root: NodeId) -> Option<Result<Call, Miss>> {
        if let Some(op) = ops::RotaryEmbedding::of(g, root) {
            let call = || {
                Some(Call {
                    x: op.input(0)?,
                    tables: [op.input(1)?, op.input(2)?],
                    positions: op.position_ids(),
                    output: op.output(0)?,
                    interleaved: op.is_interleaved(),
                    heads: op.num_heads(),
                    rotated: op.rotary_embedding_dim(),
                })
            };
            return Some(call().ok_or_else(Miss::none));
        }
        let op = ops::MicrosoftRotaryEmbedding::of(g, root)?;
        if op.scale() != 1.0 {
            return Some(Err(Miss::because("it scales what it rotates")));
        }
        if op.is_packed_batching() {
            return Some(Err(Miss::because("its sequences are packed")));
        }
        let call = || {
            Some(Call {
                x: op.input(0)?,
                tables: [op.input(2)?, op.input(3)?],
                positions: Some(op.input(1)?),
                output: op.output(0)?,
                interleaved: op.is_interleaved(),
                heads: op.num_heads(),
                rotated: op.rotary_embedding_dim(),
            })
        };
        Some(call().ok_or_else(Miss::none))
    }
}

struct Expansion<'a, 'c> {
    write: Adopt<'a, 'c>,
    call: Call,
}

impl Expansion<'_, '_> {
    fn patch(mut self) -> Result<Patch, Miss> {
        let Call { x, tables, .. } = self.call;
        let flat = match self.write.rank(x)? {
            4 => false,
            3 => true,
            rank => return Err(Miss::at(x, 1, format!("its rank is {rank}"))),
        };
        let data = match flat {
            true => {
                let width = self.write.size(x, 2)?;
                let heads = self.heads(width)?;
                let size = self.write.head(width, heads)?;
                self.write.apart(x.into(), heads, size)
            }
            false => x.into(),
        };
        let length_axis = if flat { 1 } else { 2 };
        let [cos, sin] = [
            self.rows(tables[0], length_axis)?,
            self.rows(tables[1], length_axis)?,
        ];
        let mut attrs = Attrs::new().with("interleaved", i64::from(self.call.interleaved));
        if self.call.rotated != 0 {
            attrs.set("rotary_embedding_dim", self.call.rotated);
        }
        let op = Op::new(INTERNAL_DOMAIN, "RotaryEmbedding");
        let made = self.write.patch.node(op, [data, cos, sin], attrs);
        let made = match flat {
            true => self.write.together(made),
            false => made,
        };
        self.write.patch.replace(self.call.output, made);
        Ok(self.write.patch)
    }

    /// As many as are told, or as the tables leave: com.microsoft's rotates whole heads then.
    fn heads(&self, width: i64) -> Result<i64, Miss> {
        if let Some(heads) = self.call.heads {
            return Ok(heads);
        }
        let table = self.call.tables[0];
        let half = self.write.size(table, self.write.rank(table)? - 1)?;
        match half > 0 && self.call.rotated == 0 && width % (2 * half) == 0 {
            true => Ok(width / (2 * half)),
            false => Err(Miss::at(self.call.x, 1, "its heads are unknown")),
        }
    }

    /// A row of a table for each place: [batch or 1, length, rotated / 2].
    fn rows(&mut self, table: ValueId, length_axis: i64) -> Result<Ref, Miss> {
        let Some(positions) = self.call.positions else {
            return match self.write.rank(table)? {
                3 => Ok(table.into()),
                rank => Err(Miss::at(
                    table,
                    1,
                    format!("a table of rank {rank} needs positions"),
                )),
            };
        };
        let places = match self.write.rank(positions)? {
            2 => positions.into(),
            1 => self.counted(positions, length_axis),
            rank => return Err(Miss::at(positions, 1, format!("its rank is {rank}"))),
        };
        Ok(self
            .write
            .node("Gather", &[table.into(), places], Attrs::new()))
    }

    /// [1, length]: the places from the first one on.
    fn counted(&mut self, first: ValueId, length_axis: i64) -> Ref {
        let mut constant = |t: Tensor| self.write.patch.constant(t);
        let (zero, one, axis) = (
            constant(Tensor::scalar(0i64)),
            constant(Tensor::scalar(1i64)),
            constant(Tensor::vector(&[0i64])),
        );
        let span = (Attrs::new().with("start", length_axis)).with("end", length_axis + 1);
        let length = self.write.node("Shape", &[self.call.x.into()], span);
        let length = self.write.node("Squeeze", &[length, axis], Attrs::new());
        let places = self.write.node("Range", &[zero, length, one], Attrs::new());
        let places = self
            .write
            .node("Add", &[places, first.into()], Attrs::new());
        self.write.node("Unsqueeze", &[places, axis], Attrs::new())
    }
}
