//! What one element of a value is, as an expression of its coordinates.

use kiln_graph::ValueId;
use smallvec::SmallVec;

use super::affine::Affine;

/// The largest condition that is kept, in comparisons and reads.
pub(super) const MAX_WEIGHT: usize = 128;

/// An element of a value of which nothing else is known.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Load {
    pub value: ValueId,
    pub index: SmallVec<[Affine; 4]>,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Element {
    Whole(Affine),
    /// A float constant; FP16 and FP32 ones are held exactly.
    Real(f64),
    Truth(Cond),
    /// The first where the condition holds, else the second.
    Select(Box<(Cond, Element, Element)>),
    Max(Vec<Affine>),
    Min(Vec<Affine>),
    Load(Load),
}

/// A condition in negation normal form.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Cond {
    Const(bool),
    /// It is not above 0.
    AtMostZero(Affine),
    NonZero(Load),
    Zero(Load),
    All(Vec<Cond>),
    Any(Vec<Cond>),
}

impl Cond {
    /// How many comparisons and reads it is made of.
    pub fn weight(&self) -> usize {
        match self {
            Cond::All(parts) | Cond::Any(parts) => {
                1 + parts.iter().map(Cond::weight).sum::<usize>()
            }
            _ => 1,
        }
    }

    pub fn not(&self) -> Option<Cond> {
        let each = |parts: &[Cond]| parts.iter().map(Cond::not).collect::<Option<Vec<_>>>();
        Some(match self {
            Cond::Const(b) => Cond::Const(!b),
            // a > 0 is 1 - a <= 0, of whole numbers.
            Cond::AtMostZero(a) => Cond::AtMostZero(Affine::from(1).sub(a)?),
            Cond::NonZero(load) => Cond::Zero(load.clone()),
            Cond::Zero(load) => Cond::NonZero(load.clone()),
            Cond::All(parts) => Cond::Any(each(parts)?),
            Cond::Any(parts) => Cond::All(each(parts)?),
        })
    }

    /// All of them hold; `None` where that grows too large.
    pub fn all(parts: impl IntoIterator<Item = Cond>) -> Option<Cond> {
        join(parts, true)
    }

    /// One of them holds; `None` where that grows too large.
    pub fn any(parts: impl IntoIterator<Item = Cond>) -> Option<Cond> {
        join(parts, false)
    }
}

fn join(parts: impl IntoIterator<Item = Cond>, all: bool) -> Option<Cond> {
    let mut kept: Vec<Cond> = Vec::new();
    for part in parts {
        let nested = match part {
            Cond::All(nested) if all => nested,
            Cond::Any(nested) if !all => nested,
            // True changes no conjunction and decides any disjunction, and the other way around.
            Cond::Const(b) if b == all => continue,
            Cond::Const(b) => return Some(Cond::Const(b)),
            other => vec![other],
        };
        for part in nested {
            keep(&mut kept, part, all);
        }
    }
    let joined = match kept.len() {
        0 => return Some(Cond::Const(all)),
        1 => return kept.pop(),
        _ if all => Cond::All(kept),
        _ => Cond::Any(kept),
    };
    (joined.weight() <= MAX_WEIGHT).then_some(joined)
}

/// Adds a part, unless it is there; of two bounds on the same difference the one that decides stays.
fn keep(kept: &mut Vec<Cond>, part: Cond, all: bool) {
    for old in kept.iter_mut() {
        if *old == part {
            return;
        }
        if let (Cond::AtMostZero(a), Cond::AtMostZero(b)) = (&*old, &part)
            && let Some(apart) = b.sub(a).and_then(|d| d.as_i64())
        {
            if (apart > 0) == all {
                *old = part;
            }
            return;
        }
    }
    kept.push(part);
}

impl Element {
    pub fn select(cond: Cond, then: Element, other: Element) -> Option<Element> {
        Some(match (cond, then, other) {
            (Cond::Const(true), then, _) => then,
            (Cond::Const(false), _, other) => other,
            (_, then, other) if then == other => then,
            (cond, Element::Truth(a), Element::Truth(b)) => {
                let otherwise = Cond::all([cond.not()?, b])?;
                Element::Truth(Cond::any([Cond::all([cond, a])?, otherwise])?)
            }
            (cond, Element::Select(s), other) if s.2 == other => {
                let (inner, then, _) = *s;
                Element::select(Cond::all([cond, inner])?, then, other)?
            }
            (cond, then, Element::Select(s)) if s.1 == then => {
                let (inner, _, other) = *s;
                Element::select(Cond::any([cond, inner])?, then, other)?
            }
            (cond, then, other) => Element::Select(Box::new((cond, then, other))),
        })
    }

    pub fn weight(&self) -> usize {
        match self {
            Element::Truth(cond) => cond.weight(),
            Element::Select(s) => s.0.weight() + s.1.weight() + s.2.weight(),
            Element::Max(arms) | Element::Min(arms) => arms.len(),
            _ => 1,
        }
    }

    /// Applies an operator to both, below their choices.
    pub fn combine(
        &self,
        other: &Element,
        op: &dyn Fn(&Element, &Element) -> Option<Element>,
    ) -> Option<Element> {
        if self.weight() + other.weight() > MAX_WEIGHT {
            return None;
        }
        match (self, other) {
            (Element::Select(s), _) => {
                let (then, otherwise) = (s.1.combine(other, op)?, s.2.combine(other, op)?);
                Element::select(s.0.clone(), then, otherwise)
            }
            (_, Element::Select(s)) => {
                let (then, otherwise) = (self.combine(&s.1, op)?, self.combine(&s.2, op)?);
                Element::select(s.0.clone(), then, otherwise)
            }
            _ => op(self, other),
        }
    }
}
