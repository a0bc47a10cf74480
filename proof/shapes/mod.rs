//! The sizes a compiled model serves: ranges of symbolic dimensions, and the shapes of inputs at points of them.

mod branches;
mod derived;
mod inputs;
mod kinds;
mod paper;
mod parts;
mod plan;
mod range;
mod relate;
mod roles;
mod runs;
mod search;
mod settle;
mod sizes;
mod spec;
mod surround;

use std::collections::BTreeMap;

use kiln_graph::{Dim, Graph, Type};

pub use derived::derived;
pub use inputs::specs;
pub use kinds::{Kinds, Wanted, input_kind};
pub use parts::ENOUGH;
pub(crate) use parts::Parts;
pub use range::{Input, Point, Range};
pub use roles::is_batch;
pub use runs::{Probe, Settled};
pub use settle::settle;
pub(crate) use settle::settle_near;
pub use sizes::Shapes;
use sizes::overrides;
pub(crate) use sizes::says_baked;
pub use spec::{DimSpec, ShapeSpec, SpecError};

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
                d if d.is_anonymous() => Dim::Symbol(format!("{}.{k}", value.name()).into()),
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
            relations: BTreeMap::new(),
            steps: BTreeMap::new(),
            notes: Vec::new(),
            roles: BTreeMap::new(),
            told_baked: false,
        };
        spec::apply(&mut out, dims, shapes)?;
        plan::plan(graph, &mut out)?;
        Ok(out)
    }

    /// The sizes of another graph of the same inputs, with what the user gave.
    ///
    /// # Errors
    /// When sizes that the user gave contradict each other in it.
    pub(crate) fn of(&self, graph: &Graph) -> Result<Shapes, SpecError> {
        let mut out = Shapes {
            ranges: default_ranges(&self.inputs),
            baked: Vec::new(),
            relations: BTreeMap::new(),
            steps: BTreeMap::new(),
            notes: Vec::new(),
            roles: BTreeMap::new(),
            told_baked: false,
            ..self.clone()
        };
        for name in &self.given {
            if let Some(range) = self.ranges.get(name) {
                out.ranges.insert(name.clone(), *range);
            }
        }
        plan::plan(graph, &mut out)?;
        Ok(out)
    }
}

/// Ranges by name and place alone, before the graph is studied.
fn default_ranges(inputs: &[Input]) -> BTreeMap<String, Range> {
    let roles = roles::by_place(inputs).into_iter();
    roles.map(|(name, role)| (name, role.range())).collect()
}
