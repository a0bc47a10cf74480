//! Biases of attention's projections, as a part of their weights.

use kiln_graph::ops::LayerNormalization;
use kiln_graph::{Attrs, Graph, NodeId, Op, ValueId};

use crate::analysis::attention::output_projection::of_type;
use crate::analysis::heads::Heads;
use crate::analysis::norm_readers::{Reader, Role, Sum};
use crate::analysis::plane::{Plane, Sums};
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};

/// The rows of a norm lie in a plane.
pub static WEIGH_BIASES: Local = Local {
    name: "weigh-biases",
    about: "biases of attention's projections become part of their weights, where a LayerNormalization is projected",
    why: "A row that LayerNormalization makes is x = γ · n + β with numbers n whose mean is 0, so Σ x / γ is Σ β / γ for every \
         input, and `Add(MatMul(x, w), b)` is `MatMul(x, w + (1 / γ) bᵀ / Σ β / γ)`, computed in FP64. Where that sum is small, β \
         is made larger by a part of γ first; the other products that read x, and the residual sums, take that off what they \
         add anyway. TensorRT for RTX writes queries, keys and values once more because of a bias: without, an encoder layer has 7 \
         kernels and not 10 (8 with `split-heads` or `sink-query-bias`). Only where rounding grows by less than a tenth, by \
         the sizes of weights and rows: both are rounded in proportion to them.",
    exactness: Exactness::Rounding,
    since: 17,
    native: false,
    at: rewrite,
};

/// By how much the rounding of the rows or the weights may grow, as root mean square. Errors of FP16 differ by more between one
/// input and the next.
const MOST_GROWTH: f64 = 1.1;

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let norm = LayerNormalization::of(g, root).ok_or_else(Miss::none)?;
    let rows = g.node(root).sole_output();
    let rows = rows.filter(|_| norm.is_over_last_axis());
    let rows = rows.ok_or_else(Miss::none)?;
    let readers = Reader::all(g, &cx.facts, rows);
    let readers = readers.ok_or_else(|| Miss::at(rows, 1, "it is moved too often"))?;
    if !readers.iter().any(Reader::is_biased_projection) {
        return Err(Miss::none());
    }
    if !cx.target.facts.biases_keep_projections_apart {
        return Err(Miss::because("a bias costs nothing on this target"));
    }
    let numbers = |v: Option<ValueId>| g.constant(v?)?.to_f64s();
    let (scale, bias) = (numbers(norm.scale()), numbers(norm.bias()));
    let plane = scale.zip(bias).and_then(|(s, b)| Plane::new(s, &b));
    let plane = plane.ok_or_else(|| Miss::at(rows, 2, "its scale or bias is unknown or 0"))?;
    let products = readers.iter().map(|reader| read(g, &plane, reader));
    let products: Option<Vec<Option<Sums>>> = products.collect();
    let products = products.ok_or_else(|| Miss::at(rows, 3, "a weight behind it is unknown"))?;
    let mut weighed = Vec::new();
    for (reader, sums) in readers.iter().zip(&products) {
        if let (Role::Product { attends: true, .. }, Some(sums)) = (reader.role, sums) {
            if is_shared(g, reader.node, &norm) {
                return Err(Miss::at(
                    reader.at,
                    4,
                    "its weight is one of several layers",
                ));
            }
            if !is_apart(g, reader).unwrap_or(true) {
                return Err(Miss::at(
                    reader.at,
                    4,
                    "its parts are not reshaped to heads, and TensorRT for RTX writes them at once if there is a bias",
                ));
            }
            weighed.push(sums);
        }
    }
    let may_move = !readers.iter().any(Reader::is_other);
    let best = plane.best(&weighed, may_move);
    let Some((step, _)) = best.filter(|&(_, growth)| growth < MOST_GROWTH) else {
        let why = match may_move {
            true => "rounding would grow too much",
            false => "what its rows have in common is too small, and something else reads them",
        };
        return Err(Miss::at(rows, 5, why));
    };
    let mut change = Change {
        g,
        plane: &plane,
        step,
        patch: Patch::new(),
    };
    let made = change.norm(root, &norm, rows).and_then(|()| {
        let mut each = readers.iter().zip(&products);
        each.try_for_each(|(reader, sums)| change.reader(reader, sums.as_ref()))
    });
    made.ok_or_else(|| Miss::at(rows, 6, "its numbers are too large for their type"))?;
    Ok(change.patch)
}

/// What there is to know of a projection, `Some(None)` of any other reader. `None` of a product that cannot be read.
fn read(g: &Graph, plane: &Plane, reader: &Reader) -> Option<Option<Sums>> {
    let Role::Product { sum, attends } = reader.role else {
        return Some(None);
    };
    let weight = g.constant(g.node(reader.node).input(1)?)?;
    let &[height, width] = weight.dims() else {
        return None;
    };
    let bias = match sum {
        Some(sum) => Some(g.constant(sum.constant)?),
        None => None,
    };
    if height != plane.width() || bias.is_some_and(|b| b.len() != width) {
        return None;
    }
    if !attends {
        return Some(None);
    }
    let bias = match bias {
        Some(bias) => bias.to_f64s()?,
        None => vec![0.0; width],
    };
    Some(Some(plane.read(weight, bias)?))
}

