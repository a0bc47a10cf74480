//! Nodes that keep FP32 because integers, or a divisor, would be other ones after a rounding.

use kiln_graph::ops::kind::{Kind, kind};
use kiln_graph::{DType, Graph, NodeId, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::control::{Control, bodies};
use super::flow::Flow;
use super::format::HalfFormat;
use super::operands::{MOVES, SCORES, SOFTMAX, SOFTMAX_ERROR};
use super::touch::is_f32;

/// A constant from here on, times one less an integer, makes a mask of it.
const MASK: f64 = 1000.0;

/// The operands by which an operator decides: something else comes out after a rounding.
pub fn decides(g: &Graph, id: NodeId) -> Option<&'static [usize]> {
    const BOTH: &[usize] = &[0, 1];
    const FIRST: &[usize] = &[0];
    let op = g.node(id).op();
    let steps = [
        "ArgMax", "ArgMin", "Ceil", "Cos", "Floor", "Hardmax", "NonZero", "OneHot", "Round",
        "Sign", "Sin", "Tan", "TopK", "Unique",
    ];
    let compares = [
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Mod",
    ];
    match () {
        () if op.is_any(&steps) => Some(FIRST),
        () if op.is_any(&compares) => Some(BOTH),
        () if op.is("Cast") && to(g, id).is_some_and(|d| !d.is_float()) => Some(FIRST),
        () => None,
    }
}

fn to(g: &Graph, id: NodeId) -> Option<DType> {
    g.node(id).output(0).and_then(|v| g.value(v).ty().dtype())
}

/// Keeps what is made of integers and constants where a decision is made by it, and where the format would not tell the
/// integers apart or has no room for them: from the integers to where they meet the data. `masked` says which values hold a
/// mask's number for infinity.
pub(in crate::precision) fn keep_counts(
    g: &Graph,
    order: &[NodeId],
    format: HalfFormat,
    flow: &Flow,
    masked: &[bool],
    why: &mut [Option<String>],
) {
    let rule = Counts {
        g,
        format,
        flow,
        masked,
    };
    rule.decisions(order, why);
    let masks = rule.masks(order);
    for &id in order {
        if why[id.index()].is_none() && !masks[id.index()] {
            why[id.index()] = rule.integers(id);
        }
    }
    rule.scores(order, &masks, why);
}

struct Counts<'a> {
    g: &'a Graph,
    format: HalfFormat,
    flow: &'a Flow,
    masked: &'a [bool],
}

