//! Operators that only move elements: each output element is one of an operand's.

use kiln_graph::infer::Expr;
use kiln_graph::{DType, ops};

use super::affine::{Affine, Space};
use super::element::{Cond, Element};
use super::reader::Here;

impl Here<'_, '_> {
    /// The element where it comes from; `None` for other operators, and where the place is not known.
    pub fn moved(&self) -> Option<Element> {
        match self.node.op().name() {
            "Unsqueeze" => {
                let axes = ops::Unsqueeze::of(self.reader.g, self.id)?.axes()?;
                let axes = ops::resolve_axes(&axes, self.at.len())?;
                let kept = self
                    .at
                    .iter()
                    .enumerate()
                    .filter(|(k, _)| !axes.contains(k));
                self.from(kept.map(|(_, at)| at.clone()).collect())
            }
            "Squeeze" => self.squeezed(),
            "Transpose" => {
                let perm = ops::Transpose::of(self.reader.g, self.id)?.perm()?;
                let mut from = vec![Affine::from(0); perm.len()];
                for (at, &k) in self.at.iter().zip(&perm) {
                    *from.get_mut(k)? = at.clone();
                }
                self.from(from)
            }
            "Expand" => {
                let dims = self.reader.dims(self.node.input(0)?)?;
                let at = self
                    .reader
                    .broadcast(dims, self.reader.dims(self.value)?, self.at)?;
                self.from(at)
            }
            "Reshape" | "Flatten" => {
                let place = Space::ravel(self.at, self.reader.dims(self.value)?)?;
                let dims = self.reader.dims(self.node.input(0)?)?;
                self.from(self.reader.space.unravel(&place, dims)?)
            }
            "Slice" => self.sliced(),
            "Gather" => self.gathered(),
            "GatherND" => self.gathered_nd(),
            "Concat" => self.joined(),
            "ConstantOfShape" => {
                let value = ops::ConstantOfShape::of(self.reader.g, self.id)?.value();
                match value.dtype() {
                    DType::Bool => Some(Element::Truth(Cond::Const(value.as_i64()? != 0))),
                    dtype if dtype.is_int() => Some(Element::Whole(value.as_i64()?.into())),
                    _ => value.as_f64().filter(|x| !x.is_nan()).map(Element::Real),
                }
            }
            "Range" => self.counted(),
            _ => None,
        }
    }

    fn from(&self, at: Vec<Affine>) -> Option<Element> {
        let value = self.node.input(0)?;
        (self.reader.dims(value)?.len() == at.len()).then(|| self.read(value, &at))
    }

    fn squeezed(&self) -> Option<Element> {
        let dims = self.reader.dims(self.node.input(0)?)?;
        let view = ops::Squeeze::of(self.reader.g, self.id)?;
        let axes: Vec<usize> = match view.squeezes_all() {
            true => {
                let ones = dims
                    .iter()
                    .enumerate()
                    .filter(|(_, d)| d.as_i64() == Some(1));
                ones.map(|(k, _)| k).collect()
            }
            false => ops::resolve_axes(&view.axes()?, dims.len())?,
        };
        let mut at = self.at.iter().cloned();
        let from = (0..dims.len()).map(|k| match axes.contains(&k) {
            true => Some(Affine::from(0)),
            false => at.next(),
        });
        let from = from.collect::<Option<Vec<_>>>()?;
        at.next().is_none().then(|| self.from(from))?
    }

    /// A slice with steps of 1. Where it ends does not matter to the elements that it has.
    fn sliced(&self) -> Option<Element> {
        let r = self.reader;
        let view = ops::Slice::of(r.g, self.id)?;
        let dims = r.dims(self.node.input(0)?)?;
        if view.steps()?.iter().any(|&s| s != 1) {
            return None;
        }
        let starts = r.facts.values(self.node.input(1)?)?;
        let axes = match view.input(3) {
            Some(_) => ops::resolve_axes(&view.axes()?, dims.len())?,
            None => (0..starts.len()).collect(),
        };
        let mut at = self.at.to_vec();
        for (axis, start) in axes.into_iter().zip(starts) {
            let start = match start.as_i64() {
                Some(n) if n < 0 => start.add(dims.get(axis)?)?,
                _ => start.clone(),
            };
            // A start below 0 would count from the end, or be clamped.
            if !start.is_nonnegative() {
                return None;
            }
            let at = at.get_mut(axis)?;
            *at = at.add(&start.into())?;
        }
        self.from(at)
    }

    /// An element of an index tensor, which counts from the front for certain.
    fn index(&self, element: Element, size: &Expr) -> Option<Affine> {
        let Element::Whole(at) = element else {
            return None;
        };
        match at.as_i64() {
            Some(n) if n < 0 => at.add(&size.clone().into()),
            _ => self.reader.space.at_least(&at, &0.into()).then_some(at),
        }
    }

    fn gathered(&self) -> Option<Element> {
        let r = self.reader;
        let dims = r.dims(self.node.input(0)?)?;
        let indices = self.node.input(1)?;
        let rank = r.dims(indices)?.len();
        let axis = ops::resolve_axis(ops::Gather::of(r.g, self.id)?.axis(), dims.len())?;
        let (before, rest) = self.at.split_at_checked(axis)?;
        let (within, after) = rest.split_at_checked(rank)?;
        let index = self.index(self.read(indices, within), dims.get(axis)?)?;
        let at = before.iter().chain([&index]).chain(after);
        self.from(at.cloned().collect())
    }

    fn gathered_nd(&self) -> Option<Element> {
        let r = self.reader;
        if ops::GatherND::of(r.g, self.id)?.batch_dims() != 0 {
            return None;
        }
        let dims = r.dims(self.node.input(0)?)?;
        let indices = self.node.input(1)?;
        let shape = r.dims(indices)?;
        let (last, outer) = shape.split_last()?;
        let depth = usize::try_from(last.as_i64()?).ok()?;
        let (outer, tail) = self.at.split_at_checked(outer.len())?;
        let mut from = Vec::with_capacity(dims.len());
        for (k, size) in dims.iter().enumerate().take(depth) {
            let mut at = outer.to_vec();
            at.push(Affine::from(i64::try_from(k).ok()?));
            from.push(self.index(self.read(indices, &at), size)?);
        }
        from.extend_from_slice(tail);
        self.from(from)
    }

    /// Of joined parts of known sizes, the one that a known coordinate falls into.
    fn joined(&self) -> Option<Element> {
        let r = self.reader;
        let axis = ops::resolve_axis(ops::Concat::of(r.g, self.id)?.axis()?, self.at.len())?;
        let mut place = self.at.get(axis)?.as_i64()?;
        for part in self.node.inputs().iter().flatten() {
            let size = r.dims(*part)?.get(axis)?.as_i64()?;
            if place < size {
                let mut at = self.at.to_vec();
                *at.get_mut(axis)? = Affine::from(place);
                return Some(self.read(*part, &at));
            }
            place -= size;
        }
        None
    }

    /// `start + step · coordinate`; where a Range ends does not matter to the elements that it has.
    fn counted(&self) -> Option<Element> {
        let r = self.reader;
        let only = |k: usize| r.facts.values(self.node.input(k)?)?.first();
        let (start, step) = (only(0)?, only(2)?);
        let whole = matches!(r.dtype(self.value)?, DType::I64 | DType::I32);
        let at = self.at.first()?.scale(step)?.add(&start.clone().into())?;
        whole.then_some(Element::Whole(at))
    }
}