/// Whether a projection is one alone, or its parts are reshaped to heads, so that `split-heads` can take them apart. `None` where
/// that is not known.
fn is_apart(g: &Graph, reader: &Reader) -> Option<bool> {
    let Role::Product { sum, .. } = reader.role else {
        return None;
    };
    let made = sum.map_or(g.node(reader.node).sole_output()?, |s| s.value);
    let (_, lead) = g.value(made).ty().shape()?.split_last()?;
    let splits = g.value(made).uses().iter().map(|usage| g.node(usage.node));
    let splits = splits.filter(|node| node.op().is("Split"));
    let mut parts = splits.flat_map(|node| node.outputs().iter().flatten());
    Some(parts.all(|&part| Heads::of(g, part, lead).is_some()))
}

/// Whether behind another norm the product's weight would become another one. Weights of equal layers stay equal, and one
/// in front of which there is no norm is kept.
fn is_shared(g: &Graph, product: NodeId, norm: &LayerNormalization<'_>) -> bool {
    let Some(weight) = g.node(product).input(1) else {
        return false;
    };
    g.value(weight).uses().iter().any(|usage| {
        let rows = g.node(usage.node).input(0);
        let before = rows.and_then(|v| LayerNormalization::of(g, g.producer(v)?));
        before.is_some_and(|other| (other.scale(), other.bias()) != (norm.scale(), norm.bias()))
    })
}

/// The patch in the making. Readers read the rows themselves, which the moved ones replace.
struct Change<'g> {
    g: &'g Graph,
    plane: &'g Plane,
    step: f64,
    patch: Patch,
}

impl Change<'_> {
    fn norm(&mut self, root: NodeId, norm: &LayerNormalization<'_>, rows: ValueId) -> Option<()> {
        if self.step == 0.0 {
            return Some(());
        }
        let moved = self.plane.moved(self.step);
        let bias = self.shifted(norm.bias()?, &moved, 1.0)?;
        let inputs = [norm.input(0)?.into(), norm.scale()?.into(), bias];
        let made = self.patch.remade(self.g, root, inputs);
        self.patch.change(rows);
        self.patch.replace(rows, made);
        Some(())
    }

    fn reader(&mut self, reader: &Reader, sums: Option<&Sums>) -> Option<()> {
        if self.step != 0.0 {
            self.patch.change(reader.at);
        }
        match reader.role {
            Role::Product { sum, attends: true } => self.projection(reader, sum, sums?),
            _ if self.step == 0.0 => Some(()),
            Role::Product { sum, .. } => self.product(reader, sum),
            Role::Residual { other, inner } => self.residual(reader, other, inner),
            Role::Other => Some(()),
        }
    }

    fn projection(&mut self, reader: &Reader, sum: Option<Sum>, sums: &Sums) -> Option<()> {
        let (g, node) = (self.g, self.g.node(reader.node));
        let weight = g.constant(node.input(1)?)?;
        let weighed = self.plane.weigh(weight, sums, self.step)?;
        let weighed = self.patch.constant(weighed);
        let made = self
            .patch
            .remade(g, reader.node, [reader.at.into(), weighed]);
        let old = sum.map_or(node.sole_output()?, |s| s.value);
        self.patch.replace(old, made);
        Some(())
    }

    fn product(&mut self, reader: &Reader, sum: Option<Sum>) -> Option<()> {
        let node = self.g.node(reader.node);
        let made = node.sole_output()?;
        let weight = self.g.constant(node.input(1)?)?;
        let width = *weight.dims().last()?;
        let more = self.plane.through(weight, width, self.step)?;
        let inputs = [reader.at.into(), node.input(1)?.into()];
        let again = self.patch.remade(self.g, reader.node, inputs);
        let again = self.without(&more, again, made, sum)?;
        self.patch.replace(sum.map_or(made, |s| s.value), again);
        Some(())
    }

    fn residual(&mut self, reader: &Reader, other: ValueId, inner: Option<Sum>) -> Option<()> {
        let moved = self.plane.moved(self.step);
        let term = inner.map_or(other, |sum| sum.term).into();
        let made = self.without(&moved, term, other, inner)?;
        let node = self.g.node(reader.node);
        let operands = node.inputs().iter().flatten();
        let operands = operands.map(|&v| if v == other { made } else { v.into() });
        let operands: Vec<Ref> = operands.collect();
        let again = self.patch.remade(self.g, reader.node, operands);
        self.patch.replace(node.sole_output()?, again);
        Some(())
    }

    /// The numbers taken off `term`, by the constant that `sum` adds to it anyway. `like` has their type.
    fn without(
        &mut self,
        numbers: &[f64],
        term: Ref,
        like: ValueId,
        sum: Option<Sum>,
    ) -> Option<Ref> {
        match sum {
            Some(sum) => {
                let constant = self.shifted(sum.constant, numbers, -1.0)?;
                Some(self.patch.remade(self.g, sum.add, [term, constant]))
            }
            None => {
                let numbers: Vec<f64> = numbers.iter().map(|n| -n).collect();
                let numbers = of_type(&numbers, self.g.value(like).ty().dtype()?)?;
                let numbers = self.patch.constant(numbers);
                Some(
                    self.patch
                        .node(Op::onnx("Add"), [term, numbers], Attrs::new()),
                )
            }
        }
    }

    /// A constant with `sign` times the numbers added, in its type and form.
    fn shifted(&mut self, constant: ValueId, numbers: &[f64], sign: f64) -> Option<Ref> {
        let old = self.g.constant(constant)?;
        let new = old.to_f64s()?.into_iter().zip(numbers);
        let new: Vec<f64> = new.map(|(a, b)| a + sign * b).collect();
        let new = of_type(&new, old.dtype())?.reshaped(old.dims()).ok()?;
        Some(self.patch.constant(new))
    }
}
