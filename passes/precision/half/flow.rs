//! What values of a model are made of, as far as half precision cares: integers, numbers that a format rounds to zero, and
//! statistics. Bodies of If, Loop and Scan are followed with what they capture and carry.

use kiln_graph::{DType, Def, Dim, Graph, NodeId, Tensor, ValueId, ops};
use rustc_hash::FxHashMap;

use super::control::{Control, bodies};
use super::format::HalfFormat;
use super::operands::{COMPARISONS, GUARDED, REDUCTIONS, STATISTICS, arithmetic_operands};
use super::range::{self, Count};
use super::touch::{is_f32, touches};

/// Constants of more elements are weights, not guards.
const TABLE: usize = 1 << 14;

/// Products with so many terms are of coordinates; with more, they are layers.
const TERMS: usize = 4;

/// Times a body is followed until what it carries does not change any more; after these, it carries data.
const ROUNDS: usize = 6;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::precision) struct Origin {
    /// It is made of integers and constants alone, and lies there.
    pub count: Option<Count>,
    /// It holds positive numbers, or negative ones, that the format rounds to zero.
    pub vanishes: bool,
    /// It is a sum, a mean or what is made of one, or guarded by a number that vanishes.
    pub statistic: bool,
    /// It is made of floats that the model is given, by no more than arithmetic on single elements: a column of ids, a time.
    pub given: bool,
}

impl Origin {
    /// FP32 holds what the format would lose.
    pub fn needs_f32(self) -> bool {
        self.vanishes || self.statistic || self.count.is_some_and(|c| c.wide)
    }

    fn join(self, other: Origin) -> Origin {
        Origin {
            count: self.count.zip(other.count).map(|(a, b)| a.union(b)),
            vanishes: self.vanishes || other.vanishes,
            statistic: self.statistic || other.statistic,
            given: self.given && other.given,
        }
    }
}

/// What values of one graph are made of, and why nodes keep FP32 that this tells alone.
#[derive(Debug, Default)]
pub(in crate::precision) struct Flow {
    values: Vec<Origin>,
    reasons: FxHashMap<NodeId, String>,
    bodies: FxHashMap<NodeId, Vec<Flow>>,
}

impl Flow {
    /// Follows the outermost graph, whose types are inferred.
    pub fn of(g: &Graph, format: HalfFormat) -> Flow {
        Follow { g, format }.graph(&[], &[])
    }

    pub fn origin(&self, v: ValueId) -> Origin {
        self.values.get(v.index()).copied().unwrap_or_default()
    }

    /// Why a node computes a statistic, or guards one.
    pub fn reason(&self, id: NodeId) -> Option<&String> {
        self.reasons.get(&id)
    }

    /// Of the bodies of a node, in the order of its attributes.
    pub fn bodies(&self, id: NodeId) -> &[Flow] {
        self.bodies.get(&id).map_or(&[], Vec::as_slice)
    }
}

struct Follow<'g> {
    g: &'g Graph,
    format: HalfFormat,
}

