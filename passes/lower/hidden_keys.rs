//! What is added to the scores, written so that nothing of their size is computed outside the kernel that joins them.

use kiln_graph::ops::Keyless;
use kiln_graph::{Attrs, Graph, Tensor, ValueId};

use super::attention_words::Lower;
use crate::analysis::attention::scores::HIDES;
use crate::core::patch::Ref;

/// A bias that is one number where a key is hidden, and 0 or what else is added where it is seen.
#[derive(Clone, Copy, Debug)]
struct Selection {
    condition: ValueId,
    keeps_where: bool,
    fill: ValueId,
    /// What else is added.
    rest: Option<ValueId>,
}

impl Selection {
    fn of(g: &Graph, bias: ValueId) -> Option<Selection> {
        Selection::alone(g, bias).or_else(|| {
            let sum = g.node(g.producer_if(bias, "Add")?);
            let (a, b) = (sum.input(0)?, sum.input(1)?);
            let beside = |mask: ValueId, rest: ValueId| {
                let found = Selection::alone(g, mask).filter(|m| m.rest.is_none())?;
                let rest = Some(rest);
                Some(Selection { rest, ..found })
            };
            beside(a, b).or_else(|| beside(b, a))
        })
    }

    fn alone(g: &Graph, bias: ValueId) -> Option<Selection> {
        let node = g.node(g.producer_if(bias, "Where")?);
        let (condition, yes, no) = (node.input(0)?, node.input(1)?, node.input(2)?);
        let number = |v: ValueId| g.constant(v).and_then(Tensor::as_f64);
        let hides = |v: ValueId| number(v).is_some_and(|n| n <= HIDES);
        // What is added where a key is seen needs no mask written into it, which is one for each row of a batch.
        let (keeps_where, shown, fill) = match (hides(yes), hides(no)) {
            (false, true) => (true, yes, no),
            (true, false) => (false, no, yes),
            _ => return None,
        };
        Some(Selection {
            condition,
            keeps_where,
            fill,
            rest: Some(shown).filter(|&v| number(v) != Some(0.0)),
        })
    }
}

impl Lower<'_, '_> {
    /// The scores with the bias. A mask selects instead of being added, where nothing is written between the products: its
    /// condition has half the bytes or less, and TensorRT for RTX 1.7.1 makes seven kernels of a mask of 0 and -∞ that is added.
    pub(super) fn biased(&mut self, scores: Ref) -> Ref {
        let Some(bias) = self.attention.bias() else {
            return scores;
        };
        let selects = self.cx.target.facts.joins_attention
            // The number itself counts.
            && self.attention.keyless() != Some(Keyless::Shifted);
        let Some(mask) = Selection::of(self.g, bias).filter(|_| selects) else {
            let bias = self.shifted(bias);
            let scores = self.node("Add", &[scores, bias], Attrs::new());
            return self.levelled(scores);
        };
        let shown = match mask.rest {
            Some(rest) => self.node("Add", &[scores, rest.into()], Attrs::new()),
            None => scores,
        };
        let (condition, fill) = (mask.condition.into(), mask.fill.into());
        let branches = match mask.keeps_where {
            true => [condition, shown, fill],
            false => [condition, fill, shown],
        };
        let scores = self.node("Where", &branches, Attrs::new());
        match mask.rest {
            Some(_) => self.levelled(scores),
            None => scores,
        }
    }
}
