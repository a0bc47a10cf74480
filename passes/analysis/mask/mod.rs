//! What an attention mask hides, whatever way an exporter spells it.
//!
//! transformers computes `mask[b, k]` through index arithmetic, which TorchScript writes as a Gather from the flattened
//! mask at `k + b·T`, and dynamo as a GatherND over expanded coordinates; around it are conjunctions with `True`, with
//! `q >= 0`, with `k <= q` (causal) and with `|q - k| <= w` (a sliding window). Older exports slice a triangular
//! constant. None of them is a pattern worth writing down, but all are functions of the coordinates. So the analysis is
//! an abstract interpreter: it asks what the element at `[b, h, q, k]` is and follows the nodes with expressions
//! instead of numbers ([`reader`]). What is left is a conjunction of [`Term`]s.
//!
//! All answers hold for every size. Work is bounded: a fixed number of nodes is read for one condition, and a
//! condition that grows beyond a fixed size counts as not understood.

mod affine;
mod arith;
mod constant;
mod element;
mod moved;
mod reader;
pub mod spell;
#[cfg(test)]
mod tests;

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{DType, Graph, ValueId};

use self::affine::{AXES, Affine, BATCH, KEY, QUERY, Space};
use self::element::{Cond, Element, Load};
use self::reader::Reader;

/// Operands of nested conjunctions that are looked at one by one.
const MAX_SEEN: usize = 32;

/// What a condition over `[B, H, Q, K]` keeps: the keys at which all terms hold. Without terms it keeps every key.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    pub terms: Vec<Term>,
    /// The condition's own number of queries, 1 where it broadcasts over them.
    pub queries: Expr,
    /// The condition's own number of keys, 1 where it broadcasts over them.
    pub keys: Expr,
}

/// One reason to keep a key: of query `q` in batch row `b`, the key `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// Where `value[b, k]` is not 0 (or `true`): a value of any dtype of `[B, K]` or `[B, 1, 1, K]`, whose B may be 1.
    Padding { value: ValueId },
    /// `k <= q + offset`.
    Causal { offset: i64 },
    /// `q - left <= k <= q + right`; `right` is `i64::MAX` where only the past is cut off. Negative bounds are allowed.
    Window { left: i64, right: i64 },
    /// Where this bool value holds, of which nothing is known; it broadcasts to the condition's dimensions.
    Other(ValueId),
}

impl Mask {
    /// Whether nothing in it is [`Term::Other`].
    pub fn is_understood(&self) -> bool {
        !self.terms.iter().any(|t| matches!(t, Term::Other(_)))
    }
}

/// What a bool condition of rank 2 to 4, aligned at the right to `[B, H, Q, K]`, keeps where it is `true`.
///
/// Coordinates are those of the condition itself: a term that speaks of `q` means the scores' queries only if the
/// condition has as many of them ([`Mask::queries`]). `None` for values that are no such condition. `facts` must be of
/// this graph as it is.
pub fn analyse(g: &Graph, facts: &Facts, cond: ValueId) -> Option<Mask> {
    Conjunction::of(g, facts, cond, true)
}

/// What a bool condition keeps where it is `false`, as in `Where(hidden, -inf, scores)`. `None` as for [`analyse`], and
/// where a part is not understood: no value of the graph says its negation.
pub fn analyse_hidden(g: &Graph, facts: &Facts, cond: ValueId) -> Option<Mask> {
    Conjunction::of(g, facts, cond, false)
}

/// What a float value of rank 2 to 4 keeps when it is added to scores: it is 0 where the mask keeps, and the number
/// given, which is negative, elsewhere. `None` for any other value.
pub fn analyse_bias(g: &Graph, facts: &Facts, bias: ValueId) -> Option<(Mask, f64)> {
    let reader = reader(g, facts, bias)?;
    let Element::Select(choice) = reader.element(bias, &coordinates(&reader, bias)?) else {
        return None;
    };
    let (kept, hidden) = match (&choice.1, &choice.2) {
        (Element::Real(x), Element::Real(y)) if *x == 0.0 && *y < 0.0 => (choice.0, *y),
        (Element::Real(x), Element::Real(y)) if *y == 0.0 && *x < 0.0 => (choice.0.not()?, *x),
        _ => return None,
    };
    let mut all = Conjunction::default();
    all.understand(&reader, &kept).then_some(())?;
    Some((all.finish(&reader), hidden))
}