impl Follow<'_> {
    fn graph(&self, captures: &[Origin], inputs: &[Origin]) -> Flow {
        let g = self.g;
        let mut flow = Flow {
            values: vec![Origin::default(); g.value_bound()],
            ..Flow::default()
        };
        for (v, value) in g.values() {
            let found = match value.def() {
                Def::Constant(tensor) => self.constant(tensor),
                Def::Capture(k) => captures.get(*k as usize).copied().unwrap_or_default(),
                Def::Input(k) => match inputs.get(*k as usize) {
                    Some(known) => *known,
                    None => Origin {
                        count: value.ty().dtype().and_then(Count::of_type),
                        given: is_f32(g, v),
                        ..Origin::default()
                    },
                },
                _ => continue,
            };
            flow.values[v.index()] = found;
        }
        for id in g.topo_order().unwrap_or_default() {
            match Control::of(g, id) {
                Some(control) => self.control(&mut flow, id, control),
                None => self.node(&mut flow, id),
            }
        }
        flow
    }

    fn constant(&self, tensor: &Tensor) -> Origin {
        let count = Count::of_constant(tensor);
        let small = tensor.dtype() == DType::F32 && tensor.len() <= TABLE;
        Origin {
            count: Some(count),
            vanishes: small && vanishes(tensor, self.format),
            ..Origin::default()
        }
    }

    fn node(&self, flow: &mut Flow, id: NodeId) {
        let g = self.g;
        let node = g.node(id);
        for k in 0..node.outputs().len() {
            let Some(v) = node.output(k) else { continue };
            let count = self.count(flow, id, v);
            let vanishes = self.carries(flow, id) || count.is_some_and(|c| c.vanishes(self.format));
            flow.values[v.index()] = Origin {
                count,
                vanishes: vanishes && is_f32(g, v),
                statistic: false,
                given: count.is_none() && is_f32(g, v) && self.is_given(flow, id),
            };
        }
        self.statistic(flow, id);
    }

    /// Whether a node computes element by element with floats that the model is given.
    fn is_given(&self, flow: &Flow, id: NodeId) -> bool {
        let node = self.g.node(id);
        let op = node.op();
        let sums = op.is_any(REDUCTIONS) || op.is_any(&["AveragePool", "Einsum"]);
        let places = arithmetic_operands(op, node.inputs().len()).filter(|_| !sums);
        let operands = places.into_iter().flatten().filter_map(|k| node.input(k));
        let operands: Vec<Origin> = operands.map(|v| flow.origin(v)).collect();
        op.domain().is_empty()
            && !embeds(self.g, id)
            && operands.iter().any(|o| o.given)
            && operands.iter().all(|o| o.given || o.count.is_some())
    }

    /// Where a result lies, if the node makes it of integers and constants.
    fn count(&self, flow: &Flow, id: NodeId, v: ValueId) -> Option<Count> {
        let g = self.g;
        let node = g.node(id);
        let op = node.op();
        let float = g.value(v).ty().dtype()?.is_float();
        if !op.domain().is_empty() {
            return range::made(g, id, v).filter(|_| !float);
        }
        let count = match arithmetic_operands(op, node.inputs().len()) {
            _ if op.is("MatMul") || op.is("Gemm") => self.coordinates(flow, id),
            _ if embeds(g, id) => None,
            Some(places) => {
                let operands: Vec<Option<Count>> = places
                    .iter()
                    .filter_map(|&k| node.input(k))
                    .map(|v| flow.origin(v).count)
                    .collect();
                // A Clip without one bound keeps the place of the other.
                let operands = match op.is("Clip") {
                    true => (0..3)
                        .map(|k| node.input(k).and_then(|v| flow.origin(v).count))
                        .collect(),
                    false => operands,
                };
                let known = match op.is("Clip") {
                    true => operands[0].is_some(),
                    false => operands.iter().all(Option::is_some),
                };
                (range::arithmetic(g, id, &operands)).filter(|_| known)
            }
            None if float && !op.is_any(&["ConstantOfShape", "EyeLike", "OneHot"]) => None,
            None => range::made(g, id, v),
        };
        let count = match float {
            true => count,
            false => count.or_else(|| range::made(g, id, v)),
        };
        count.map(|count| self.widened(g, id, v, count))
    }

    /// Marks floats in which the format would not tell integers apart.
    fn widened(&self, g: &Graph, id: NodeId, v: ValueId, mut count: Count) -> Count {
        if !g.value(v).ty().dtype().is_some_and(|d| d.is_float()) {
            count.wide = false;
            let dtype = g.value(v).ty().dtype().and_then(Count::of_type);
            let dtype = dtype.unwrap_or(Count::ANY);
            return match count.lo >= dtype.lo && count.hi <= dtype.hi {
                true => count,
                false => dtype,
            };
        }
        let op = g.node(id).op();
        let counts = op.is_any(&["Cast", "CastLike", "Range"]) || op.is_any(REDUCTIONS);
        count.wide |= counts && !count.is_exact(self.format);
        count
    }

    /// A product of coordinates: few terms, as the angles of rotary embeddings and points in a plane have.
    fn coordinates(&self, flow: &Flow, id: NodeId) -> Option<Count> {
        let g = self.g;
        let node = g.node(id);
        let operands: Option<Vec<Count>> = (node.inputs().iter().flatten())
            .map(|&v| flow.origin(v).count)
            .collect();
        let wide = operands?.iter().any(|c| c.wide);
        let shape = g.value(node.input(0)?).ty().shape()?;
        let terms = match ops::Gemm::of(g, id).is_some_and(|gemm| gemm.trans_a()) {
            true => shape.first()?,
            false => shape.last()?,
        };
        let few = matches!(terms, Dim::Known(n) if *n <= TERMS);
        few.then_some(Count { wide, ..Count::ANY })
    }

    /// Whether the result is elements of an operand that vanish.
    fn carries(&self, flow: &Flow, id: NodeId) -> bool {
        const CARRIES: &[&str] = &[
            "Cast",
            "Concat",
            "Expand",
            "Flatten",
            "Gather",
            "GatherElements",
            "GatherND",
            "Identity",
            "Mul",
            "Pad",
            "Reshape",
            "ScatterElements",
            "ScatterND",
            "Slice",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
            "Where",
        ];
        let node = self.g.node(id);
        let inputs = || node.inputs().iter().flatten().map(|&v| (v, flow.origin(v)));
        let floats = || inputs().filter(|(v, _)| is_f32(self.g, *v));
        let made = floats().all(|(_, o)| o.count.is_some());
        node.op().is_any(CARRIES) && made && floats().any(|(_, o)| o.vanishes)
    }

    /// A reduction, the square that feeds it, and what is done with its result until it meets the data again.
    ///
    /// A number that the format rounds to zero, such as the 1e-12 that keeps a divisor from being zero, makes a statistic too.
    fn statistic(&self, flow: &mut Flow, id: NodeId) {
        const WHY: &str =
            "it computes a sum or mean, or the statistics of a normalization made from one";
        let g = self.g;
        let node = g.node(id);
        let floats = || {
            let inputs = node.inputs().iter().flatten().copied();
            inputs.filter(|&v| is_f32(g, v)).collect::<Vec<_>>()
        };
        let reads = floats().iter().any(|v| flow.origin(*v).statistic);
        let reduces = node.op().is_any(REDUCTIONS) && touches(g, id, |v| is_f32(g, v));
        let vanishing = floats().into_iter().find(|v| flow.origin(*v).vanishes);
        let guards = vanishing.filter(|_| node.op().is_any(GUARDED));
        let made = node.output(0).filter(|v| flow.origin(*v).vanishes);
        let compares = vanishing.filter(|_| node.op().is_any(COMPARISONS));
        let small = guards.or(compares).or(made);
        let belongs = reduces || small.is_some() || (reads && node.op().is_any(STATISTICS));
        if !belongs {
            return;
        }
        let name = self.format.name();
        let why = match small.map(|v| number(g, v)) {
            Some(Some(number)) => format!("its {number:e} would be 0 in {name}"),
            Some(None) => format!("what keeps a divisor from being 0 would be 0 in {name}"),
            None => WHY.into(),
        };
        flow.reasons.entry(id).or_insert(why);
        if reduces {
            let producers = floats().into_iter().filter_map(|v| g.producer(v));
            for producer in producers {
                let p = g.node(producer);
                if p.op().is("Pow") || (p.op().is("Mul") && p.input(0) == p.input(1)) {
                    flow.reasons.entry(producer).or_insert_with(|| WHY.into());
                }
            }
        }
        // Once a statistic has met a value that is none, the result is data again.
        let met = floats()
            .into_iter()
            .any(|v| !flow.origin(v).statistic && !single(g, v));
        if reduces || guards.is_some() || (small.is_none() && !met) {
            for &v in node.outputs().iter().flatten() {
                flow.values[v.index()].statistic = is_f32(g, v);
            }
        }
    }

    /// A node with bodies.
    fn control(&self, flow: &mut Flow, id: NodeId, control: Control) {
        let g = self.g;
        let node = g.node(id);
        let of = |flow: &Flow, v: &ValueId| flow.origin(*v);
        let captures: Vec<Origin> = node.captures().iter().map(|v| of(flow, v)).collect();
        let start: Vec<Origin> = (node.inputs().iter())
            .map(|v| v.map_or_else(Origin::default, |v| of(flow, &v)))
            .collect();
        let mut carried = start.clone();
        let mut found = Vec::new();
        let mut results: Vec<Origin> = Vec::new();
        for round in 0..ROUNDS {
            found = bodies(g, id)
                .map(|body| {
                    let follow = Follow {
                        g: body,
                        format: self.format,
                    };
                    follow.graph(&captures, &inputs(body, control, &carried))
                })
                .collect();
            results = joined(g, id, &found);
            let mut settled = true;
            for (k, now) in carried.iter_mut().enumerate() {
                let behind = control.carried(k).and_then(|output| {
                    let place = (0..results.len()).find(|&b| control.output(b) == Some(output))?;
                    results.get(place).copied()
                });
                let Some(behind) = behind else { continue };
                let mut next = now.join(behind);
                if next != *now {
                    settled = false;
                    // What changes from one iteration to the next has no bounds that one iteration shows.
                    let float = node.input(k).is_some_and(|v| is_f32(g, v));
                    next.count = next.count.filter(|_| round + 2 < ROUNDS).map(|c| Count {
                        wide: float,
                        ..match now.count == next.count {
                            true => c,
                            false => Count::ANY,
                        }
                    });
                    *now = next;
                }
            }
            if settled {
                break;
            }
        }
        for (place, &result) in results.iter().enumerate() {
            let output = control.output(place);
            let Some(v) = output.and_then(|k| node.output(k)) else {
                continue;
            };
            // A loop may run no iteration.
            let start = (0..start.len()).find(|&k| control.carried(k) == output);
            let start = start.and_then(|k| carried.get(k));
            flow.values[v.index()] = start.map_or(result, |s| s.join(result));
        }
        flow.bodies.insert(id, found);
    }
}

