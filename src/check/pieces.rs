//! Parity of a model that is too large to be run whole: piece by piece, each alone in memory.
//!
//! Models are cut where few values hold all that the weights have given so far, as between the layers of a decoder, and
//! where both graphs have these values under the same names. Each piece of either is run on the numbers that the
//! original's pieces before it gave. So errors do not travel from piece to piece: that all pieces are right says what each
//! of them adds, not what that becomes at the end.

use std::path::Path;

use kiln_graph::{DType, Graph, Model, NodeId, Tensor, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::inner::{common, wide};
use crate::parity::{self, Case, Report, Side, Tolerance};
use crate::prove::{self, Alone};
use crate::runtime::Session;
use crate::shapes::{self, Point, Shapes};
use crate::talk::Talk;

/// A part of both models that was run alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Piece {
    /// Values that it is given, beside the inputs of the model.
    pub given: Vec<String>,
    /// Values that it gives: those that later pieces are given, and outputs of the model.
    pub gives: Vec<String>,
    /// Bytes of the constants that the original reads in it for the first time.
    pub bytes: usize,
    /// The largest of them.
    pub weight: String,
}

/// Inputs at these sizes.
///
/// # Errors
/// When they cannot be made.
pub(crate) fn cases(
    graph: &Graph,
    shapes: &Shapes,
    points: &[(&'static str, Point)],
    seed: u64,
) -> Result<Vec<Case>, prove::Error> {
    let cases = points.iter().map(|(name, point)| {
        let specs = shapes::specs(graph, shapes, point);
        Ok(Case {
            name: (*name).to_string(),
            inputs: parity::make(&specs, seed)?,
        })
    });
    cases.collect()
}

/// Compares piece by piece, at every case. The types of both models must be inferred.
///
/// # Errors
/// When a piece does not load or run.
pub(crate) fn compare(
    alone: &Alone,
    original: &Model,
    candidate: &Model,
    cases: &[Case],
    tolerance: &Tolerance,
    talk: &dyn Talk,
) -> Result<(Report, Vec<Piece>), prove::Error> {
    let open = |whole: &Model, piece: &Piece, values: &Values, side| {
        let path = whole.path.as_deref().unwrap_or(Path::new("model"));
        let model = cut(whole, piece, values);
        alone.open(&path.display().to_string(), &model, side)
    };
    let sides = Sides::new(&original.graph, &candidate.graph);
    let pieces = pieces(&original.graph, &sides.original);
    let public = |name: &str| original.graph.outputs().iter().any(|o| &*o.name == name);
    let comparable = |side: &Named| -> Named {
        let tensors = side.iter().map(|(name, tensor)| match public(name) {
            true => (name.clone(), tensor.clone()),
            // In one graph a value may have half precision that has not in the other.
            false => (name.clone(), wide(tensor).unwrap_or_else(|| tensor.clone())),
        });
        tensors.collect()
    };
    // Of each case, the model's inputs and what the pieces so far gave.
    let mut known: Vec<Named> = cases.iter().map(|c| c.inputs.clone()).collect();
    let mut reports = Vec::new();
    talk.stage("parity, piece by piece");
    for (k, piece) in pieces.iter().enumerate() {
        let number = format!("piece {} of {}", k + 1, pieces.len());
        talk.done(k, pieces.len());
        // One after the other, so that what one session holds is free when the other is opened.
        let mut expected = Vec::new();
        let mut reference = open(original, piece, &sides.original, Side::Reference)?;
        for (case, known) in cases.iter().zip(&known) {
            let case = Case {
                name: format!("{}, {number}", case.name),
                inputs: fed(&reference, known),
            };
            let outputs = parity::outputs(&mut reference, &case, Side::Reference);
            let outputs = outputs.map_err(|e| prove::Error::Sizes {
                model: original.path.clone().unwrap_or_default(),
                why: e.to_string(),
            })?;
            expected.push((case, prove::owned(outputs)));
        }
        drop(reference);
        let mut result = open(candidate, piece, &sides.candidate, Side::Candidate)?;
        for ((case, expected), known) in expected.into_iter().zip(&mut known) {
            let given = Case {
                name: case.name.clone(),
                inputs: fed(&result, known),
            };
            let found = parity::outputs(&mut result, &given, Side::Candidate)?;
            let (left, right) = (comparable(&expected), comparable(&found));
            let report =
                parity::compare_outputs(&case.name, &case.inputs, &left, &right, tolerance);
            reports.push(report.mark(&left));
            known.extend(expected);
        }
        let later: FxHashSet<&String> = pieces[k + 1..].iter().flat_map(|p| &p.given).collect();
        for (case, known) in cases.iter().zip(&mut known) {
            let input = |name: &String| case.inputs.iter().any(|(n, _)| n == name);
            known.retain(|(name, _)| input(name) || later.contains(name));
        }
    }
    let report = Report {
        tolerance: tolerance.clone(),
        cases: reports,
    };
    Ok((report, pieces))
}

type Named = Vec<(String, Tensor)>;

type Values = FxHashMap<String, ValueId>;

/// What is known of a session's inputs, in their types.
fn fed(session: &Session, known: &Named) -> Named {
    let inputs = session.inputs().iter();
    let found = inputs.filter_map(|input| {
        let (name, tensor) = known.iter().find(|(name, _)| *name == input.name)?;
        let fitting = match (tensor.dtype(), input.dtype) {
            (have, want) if have == want => None,
            (_, DType::F32) => wide(tensor),
            (_, want) => wide(tensor).and_then(|t| t.narrowed(want)),
        };
        Some((name.clone(), fitting.unwrap_or_else(|| tensor.clone())))
    });
    found.collect()
}

/// Values by the names that both graphs have: what may be given, and the outputs.
struct Sides {
    original: Values,
    candidate: Values,
}

impl Sides {
    fn new(original: &Graph, candidate: &Graph) -> Sides {
        let outputs = |g: &Graph| -> Values {
            let outputs = g.outputs().iter();
            outputs.map(|o| (o.name.to_string(), o.value)).collect()
        };
        let (mut left, mut right) = (outputs(original), outputs(candidate));
        for pair in common(original, candidate) {
            left.entry(pair.name.clone()).or_insert(pair.original);
            right.entry(pair.name).or_insert(pair.candidate);
        }
        Sides {
            original: left,
            candidate: right,
        }
    }
}

/// A model with what a piece is given as inputs, and what it gives as outputs.
///
/// Where the graph leads to these from the model's inputs in another way, the piece has that way too.
fn cut(whole: &Model, piece: &Piece, values: &Values) -> Model {
    let mut model = whole.clone();
    let g = &mut model.graph;
    g.take_outputs();
    for name in &piece.gives {
        if let Some(&value) = values.get(name) {
            g.add_output(name, value);
        }
    }
    for name in &piece.given {
        if let Some(&value) = values.get(name) {
            let ty = g.value(value).ty().clone();
            let input = g.add_input(name, ty);
            g.replace_uses(value, input);
        }
    }
    for id in g.topo_order().unwrap_or_default().into_iter().rev() {
        // Nodes that are read stay.
        g.remove_node(id);
    }
    // Those of the other pieces would be widened with this one's.
    let values: Vec<ValueId> = g.values().map(|(v, _)| v).collect();
    for v in values {
        g.remove_unused_value(v);
    }
    model
}

/// The most values that are given together.
const WIDTH: usize = 3;

/// A place between two nodes where the graph can be cut.
struct Place {
    /// Nodes before it.
    at: usize,
    /// All values from before it, of those to which large constants contributed, that are read behind it.
    live: Vec<ValueId>,
    /// Bytes of the constants that are read before it.
    bytes: usize,
}

/// The pieces of a graph that is cut at `values` only, in the order of computation. Small ones are joined until they have half
/// the bytes of the largest that cannot be cut, so that no piece has more than one and a half of those.
fn pieces(g: &Graph, values: &Values) -> Vec<Piece> {
    let order = g.topo_order().unwrap_or_default();
    let known: FxHashSet<ValueId> = values.values().copied().collect();
    let mut sweep = Sweep::new(g);
    let mut places = Vec::new();
    for (k, &id) in order.iter().enumerate() {
        sweep.pass(id);
        let live = &sweep.live;
        if (1..=WIDTH).contains(&live.len()) && live.iter().all(|v| known.contains(v)) {
            places.push(Place {
                at: k + 1,
                live: live.clone(),
                bytes: sweep.bytes,
            });
        }
    }
    let total = sweep.bytes;
    // One value, unless that leaves half of the model in one piece: a decoder reads its encoder's output all along.
    let mut chosen: Vec<&Place> = Vec::new();
    for width in 1..=WIDTH {
        let narrow = places.iter().filter(|p| p.live.len() <= width);
        let mut largest = 0;
        let mut from = 0;
        for bytes in narrow.clone().map(|p| p.bytes).chain([total]) {
            largest = largest.max(bytes - from);
            from = bytes;
        }
        chosen.clear();
        from = 0;
        for place in narrow {
            if place.bytes > from
                && place.bytes - from >= largest.div_ceil(2)
                && place.bytes < total
            {
                chosen.push(place);
                from = place.bytes;
            }
        }
        if largest <= total / 2 {
            break;
        }
    }
    let mut pieces = Vec::new();
    let (mut from, mut given, mut read) = (0, &[][..], FxHashSet::default());
    let ends = chosen.iter().map(|p| (p.at, &p.live[..]));
    for (at, live) in ends.chain([(order.len(), &[][..])]) {
        let nodes = &order[from..at];
        pieces.push(piece(g, nodes, given, live, &mut read));
        (from, given) = (at, live);
    }
    if let Some(last) = pieces.last_mut() {
        let produced = |v: ValueId| g.producer(v).is_some();
        let others = g.outputs().iter().filter(|o| !produced(o.value));
        last.gives.extend(others.map(|o| o.name.to_string()));
    }
    pieces.retain(|p| !p.gives.is_empty());
    pieces
}

fn piece(
    g: &Graph,
    nodes: &[NodeId],
    given: &[ValueId],
    live: &[ValueId],
    read: &mut FxHashSet<ValueId>,
) -> Piece {
    let name = |v: &ValueId| g.value(*v).name().to_string();
    let inner: FxHashSet<NodeId> = nodes.iter().copied().collect();
    let mut gives: Vec<String> = (live.iter().filter(|v| !given.contains(v)))
        .map(name)
        .collect();
    let inside = |v: ValueId| g.producer(v).is_some_and(|id| inner.contains(&id));
    for output in g.outputs().iter().filter(|o| inside(o.value)) {
        if !gives.iter().any(|n| **n == *output.name) {
            gives.push(output.name.to_string());
        }
    }
    let mut largest = (0, String::new());
    let mut bytes = 0;
    for &id in nodes {
        for (v, tensor) in constants(g, id) {
            if read.insert(v) {
                bytes += tensor.byte_len();
                if tensor.byte_len() > largest.0 {
                    largest = (tensor.byte_len(), name(&v));
                }
            }
        }
    }
    Piece {
        given: given.iter().map(name).collect(),
        gives,
        bytes,
        weight: largest.1,
    }
}

/// Constants that a node or what is nested in it reads from its graph.
fn constants(g: &Graph, id: NodeId) -> impl Iterator<Item = (ValueId, &Tensor)> {
    let node = g.node(id);
    let read = node.inputs().iter().flatten().chain(node.captures());
    read.filter_map(|&v| Some((v, g.constant(v)?)))
}

/// What is alive, node by node.
struct Sweep<'a> {
    g: &'a Graph,
    /// Constants larger than the mean are weights: masks, positions and biases of distances are small, and computed again
    /// in each piece.
    large: usize,
    /// By value: whether weights contributed to it, and how many reads are left.
    weighed: Vec<bool>,
    left: Vec<usize>,
    live: Vec<ValueId>,
    read: FxHashSet<ValueId>,
    bytes: usize,
}

impl Sweep<'_> {
    fn new(g: &Graph) -> Sweep<'_> {
        let mut left = vec![0; g.value_bound()];
        let (mut count, mut bytes) = (0, 0);
        for (v, value) in g.values() {
            left[v.index()] = value.uses().len();
            if let Some(tensor) = value.constant().filter(|_| !value.is_unused()) {
                (count, bytes) = (count + 1, bytes + tensor.byte_len());
            }
        }
        Sweep {
            g,
            large: bytes / count.max(1),
            weighed: vec![false; g.value_bound()],
            left,
            live: Vec::new(),
            read: FxHashSet::default(),
            bytes: 0,
        }
    }

    fn pass(&mut self, id: NodeId) {
        let node = self.g.node(id);
        let mut weighed = node.has_subgraphs();
        for (v, tensor) in constants(self.g, id) {
            weighed |= tensor.byte_len() > self.large;
            if self.read.insert(v) {
                self.bytes += tensor.byte_len();
            }
        }
        for &v in node.inputs().iter().flatten().chain(node.captures()) {
            weighed |= self.weighed[v.index()];
            self.left[v.index()] -= 1;
            if self.left[v.index()] == 0 {
                self.live.retain(|&l| l != v);
            }
        }
        // Sizes are no numbers of the weights', and masks made of them are read everywhere.
        weighed &= !node.op().is_any(&["Shape", "Size"]);
        for &v in node.outputs().iter().flatten() {
            self.weighed[v.index()] = weighed;
            if weighed && self.left[v.index()] > 0 {
                self.live.push(v);
            }
        }
    }
}
