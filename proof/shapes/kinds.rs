//! What numbers an input wants, read off the graph: never its name, where the graph tells.

mod operands;
mod uses;
mod worlds;

use bytes::Bytes;
use kiln_graph::infer::{self, Expr};
use kiln_graph::{DType, Dim, Graph, Shape, ValueId};

use self::operands::Argument;
use self::uses::{Indexed, Uses, uses};
use self::worlds::effect;
use super::{Point, Shapes};
use crate::parity::{Ids, InputKind, InputSpec, Masking};

/// What to make for one input.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub kind: InputKind,
    /// Other numbers, with which the model computes something else or runs at other sizes.
    pub others: Vec<InputKind>,
    /// Whether it is true or false.
    pub truth: bool,
    /// Whether an If turns on it.
    pub branches: bool,
    /// The size that lengths do not exceed, and how many of them one of its places is.
    most: Option<(Expr, f64)>,
    /// Sizes of what it indexes, where those are open; its numbers times the factor and with the addend are below them.
    ends: Vec<(Expr, f64, f64)>,
}

impl Wanted {
    /// Whether the input selects what is computed.
    pub fn is_control(&self) -> bool {
        !self.others.is_empty()
    }

    /// What its numbers stay below at a point, by the open sizes that they index; at least 1.
    fn end(&self, point: &Point) -> Option<i64> {
        let size = |s: &str| point.get(s).and_then(|&n| i64::try_from(n).ok());
        let ends = self.ends.iter().filter_map(|(size_of, factor, addend)| {
            let last = (size_of.eval(&size)? - 1) as f64;
            Some(((last - addend) / factor).floor() as i64 + 1)
        });
        ends.min().map(|end| end.max(1))
    }
}

/// What to make for every input of a graph.
#[derive(Clone, Debug)]
pub struct Kinds(pub Vec<Wanted>);

impl Kinds {
    /// Reads the graph once; the answers hold at all sizes.
    pub fn of(graph: &Graph) -> Kinds {
        let defaults: Vec<ValueId> = graph.defaults().iter().map(|(v, _)| *v).collect();
        let inputs = graph.inputs().iter().filter(|v| !defaults.contains(v));
        Kinds(inputs.map(|&v| wanted(graph, v)).collect())
    }

    /// How to make each input at a point of the sizes.
    pub fn specs(&self, shapes: &Shapes, point: &Point) -> Vec<InputSpec> {
        let at = shapes.at(point);
        let specs = shapes.inputs.iter().zip(&at).map(|(input, (name, shape))| {
            let wanted = self.0.iter().find(|w| w.name == *name);
            let mut kind = wanted.map_or(InputKind::Zeros, |w| w.kind.clone());
            if let InputKind::Lengths { most } = &mut kind {
                let size = |s: &str| point.get(s).and_then(|&n| i64::try_from(n).ok());
                let expr = wanted.and_then(|w| w.most.as_ref());
                let beside = at.iter().find(|(other, s)| other != name && s.len() > 1);
                let whole = |(e, each): &(Expr, f64)| Some((e.eval(&size)? as f64 * each) as i64);
                *most = expr
                    .and_then(whole)
                    .or(beside.map(|(_, s)| s[1] as i64))
                    .unwrap_or(1);
            }
            if let Some(end) = wanted.and_then(|w| w.end(point)) {
                match &mut kind {
                    InputKind::Places { upper } | InputKind::Index { upper } => *upper = end,
                    InputKind::Ids(ids) => ids.upper = end.min(ids.upper),
                    _ => {}
                }
            }
            InputSpec {
                name: name.clone(),
                dtype: input.dtype,
                shape: shape.clone(),
                kind,
            }
        });
        specs.collect()
    }
}

/// How to make numbers for an input.
pub fn input_kind(graph: &Graph, input: ValueId) -> InputKind {
    wanted(graph, input).kind
}