impl Counts<'_> {
    fn masked(&self, v: ValueId) -> bool {
        self.masked.get(v.index()) == Some(&true)
    }

    /// A float that is computed of integers and constants.
    fn counted(&self, v: ValueId) -> bool {
        let g = self.g;
        let made = self.flow.origin(v).count.is_some();
        made && is_f32(g, v) && g.constant(v).is_none() && !self.masked(v)
    }

    /// A float whose roundings another decision would follow from: it is computed of integers, or of what the model is given.
    fn decisive(&self, v: ValueId) -> bool {
        let given = self.flow.origin(v).given && !self.masked(v);
        self.counted(v) || given
    }

    fn operands(&self, id: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        self.g.node(id).inputs().iter().flatten().copied()
    }

    /// Decisions by integers or by what the model is given, and all that computes these.
    fn decisions(&self, order: &[NodeId], why: &mut [Option<String>]) {
        const WHY: &str = "it computes a position or its angle";
        const GIVEN: &str = "what the model decides by its inputs would change with a rounding";
        const JOINED: &str = "it holds integers beside data, and a decision is made by them";
        let g = self.g;
        let mut todo: Vec<NodeId> = Vec::new();
        for &id in order {
            let node = g.node(id);
            let remains = self.remains(id).then_some(&[0, 1][..]);
            let places = decides(g, id).or(remains).unwrap_or_default();
            let read = || places.iter().filter_map(|&k| node.input(k));
            if read().any(|v| self.decisive(v)) {
                let float = |v: ValueId| is_f32(g, v);
                if !node.op().is("Cast") && self.operands(id).any(float) {
                    let reason = match read().any(|v| self.counted(v)) {
                        true => {
                            "it decides by integers, which other ones would be after a rounding"
                        }
                        false => GIVEN,
                    };
                    why[id.index()].get_or_insert_with(|| reason.into());
                }
                todo.push(id);
            }
            for v in read() {
                for joined in self.joined(v) {
                    why[joined.index()].get_or_insert_with(|| JOINED.into());
                    todo.push(joined);
                }
            }
        }
        while let Some(id) = todo.pop() {
            for v in self.operands(id).filter(|&v| self.decisive(v)) {
                let Some(producer) = g.producer(v).filter(|&p| !g.node(p).has_subgraphs()) else {
                    continue;
                };
                if why[producer.index()].is_none() {
                    let reason = if self.counted(v) { WHY } else { GIVEN };
                    why[producer.index()] = Some(reason.into());
                    todo.push(producer);
                }
            }
        }
    }

    /// The nodes that bring what is decisive to a value beside data: a column of ids that is joined with features, and taken
    /// out again.
    fn joined(&self, v: ValueId) -> Vec<NodeId> {
        let g = self.g;
        let moves = |id: NodeId| {
            matches!(
                kind(g.node(id).op()),
                Kind::Move | Kind::Join | Kind::Update
            )
        };
        let mut readers: FxHashMap<NodeId, Vec<NodeId>> = FxHashMap::default();
        let mut brings = Vec::new();
        let mut todo = vec![(v, None)];
        while let Some((v, reader)) = todo.pop() {
            let Some(id) = g.producer(v).filter(|&id| moves(id)) else {
                continue;
            };
            let met = readers.contains_key(&id);
            readers.entry(id).or_default().extend(reader);
            if met {
                continue;
            }
            for v in self.operands(id).filter(|&v| is_f32(g, v)) {
                match self.decisive(v) {
                    true => brings.push(id),
                    false => todo.push((v, Some(id))),
                }
            }
        }
        let mut found = FxHashSet::default();
        while let Some(id) = brings.pop() {
            if found.insert(id) {
                brings.extend(&readers[&id]);
            }
        }
        found.into_iter().collect()
    }

    /// Whether it is what a rounding to whole numbers leaves: `x - floor(x)`.
    fn remains(&self, id: NodeId) -> bool {
        let g = self.g;
        let whole = |v: ValueId| {
            let producer = g.producer(v).map(|p| g.node(p).op());
            producer.is_some_and(|op| op.is_any(&["Ceil", "Floor", "Round"]))
        };
        g.node(id).op().is("Sub") && self.operands(id).any(whole)
    }

    /// Keeps a softmax of scores to which integers are added that may be so large that their roundings show, and what is
    /// between.
    fn scores(&self, order: &[NodeId], masks: &[bool], why: &mut [Option<String>]) {
        let g = self.g;
        let mut moved = vec![false; g.node_bound()];
        for &id in order {
            let node = g.node(id);
            let softmax = node.op().is_any(SOFTMAX);
            let scores = node.op().is_any(SCORES) || node.op().is_any(MOVES);
            let met = node.output(0).is_some_and(|v| !self.counted(v));
            if !met || !(softmax || scores) {
                continue;
            }
            let mut read = self
                .operands(id)
                .filter(|&v| is_f32(g, v) && !self.masked(v));
            moved[id.index()] = read.any(|v| match g.producer(v) {
                _ if self.counted(v) => scores && !masks[id.index()] && self.shows(v),
                producer => producer.is_some_and(|p| moved[p.index()]),
            });
            if moved[id.index()] && softmax {
                self.keep_back(id, &moved, why);
            }
        }
    }

    /// Whether the format rounds integers by so much that a softmax shows it.
    fn shows(&self, v: ValueId) -> bool {
        let count = self.flow.origin(v).count;
        count.is_some_and(|c| c.wide && c.reach() * self.format.unit() > SOFTMAX_ERROR)
    }

    fn keep_back(&self, softmax: NodeId, moved: &[bool], why: &mut [Option<String>]) {
        let mut todo = vec![softmax];
        let mut seen = FxHashSet::default();
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            why[id.index()].get_or_insert_with(|| {
                format!(
                    "the scores of a softmax have positions added that {} may not tell apart",
                    self.format.name()
                )
            });
            let producers = self.operands(id).filter_map(|v| self.g.producer(v));
            todo.extend(producers.filter(|p| moved[p.index()]));
        }
    }

    /// Nodes that make a mask of integers: these are 0 and 1, whatever their type may hold.
    fn masks(&self, order: &[NodeId]) -> Vec<bool> {
        let g = self.g;
        let mut found = vec![false; g.node_bound()];
        let mut todo: Vec<NodeId> = Vec::new();
        for &id in order {
            let results = g.node(id).outputs().iter().flatten();
            let fills = results.copied().any(|v| self.masked(v)) || self.scales_a_mask(id);
            if fills {
                found[id.index()] = true;
                todo.push(id);
            }
        }
        while let Some(id) = todo.pop() {
            let counted: Vec<ValueId> = self.operands(id).filter(|&v| self.counted(v)).collect();
            // A difference of two is one of positions.
            let several = g.node(id).op().is_any(&["Max", "Min", "Mul", "Concat"]);
            if counted.len() > 1 && !several {
                continue;
            }
            for producer in counted.into_iter().filter_map(|v| g.producer(v)) {
                let node = g.node(producer);
                if !found[producer.index()] && !node.has_subgraphs() && self.is_mask(producer) {
                    found[producer.index()] = true;
                    todo.push(producer);
                }
            }
        }
        found
    }

    /// Steps from integers to a mask, none of which is made by a size or a place.
    fn is_mask(&self, id: NodeId) -> bool {
        let op = self.g.node(id).op();
        let differences = self.operands(id).filter(|&v| self.counted(v)).count() > 1;
        match op.is_any(&["Add", "Sub", "Div", "Mod"]) {
            true => !differences,
            false => !op.is_any(&["Range", "CumSum", "ReduceSum", "MatMul", "Gemm"]),
        }
    }

    /// `(1 - x) * -10000`, which the format holds.
    fn scales_a_mask(&self, id: NodeId) -> bool {
        let g = self.g;
        let number = |v: ValueId| g.constant(v)?.as_f64();
        let large = |v: ValueId| number(v).is_some_and(|n| n.abs() >= MASK);
        let inverted = |v: ValueId| {
            let sub = g.producer_if(v, "Sub").map(|p| g.node(p));
            sub.is_some_and(|n| n.inputs().iter().flatten().any(|&v| number(v) == Some(1.0)))
        };
        let counted = |v: ValueId| self.counted(v) && inverted(v);
        g.node(id).op().is("Mul") && self.operands(id).any(large) && self.operands(id).any(counted)
    }

    /// Why a node must not see its integers rounded.
    fn integers(&self, id: NodeId) -> Option<String> {
        let g = self.g;
        let node = g.node(id);
        let plain = !node.has_subgraphs() && node.op().domain().is_empty();
        if !plain || node.op().is("Attention") {
            return None;
        }
        let mut all = self
            .operands(id)
            .chain(node.outputs().iter().flatten().copied());
        if all.any(|v| self.masked(v)) {
            return None;
        }
        let wide = |v: &ValueId| {
            let count = self.flow.origin(*v).count;
            count.is_some_and(|c| c.wide) && is_f32(g, *v)
        };
        let format = self.format.name();
        let result = node.output(0)?;
        if wide(&result) && self.counted(result) {
            return Some(format!(
                "it computes with integers, of which {format} tells {} apart at most",
                1.0 / self.format.unit()
            ));
        }
        let v = self.operands(id).find(|v| wide(v) && self.counted(*v))?;
        let count = self.flow.origin(v).count?;
        // What a function of such a value or a decision makes of it.
        let alone = self
            .operands(id)
            .all(|v| !is_f32(g, v) || self.flow.origin(v).count.is_some());
        let decides = decides(g, id).is_some();
        (alone || decides || !count.fits(self.format)).then(|| {
            format!(
                "its operand \"{}\" is made of integers that may be more than {format} holds",
                g.value(v).name()
            )
        })
    }
}

