//! Arithmetic and comparisons on elements.

use kiln_graph::DType;

use super::affine::{Affine, Space};
use super::element::{Cond, Element};

/// An operator on whole numbers, where both sides are such and of known form.
type Wholes = fn(&Affine, &Affine) -> Option<Affine>;

pub(super) fn arithmetic(
    op: &str,
    dtype: Option<DType>,
    a: &Element,
    b: &Element,
) -> Option<Element> {
    a.combine(b, &|a, b| match (a, b) {
        (Element::Real(a), Element::Real(b)) => {
            let exact = match op {
                "Add" => a + b,
                "Sub" => a - b,
                "Mul" => a * b,
                "Min" => a.min(*b),
                "Max" => a.max(*b),
                _ => return None,
            };
            real(exact, dtype?)
        }
        (Element::Real(_), _) | (_, Element::Real(_)) => None,
        _ => wholes(op, a, b),
    })
}

/// The number as this type holds it; `None` for types without arithmetic here, and for values that are not numbers.
pub(super) fn real(exact: f64, dtype: DType) -> Option<Element> {
    let rounded = match dtype {
        DType::F32 => f64::from(exact as f32),
        DType::F64 => exact,
        _ => return None,
    };
    (!rounded.is_nan()).then_some(Element::Real(rounded))
}

fn wholes(op: &str, a: &Element, b: &Element) -> Option<Element> {
    use Element::{Max, Min, Whole};
    let each = |arms: &[Affine], by: &Affine, f: Wholes| -> Option<Vec<Affine>> {
        arms.iter().map(|arm| f(arm, by)).collect()
    };
    Some(match (op, a, b) {
        ("Add", Whole(a), Whole(b)) => Whole(a.add(b)?),
        ("Add", Max(arms), Whole(b)) | ("Add", Whole(b), Max(arms)) => {
            Max(each(arms, b, Affine::add)?)
        }
        ("Add", Min(arms), Whole(b)) | ("Add", Whole(b), Min(arms)) => {
            Min(each(arms, b, Affine::add)?)
        }
        ("Sub", a, b) => return wholes("Add", a, &negate(b)?),
        ("Mul", Whole(a), Whole(b)) => Whole(a.mul(b)?),
        ("Max" | "Min", a, b) => {
            let arms = |e: &Element| match (op, e) {
                (_, Whole(a)) => Some(vec![a.clone()]),
                ("Max", Max(arms)) | ("Min", Min(arms)) => Some(arms.clone()),
                _ => None,
            };
            let mut all = arms(a)?;
            for arm in arms(b)? {
                if !all.contains(&arm) {
                    all.push(arm);
                }
            }
            match (all.len(), op) {
                (1, _) => Whole(all.pop()?),
                (_, "Max") => Max(all),
                _ => Min(all),
            }
        }
        _ => return None,
    })
}

pub(super) fn negate(a: &Element) -> Option<Element> {
    let each = |arms: &[Affine]| arms.iter().map(Affine::negate).collect::<Option<Vec<_>>>();
    Some(match a {
        Element::Whole(a) => Element::Whole(a.negate()?),
        Element::Real(a) => Element::Real(-a),
        Element::Max(arms) => Element::Min(each(arms)?),
        Element::Min(arms) => Element::Max(each(arms)?),
        Element::Select(s) => Element::select(s.0.clone(), negate(&s.1)?, negate(&s.2)?)?,
        Element::Truth(_) | Element::Load(_) => return None,
    })
}

pub(super) fn absolute(a: &Element) -> Option<Element> {
    match a {
        Element::Whole(a) => Some(Element::Max(vec![a.clone(), a.negate()?])),
        Element::Real(a) => Some(Element::Real(a.abs())),
        _ => None,
    }
}

/// The condition that `a <= 0`, decided where the sizes decide it.
pub(super) fn at_most_zero(a: Affine, space: &Space) -> Cond {
    if space.at_most(&a, &0.into()) {
        Cond::Const(true)
    } else if space.at_least(&a, &1.into()) {
        Cond::Const(false)
    } else {
        Cond::AtMostZero(a)
    }
}

/// The condition that `a <= b`, for numbers.
pub(super) fn at_most(a: &Element, b: &Element, space: &Space) -> Option<Cond> {
    use Element::{Max, Min, Real, Select, Whole};
    if a.weight() + b.weight() > super::element::MAX_WEIGHT {
        return None;
    }
    let whole = |a: &Affine, b: &Element| at_most(&Whole(a.clone()), b, space);
    let each =
        |arms: &[Affine], b: &Element| arms.iter().map(|a| whole(a, b)).collect::<Option<Vec<_>>>();
    let above = |a: &Element, arms: &[Affine]| {
        let each = arms.iter().map(|b| at_most(a, &Whole(b.clone()), space));
        each.collect::<Option<Vec<_>>>()
    };
    match (a, b) {
        (Whole(a), Whole(b)) => Some(at_most_zero(a.sub(b)?, space)),
        (Real(a), Real(b)) => Some(Cond::Const(a <= b)),
        (Select(s), b) => choose(&s.0, at_most(&s.1, b, space)?, at_most(&s.2, b, space)?),
        (a, Select(s)) => choose(&s.0, at_most(a, &s.1, space)?, at_most(a, &s.2, space)?),
        (Max(arms), b) => Cond::all(each(arms, b)?),
        (Min(arms), b) => Cond::any(each(arms, b)?),
        (a, Max(arms)) => Cond::any(above(a, arms)?),
        (a, Min(arms)) => Cond::all(above(a, arms)?),
        _ => None,
    }
}

fn choose(cond: &Cond, then: Cond, other: Cond) -> Option<Cond> {
    match Element::select(cond.clone(), Element::Truth(then), Element::Truth(other))? {
        Element::Truth(cond) => Some(cond),
        _ => None,
    }
}

/// The condition that the two are equal: numbers, truths where one is known, or a read against 0.
pub(super) fn equal(a: &Element, b: &Element, space: &Space) -> Option<Cond> {
    let zero = |e: &Element| match e {
        Element::Whole(a) => a.as_i64() == Some(0),
        Element::Real(x) => *x == 0.0,
        _ => false,
    };
    match (a, b) {
        (Element::Load(load), other) | (other, Element::Load(load)) if zero(other) => {
            Some(Cond::Zero(load.clone()))
        }
        (Element::Truth(x), Element::Truth(Cond::Const(b)))
        | (Element::Truth(Cond::Const(b)), Element::Truth(x)) => match b {
            true => Some(x.clone()),
            false => x.not(),
        },
        (Element::Truth(_) | Element::Load(_), _) | (_, Element::Truth(_) | Element::Load(_)) => {
            None
        }
        _ => Cond::all([at_most(a, b, space)?, at_most(b, a, space)?]),
    }
}

/// The condition that an element is not zero, as Cast to bool takes it.
pub(super) fn truth(a: &Element, space: &Space) -> Option<Cond> {
    match a {
        Element::Truth(cond) => Some(cond.clone()),
        Element::Load(load) => Some(Cond::NonZero(load.clone())),
        Element::Real(x) => Some(Cond::Const(*x != 0.0)),
        Element::Select(s) => choose(&s.0, truth(&s.1, space)?, truth(&s.2, space)?),
        a => equal(a, &Element::Whole(Affine::from(0)), space)?.not(),
    }
}