/// Inputs that count positions, and the rows of the table that these index: a run of them is no longer than that.
pub(super) fn counted(graph: &Graph) -> Vec<(ValueId, i64)> {
    let found = graph.inputs().iter().filter_map(|&v| {
        let value = graph.value(v);
        let whole = value.ty().dtype().is_some_and(|d| !d.is_float());
        let named = value.name().to_ascii_lowercase().contains(POSITION);
        if !whole || !named {
            return None;
        }
        match wanted(graph, v).kind {
            InputKind::FarPositions { upper } if upper != FAR => Some((v, upper)),
            _ => None,
        }
    });
    found.collect()
}

/// What inputs are called that count the places of tokens.
const POSITION: &str = "position";
/// The end of positions of which sines are taken: the context of many decoders.
const FAR: i64 = 4096;
/// The additive mask's number for padding, as BERT has it; every format of floats holds it.
const HIDDEN: f64 = -10_000.0;
/// What a number that is scaled down becomes.
const SCALED: f64 = 10.0;
/// Noise of a train of samples in -1 to 1, as audio is.
const LOUDNESS: f32 = 0.1;

/// An input as it is judged.
struct Subject<'a> {
    graph: &'a Graph,
    input: ValueId,
    dtype: DType,
    /// `None` where the rank is not known.
    dims: Option<&'a [Dim]>,
    uses: Uses,
}

fn wanted(graph: &Graph, input: ValueId) -> Wanted {
    let value = graph.value(input);
    let name = value.name().to_string();
    let Some(dtype) = value.ty().dtype() else {
        return Wanted {
            name,
            kind: match value.is_unused() {
                true => InputKind::Zeros,
                false => InputKind::Mask,
            },
            others: Vec::new(),
            truth: false,
            branches: false,
            most: None,
            ends: Vec::new(),
        };
    };
    let subject = Subject {
        graph,
        input,
        dtype,
        dims: value.ty().shape(),
        uses: uses(graph, input),
    };
    let mut made = subject.kinds().into_iter();
    let kind = made.next().unwrap_or(InputKind::Mask);
    let most = match kind {
        InputKind::Lengths { .. } => subject.most(),
        _ => None,
    };
    let ends = match kind {
        InputKind::Index { .. } => subject.writes().into_iter().collect(),
        InputKind::Places { .. } | InputKind::Ids(_) => subject.ends(),
        _ => Vec::new(),
    };
    Wanted {
        name,
        kind,
        others: made.collect(),
        truth: dtype == DType::Bool,
        branches: subject.uses.branches,
        most,
        ends,
    }
}

/// The shapes of a graph's inputs, in which sizes without a name have the one that [`Shapes`] gives them.
fn named(graph: &Graph) -> Vec<(ValueId, Shape)> {
    let shape = |&v: &ValueId| {
        let value = graph.value(v);
        let dims = value.ty().shape()?.iter().enumerate();
        let dim = |(k, d): (usize, &Dim)| match d.is_anonymous() {
            true => Dim::Symbol(format!("{}.{k}", value.name()).into()),
            false => d.clone(),
        };
        Some((v, dims.map(dim).collect()))
    };
    graph.inputs().iter().filter_map(shape).collect()
}

fn values(all: &[f64]) -> InputKind {
    InputKind::Values(all.to_vec())
}

