//! The sizes that a model serves, and its inputs' shapes at points of them.

use std::collections::BTreeMap;

use kiln_graph::infer::Expr;
use kiln_graph::{Dim, Graph, Shape, Tensor, Type, ValueId};

use super::range::{Input, Point, Range};
use super::roles::{Role, is_batch};

/// The inputs of a model and the ranges of their symbolic dimensions.
#[derive(Clone, Debug)]
pub struct Shapes {
    pub inputs: Vec<Input>,
    pub ranges: BTreeMap<String, Range>,
    /// Symbols whose range the user gave; it is not changed.
    pub given: Vec<String>,
    /// Dimensions at whose one size alone the model runs, because the exporter wrote it into the graph.
    pub baked: Vec<String>,
    /// Sizes that follow from others, as the graph demands it: `mask` is `past + seq`. Their ranges follow too.
    pub relations: BTreeMap<String, Expr>,
    /// What a size must be a multiple of, where that is not 1.
    pub steps: BTreeMap<String, usize>,
    /// Why ranges end where they do, in sentences for the user.
    pub notes: Vec<String>,
    pub(super) roles: BTreeMap<String, Role>,
    pub(super) told_baked: bool,
}

/// Samples at once: one without padding, and one of each amount of padding that made masks have.
const SEVERAL: usize = 4;

