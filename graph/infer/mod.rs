//! Inference of element types, shapes and the numbers that shapes are made of.
//!
//! [`infer`] walks a graph once, in topological order, and gives [`Facts`]: for each value its element type, its
//! dimensions as expressions over the named sizes of the graph's inputs, and for small integer tensors their elements
//! as such expressions. So a `Shape` whose parts are picked, multiplied and joined into the operand of a `Reshape`
//! still says what the dimensions are. What cannot be known is unknown; what cannot be true is a [`Conflict`].
//!
//! Types written in the graph fill in what inference leaves open. Where both speak, inference wins: a type may be left
//! from before a rewrite, and exporters write sizes that hold for their example only.

mod atom;
mod bounds;
mod call;
mod contrib;
mod control;
mod demand;
mod divide;
mod dtype;
mod elementwise;
mod expr;
mod fact;
mod generate;
mod index;
mod internal;
mod layout;
mod linear;
mod rten;
mod rules;
mod slice;
#[cfg(test)]
mod tests;
mod text;

use std::cell::RefCell;

use rustc_hash::FxHashMap;

use self::call::Call;
pub use self::demand::Demand;
use self::demand::Demands;
pub use self::expr::Expr;
use self::fact::{Dims, Fact, Fresh};
use crate::types::Shape;
use crate::{Def, Graph, NodeId, Type, ValueId};

static UNKNOWN: Type = Type::Unknown;

/// What is known of the values of one graph.
#[derive(Debug, Default)]
pub struct Facts {
    facts: Vec<Fact>,
    types: Vec<Type>,
    conflicts: Vec<Conflict>,
    demands: Vec<Demand>,
    nested: FxHashMap<NodeId, Vec<Facts>>,
}

/// Something that cannot be true of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The node that contradicts its operands or its declared type; `None` for a graph input.
    pub node: Option<NodeId>,
    pub message: String,
}

impl Conflict {
    /// The message with the node's name in front.
    pub fn describe(&self, graph: &Graph) -> String {
        match self.node.filter(|&n| graph.get(n).is_some()) {
            Some(node) => format!("{}: {}", graph.label(node), self.message),
            None => self.message.clone(),
        }
    }
}

impl Facts {
    /// The type: what was inferred, with what the graph declares where inference says nothing.
    pub fn ty(&self, value: ValueId) -> &Type {
        self.types.get(value.index()).unwrap_or(&UNKNOWN)
    }

    /// The number of values known when this was inferred; later ones are not in it.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// The dimensions. Unlike the type's, sizes that nothing names still tell whether two of them are the same.
    pub fn dims(&self, value: ValueId) -> Option<&[Expr]> {
        self.facts.get(value.index())?.dims.as_deref()
    }

    /// The elements of a small tensor of whole numbers, in row-major order; booleans are 0 and 1.
    pub fn values(&self, value: ValueId) -> Option<&[Expr]> {
        self.facts.get(value.index())?.values.as_deref()
    }

    /// Contradictions of this graph, those of nested graphs not included.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// What this graph and those nested in it demand of named sizes, in the order of the nodes.
    pub fn demands(&self) -> &[Demand] {
        &self.demands
    }

    /// Facts of a node's nested graphs, in the order of its attributes.
    pub fn nested(&self, node: NodeId) -> &[Facts] {
        self.nested.get(&node).map_or(&[], Vec::as_slice)
    }
}

/// Infers types, shapes and values of a whole graph.
pub fn infer(graph: &Graph) -> Facts {
    let demands = Demands::default();
    let mut facts = run(
        graph,
        &Env {
            demands: &demands,
            fresh: &Fresh::default(),
            inputs: &[],
            captures: &[],
            sizes: None,
        },
    );
    facts.demands = demands.take();
    facts
}