impl Subject<'_> {
    /// What to make; behind the first, what else the input may select.
    fn kinds(&self) -> Vec<InputKind> {
        match (self.dtype, self.dtype.is_float()) {
            (DType::String, _) => self.texts(),
            (DType::Bool, _) => self.truth(),
            (_, true) => self.floats(),
            _ => self.integers(),
        }
    }

    /// Whether it is one number.
    fn is_single(&self) -> bool {
        let one = |dims: &[Dim]| dims.iter().all(|d| d.known() == Some(1));
        self.dims.is_some_and(|d| d.len() < 2 && one(d))
    }

    /// Numbers that it has, where that is known.
    fn count(&self) -> Option<usize> {
        let sizes = self.dims?.iter().map(Dim::known);
        sizes.into_iter().try_fold(1usize, |n, d| n.checked_mul(d?))
    }

    /// Where new tokens are written into a cache, so that all of them fit: below the places that are left, and one.
    fn writes(&self) -> Option<(Expr, f64, f64)> {
        let graph = self.graph;
        let readers = graph.value(self.input).uses().iter();
        let mut scatters = readers.filter(|u| {
            let slot = u.slot == kiln_graph::graph::Slot::Input(2);
            slot && graph.node(u.node).op().is("TensorScatter")
        });
        let node = graph.node(scatters.next()?.node);
        let facts = infer::infer(graph);
        let cache = facts.dims(node.input(0)?)?;
        let new = facts.dims(node.input(1)?)?;
        let axis = node.attrs().int("axis").unwrap_or(-2);
        let axis = usize::try_from(axis.rem_euclid(cache.len().max(1) as i64)).ok()?;
        let left = cache.get(axis)?.sub(new.get(axis)?)?;
        Some((left.add(&Expr::from(1))?, 1.0, 0.0))
    }

    fn named(&self, word: &str) -> bool {
        let name = self.graph.value(self.input).name();
        name.to_ascii_lowercase().contains(word)
    }

    fn truth(&self) -> Vec<InputKind> {
        if self.is_single() && self.uses.decides {
            return vec![values(&[1.0]), values(&[0.0])];
        }
        vec![self.mask().unwrap_or(InputKind::Mask)]
    }

    /// Each text that it is compared with, and one that is none of them.
    fn texts(&self) -> Vec<InputKind> {
        let words = &self.uses.words;
        if self.graph.value(self.input).is_unused() {
            return vec![InputKind::Zeros];
        }
        if words.is_empty() {
            return vec![InputKind::Mask];
        }
        let other = std::iter::once(Bytes::from_static(b"other")).filter(|o| !words.contains(o));
        let all = words.iter().cloned().chain(other);
        all.map(|word| InputKind::Texts(vec![word])).collect()
    }

    fn integers(&self) -> Vec<InputKind> {
        let uses = &self.uses;
        if self.writes().is_some() {
            return vec![InputKind::Index { upper: 1 }];
        }
        if let Some(upper) = uses.table {
            let far = self.named(POSITION) && !uses.open;
            return vec![match far {
                true => InputKind::FarPositions { upper },
                false => InputKind::Ids(self.ids(upper)),
            }];
        }
        if uses.open && !uses.masks && !self.ends().is_empty() {
            return vec![InputKind::Places { upper: 1 }];
        }
        if !self.is_single()
            && let Some(mask) = self.mask()
        {
            return vec![mask];
        }
        let rank = self.dims.map_or(0, <[Dim]>::len);
        // A division rounded down asks for the sign and the rest. It does not select by them, and no length is negative.
        let selects = |b: &f64| *b > 0.0 && !uses.moduli.contains(b);
        let constants = !uses.equal.is_empty() || uses.bounds.iter().any(selects);
        // A mask of one number for each sample is how long it is.
        let counted = uses.versus.is_some() || uses.masks && rank == 1;
        let length = counted && rank < 2 && !constants;
        if length || uses.argument == Some(Argument::Length) {
            return vec![InputKind::Lengths { most: 1 }];
        }
        if self.is_single() || self.count().is_some_and(|n| n <= 8) {
            let compared = self.compared();
            if !compared.is_empty() {
                return compared;
            }
        }
        if let Some(argument) = uses.argument {
            return self.argument(argument);
        }
        if uses.counts && !self.is_single() {
            return vec![InputKind::Mask];
        }
        if uses.waves || self.named(POSITION) {
            return vec![match uses.waves && !uses.open {
                true => InputKind::FarPositions { upper: FAR },
                false => InputKind::Positions,
            }];
        }
        if let Some(turning) = self.turning() {
            return vec![turning];
        }
        let data = uses.data && rank > 1;
        // Numbers that are scaled down are large ones: samples, milliseconds.
        let large = uses.scale.filter(|s| *s < 0.5 && !uses.levels);
        if let Some(scale) = large {
            let high = (SCALED / scale).min(f64::from(i32::MAX));
            return match self.is_single() {
                true => vec![values(&[high.round()]), values(&[1.0])],
                false => vec![InputKind::Levels(0, high as i64)],
            };
        }
        vec![match self.dtype {
            _ if uses.levels => InputKind::Levels(0, 255),
            DType::U8 if data => InputKind::Levels(0, 255),
            DType::I8 if data => InputKind::Levels(-128, 127),
            DType::U16 if data => InputKind::Levels(0, 4095),
            // Sound of a tenth of the loudest.
            DType::I16 if data => InputKind::Levels(-3276, 3276),
            _ => InputKind::Mask,
        }]
    }

    fn floats(&self) -> Vec<InputKind> {
        let uses = &self.uses;
        let rank = self.dims.map_or(0, <[Dim]>::len);
        if self.is_single() {
            let compared = self.compared();
            if !compared.is_empty() {
                return compared;
            }
        }
        if let Some(argument) = uses.argument {
            return self.argument(argument);
        }
        if let Some(upper) = uses.table {
            return vec![InputKind::Ids(self.ids(upper))];
        }
        let few = self.is_single() || rank == 1 && self.is_of_each_sample();
        if few && uses.waves {
            // Steps of a diffusion.
            return vec![values(&[981.0, 1.0, 501.0])];
        }
        if self.is_single() {
            return vec![values(&[0.75]), values(&[1.5])];
        }
        if few {
            return vec![values(&[0.75, 1.25, 1.0, 1.5])];
        }
        if let Some(mask) = self.mask() {
            return vec![mask];
        }
        // The ends of a quantization are those of real inputs, which nothing else tells.
        if let Some((low, high)) = uses.range.filter(|_| !uses.levels && !self.named("mask")) {
            return vec![InputKind::Within {
                low: low as f32,
                high: high as f32,
            }];
        }
        vec![match rank {
            _ if uses.levels => InputKind::Levels(0, 255),
            _ if self.named("mask") => self.erased().unwrap_or(InputKind::Mask),
            _ if self.far().is_some() => self.far().unwrap_or(InputKind::Mask),
            0..=2 if self.is_sound() => InputKind::Normal { std: LOUDNESS },
            _ => InputKind::Normal { std: 1.0 },
        }]
    }

    /// Whole numbers around those that the graph compares it with.
    fn marks(&self) -> Vec<f64> {
        let all = self.uses.equal.iter().chain(&self.uses.bounds);
        let around = |x: &f64| [x.floor() - 1.0, x.floor(), x.ceil(), x.ceil() + 1.0];
        let mut marks: Vec<f64> = all.flat_map(around).collect();
        marks.sort_unstable_by(f64::total_cmp);
        marks.dedup();
        marks
    }

    /// Ids below `upper`, with those on which the graph decides.
    fn ids(&self, upper: i64) -> Ids {
        let equal = &self.uses.equal;
        let marks = self.marks().into_iter();
        let marks = marks.filter(|m| (0.0..upper as f64).contains(m));
        let marks: Vec<i64> = marks.map(|m| m as i64).collect();
        let hides = |id: f64| effect(self.graph, self.input, id).hides;
        let other = (0..upper)
            .map(|id| id as f64)
            .find(|id| !equal.contains(id));
        let kept = other.is_some_and(|other| !equal.is_empty() && !hides(other));
        let padding = equal.iter().copied().find(|&id| kept && hides(id));
        Ids {
            upper,
            marks,
            padding: padding.filter(|p| p.fract() == 0.0).map(|p| p as i64),
            first: false,
        }
    }

    /// The numbers of a mask, if the graph hides something by it.
    fn mask(&self) -> Option<InputKind> {
        let at = |x: f64| effect(self.graph, self.input, x);
        let (zero, one) = (at(0.0), at(1.0));
        let masking = |kept, hidden| {
            let first = false;
            InputKind::Masking(Masking {
                kept,
                hidden,
                first,
            })
        };
        match (zero.hides, one.hides) {
            (true, false) => return Some(InputKind::Mask),
            (false, true) => return Some(masking(0.0, 1.0)),
            (hides, _) => {
                // Neither 0 nor 1 is the number that tells.
                let mut marks = self.marks().into_iter();
                if let Some(mark) = marks.find(|&mark| at(mark).hides != hides) {
                    return Some(match hides {
                        true => masking(mark, 0.0),
                        false => masking(0.0, mark),
                    });
                }
            }
        }
        if self.dtype != DType::Bool && !zero.hides && at(HIDDEN).hides {
            return Some(masking(0.0, HIDDEN));
        }
        match (self.dtype.is_float(), zero.erases, one.erases) {
            (false, true, false) => Some(InputKind::Mask),
            (false, false, true) => Some(masking(0.0, 1.0)),
            _ => None,
        }
    }

    /// The numbers of a float that is called a mask, by what it multiplies away.
    fn erased(&self) -> Option<InputKind> {
        let at = |x: f64| effect(self.graph, self.input, x).erases;
        (at(1.0) && !at(0.0)).then_some(InputKind::Masking(Masking {
            kept: 0.0,
            hidden: 1.0,
            first: false,
        }))
    }

    /// What a number may select: each that it is compared with, and one that is none of them.
    fn compared(&self) -> Vec<InputKind> {
        let Uses { equal, bounds, .. } = &self.uses;
        let whole = !self.dtype.is_float();
        let mut all = equal.clone();
        if let Some(most) = equal.last() {
            all.push(most + 1.0);
        }
        for bound in bounds {
            all.extend(match whole {
                true => [bound.floor(), bound.floor() + 1.0, bound.ceil() - 1.0],
                false => [bound * 0.75, bound * 1.25, *bound],
            });
        }
        if all.is_empty() && self.uses.decides {
            all = vec![1.0, 0.0];
        }
        let mut seen: Vec<f64> = Vec::new();
        for x in all {
            if !seen.contains(&x) && (!whole || x.fract() == 0.0) {
                seen.push(x);
            }
        }
        seen.iter().map(|x| values(&[*x])).collect()
    }

    /// Whole numbers among which the graph decides, and small ones.
    fn turning(&self) -> Option<InputKind> {
        let (least, most) = match self.dtype {
            DType::I8 => (i8::MIN.into(), i8::MAX.into()),
            DType::U8 => (0.0, u8::MAX.into()),
            DType::I16 => (i16::MIN.into(), i16::MAX.into()),
            DType::U16 => (0.0, u16::MAX.into()),
            DType::U32 | DType::U64 => (0.0, i32::MAX.into()),
            _ => (f64::from(i32::MIN), f64::from(i32::MAX)),
        };
        let mut all = self.marks();
        if all.is_empty() {
            return None;
        }
        all.extend([0.0, 1.0, 2.0]);
        all.retain(|x| (least..=most).contains(x));
        all.sort_unstable_by(f64::total_cmp);
        all.dedup();
        Some(InputKind::OneOf(all))
    }

    /// Floats among which the graph decides, if those of a bell curve around 0 are not.
    fn far(&self) -> Option<InputKind> {
        if !self.uses.decides {
            return None;
        }
        let all = || self.uses.bounds.iter().chain(&self.uses.equal);
        let near = all().any(|x| x.abs() <= 3.0 || !x.is_finite());
        let low = all().copied().reduce(f64::min).filter(|_| !near)?;
        let high = all().copied().fold(low, f64::max);
        let beyond = (high - low).max(low.abs()) / 4.0;
        Some(InputKind::Within {
            low: (low - beyond) as f32,
            high: (high + beyond) as f32,
        })
    }

    fn argument(&self, argument: Argument) -> Vec<InputKind> {
        // No tensor has more axes.
        let many = self.count().unwrap_or(1).clamp(1, 64);
        let one_by_one = |all: &[f64]| all.iter().map(|x| values(&[*x])).collect();
        match argument {
            Argument::Reshape => {
                let mut shape = vec![0.0; many];
                shape[many - 1] = -1.0;
                vec![InputKind::Values(shape)]
            }
            Argument::Ones => one_by_one(&[1.0]),
            Argument::Count => one_by_one(&[4.0, 1.0]),
            Argument::Zero => one_by_one(&[0.0, 1.0]),
            Argument::End => one_by_one(&[4.0, 1.0]),
            Argument::Length => vec![InputKind::Lengths { most: 1 }],
            Argument::Part(size) => one_by_one(&[size as f64]),
            Argument::Share => one_by_one(&[0.5]),
            Argument::Scales => {
                let factor = |k: usize| if many > 2 && k < 2 { 1.0 } else { 2.0 };
                vec![InputKind::Values((0..many).map(factor).collect())]
            }
        }
    }

    /// Whether its only axis is the first of another input.
    fn is_of_each_sample(&self) -> bool {
        let Some([axis @ Dim::Symbol(_)]) = self.dims else {
            return false;
        };
        let inputs = self.graph.inputs().iter().filter(|v| **v != self.input);
        let mut shapes = inputs.filter_map(|&v| self.graph.value(v).ty().shape());
        shapes.any(|s| s.len() > 1 && s.first() == Some(axis))
    }

    /// Whether it is samples of sound: one channel, which the graph cuts into windows.
    fn is_sound(&self) -> bool {
        let g = self.graph;
        let mut todo = vec![self.input];
        for _ in 0..16 {
            let Some(v) = todo.pop() else { break };
            for u in g.value(v).uses() {
                let node = g.node(u.node);
                if node.op().is_any(&["STFT", "DFT"]) {
                    return true;
                }
                let weight = node.input(1).and_then(|w| g.value(w).ty().rank());
                if node.op().is("Conv") && weight == Some(3) && node.input(0) == Some(v) {
                    return true;
                }
                if node
                    .op()
                    .is_any(&["Unsqueeze", "Reshape", "Pad", "Identity"])
                {
                    todo.extend(node.outputs().iter().flatten());
                }
            }
        }
        false
    }

    /// The open sizes that it indexes.
    fn ends(&self) -> Vec<(Expr, f64, f64)> {
        if self.uses.indexed.is_empty() {
            return Vec::new();
        }
        let facts = infer::with_inputs(self.graph, &named(self.graph));
        let end = |i: &Indexed| {
            let dims = facts.dims(i.of)?;
            let axis = if i.axis < 0 {
                i.axis + dims.len() as i64
            } else {
                i.axis
            };
            let size = dims.get(usize::try_from(axis).ok()?)?;
            Some((size.clone(), i.factor, i.addend))
        };
        let ends = self.uses.indexed.iter().filter_map(end);
        ends.filter(|(size, ..)| size.as_i64().is_some() || size.is_named())
            .collect()
    }

    /// The size of the axis that lengths are counted along.
    fn most(&self) -> Option<(Expr, f64)> {
        let (node, scale) = self.uses.versus?;
        let facts = infer::infer(self.graph);
        let size = facts.dims(self.graph.node(node).output(0)?)?.last()?;
        let each = 1.0 / scale;
        (each > 0.0 && each.is_finite()).then(|| (size.clone(), each))
    }
}

#[cfg(test)]
mod tests;