impl Shapes {
    /// Makes dimensions that the user left open those of these inputs.
    pub(crate) fn hold(&mut self, inputs: &[(String, Tensor)]) {
        for input in &self.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(n, _)| *n == input.name) else {
                continue;
            };
            for (dim, &size) in input.dims.iter().zip(tensor.dims()) {
                if let Dim::Symbol(s) = dim
                    && !self.given.iter().any(|g| **g == **s)
                {
                    self.ranges.insert(s.to_string(), Range::fixed(size));
                }
            }
        }
    }

    /// Forgets that sizes were baked in: they are those of one of several ways.
    pub(crate) fn open(&mut self) {
        self.baked.clear();
    }

    /// What the user should know of the sizes that were chosen: why ranges end where they do, and what was baked in. Each
    /// is told once.
    pub fn told(&mut self) -> Vec<String> {
        let mut told = std::mem::take(&mut self.notes);
        if !std::mem::replace(&mut self.told_baked, true) && !self.baked.is_empty() {
            let sizes = self
                .baked
                .iter()
                .filter_map(|n| Some(format!("{n}={}", self.ranges.get(n)?.opt)));
            told.push(baked(&sizes.collect::<Vec<_>>()));
        }
        told
    }

    pub(super) fn is_given(&self, symbol: &str) -> bool {
        self.given.iter().any(|s| s == symbol)
    }

    /// Whether kiln chooses this size: neither the user nor the graph has.
    pub(super) fn is_free(&self, symbol: &str) -> bool {
        !self.is_given(symbol)
            && !self.relations.contains_key(symbol)
            && self.ranges.get(symbol).is_some_and(|r| !r.is_fixed())
    }

    /// Sets the sizes of a point that follow from others.
    pub fn complete(&self, point: &mut Point) {
        for (name, expr) in &self.relations {
            let size = expr.eval(&|n| i64::try_from(*point.get(n)?).ok());
            if let Some(size) = size.and_then(|n| usize::try_from(n).ok()) {
                point.insert(name.clone(), size);
            }
        }
    }

    /// Sets the ranges that follow from others.
    pub(super) fn follow(&mut self) {
        let [min, opt, max] = [
            self.point(|r| r.min),
            self.point(|r| r.opt),
            self.point(|r| r.max),
        ];
        for name in self.relations.keys() {
            if let (Some(&min), Some(&opt), Some(&max)) =
                (min.get(name), opt.get(name), max.get(name))
            {
                self.ranges.insert(name.clone(), Range { min, opt, max });
            }
        }
    }

    /// The sizes in one line: `batch 1:1:8, seq 1:1:512, mask = past + seq`. Nothing for a model of fixed sizes.
    pub fn describe(&self) -> Option<String> {
        let own = self
            .ranges
            .iter()
            .filter(|(n, _)| !self.relations.contains_key(*n));
        let own = own.map(|(name, range)| match self.steps.get(name) {
            Some(step) => format!("{name} {range} by {step}"),
            None => format!("{name} {range}"),
        });
        let mut alike: BTreeMap<&Expr, Vec<&str>> = BTreeMap::new();
        for (name, expr) in &self.relations {
            alike.entry(expr).or_default().push(name);
        }
        let related = alike.into_iter().map(|(expr, names)| match names[..] {
            [first, _, ..] => format!("{first} and {} more = {expr}", names.len() - 1),
            _ => format!("{} = {expr}", names.concat()),
        });
        let all: Vec<String> = own.chain(related).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    pub(super) fn point(&self, pick: impl Fn(&Range) -> usize) -> Point {
        let ranges = self.ranges.iter();
        let mut point = ranges.map(|(name, r)| (name.clone(), pick(r))).collect();
        self.complete(&mut point);
        point
    }

    /// The sizes that are tuned for.
    pub fn typical(&self) -> Point {
        self.point(|r| r.opt)
    }

    /// The smallest, typical and largest sizes.
    pub fn bounds(&self) -> [Point; 3] {
        [
            self.point(|r| r.min),
            self.point(|r| r.opt),
            self.point(|r| r.max),
        ]
    }

    /// Smallest, typical and largest sizes; those that coincide are left out.
    pub fn points(&self) -> Vec<(&'static str, Point)> {
        let typical = self.typical();
        let mut points = vec![("typical", typical.clone())];
        let smallest = self.point(|r| r.min);
        if smallest != typical {
            points.insert(0, ("smallest", smallest));
        }
        let largest = self.point(|r| r.max);
        if largest != typical {
            points.push(("largest", largest));
        }
        points
    }

    /// The typical point with several samples at once, if the sizes allow that and it is none of [`Shapes::points`].
    pub fn several(&self) -> Option<Point> {
        let own = |name: &String| !self.relations.contains_key(name) && self.is_batch(name);
        let batch = self.ranges.iter().find(|(name, _)| own(name));
        let (name, range) = batch.filter(|(_, r)| r.opt == 1 && r.max > 1)?;
        let mut point = self.point(|r| r.opt);
        point.insert(name.clone(), range.max.min(SEVERAL));
        self.complete(&mut point);
        let known = self.points().iter().any(|(_, p)| *p == point);
        (!known).then_some(point)
    }

    /// Whether this size counts items served at once.
    pub(super) fn is_batch(&self, symbol: &str) -> bool {
        match self.roles.get(symbol) {
            Some(role) => *role == Role::Batch,
            None => is_batch(symbol),
        }
    }

    /// The shape of each input at a point; what follows from other sizes does so here, whatever the point says.
    pub fn at(&self, point: &Point) -> Vec<(String, Vec<usize>)> {
        let mut point = point.clone();
        self.complete(&mut point);
        let size = |d: &Dim| match d {
            Dim::Known(n) => *n,
            Dim::Symbol(s) => point.get(&**s).copied().unwrap_or(1),
            Dim::Unknown => 1,
        };
        let shape = |i: &Input| (i.name.clone(), i.dims.iter().map(size).collect());
        self.inputs.iter().map(shape).collect()
    }

    /// Items served at once at a point: the size of the first dimension that all inputs share, else 1.
    pub fn batch(&self, point: &Point) -> usize {
        let first = self.inputs.first().and_then(|i| i.dims.first());
        match first {
            Some(Dim::Symbol(s)) if self.is_batch(s) => point.get(&**s).copied().unwrap_or(1),
            Some(Dim::Known(n)) => *n,
            _ => 1,
        }
    }

    /// Writes dimensions whose range is one size into the types of the graph's inputs, and takes names from sizes that
    /// only share a placeholder: TensorRT holds what has one name to one size. Gives whether there were any.
    pub fn fix_inputs(&self, graph: &mut Graph) -> bool {
        let mut any = false;
        for v in graph.inputs().to_vec() {
            let ty = graph.value(v).ty();
            let (Some(dtype), Some(shape)) = (ty.dtype(), ty.shape()) else {
                continue;
            };
            let own = self.inputs.iter().find(|i| i.name == graph.value(v).name());
            let Some(own) = own.filter(|i| i.dims.len() == shape.len()) else {
                continue;
            };
            let fixed = |(d, own): (&Dim, &Dim)| match own {
                Dim::Symbol(s) => match self.ranges.get(&**s).filter(|r| r.is_fixed()) {
                    Some(range) => Dim::Known(range.opt),
                    None if d == own => d.clone(),
                    None => Dim::Unknown,
                },
                _ => d.clone(),
            };
            let new: Shape = shape.iter().zip(&own.dims).map(fixed).collect();
            if new[..] != *shape {
                any = true;
                graph.set_type(v, Type::tensor(dtype, Some(new)));
            }
        }
        any
    }
}

/// The inputs of a graph under other dimensions.
pub(super) fn overrides(
    graph: &Graph,
    shapes: &Shapes,
    dim: impl Fn(&Dim) -> Dim,
) -> Vec<(ValueId, Shape)> {
    let inputs = graph.inputs().iter().filter_map(|&v| {
        let input = shapes
            .inputs
            .iter()
            .find(|i| i.name == graph.value(v).name())?;
        Some((v, input.dims.iter().map(&dim).collect()))
    });
    inputs.collect()
}

const BAKED: &str = "the exporter baked the example's sizes into the model";

/// Whether a warning is [`baked`].
pub(crate) fn says_baked(warning: &str) -> bool {
    warning.starts_with(BAKED)
}

pub(super) fn baked(sizes: &[String]) -> String {
    format!(
        "{BAKED}: it runs only at {}, so the profile holds that size; export \
         it again with this dimension dynamic to serve others",
        sizes.join(", ")
    )
}