/// Infers under other shapes of some inputs. Sizes that the inputs' declared types name take the new values everywhere;
/// sizes written into the types of other values are not believed.
pub fn with_inputs(graph: &Graph, overrides: &[(ValueId, Shape)]) -> Facts {
    let fresh = Fresh::default();
    let mut sizes = Sizes::default();
    let mut inputs: Vec<Option<Fact>> = vec![None; graph.inputs().len()];
    let mut conflicts = Vec::new();
    for (value, shape) in overrides {
        let Some(at) = graph.inputs().iter().position(|v| v == value) else {
            continue;
        };
        let declared = graph.value(*value).ty();
        let mut fact = Fact::of_type(declared, &fresh);
        let given: Dims = shape.iter().map(|d| fresh.dim(d)).collect();
        if let Some(dims) = &fact.dims {
            if dims.len() == given.len() {
                for (name, size) in dims.iter().zip(&given) {
                    sizes.bind(name, size, &mut conflicts);
                }
            } else {
                let name = graph.value(*value).name();
                let message = format!(
                    "input {name} has rank {} and not {}",
                    dims.len(),
                    given.len()
                );
                conflicts.push(Conflict {
                    node: None,
                    message,
                });
            }
        }
        fact.dims = Some(given);
        inputs[at] = Some(fact);
    }
    let demands = Demands::default();
    let mut facts = run(
        graph,
        &Env {
            demands: &demands,
            fresh: &fresh,
            inputs: &inputs,
            captures: &[],
            sizes: Some(&sizes),
        },
    );
    conflicts.append(&mut facts.conflicts);
    facts.conflicts = conflicts;
    facts.demands = demands.take();
    facts
}

/// Writes inferred types into the graph and the graphs nested in it, and gives what was inferred.
pub fn annotate(graph: &mut Graph) -> Facts {
    let facts = infer(graph);
    write(graph, &facts);
    facts
}

fn write(graph: &mut Graph, facts: &Facts) {
    let values: Vec<ValueId> = (graph.values())
        .filter(|(_, v)| v.constant().is_none() && !matches!(v.ty(), Type::Opaque(_)))
        .map(|(id, _)| id)
        .collect();
    for value in values {
        let ty = facts.ty(value);
        if *ty != Type::Unknown {
            graph.set_type(value, ty.clone());
        }
    }
    for (&node, nested) in &facts.nested {
        let graphs = graph
            .attrs_mut(node)
            .values_mut()
            .flat_map(|a| a.graphs_mut());
        for (inner, facts) in graphs.zip(nested) {
            write(inner, facts);
        }
    }
}

/// New values of named sizes.
#[derive(Default)]
struct Sizes(FxHashMap<String, Expr>);

impl Sizes {
    fn bind(&mut self, name: &Expr, size: &Expr, conflicts: &mut Vec<Conflict>) {
        if name.as_i64().is_some() || !size.is_named() || name.lone_symbol().is_none() {
            return;
        }
        let old = self
            .0
            .entry(name.to_string())
            .or_insert_with(|| size.clone());
        if old.equals(size) == Some(false) {
            conflicts.push(Conflict {
                node: None,
                message: format!("the size {name} is given as {old} and as {size}"),
            });
        }
    }

    fn apply(&self, size: &Expr) -> Option<Expr> {
        size.substitute(&|name| self.0.get(name).cloned())
    }
}

/// What a graph is inferred under.
struct Env<'a> {
    /// Where demands go, those of nested graphs too.
    demands: &'a Demands,
    fresh: &'a Fresh,
    /// Facts of inputs by position, instead of their declared types.
    inputs: &'a [Option<Fact>],
    /// Facts of the owning node's captures.
    captures: &'a [Fact],
    /// Set where other input shapes than the declared ones are tried.
    sizes: Option<&'a Sizes>,
}

impl Env<'_> {
    fn input(&self, position: u32, declared: &Type) -> Fact {
        let given = self.inputs.get(position as usize).cloned().flatten();
        given.unwrap_or_else(|| {
            let mut fact = Fact::of_type(declared, self.fresh);
            if let (Some(sizes), Some(dims)) = (self.sizes, &mut fact.dims) {
                for dim in dims {
                    *dim = sizes.apply(dim).unwrap_or_else(|| self.fresh.size());
                }
            }
            fact
        })
    }

    /// A declared type as far as it can be believed of a value that a node computes.
    fn declared(&self, ty: &Type) -> Fact {
        let mut fact = Fact::of_type(ty, self.fresh);
        if let (Some(sizes), Some(dims)) = (self.sizes, &mut fact.dims) {
            for dim in dims {
                let size = if dim.as_i64().is_some() {
                    None
                } else {
                    sizes.apply(dim)
                };
                *dim = size.unwrap_or_else(|| self.fresh.size());
            }
        }
        fact
    }
}

