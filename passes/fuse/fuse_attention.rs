//! Every spelling of scaled dot-product attention becomes `internal::Attention`.

use kiln_graph::infer::Expr;
use kiln_graph::{Attr, Attrs, DType, Graph, INTERNAL_DOMAIN, NodeId, Op, ValueId, ops};

use super::attention_heads::Heads;
use crate::analysis::attention::keyless;
use crate::analysis::attention::scores::{self, Addend, Bias, HIDES, Scores};
use crate::analysis::attention::weights::{Zeroed, weighted};
use crate::analysis::mask::{self, Mask, Term};
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

/// Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1; grouped queries: Ainslie et al., "GQA", 2023.
#[derive(Debug)]
pub struct FuseAttention;

impl Rule for FuseAttention {
    fn name(&self) -> &'static str {
        "fuse-attention"
    }

    fn about(&self) -> &'static str {
        "MatMul-Softmax-MatMul in all its spellings becomes one attention, which each target writes its own way"
    }

    fn details(&self) -> String {
        "softmax(cap(scale · q kᵀ) + bias) v becomes `internal::Attention(q, k, v, bias)` with the attributes scale, \
         softcap, guarded and keyless. Scales on the query, the keys and the product are multiplied into one. What is \
         added to the scores (masks, relative positions) is summed up. Keys are found behind any transposition, and \
         behind the repetition of grouped-query attention. Batch and heads may be one dimension. torch's guard \
         `Where(IsNaN(p), 0, p)` is dropped where the bias is finite, so that no row can be NaN; elsewhere it is kept as \
         the attribute `guarded`: a row whose keys are all hidden gives zeros. What else becomes of such a row is the \
         attribute `keyless`: `uniform` where a number is added that absorbs the scores, `shifted` where one is that does \
         not. Probabilities that become 0 where their keys are hidden make that mask infinite, and the attention guarded; where a target \
         computes them between the products for nothing, they stay. Infinite numbers make the row NaN in every format. Attention whose scores or probabilities are quantized \
         stays: one operator would drop that rounding, with which the model was judged, and TensorRT fuses the parts by \
         itself where it can."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        18
    }

    fn roots(&self) -> &[&'static str] {
        &["Softmax"]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let softmax = ops::Softmax::of(g, root).ok_or_else(Miss::none)?;
        let (Some(x), Some(p)) = (softmax.input(0), softmax.output(0)) else {
            return Err(Miss::none());
        };
        let axes = softmax
            .rank(0)
            .ok_or_else(|| Miss::at(x, 1, "its rank is unknown"))?;
        if ops::resolve_axis(softmax.axis(), axes) != Some(axes.wrapping_sub(1)) {
            return Err(Miss::because("it does not run over the last axis"));
        }
        let after = weighted(g, &cx.facts, root)?;
        let mut before = scores::scores(g, &cx.facts, x, 2)?;
        let dtype = g.value(before.q).ty().dtype();
        if dtype.is_none() || dtype != g.value(after.output).ty().dtype() {
            return Err(Miss::at(
                p,
                before.depth,
                "queries and result differ in type",
            ));
        }

        let zeroed = after.zeroed.is_some();
        if let Some(zeroed) = after.zeroed {
            if cx.target.facts.joins_attention {
                let why = "the target computes what zeroes its probabilities between its products";
                return Err(Miss::at(zeroed.condition, 1, why));
            }
            hides_for_good(g, cx, &mut before, zeroed)?;
        }
        fits(cx, &before, after.v)?;
        replaces_last(g, &before)?;

        let mut heads = Heads::of(g, cx, &before, after.v)?;
        let q = heads.queries(before.q)?;
        let k = heads.keys(before.kt, true)?;
        let v = heads.keys(after.v, false)?;
        let masks = Masks::of(g, cx, &before);
        let causal = masks.only_causal(cx, before.q, before.kt);
        let bias = match causal {
            true => None,
            false => heads.bias(&before, dtype.unwrap_or(DType::F32))?,
        };
        let guarded = (after.guarded || zeroed) && !finite(g, &before) && !masks.keep_a_key();
        let mut attrs = Attrs::new().with("scale", before.scale as f32);
        if causal {
            attrs.set("is_causal", 1i64);
        }
        if guarded {
            attrs.set("guarded", 1i64);
        }
        let keyless = match causal || masks.keep_a_key() {
            true => None,
            false => keyless::keyless(g, &before.biases, dtype.unwrap_or(DType::F32), guarded),
        };
        if let Some(keyless) = keyless {
            attrs.set("keyless", Attr::Str(keyless.name().into()));
        }
        if let Some(kind) = masks.kind() {
            attrs.set("mask", Attr::Str(kind.into_bytes().into()));
        }
        if before.softcap != 0.0 {
            attrs.set("softcap", before.softcap as f32);
        }
        let inputs = [Some(q), Some(k), Some(v)]
            .into_iter()
            .chain(bias.map(Some));
        let op = Op::new(INTERNAL_DOMAIN, "Attention");
        let made = heads.patch.node_with(op, inputs, 1, attrs)[0];
        let made = heads.result(made, after.v, before.q)?;
        let mut patch = heads.patch;
        patch.replace(after.output, made);
        Ok(patch)
    }
}

