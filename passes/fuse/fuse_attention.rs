//! Every spelling of scaled dot-product attention becomes `internal::Attention`.

use kiln_graph::infer::Expr;
use kiln_graph::{Attr, Attrs, DType, Graph, INTERNAL_DOMAIN, NodeId, Op, Tensor, ValueId, ops};

use crate::attention::keyless;
use crate::attention::scores::{self, Bias, Scores};
use crate::attention::weights::weighted;
use crate::expand::number;
use crate::mask::{self, Mask, Term};
use crate::pass::{Context, Exactness, Miss};
use crate::patch::{Patch, Ref};
use crate::rule::Rule;
use crate::view::View;

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
         softcap, guarded and keyless. Scales on the query, the keys and the product are multiplied into one. What is added to the \
         scores (masks, relative positions) is summed up. Keys are found behind any transposition, and behind the \
         repetition of grouped-query attention. torch's guard `Where(IsNaN(p), 0, p)` is dropped where the bias is finite, \
         so that no row can be NaN; elsewhere it is kept as the attribute `guarded`: a row whose keys are all hidden gives \
         zeros. What else becomes of such a row is the attribute `keyless`: `uniform` where a number is added that absorbs \
         the scores, `shifted` where one is that does not, `nan` where it is infinite."
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
        let rank = softmax
            .rank(0)
            .ok_or_else(|| Miss::at(x, 1, "its rank is unknown"))?;
        if ops::resolve_axis(softmax.axis(), rank) != Some(rank.wrapping_sub(1)) {
            return Err(Miss::because("it does not run over the last axis"));
        }
        let after = weighted(g, root)?;
        let before = scores::scores(g, x, 2)?;
        let dtype = g.value(before.q).ty().dtype();
        if dtype.is_none() || dtype != g.value(after.output).ty().dtype() {
            return Err(Miss::at(
                p,
                before.depth,
                "queries and result differ in type",
            ));
        }

        fits(cx, [before.q, before.kt, after.v, x], rank, before.depth)?;
        replaces_last(g, &before)?;

        let mut heads = Heads {
            g,
            cx,
            patch: Patch::new(),
            rank,
            depth: before.depth + 1,
            apart: None,
        };
        let q = heads.queries(before.q)?;
        let k = heads.keys(before.kt, true)?;
        let v = heads.keys(after.v, false)?;
        let masks = Masks::of(g, cx, &before);
        let causal = masks.only_causal(cx, before.q, before.kt);
        let bias = match causal {
            true => None,
            false => heads.bias(&before, dtype.unwrap_or(DType::F32))?,
        };
        let guarded = after.guarded && !finite(g, &before) && !masks.keep_a_key();
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