fn run(graph: &Graph, env: &Env<'_>) -> Facts {
    let mut out = Facts {
        facts: vec![Fact::default(); graph.value_bound()],
        ..Facts::default()
    };
    for (id, value) in graph.values() {
        let mut fact = match value.def() {
            Def::Constant(tensor) => Fact::of_tensor(tensor),
            Def::Input(position) => env.input(*position, value.ty()),
            Def::Capture(position) => match env.captures.get(*position as usize) {
                Some(outer) => outer.clone(),
                None => env.declared(value.ty()),
            },
            Def::Node(..) | Def::Removed => continue,
        };
        fact.number_elements(env.fresh);
        out.facts[id.index()] = fact;
    }
    let order = graph.topo_order().unwrap_or_else(|cycle| {
        out.conflicts.push(Conflict {
            node: Some(cycle.id),
            message: cycle.to_string(),
        });
        graph.nodes().map(|(id, _)| id).collect()
    });
    let messages = RefCell::new(Vec::new());
    for id in order {
        let node = graph.node(id);
        let call = Call {
            graph,
            node,
            facts: &out.facts,
            fresh: env.fresh,
            conflicts: &messages,
            demands: env.demands,
            // A graph that names no version is one of today's.
            opset: graph.opsets().get("").unwrap_or(i64::MAX),
        };
        let mut outs = if node.has_subgraphs() {
            let (outs, nested) = control::infer(&call, env.sizes);
            out.nested.insert(id, nested);
            outs
        } else {
            dtype::check(&call);
            let mut outs = rules::shapes(&call).unwrap_or_default();
            index::demand(&call);
            outs.resize_with(node.outputs().len(), Fact::default);
            for (k, fact) in outs.iter_mut().enumerate() {
                fact.dtype = dtype::output(&call, k);
            }
            if let Some(first) = outs.first_mut() {
                first.end = index::end(&call);
            }
            outs
        };
        outs.resize_with(node.outputs().len(), Fact::default);
        for (value, fact) in node.outputs().iter().zip(outs) {
            let Some(value) = value else {
                continue;
            };
            let declared = graph.value(*value).ty();
            let mut fact = settle(fact, env.declared(declared), env.sizes.is_none(), &messages);
            fact.forget_unfit(env.fresh);
            fact.number_elements(env.fresh);
            out.facts[value.index()] = fact;
        }
        out.conflicts
            .extend(messages.take().into_iter().map(|message| Conflict {
                node: Some(id),
                message,
            }));
    }
    out.types = types(graph, &out.facts);
    out
}

/// What was inferred, with what was declared where inference has no name for it. Declared sizes contradict only under
/// the inputs they were written for: exporters name outputs' axes as they please.
fn settle(
    mut inferred: Fact,
    declared: Fact,
    sizes_hold: bool,
    conflicts: &RefCell<Vec<String>>,
) -> Fact {
    if let (Some(a), Some(b)) = (inferred.dtype, declared.dtype)
        && a != b
    {
        conflicts
            .borrow_mut()
            .push(format!("the result is {a}, declared as {b}"));
    }
    inferred.dtype = inferred.dtype.or(declared.dtype);
    match (&mut inferred.dims, declared.dims) {
        (None, dims) => inferred.dims = dims,
        (Some(_), None) => {}
        (Some(dims), Some(said)) if dims.len() != said.len() => {
            let message = format!(
                "the result has rank {}, declared as {}",
                dims.len(),
                said.len()
            );
            conflicts.borrow_mut().push(message);
        }
        (Some(dims), Some(said)) => {
            for (dim, said) in dims.iter_mut().zip(&said) {
                if let (Some(a), Some(b)) = (dim.as_i64(), said.as_i64())
                    && a != b
                    && sizes_hold
                {
                    let message = format!("the result has a dimension of {a}, declared as {b}");
                    conflicts.borrow_mut().push(message);
                }
                if !dim.is_named() && said.is_named() {
                    *dim = said.clone();
                }
            }
        }
    }
    inferred
}

fn types(graph: &Graph, facts: &[Fact]) -> Vec<Type> {
    let mut types = vec![Type::Unknown; facts.len()];
    for (id, value) in graph.values() {
        types[id.index()] = match value.ty() {
            Type::Opaque(_) => value.ty().clone(),
            ty if value.constant().is_some() => ty.clone(),
            _ => facts[id.index()].to_type(),
        };
    }
    types
}