/// Makes the mask of keys whose probabilities become 0 one of infinite numbers: their exponentials are 0 before they are
/// replaced, and a row of them gives zeros.
fn hides_for_good(
    g: &Graph,
    cx: &Context<'_>,
    scores: &mut Scores,
    zeroed: Zeroed,
) -> Result<(), Miss> {
    let condition = |bias: Bias| match bias {
        Bias::Added(v) => mask::analyse_bias(g, &cx.facts, v)
            .filter(|(_, hidden)| *hidden <= HIDES)
            .map(|(mask, _)| mask),
        Bias::Selected {
            condition,
            keeps_where,
            ..
        } => analysed(g, cx, condition, keeps_where),
    };
    let kept = analysed(g, cx, zeroed.condition, zeroed.keeps_where);
    let same = |b: &Addend| {
        let selects = matches!(b.bias, Bias::Selected { condition, keeps_where, .. }
            if condition == zeroed.condition && keeps_where == zeroed.keeps_where);
        b.rank == zeroed.rank && (selects || kept.is_some() && condition(b.bias) == kept)
    };
    let mut found = scores.biases.iter().enumerate().filter(|(_, b)| same(b));
    let (Some((k, _)), None) = (found.next(), found.next()) else {
        let why = "what zeroes its probabilities is not what hides its keys";
        return Err(Miss::at(zeroed.condition, 1, why));
    };
    let others = || scores.biases.iter().enumerate().filter(|(n, _)| *n != k);
    if !others().all(|(_, b)| keyless::hides_nothing(g, b.bias)) {
        let why = "more hides its keys than what zeroes its probabilities";
        return Err(Miss::at(zeroed.condition, 1, why));
    }
    scores.biases[k].bias = Bias::Selected {
        condition: zeroed.condition,
        keeps_where: zeroed.keeps_where,
        fill: f64::NEG_INFINITY,
    };
    Ok(())
}

fn analysed(g: &Graph, cx: &Context<'_>, condition: ValueId, keeps_where: bool) -> Option<Mask> {
    match keeps_where {
        true => mask::analyse(g, &cx.facts, condition),
        false => mask::analyse_hidden(g, &cx.facts, condition),
    }
}

/// Scores that are replaced by a number are a bias only where nothing is added to that number afterwards, and where what
/// was added before hides nothing: a row that is hidden in parts by both would differ.
fn replaces_last(g: &Graph, scores: &Scores) -> Result<(), Miss> {
    let moderate = |b: &Addend| matches!(b.bias, Bias::Selected { fill, .. } if fill > ABSORBS);
    if !scores.biases.iter().any(moderate) {
        return Ok(());
    }
    let alone = scores.biases.split_last().is_some_and(|(last, before)| {
        moderate(last) && before.iter().all(|b| keyless::hides_nothing(g, b.bias))
    });
    match alone {
        true => Ok(()),
        false => Err(Miss::because(
            "what replaces hidden scores is not low enough for the masks beside it",
        )),
    }
}

/// Added to a score of ordinary size, a number below this is that number in FP32.
const ABSORBS: f64 = -1e30;