/// Whether each query keeps at least one key for certain, provided there are keys: then no softmax is over a row that
/// is hidden as a whole.
///
/// `k <= q + offset` with an offset of at least 0 keeps key 0 for every query. A window with bounds of at least 0
/// keeps key `q`, if there is one: it is asked for `Q <= K + left`, as query `q` past the last key still keeps key
/// `K - 1` while `q - left <= K - 1`. Padding comes from outside and may hide anything.
pub fn never_hides_a_whole_row(mask: &Mask) -> bool {
    let reaches_a_key = |left: i64| {
        let reach = mask.keys.add(&Expr::from(left));
        reach
            .and_then(|r| r.sub(&mask.queries))
            .is_some_and(|d| d.is_nonnegative())
    };
    match mask.terms.as_slice() {
        [] => true,
        [Term::Causal { offset }] => *offset >= 0,
        [Term::Window { left, right }] => *left >= 0 && *right >= 0 && reaches_a_key(*left),
        _ => false,
    }
}

fn reader<'a>(g: &'a Graph, facts: &'a Facts, value: ValueId) -> Option<Reader<'a>> {
    let dims = facts
        .dims(value)
        .filter(|d| (2..=AXES).contains(&d.len()))?;
    let skip = AXES - dims.len();
    let size = |axis: usize| match axis.checked_sub(skip).and_then(|k| dims.get(k)) {
        Some(size) => size.clone(),
        None => Expr::from(1),
    };
    let sizes = std::array::from_fn(size);
    Some(Reader::new(g, facts, Space { sizes }))
}

/// The coordinates of an element of a value that broadcasts to what the reader is for.
fn coordinates(reader: &Reader<'_>, value: ValueId) -> Option<Vec<Affine>> {
    let whole: [Affine; AXES] =
        std::array::from_fn(|axis| match reader.space.sizes[axis].as_i64() {
            Some(1) => Affine::from(0),
            _ => Affine::coordinate(axis),
        });
    reader.broadcast(reader.dims(value)?, &reader.space.sizes, &whole)
}

/// Terms as they are found; bounds on `k - q` are held apart until all are known.
#[derive(Default)]
struct Conjunction {
    /// Values looked at so far.
    seen: usize,
    values: Vec<Term>,
    left: Option<i64>,
    right: Option<i64>,
}

impl Conjunction {
    fn of(g: &Graph, facts: &Facts, cond: ValueId, keeps: bool) -> Option<Mask> {
        if facts.ty(cond).dtype() != Some(DType::Bool) {
            return None;
        }
        let reader = reader(g, facts, cond)?;
        let mut all = Conjunction::default();
        all.collect(&reader, cond, keeps)?;
        Some(all.finish(&reader))
    }

    /// Takes in a condition as a whole, or the parts of a conjunction one by one, so that a part that is not
    /// understood does not spoil the others.
    fn collect(&mut self, reader: &Reader<'_>, value: ValueId, keeps: bool) -> Option<()> {
        self.seen += 1;
        let at = coordinates(reader, value)?;
        let cond = reader.truth(value, &at);
        let cond = cond.and_then(|c| if keeps { Some(c) } else { c.not() });
        if cond.is_some_and(|c| self.understand(reader, &c)) {
            return Some(());
        }
        let (g, joins) = (reader.g, if keeps { "And" } else { "Or" });
        let parts = |op: &str| g.producer_if(value, op).map(|n| g.node(n).inputs());
        let nested = match (parts(joins), parts("Not"), parts("Expand")) {
            (Some([Some(a), Some(b)]), ..) => Some((vec![*a, *b], keeps)),
            (_, Some([Some(x)]), _) => Some((vec![*x], !keeps)),
            (_, _, Some([Some(x), ..])) => Some((vec![*x], keeps)),
            _ => None,
        };
        if let Some((nested, keeps)) = nested
            && self.seen < MAX_SEEN
        {
            let before = (self.values.clone(), self.left, self.right);
            if nested
                .iter()
                .try_for_each(|&v| self.collect(reader, v, keeps))
                .is_some()
            {
                return Some(());
            }
            (self.values, self.left, self.right) = before;
        }
        self.push(keeps.then_some(Term::Other(value))?);
        Some(())
    }