/// The nodes by which a value that a body carries is added up, from what comes in to what goes out. `None` if it is not a sum
/// over the iterations, as the state of a recurrent cell behind a product is not.
pub(in crate::precision) fn sums(body: &Graph, from: ValueId, to: ValueId) -> Option<Vec<NodeId>> {
    const STEPS: &[&str] = &[
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Expand",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Reshape",
        "Squeeze",
        "Sub",
        "Sum",
        "Unsqueeze",
        "Where",
    ];
    let mut reached = vec![false; body.value_bound()];
    *reached.get_mut(from.index())? = true;
    let mut path = Vec::new();
    for id in body.topo_order().ok()? {
        let node = body.node(id);
        let reads = node.inputs().iter().flatten().any(|v| reached[v.index()]);
        if !reads || !node.op().is_any(STEPS) {
            continue;
        }
        path.push(id);
        for v in node.outputs().iter().flatten() {
            reached[v.index()] = true;
        }
    }
    let adds = |id: &NodeId| body.node(*id).op().is_any(&["Add", "Sub", "Sum"]);
    (reached[to.index()] && path.iter().any(adds)).then_some(path)
}

/// Keeps a division by, or a logarithm of, what is positive and may vanish in the format, and what computes it.
pub(in crate::precision) fn keep_divisors(
    g: &Graph,
    order: &[NodeId],
    format: HalfFormat,
    why: &mut [Option<String>],
) {
    // BF16 has the exponents of FP32.
    if format == HalfFormat::Bf16 {
        return;
    }
    for &id in order {
        let node = g.node(id);
        let divisor = match node.op() {
            op if op.is("Div") => node.input(1),
            op if op.is_any(&["Reciprocal", "Log"]) => node.input(0),
            _ => None,
        };
        let Some(chain) = divisor.and_then(|v| positive(g, v)) else {
            continue;
        };
        for id in chain.into_iter().chain([id]) {
            why[id.index()].get_or_insert_with(|| {
                format!(
                    "it divides by a number above 0, or is one, that {} may round to 0",
                    format.name()
                )
            });
        }
    }
}

