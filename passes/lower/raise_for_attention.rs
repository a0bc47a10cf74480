//! Raises the model's operator set to that of ONNX's Attention, where it has one to write.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Graph, Model, opset};

use super::standard_attention::{self, SINCE};
use crate::core::kernels;
use crate::core::pass::{Context, Exactness, Pass, PassFailure};
use crate::core::target::{AttentionForm, Target};

#[derive(Debug)]
pub struct RaiseForAttention;

impl Pass for RaiseForAttention {
    fn name(&self) -> &'static str {
        "raise-for-attention"
    }

    fn about(&self) -> &'static str {
        "raise the ONNX operator set to that of Attention, where the model has one that becomes it"
    }

    fn details(&self) -> String {
        "ONNX has Attention from operator set 23 on. Models without heads that share keys and without caches are not raised \
         beyond what the target wants: older runtimes take them then."
            .into()
    }

    fn exactness(&self) -> Exactness {
        // By itself it changes no bit; the operator that it is for rounds in another order.
        Exactness::Rounding
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let from = model.graph.opset();
        let mut wanted = false;
        model
            .graph
            .for_each_graph(&mut |g| wanted |= wants_attention(g, cx.target));
        let to = kernels::newest_run(model, from, SINCE);
        let raises = wanted && from < SINCE && to == SINCE;
        if !raises || !cx.admit(self.name(), || format!("operator set {from} to {to}")) {
            return Ok(0);
        }
        Ok(opset::convert(model, to)?.nodes.max(1))
    }
}

fn wants_attention(g: &Graph, target: &Target) -> bool {
    g.nodes().any(|(id, _)| {
        InternalAttention::of(g, id).is_some_and(|attention| {
            let dtype = attention.input(0).and_then(|q| g.value(q).ty().dtype());
            let facts = target.facts;
            dtype.is_some_and(|d| {
                facts.attention_over(d) == AttentionForm::Standard
                    || facts.standard_attention.contains(&d)
                        && standard_attention::wanted(g, &attention)
            })
        })
    })
}
