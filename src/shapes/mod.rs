//! The sizes a compiled model serves: ranges of symbolic dimensions, and the shapes of inputs at points of them.

mod derived;
mod kinds;
mod settle;
mod spec;

use std::collections::BTreeMap;

use kiln_graph::{DType, Dim, Graph, Type};
use serde::{Deserialize, Serialize};

pub use derived::derived;
pub use kinds::{Kinds, Wanted, input_kind};
pub use settle::{Probe, Settled, settle};
pub use spec::{DimSpec, ShapeSpec, SpecError};

use crate::engine::{Profile, ProfileInput};

/// Sizes of one dimension: TensorRT tunes for `opt` and takes all from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub min: usize,
    pub opt: usize,
    pub max: usize,
}

impl Range {
    pub fn fixed(n: usize) -> Range {
        Range {
            min: n,
            opt: n,
            max: n,
        }
    }

    pub fn is_fixed(self) -> bool {
        self.min == self.max
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is_fixed() {
            true => write!(f, "{}", self.opt),
            false => write!(f, "{}:{}:{}", self.min, self.opt, self.max),
        }
    }
}

/// One input: its type, and each dimension as a number or the name of a range.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<Dim>,
}

/// A point of the profile: which size each symbol has.
pub type Point = BTreeMap<String, usize>;

/// The inputs of a model and the ranges of their symbolic dimensions.
#[derive(Clone, Debug)]
pub struct Shapes {
    pub inputs: Vec<Input>,
    pub ranges: BTreeMap<String, Range>,
    /// Symbols whose range the user gave; it is not changed.
    pub given: Vec<String>,
    /// Dimensions at whose one size alone the model runs, because the exporter wrote it into the graph.
    pub baked: Vec<String>,
}

/// A batch of eight and 512 tokens is what sentence encoders and translators are served with; both are only defaults.
const BATCH: Range = Range {
    min: 1,
    opt: 1,
    max: 8,
};
const LENGTH: Range = Range {
    min: 1,
    opt: 128,
    max: 512,
};

/// Samples at once: one without padding, and one of each amount of padding that made masks have.
const SEVERAL: usize = 4;

impl Shapes {
    /// The graph's inputs with default ranges, changed as the user says.
    ///
    /// # Errors
    /// When a specification names an unknown dimension or input, or does not fit it; or an input is no tensor.
    pub fn new(graph: &Graph, dims: &[DimSpec], shapes: &[ShapeSpec]) -> Result<Shapes, SpecError> {
        let mut inputs = Vec::new();
        let defaults: Vec<_> = graph.defaults().iter().map(|(v, _)| *v).collect();
        for &v in graph.inputs().iter().filter(|v| !defaults.contains(v)) {
            let value = graph.value(v);
            let (Some(dtype), Some(shape)) = (value.ty().dtype(), value.ty().shape()) else {
                let given = shapes.iter().find(|s| s.input == value.name());
                match (given, value.ty().dtype()) {
                    (Some(spec), Some(dtype)) => {
                        let open = spec.ranges.iter().enumerate();
                        let name = |k| Dim::Symbol(format!("{}.{k}", value.name()).into());
                        inputs.push(Input {
                            name: value.name().to_string(),
                            dtype,
                            dims: open.map(|(k, _)| name(k)).collect(),
                        });
                        continue;
                    }
                    (_, dtype) => {
                        let (input, ty) = (value.name().to_string(), value.ty().to_string());
                        return Err(match (value.ty(), dtype) {
                            (Type::Opaque(_), _) => SpecError::NotTensor { input, ty },
                            (_, None) => SpecError::NoType { input },
                            (_, Some(_)) => SpecError::NoShape { input, ty },
                        });
                    }
                }
            };
            let dims = shape.iter().enumerate().map(|(k, d)| match d {
                Dim::Unknown => Dim::Symbol(format!("{}.{k}", value.name()).into()),
                known => known.clone(),
            });
            inputs.push(Input {
                name: value.name().to_string(),
                dtype,
                dims: dims.collect(),
            });
        }
        let mut out = Shapes {
            ranges: default_ranges(&inputs),
            inputs,
            given: Vec::new(),
            baked: Vec::new(),
        };
        spec::apply(&mut out, dims, shapes)?;
        Ok(out)
    }