/// Scores that are replaced by a number are a bias only where nothing is added to that number afterwards, and where what
/// was added before hides nothing: a row that is hidden in parts by both would differ.
fn replaces_last(g: &Graph, scores: &Scores) -> Result<(), Miss> {
    let moderate = |b: &Bias| matches!(b, Bias::Selected { fill, .. } if *fill > ABSORBS);
    if !scores.biases.iter().any(moderate) {
        return Ok(());
    }
    let alone = scores.biases.split_last().is_some_and(|(last, before)| {
        moderate(last) && before.iter().all(|b| keyless::hides_nothing(g, *b))
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
/// alike: the operator knows none.
fn fits(
    cx: &Context<'_>,
    [q, kt, v, scores]: [ValueId; 4],
    rank: usize,
    depth: usize,
) -> Result<(), Miss> {
    if !(3..=4).contains(&rank) {
        let why = format!("the scores are of rank {rank}, not 3 or 4");
        return Err(Miss::at(scores, depth, why));
    }
    let dims = |v: ValueId| {
        let known = cx.facts.dims(v).filter(|d| d.len() == rank);
        known.ok_or_else(|| Miss::at(v, depth, "it is not known to be of the scores' rank"))
    };
    let (queries, keys, all) = (dims(q)?, dims(kt)?, dims(scores)?);
    let differ =
        |a: &Expr, b: &Expr| matches!((a.as_i64(), b.as_i64()), (Some(a), Some(b)) if a != b);
    for (v, others, mut axes) in [
        (kt, keys, 0..rank - 2),
        (v, dims(v)?, 0..rank - 2),
        (scores, all, 0..rank - 1),
    ] {
        if axes.any(|k| differ(&queries[k], &others[k])) {
            let why = "it broadcasts against the queries";
            return Err(Miss::at(v, depth, why));
        }
    }
    // A lowering that has to repeat keys or values wants to know how often.
    let unknown = |a: &Expr, b: &Expr| a != b && a.as_i64().is_some() != b.as_i64().is_some();
    for (v, others) in [(kt, keys), (v, dims(v)?)] {
        if rank == 4 && unknown(&queries[1], &others[1]) {
            return Err(Miss::at(v, depth, "its number of heads is unknown"));
        }
    }
    match differ(&keys[rank - 1], &all[rank - 1]) {
        true => Err(Miss::at(scores, depth, "a bias makes it larger")),
        false => Ok(()),
    }
}

/// What each of the biases hides, where that is understood.
struct Masks(Vec<Option<Mask>>);

impl Masks {
    fn of(g: &Graph, cx: &Context<'_>, scores: &Scores) -> Masks {
        let understood = |bias: &Bias| match *bias {
            Bias::Added(v) => mask::analyse_bias(g, &cx.facts, v).map(|(mask, _)| mask),
            Bias::Selected {
                condition,
                keeps_where: true,
                ..
            } => mask::analyse(g, &cx.facts, condition),
            Bias::Selected { condition, .. } => mask::analyse_hidden(g, &cx.facts, condition),
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
    let large = |b: &Bias| match b {
        Bias::Added(v) => !scores::is_finite(g, *v, 0),
        Bias::Selected { fill, .. } => fill.is_infinite(),
    };
    scores.biases.len() <= 1 && !scores.biases.iter().any(large)
}

/// Brings operands into the layout [batch, heads, sequence, head size].
struct Heads<'a, 'c> {
    g: &'a Graph,
    cx: &'a Context<'c>,
    patch: Patch,
    /// Of the scores: 4, or 3 for [batch · heads, queries, keys].
    rank: usize,
    depth: usize,
    /// Whether batch and heads were told apart where the scores have one dimension for both.
    apart: Option<bool>,
}

impl Heads<'_, '_> {
    fn view(&self, v: ValueId) -> Result<View, Miss> {
        let view = View::of(self.g, &self.cx.facts, v);
        view.ok_or_else(|| Miss::at(v, self.depth, "its shape is unknown"))
    }

    /// [batch · heads, …] as [batch, heads, …] where the view tells them apart, else as [batch · heads, 1, …].
    ///
    /// # Errors
    /// When the operands before were told apart and this is not, or the other way round.
    fn lift(&mut self, view: &mut View, v: ValueId) -> Result<(), Miss> {
        if self.rank == 3 && view.dims.len() == 3 {
            let apart = view.dims[0].len() == 2;
            if *self.apart.get_or_insert(apart) != apart {
                let why = "its heads are not told apart as those of the queries are";
                return Err(Miss::at(v, self.depth, why));
            }
            let second = match apart {
                true => view.dims[0].split_off(1),
                false => Vec::new(),
            };
            view.dims.insert(1, second);
        }
        Ok(())
    }

    fn emit(&mut self, view: &View, v: ValueId) -> Result<Ref, Miss> {
        let made = view.emit(self.g, &mut self.patch);
        let why = "its layout would have to be computed";
        Ok(made.ok_or_else(|| Miss::at(v, self.depth, why))?.0)
    }

    fn queries(&mut self, q: ValueId) -> Result<Ref, Miss> {
        if self.rank == 4 {
            return Ok(q.into());
        }
        let mut view = self.view(q)?;
        self.lift(&mut view, q)?;
        self.emit(&view, q)
    }

    /// Keys, with their last two axes exchanged if `turned`, or values.
    fn keys(&mut self, v: ValueId, turned: bool) -> Result<Ref, Miss> {
        let Ok(mut view) = self.view(v) else {
            let perm = Attrs::new().with("perm", vec![0i64, 1, 3, 2]);
            return match (self.rank, turned) {
                (4, true) => Ok(self.patch.node(Op::onnx("Transpose"), [v.into()], perm)),
                (4, false) => Ok(v.into()),
                _ => Err(Miss::at(v, self.depth, "its shape is unknown")),
            };
        };
        self.lift(&mut view, v)?;
        if turned {
            view = view.with_last_two_swapped().ok_or_else(Miss::none)?;
        }
        if let Some((inner, _)) = view.unrepeated(self.g, &self.cx.facts, 1) {
            view = inner;
        } else if self.rank == 4 {
            let perm = Attrs::new().with("perm", vec![0i64, 1, 3, 2]);
            return Ok(match turned {
                true => self.patch.node(Op::onnx("Transpose"), [v.into()], perm),
                false => v.into(),
            });
        }
        self.emit(&view, v)
    }

    /// All that is added, as one value that broadcasts to [batch, heads, queries, keys].
    fn bias(&mut self, scores: &Scores, dtype: DType) -> Result<Option<Ref>, Miss> {
        let mut sum: Option<Ref> = None;
        for bias in &scores.biases {
            let term = self.term(*bias, dtype)?;
            sum = Some(match sum {
                None => term,
                Some(sum) => self.patch.node(Op::onnx("Add"), [sum, term], Attrs::new()),
            });
        }
        Ok(sum)
    }

    fn term(&mut self, bias: Bias, dtype: DType) -> Result<Ref, Miss> {
        let g = self.g;
        let lifted = |patch: &mut Patch, v: ValueId| -> Result<Ref, Miss> {
            let shape = g.value(v).ty().shape();
            let shape =
                shape.ok_or_else(|| Miss::at(v, self.depth, "the rank of the bias is unknown"))?;
            if self.rank != 3 || shape.len() < 3 {
                return Ok(v.into());
            }
            if shape.first().and_then(|d| d.known()) != Some(1) {
                return Err(Miss::at(v, self.depth, "the bias has flattened heads"));
            }
            let axes = patch.constant(Tensor::vector(&[1i64]));
            Ok(patch.node(Op::onnx("Unsqueeze"), [v.into(), axes], Attrs::new()))
        };
        match bias {
            Bias::Added(v) => {
                let added = lifted(&mut self.patch, v)?;
                let ty = g.value(v).ty().dtype();
                Ok(match ty == Some(dtype) {
                    true => added,
                    false => {
                        let to = Attrs::new().with("to", i64::from(dtype.to_onnx()));
                        self.patch.node(Op::onnx("Cast"), [added], to)
                    }
                })
            }
            Bias::Selected {
                condition,
                keeps_where,
                fill,
            } => {
                let condition = lifted(&mut self.patch, condition)?;
                let number =
                    |v: f64| number(v, Some(dtype)).unwrap_or_else(|| Tensor::scalar(v as f32));
                let zero = self.patch.constant(number(0.0));
                let fill = self.patch.constant(number(keyless::replaced(fill, dtype)));
                let branches = if keeps_where {
                    [zero, fill]
                } else {
                    [fill, zero]
                };
                let inputs = [condition, branches[0], branches[1]];
                Ok(self.patch.node(Op::onnx("Where"), inputs, Attrs::new()))
            }
        }
    }

    /// The result in the layout of the product it replaces.
    fn result(&mut self, made: Ref, v: ValueId, q: ValueId) -> Result<Ref, Miss> {
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
