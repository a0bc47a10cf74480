//! Reads what an element of a value is, through the nodes that compute it.

use std::cell::Cell;

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{DType, Graph, Node, NodeId, ValueId, ops};

use super::affine::{Affine, Space};
use super::arith;
use super::constant;
use super::element::{Cond, Element, Load, MAX_WEIGHT};

/// Nodes that are read for one element, however often they are met.
const MAX_STEPS: usize = 512;
/// Nodes that are read one behind the other.
const MAX_DEPTH: usize = 48;

/// An abstract interpreter: it computes with coordinates instead of numbers.
///
/// Every answer holds for each element that exists: where sizes are 0 there are none, and where an index is out of
/// range the graph has no result.
pub(super) struct Reader<'a> {
    pub g: &'a Graph,
    pub facts: &'a Facts,
    pub space: Space,
    steps: Cell<usize>,
}

impl<'a> Reader<'a> {
    pub fn new(g: &'a Graph, facts: &'a Facts, space: Space) -> Reader<'a> {
        Reader {
            g,
            facts,
            space,
            steps: Cell::new(0),
        }
    }

    /// The element of `value` at these coordinates, one for each of its dimensions.
    pub fn element(&self, value: ValueId, at: &[Affine]) -> Element {
        self.steps.set(0);
        self.read(value, at, 0)
    }

    /// The condition that an element of `value` is not zero.
    pub fn truth(&self, value: ValueId, at: &[Affine]) -> Option<Cond> {
        arith::truth(&self.element(value, at), &self.space)
    }

    pub fn dims(&self, value: ValueId) -> Option<&'a [Expr]> {
        self.facts.dims(value)
    }

    pub fn dtype(&self, value: ValueId) -> Option<DType> {
        self.facts.ty(value).dtype()
    }

    /// The coordinates in an operand that broadcasts to these dimensions. `None` where it may be 1 or not.
    pub fn broadcast(&self, from: &[Expr], to: &[Expr], at: &[Affine]) -> Option<Vec<Affine>> {
        let skip = to.len().checked_sub(from.len())?;
        let pairs = from.iter().zip(to.get(skip..)?).zip(at.get(skip..)?);
        pairs
            .map(|((from, to), at)| match from {
                _ if from.as_i64() == Some(1) => Some(Affine::from(0)),
                _ if from == to || at.as_i64() == Some(0) => Some(at.clone()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn read(&self, value: ValueId, at: &[Affine], depth: usize) -> Element {
        let steps = self.steps.get() + 1;
        self.steps.set(steps);
        let known = (depth < MAX_DEPTH && steps < MAX_STEPS)
            .then(|| {
                self.known(value, at)
                    .or_else(|| self.computed(value, at, depth))
            })
            .flatten();
        known
            .filter(|e| e.weight() <= MAX_WEIGHT)
            .unwrap_or_else(|| {
                let index = at.iter().cloned().collect();
                let load = Load { value, index };
                match self.dtype(value) {
                    Some(DType::Bool) => Element::Truth(Cond::NonZero(load)),
                    _ => Element::Load(load),
                }
            })
    }

    /// The element of a constant, or of a small tensor that inference knows.
    fn known(&self, value: ValueId, at: &[Affine]) -> Option<Element> {
        if let Some(tensor) = self.g.constant(value) {
            return constant::element(tensor, at, &self.space);
        }
        let (values, dims) = (self.facts.values(value)?, self.dims(value)?);
        let place = match values.len() {
            1 => 0,
            _ => usize::try_from(Space::ravel(at, dims)?.as_i64()?).ok()?,
        };
        // Sizes are understood, named or not. Of an anonymous number the read itself says more.
        let number = (values.get(place)).filter(|n| n.is_named() || n.is_nonnegative())?;
        match (self.dtype(value)?, number.as_i64()) {
            (DType::I64 | DType::I32, _) => Some(Element::Whole(number.clone().into())),
            (DType::Bool, Some(b)) => Some(Element::Truth(Cond::Const(b != 0))),
            _ => None,
        }
    }

    fn computed(&self, value: ValueId, at: &[Affine], depth: usize) -> Option<Element> {
        let id = self.g.producer(value)?;
        let node = self.g.node(id);
        if !node.op().domain().is_empty() || self.dims(value)?.len() != at.len() {
            return None;
        }
        let here = Here {
            reader: self,
            id,
            node,
            value,
            at,
            depth: depth + 1,
        };
        here.moved().or_else(|| here.calculated())
    }
}

/// A node whose output is read at some coordinates.
pub(super) struct Here<'r, 'a> {
    pub reader: &'r Reader<'a>,
    pub id: NodeId,
    pub node: &'a Node,
    pub value: ValueId,
    pub at: &'r [Affine],
    pub depth: usize,
}

impl Here<'_, '_> {
    pub fn read(&self, value: ValueId, at: &[Affine]) -> Element {
        self.reader.read(value, at, self.depth)
    }

    /// The element of the operand at `k`, which broadcasts to the output.
    fn operand(&self, k: usize) -> Option<Element> {
        let value = self.node.input(k)?;
        let r = self.reader;
        let at = r.broadcast(r.dims(value)?, r.dims(self.value)?, self.at)?;
        Some(self.read(value, &at))
    }

    fn condition(&self, k: usize) -> Option<Cond> {
        arith::truth(&self.operand(k)?, &self.reader.space)
    }

    /// Operators that compute each element from the elements beside it.
    fn calculated(&self) -> Option<Element> {
        let space = &self.reader.space;
        let op = self.node.op().name();
        let cond = match op {
            "And" => Cond::all([self.condition(0)?, self.condition(1)?])?,
            "Or" => Cond::any([self.condition(0)?, self.condition(1)?])?,
            "Not" => self.condition(0)?.not()?,
            "LessOrEqual" => arith::at_most(&self.operand(0)?, &self.operand(1)?, space)?,
            "GreaterOrEqual" => arith::at_most(&self.operand(1)?, &self.operand(0)?, space)?,
            "Less" => arith::at_most(&self.operand(1)?, &self.operand(0)?, space)?.not()?,
            "Greater" => arith::at_most(&self.operand(0)?, &self.operand(1)?, space)?.not()?,
            "Equal" => arith::equal(&self.operand(0)?, &self.operand(1)?, space)?,
            _ => return self.number(op),
        };
        Some(Element::Truth(cond))
    }

    fn number(&self, op: &str) -> Option<Element> {
        let dtype = self.reader.dtype(self.value);
        // Narrow types wrap around where a mask is negated in them.
        let wide = |t: DType| !t.is_int() || matches!(t, DType::I32 | DType::I64);
        if matches!(op, "Add" | "Sub" | "Mul" | "Neg" | "Abs") && !dtype.is_some_and(wide) {
            return None;
        }
        match op {
            "Identity" => self.operand(0),
            "Add" | "Sub" | "Mul" => {
                arith::arithmetic(op, dtype, &self.operand(0)?, &self.operand(1)?)
            }
            "Max" | "Min" => {
                let first = self.operand(0)?;
                let rest = 1..self.node.inputs().len();
                rest.into_iter().try_fold(first, |a, k| {
                    arith::arithmetic(op, dtype, &a, &self.operand(k)?)
                })
            }
            "Neg" => arith::negate(&self.operand(0)?),
            "Abs" => arith::absolute(&self.operand(0)?),
            "Where" => {
                let cond = self.condition(0)?;
                Element::select(cond, self.operand(1)?, self.operand(2)?)
            }
            "Cast" => self.cast(),
            "Trilu" => self.trilu(),
            _ => None,
        }
    }

    fn cast(&self) -> Option<Element> {
        let to = ops::Cast::of(self.reader.g, self.id)?.to()?;
        let from = self.reader.dtype(self.node.input(0)?)?;
        let x = self.operand(0)?;
        if to == DType::Bool {
            return Some(Element::Truth(arith::truth(&x, &self.reader.space)?));
        }
        convert(&x, from, to)
    }

    fn trilu(&self) -> Option<Element> {
        let view = ops::Trilu::of(self.reader.g, self.id)?;
        let k = Affine::from(view.k()?);
        let [.., row, column] = self.at else {
            return None;
        };
        let zero = match self.reader.dtype(self.value)? {
            DType::Bool => Element::Truth(Cond::Const(false)),
            dtype if dtype.is_int() => Element::Whole(0.into()),
            _ => Element::Real(0.0),
        };
        // The lower part is column - row <= k, the upper one column - row >= k.
        let apart = column.sub(row)?.sub(&k)?;
        let kept = match view.is_upper() {
            true => apart.negate()?,
            false => apart,
        };
        let kept = arith::at_most_zero(kept, &self.reader.space);
        Element::select(kept, self.read(self.node.input(0)?, self.at), zero)
    }
}

/// A number in another type, where that changes nothing or rounds in a way that is known.
fn convert(x: &Element, from: DType, to: DType) -> Option<Element> {
    use Element::{Real, Select, Truth, Whole};
    let number = |b: bool| match to.is_int() {
        true => Some(Whole(i64::from(b).into())),
        false => Some(Real(f64::from(u8::from(b)))),
    };
    match x {
        Truth(cond) => Element::select(cond.clone(), number(true)?, number(false)?),
        Select(s) => Element::select(
            s.0.clone(),
            convert(&s.1, from, to)?,
            convert(&s.2, from, to)?,
        ),
        // Coordinates and sizes fit 32 bits wherever an exporter has them so narrow.
        _ if from == to || matches!((from, to), (DType::I32 | DType::I64, DType::I64)) => {
            Some(x.clone())
        }
        Whole(a) => match (a.as_i64(), to) {
            (Some(n), DType::I32) => i32::try_from(n).is_ok().then(|| x.clone()),
            (Some(n), DType::F32 | DType::F64) if n.unsigned_abs() < 1 << 24 => {
                Some(Real(n as f64))
            }
            _ => None,
        },
        Real(x) if to.is_int() => {
            let whole = x.fract() == 0.0 && x.abs() < f64::from(i32::MAX);
            let wide = matches!(to, DType::I32 | DType::I64);
            (whole && wide).then_some(Whole((*x as i64).into()))
        }
        Real(x) => arith::real(*x, to),
        _ => None,
    }
}