    /// Takes in all parts of a condition; `false`, and nothing taken, if one is of another kind.
    fn understand(&mut self, reader: &Reader<'_>, cond: &Cond) -> bool {
        let parts = match cond {
            Cond::Const(true) => &[],
            Cond::All(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        let found: Option<Vec<Part>> = parts.iter().map(|c| Part::of(reader, c)).collect();
        let Some(found) = found else { return false };
        for part in found {
            match part {
                Part::Keep(term) => self.push(term),
                Part::Left(n) => self.left = Some(self.left.map_or(n, |l| l.min(n))),
                Part::Right(n) => self.right = Some(self.right.map_or(n, |r| r.min(n))),
            }
        }
        true
    }

    fn push(&mut self, term: Term) {
        if !self.values.contains(&term) {
            self.values.push(term);
        }
    }

    fn finish(self, reader: &Reader<'_>) -> Mask {
        let band = match (self.left, self.right) {
            (None, None) => None,
            (None, Some(offset)) => Some(Term::Causal { offset }),
            (Some(left), right) => Some(Term::Window {
                left,
                right: right.unwrap_or(i64::MAX),
            }),
        };
        Mask {
            terms: band.into_iter().chain(self.values).collect(),
            queries: reader.space.sizes[QUERY].clone(),
            keys: reader.space.sizes[KEY].clone(),
        }
    }
}

/// A part of a conjunction.
enum Part {
    Keep(Term),
    /// `k >= q - left`.
    Left(i64),
    /// `k <= q + right`.
    Right(i64),
}

impl Part {
    fn of(reader: &Reader<'_>, cond: &Cond) -> Option<Part> {
        match cond {
            Cond::AtMostZero(a) => {
                let bound = a.constant().as_i64()?.checked_neg()?;
                let coeffs: Vec<i64> =
                    (0..AXES).map(|axis| a.coeff(axis)).collect::<Option<_>>()?;
                match coeffs.as_slice() {
                    [0, 0, -1, 1] => Some(Part::Right(bound)),
                    [0, 0, 1, -1] => Some(Part::Left(bound)),
                    _ => None,
                }
            }
            Cond::NonZero(load) => padding(reader, load).map(Part::Keep),
            _ => None,
        }
    }
}

/// A read of `[b, k]` or `[b, 0, 0, k]` from a value of exactly those sizes.
fn padding(reader: &Reader<'_>, load: &Load) -> Option<Term> {
    let dims = reader.dims(load.value)?;
    let axes: &[Option<usize>] = match dims.len() {
        2 => &[Some(BATCH), Some(KEY)],
        4 => &[Some(BATCH), None, None, Some(KEY)],
        _ => return None,
    };
    let fits = |((axis, at), dim): ((&Option<usize>, &Affine), &Expr)| {
        let one = dim.as_i64() == Some(1) && at.as_i64() == Some(0);
        let whole = axis.is_some_and(|axis| {
            *at == Affine::coordinate(axis) && *dim == reader.space.sizes[axis]
        });
        // Which key it is must be told by the value itself.
        one && *axis != Some(KEY) || whole
    };
    let mut all = axes.iter().zip(&load.index).zip(dims);
    all.all(fits).then_some(Term::Padding { value: load.value })
}