/// The nodes that make a value of a function that is nowhere zero and comes as near to it as one likes, the function first.
fn positive(g: &Graph, mut v: ValueId) -> Option<Vec<NodeId>> {
    const POSITIVE: &[&str] = &["Exp", "Sigmoid", "Softmax", "Softplus"];
    const KEEPS: &[&str] = &[
        "Expand",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ];
    let mut chain = Vec::new();
    loop {
        let id = g.producer(v).filter(|_| is_f32(g, v))?;
        let node = g.node(id);
        chain.push(id);
        if node.op().is_any(POSITIVE) {
            chain.reverse();
            return Some(chain);
        }
        let constant = |k: usize| node.input(k).is_some_and(|v| g.constant(v).is_some());
        v = match node.op() {
            op if op.is_any(KEEPS) => node.input(0)?,
            op if op.is("Mul") && constant(1) => node.input(0)?,
            op if op.is("Mul") && constant(0) => node.input(1)?,
            _ => return None,
        };
    }
}

/// What a conversion makes of one operand or result of a node with bodies: `true` where it becomes half.
pub(in crate::precision) fn slot(
    g: &Graph,
    flow: &Flow,
    id: NodeId,
    control: Control,
    output: usize,
) -> bool {
    let results = g.node(id).output(output);
    let starts = (0..g.node(id).inputs().len()).find(|&k| control.carried(k) == Some(output));
    let starts = starts.and_then(|k| g.node(id).input(k));
    let inside = bodies(g, id).zip(flow.bodies(id));
    let inside = inside.flat_map(|(body, flow)| {
        let outputs = body.outputs().iter().enumerate();
        let here = outputs.filter(|(k, _)| control.output(*k) == Some(output));
        here.map(|(_, o)| flow.origin(o.value)).collect::<Vec<_>>()
    });
    let outside = results.into_iter().chain(starts).map(|v| flow.origin(v));
    let adds = bodies(g, id).any(|body| {
        let mut carried = control.pairs(body);
        carried.any(|(k, from, to)| k == output && sums(body, from, to).is_some())
    });
    !adds && !inside.chain(outside).any(|o| o.needs_f32())
}