    fn point(&self, pick: impl Fn(&Range) -> usize) -> Point {
        let ranges = self.ranges.iter();
        ranges.map(|(name, r)| (name.clone(), pick(r))).collect()
    }

    /// Smallest, typical and largest sizes; those that coincide are left out.
    pub fn points(&self) -> Vec<(&'static str, Point)> {
        let typical = self.point(|r| r.opt);
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
        let batch = self.ranges.iter().find(|(name, _)| is_batch(name));
        let (name, range) = batch.filter(|(_, r)| r.opt == 1 && r.max > 1)?;
        let mut point = self.point(|r| r.opt);
        point.insert(name.clone(), range.max.min(SEVERAL));
        let known = self.points().iter().any(|(_, p)| *p == point);
        (!known).then_some(point)
    }

    /// The shape of each input at a point.
    pub fn at(&self, point: &Point) -> Vec<(String, Vec<usize>)> {
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
            Some(Dim::Symbol(s)) if is_batch(s) => point.get(&**s).copied().unwrap_or(1),
            Some(Dim::Known(n)) => *n,
            _ => 1,
        }
    }

    /// Writes dimensions whose range is one size into the types of the graph's inputs. Gives whether there were any.
    pub fn fix_inputs(&self, graph: &mut Graph) -> bool {
        let mut any = false;
        for v in graph.inputs().to_vec() {
            let ty = graph.value(v).ty();
            let (Some(dtype), Some(shape)) = (ty.dtype(), ty.shape()) else {
                continue;
            };
            let fixed = |d: &Dim| match d {
                Dim::Symbol(s) => self
                    .ranges
                    .get(&**s)
                    .filter(|r| r.is_fixed())
                    .map(|r| Dim::Known(r.opt)),
                _ => None,
            };
            let new: kiln_graph::Shape = shape
                .iter()
                .map(|d| fixed(d).unwrap_or(d.clone()))
                .collect();
            if new[..] != *shape {
                any = true;
                graph.set_type(v, Type::tensor(dtype, Some(new)));
            }
        }
        any
    }

    /// The optimization profile; `None` if no input is dynamic.
    pub fn profile(&self) -> Option<Profile> {
        let [min, opt, max] = [
            self.at(&self.point(|r| r.min)),
            self.at(&self.point(|r| r.opt)),
            self.at(&self.point(|r| r.max)),
        ];
        let wide = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect::<Vec<_>>();
        let mut inputs = Vec::new();
        for (k, input) in self.inputs.iter().enumerate() {
            if input.dims.iter().any(|d| matches!(d, Dim::Symbol(_))) {
                inputs.push(ProfileInput {
                    name: input.name.clone(),
                    min: wide(&min[k].1),
                    opt: wide(&opt[k].1),
                    max: wide(&max[k].1),
                });
            }
        }
        (!inputs.is_empty()).then_some(Profile { inputs })
    }
}

/// Whether a dimension of this name counts the items served at once.
pub(crate) fn is_batch(symbol: &str) -> bool {
    let lower = symbol.to_ascii_lowercase();
    lower.contains("batch") || lower == "n" || lower == "b"
}

fn default_ranges(inputs: &[Input]) -> BTreeMap<String, Range> {
    let named_batch =
        (inputs.iter().flat_map(|i| &i.dims)).any(|d| matches!(d, Dim::Symbol(s) if is_batch(s)));
    let mut ranges = BTreeMap::new();
    for input in inputs {
        for (k, dim) in input.dims.iter().enumerate() {
            if let Dim::Symbol(s) = dim {
                let batch = is_batch(s) || (k == 0 && !named_batch);
                let default = if batch { BATCH } else { LENGTH };
                ranges.entry(s.to_string()).or_insert(default);
            }
        }
    }
    ranges
}