/// What a body's inputs are.
fn inputs(body: &Graph, control: Control, operands: &[Origin]) -> Vec<Origin> {
    let count = |count| Origin {
        count: Some(count),
        ..Origin::default()
    };
    (0..body.inputs().len())
        .map(|k| match (control.operand(k), k) {
            (Some(operand), _) => operands.get(operand).copied().unwrap_or_default(),
            (None, 0) => count(Count::SIZE),
            (None, _) => count(Count::BIT),
        })
        .collect()
}

/// The outputs of a node's bodies; of both branches of an If.
fn joined(g: &Graph, id: NodeId, flows: &[Flow]) -> Vec<Origin> {
    let mut all: Option<Vec<Origin>> = None;
    for (body, flow) in bodies(g, id).zip(flows) {
        let outputs = body.outputs().iter().map(|o| flow.origin(o.value));
        all = Some(match all {
            None => outputs.collect(),
            Some(before) => before
                .into_iter()
                .zip(outputs)
                .map(|(a, b)| a.join(b))
                .collect(),
        });
    }
    all.unwrap_or_default()
}

/// A row of a table of floats is an embedding, not a position.
fn embeds(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    let table = |v: ValueId| is_f32(g, v) && g.constant(v).is_some_and(|t| t.len() > 1);
    node.op().is_any(&["Gather", "GatherElements", "GatherND"]) && node.input(0).is_some_and(table)
}

/// Whether a table of one sign holds numbers that the format rounds to zero. Half of its smallest number is rounded to the
/// even zero.
fn vanishes(tensor: &Tensor, format: HalfFormat) -> bool {
    let Some(numbers) = tensor.to_f64s() else {
        return false;
    };
    let small = |n: &f64| *n != 0.0 && n.abs() <= format.tiny() / 2.0;
    let one_sign = numbers.iter().all(|n| *n >= 0.0) || numbers.iter().all(|n| *n <= 0.0);
    one_sign && numbers.iter().any(small)
}

/// The only number of a constant, or the first one of a table that is not zero.
fn number(g: &Graph, v: ValueId) -> Option<f64> {
    let numbers = g.constant(v)?.to_f64s()?;
    numbers.into_iter().find(|n| *n != 0.0)
}

/// A constant of one element.
fn single(g: &Graph, v: ValueId) -> bool {
    let elements = g.value(v).ty().shape().map(|s| s.iter().map(Dim::known));
    let count = elements.and_then(|mut s| s.try_fold(1usize, |n, d| n.checked_mul(d?)));
    g.constant(v).is_some() && count.is_some_and(|n| n <= 1)
}