/// Whether queries, turned keys and values are of the scores' rank, and of batches and heads that no broadcast has to make
/// alike: the operator knows none, but for one head of keys and values that all queries share.
fn fits(cx: &Context<'_>, before: &Scores, v: ValueId) -> Result<(), Miss> {
    let (q, kt, depth) = (before.q, before.kt, before.depth);
    let rank = cx.facts.dims(q).map_or(0, <[Expr]>::len);
    if !(3..=4).contains(&rank) {
        let why = format!("the scores are of rank {rank}, not 3 or 4");
        return Err(Miss::at(q, depth, why));
    }
    let dims = |v: ValueId| {
        let known = cx.facts.dims(v).filter(|d| d.len() == rank);
        known.ok_or_else(|| Miss::at(v, depth, "it is not known to be of the scores' rank"))
    };
    let (queries, keys, values) = (dims(q)?, dims(kt)?, dims(v)?);
    let one = |d: &[Expr]| rank == 4 && d[1].as_i64() == Some(1);
    let shared = one(keys) && one(values) && queries[1].as_i64().is_some();
    for (v, others) in [(kt, keys), (v, values)] {
        let mut axes = (0..rank - 2).filter(|&k| !(shared && k == 1));
        if axes.any(|k| differ(&queries[k], &others[k])) {
            let why = "it broadcasts against the queries";
            return Err(Miss::at(v, depth, why));
        }
    }
    // A lowering that has to repeat keys or values wants to know how often.
    let unknown = |a: &Expr, b: &Expr| a != b && a.as_i64().is_some() != b.as_i64().is_some();
    for (v, others) in [(kt, keys), (v, values)] {
        if rank == 4 && unknown(&queries[1], &others[1]) {
            return Err(Miss::at(v, depth, "its number of heads is unknown"));
        }
    }
    before
        .stretches
        .iter()
        .try_for_each(|&ends| grows(cx, ends, depth))
}

/// Whether a size is known to be another one.
fn differ(a: &Expr, b: &Expr) -> bool {
    matches!((a.as_i64(), b.as_i64()), (Some(a), Some(b)) if a != b)
}

/// Whether something that is added makes the scores larger.
fn grows(cx: &Context<'_>, [start, end]: [ValueId; 2], depth: usize) -> Result<(), Miss> {
    let dims = |v: ValueId| {
        let known = cx.facts.dims(v);
        known.ok_or_else(|| Miss::at(v, depth, "its shape is unknown"))
    };
    let (from, to) = (dims(start)?, dims(end)?);
    match from.len() != to.len() || from.iter().zip(to).any(|(a, b)| differ(a, b)) {
        true => Err(Miss::at(end, depth, "a bias makes it larger")),
        false => Ok(()),
    }
}

/// What each of the biases hides, where that is understood.
struct Masks(Vec<Option<Mask>>);

impl Masks {
    fn of(g: &Graph, cx: &Context<'_>, scores: &Scores) -> Masks {
        let understood = |added: &Addend| match added.bias {
            Bias::Added(v) => mask::analyse_bias(g, &cx.facts, v).map(|(mask, _)| mask),
            Bias::Selected {
                condition,
                keeps_where,
                ..
            } => analysed(g, cx, condition, keeps_where),
        };
        Masks(scores.biases.iter().map(understood).collect())
    }

    /// Whether the only bias hides the keys after each query and nothing else, over as many keys as queries: no row is
    /// hidden as a whole, so that it does not matter what hidden scores become.
    fn only_causal(&self, cx: &Context<'_>, q: ValueId, kt: ValueId) -> bool {
        let [Some(mask)] = self.0.as_slice() else {
            return false;
        };
        let queries = cx
            .facts
            .dims(q)
            .and_then(|d| d.get(d.len().checked_sub(2)?));
        let keys = cx.facts.dims(kt).and_then(|d| d.last());
        mask.terms == [Term::Causal { offset: 0 }]
            && queries == Some(&mask.queries)
            && keys == Some(&mask.keys)
            && queries == keys
    }

    /// Whether each query is left a key for certain.
    fn keep_a_key(&self) -> bool {
        match self.0.as_slice() {
            [] => true,
            [Some(mask)] => mask::never_hides_a_whole_row(mask),
            _ => false,
        }
    }

    /// In words, for reports: `causal+padding`; `None` without a bias.
    fn kind(&self) -> Option<String> {
        let mut words: Vec<&str> = Vec::new();
        for mask in &self.0 {
            let terms = mask.as_ref().map_or(&[] as &[Term], |m| &m.terms);
            let mut said = terms.iter().map(|term| match term {
                Term::Padding { .. } => "padding",
                Term::Causal { .. } => "causal",
                Term::Window { .. } => "window",
                Term::Other(_) => "condition",
            });
            match mask.is_some() {
                true => words.extend(&mut said),
                false => words.push("bias"),
            }
        }
        words.sort_unstable();
        words.dedup();
        (!words.is_empty()).then(|| words.join("+"))
    }
}

/// Whether no sum of biases can hide a whole row so that its softmax is NaN: each is finite, and at most one is large.
fn finite(g: &Graph, scores: &Scores) -> bool {
    let large = |b: &Addend| match b.bias {
        Bias::Added(v) => !scores::is_finite(g, v, 0),
        Bias::Selected { fill, .. } => fill.is_infinite(),
    };
    scores.biases.len() <= 1 && !scores.biases.iter().any(large)
}
