//! What a mask's numbers hide, found by what becomes of them: the graph is followed twice, as if every element of the input
//! had one number and then another, and whichever makes scores hugely negative before a Softmax is the one that hides.

use kiln_graph::{DType, Def, Graph, NodeId, Tensor, ValueId};
use rustc_hash::FxHashMap;

/// What a number of an input does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Effect {
    /// A Softmax or an attention operator sees nothing where it stands.
    pub hides: bool,
    /// Other numbers are replaced by a constant where it stands.
    pub erases: bool,
}

/// What is known of every element of a value that descends from the input's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Is(f64),
    /// At most this, whatever else was added.
    Low,
    Any,
}

/// Scores this far below others have no weight in a softmax, in any format: exp(-100) is less than any of them keeps.
const HIDDEN: f64 = -100.0;
/// Constants of more elements are taken for tables.
const MOST: usize = 1 << 12;

impl Seen {
    fn is_hidden(self) -> bool {
        match self {
            Seen::Is(x) => x <= HIDDEN,
            Seen::Low => true,
            Seen::Any => false,
        }
    }

    fn number(self) -> Option<f64> {
        match self {
            Seen::Is(x) => Some(x),
            _ => None,
        }
    }

    fn of(x: f64) -> Seen {
        match x.is_nan() {
            true => Seen::Any,
            false => Seen::Is(x),
        }
    }
}

/// What is known of a value, and whether the input decides it.
#[derive(Clone, Copy, Debug)]
struct Known {
    seen: Seen,
    ours: bool,
    /// Numbers that do not come of the input, and are computed, have come in.
    met: bool,
}

const NOTHING: Known = Known {
    seen: Seen::Any,
    ours: false,
    met: false,
};

/// What happens where all elements of the input are this number.
pub(super) fn effect(graph: &Graph, input: ValueId, number: f64) -> Effect {
    let floats = graph.value(input).ty().dtype().is_some_and(DType::is_float);
    let mut world = World {
        effect: Effect::default(),
        depth: 0,
        floats,
    };
    let start = Known {
        seen: Seen::of(number),
        ours: true,
        met: false,
    };
    let mut known = FxHashMap::default();
    known.insert(input, start);
    world.follow(graph, known);
    world.effect
}

struct World {
    effect: Effect,
    depth: usize,
    /// Whether the input may be scores itself: then it is a mask only beside others.
    floats: bool,
}

/// Bodies within bodies that are followed.
const DEPTH: usize = 8;

impl World {
    /// What is known of the graph's outputs.
    fn follow(&mut self, g: &Graph, mut known: FxHashMap<ValueId, Known>) -> Vec<Known> {
        let order = g.topo_order().unwrap_or_default();
        for id in order {
            let node = g.node(id);
            let of = |v: &Option<ValueId>| v.map_or(NOTHING, |v| look(g, &known, v));
            let ins: Vec<Known> = node.inputs().iter().map(of).collect();
            let held: Vec<Known> = (node.captures().iter())
                .map(|&v| look(g, &known, v))
                .collect();
            let outs = match node.has_subgraphs() {
                true => self.bodies(g, id, &ins, &held),
                false => self.node(g, id, &ins),
            };
            for (v, out) in node.outputs().iter().zip(outs) {
                if let (Some(v), true) = (v, out.seen != Seen::Any || out.ours) {
                    known.insert(*v, out);
                }
            }
        }
        let outputs = g.outputs().iter();
        outputs.map(|o| look(g, &known, o.value)).collect()
    }

    fn bodies(&mut self, g: &Graph, id: NodeId, ins: &[Known], held: &[Known]) -> Vec<Known> {
        let node = g.node(id);
        if self.depth >= DEPTH {
            return Vec::new();
        }
        self.depth += 1;
        let mut found: Vec<Vec<Known>> = Vec::new();
        for (name, attr) in node.attrs().iter() {
            for body in attr.graphs() {
                let taken = match (node.op().name(), ins.first().and_then(|k| k.seen.number())) {
                    ("If", Some(c)) => (c != 0.0) == (&**name == "then_branch"),
                    _ => true,
                };
                if !taken {
                    continue;
                }
                let mut known = FxHashMap::default();
                for (v, value) in body.values() {
                    if let Def::Capture(k) = value.def()
                        && let Some(outer) = held.get(*k as usize)
                    {
                        known.insert(v, *outer);
                    }
                }
                // What a loop carries changes, and what a scan goes over stays what it is in each step.
                if node.op().is("Scan") {
                    for (&v, outer) in body.inputs().iter().zip(ins) {
                        known.insert(v, *outer);
                    }
                }
                found.push(self.follow(body, known));
            }
        }
        self.depth -= 1;
        if !node.op().is("If") {
            return Vec::new();
        }
        let (Some(first), rest) = (found.first(), found.get(1..).unwrap_or_default()) else {
            return Vec::new();
        };
        let agreed = first.iter().enumerate().map(|(k, known)| {
            let same = |other: &Vec<Known>| other.get(k).is_some_and(|o| o.seen == known.seen);
            match rest.iter().all(same) {
                true => *known,
                false => Known {
                    seen: Seen::Any,
                    ..*known
                },
            }
        });
        agreed.collect()
    }

    fn node(&mut self, g: &Graph, id: NodeId, ins: &[Known]) -> Vec<Known> {
        let node = g.node(id);
        let op = node.op();
        let ours = |k: usize| ins.get(k).is_some_and(|i| i.ours);
        if op.is_any(&["Softmax", "LogSoftmax"]) && ours(0) && ins[0].seen.is_hidden() {
            self.effect.hides |= ins[0].met || !self.floats;
        }
        for &k in mask_operands(op.domain(), op.name()) {
            let Some(v) = node.input(k).filter(|_| ours(k)) else {
                continue;
            };
            let floats = g.value(v).ty().dtype().is_some_and(DType::is_float);
            self.effect.hides |= match floats {
                true => ins[k].seen.is_hidden(),
                false => ins[k].seen == Seen::Is(0.0),
            };
        }
        // What a Where chooses by is no number that meets others.
        let numbers = usize::from(op.is("Where"));
        let other = (node.inputs().iter().zip(ins).skip(numbers)).any(|(v, i)| {
            let computed = v.is_some_and(|v| g.constant(v).is_none());
            i.seen == Seen::Any && !i.ours && computed
        });
        let out = Known {
            seen: result(g, id, ins),
            ours: ins.iter().any(|i| i.ours),
            met: other || ins.iter().any(|i| i.met),
        };
        if out.ours && other && op.is_any(&["Mul", "Where", "Div"]) && out.seen != Seen::Any {
            self.effect.erases = true;
        }
        vec![out; node.outputs().len()]
    }
}

/// Which operands of an operator are masks: those of integers and truth values hide where they are 0.
///
/// Source: the operators' pages in ONNX's and ONNX Runtime's documentation.
pub(super) fn mask_operands(domain: &str, name: &str) -> &'static [usize] {
    match (domain, name) {
        ("", "Attention") => &[3],
        ("com.microsoft", "MultiHeadAttention") => &[4, 5],
        ("com.microsoft", "Attention") => &[3, 5],
        ("com.microsoft", "QAttention") => &[5],
        ("com.microsoft", "EmbedLayerNormalization") => &[7],
        _ => &[],
    }
}

fn look(g: &Graph, known: &FxHashMap<ValueId, Known>, v: ValueId) -> Known {
    if let Some(found) = known.get(&v) {
        return *found;
    }
    match g.constant(v).and_then(uniform) {
        Some(x) => Known {
            seen: Seen::of(x),
            ours: false,
            met: false,
        },
        None => NOTHING,
    }
}

/// The number that all elements are.
pub(super) fn uniform(tensor: &Tensor) -> Option<f64> {
    if tensor.len() > MOST || tensor.dtype() == DType::String {
        return None;
    }
    let all = match tensor.dtype().is_float() {
        true => tensor.to_f64s()?,
        false => tensor.to_i64s()?.into_iter().map(|n| n as f64).collect(),
    };
    let first = *all.first()?;
    all.iter().all(|x| *x == first).then_some(first)
}

/// Operators that move elements, or choose among them.
const MOVES: &[&str] = &[
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Transpose",
    "Expand",
    "Tile",
    "Slice",
    "Split",
    "Gather",
    "GatherND",
    "GatherElements",
    "Dropout",
    "Resize",
    "Upsample",
    "MaxPool",
    "ReduceMax",
    "ReduceMin",
    "ReduceMean",
    "DepthToSpace",
    "SpaceToDepth",
    "QuantizeLinear",
    "DequantizeLinear",
    "CastLike",
];

fn result(g: &Graph, id: NodeId, ins: &[Known]) -> Seen {
    let node = g.node(id);
    let op = node.op();
    let at = |k: usize| ins.get(k).map_or(Seen::Any, |i| i.seen);
    let name = match op.domain() {
        "" => op.name(),
        _ => return Seen::Any,
    };
    match name {
        _ if MOVES.contains(&name) => at(0),
        "Concat" => {
            // What comes of the input is what is looked at, whatever stands beside it.
            let ours = ins.iter().find(|i| i.ours).or(ins.first());
            let same = ins.iter().all(|i| i.seen == at(0));
            match ours {
                Some(k) if k.ours || same => k.seen,
                _ => Seen::Any,
            }
        }
        "Cast" => cast(at(0), node.attrs().int("to")),
        "ConstantOfShape" => {
            let fill = node.attrs().tensor("value");
            fill.map_or(Seen::Is(0.0), |t| uniform(t).map_or(Seen::Any, Seen::of))
        }
        "Where" => choose(at(0), at(1), at(2)),
        "Clip" | "Min" | "Max" | "Sum" => clip_or_fold(g, id, name, ins),
        "ReduceSum" | "CumSum" | "Trilu" if at(0) == Seen::Is(0.0) => Seen::Is(0.0),
        _ => match ins.len() {
            1 => single(name, at(0)),
            2 => pair(name, at(0), at(1)),
            _ => Seen::Any,
        },
    }
}

fn cast(x: Seen, to: Option<i64>) -> Seen {
    let to = to.and_then(|n| DType::from_onnx(n as i32));
    match (x, to) {
        (Seen::Is(x), Some(DType::Bool)) => Seen::Is(f64::from(u8::from(x != 0.0))),
        (Seen::Is(x), Some(to)) if !to.is_float() => Seen::Is(x.trunc()),
        _ => x,
    }
}

fn choose(cond: Seen, yes: Seen, no: Seen) -> Seen {
    match cond {
        Seen::Is(0.0) => no,
        Seen::Is(_) => yes,
        _ if yes == no => yes,
        _ if yes.is_hidden() && no.is_hidden() => Seen::Low,
        _ => Seen::Any,
    }
}

fn clip_or_fold(g: &Graph, id: NodeId, name: &str, ins: &[Known]) -> Seen {
    let node = g.node(id);
    let at = |k: usize| ins.get(k).map_or(Seen::Any, |i| i.seen);
    let all: Vec<Seen> = ins.iter().map(|i| i.seen).collect();
    match name {
        "Clip" => {
            let bound = |k: usize, attr: &str| {
                let attr = node.attrs().float(attr).map(f64::from);
                at(k).number().filter(|_| node.input(k).is_some()).or(attr)
            };
            let (low, high) = (bound(1, "min"), bound(2, "max"));
            match at(0) {
                Seen::Is(x) => {
                    let x = low.map_or(x, |l| x.max(l));
                    Seen::Is(high.map_or(x, |h| x.min(h)))
                }
                Seen::Low if low.is_none_or(|l| l <= HIDDEN) => Seen::Low,
                _ => Seen::Any,
            }
        }
        "Min" if all.iter().any(|s| s.is_hidden()) => Seen::Low,
        "Max" if all.iter().all(|s| s.is_hidden()) => Seen::Low,
        _ => {
            let join = |a: f64, b: f64| match name {
                "Min" => a.min(b),
                "Max" => a.max(b),
                _ => a + b,
            };
            let numbers: Option<Vec<f64>> = all.iter().map(|s| s.number()).collect();
            let joined = numbers.and_then(|n| n.into_iter().reduce(join));
            joined.map_or(Seen::Any, Seen::of)
        }
    }
}

fn single(name: &str, x: Seen) -> Seen {
    let x = match x {
        Seen::Is(x) => x,
        Seen::Low if name == "Exp" => return Seen::Is(0.0),
        _ => return Seen::Any,
    };
    Seen::of(match name {
        "Not" => f64::from(u8::from(x == 0.0)),
        "Neg" => -x,
        "Abs" => x.abs(),
        "Exp" => x.exp(),
        "Log" => x.ln(),
        "Sqrt" => x.sqrt(),
        "Reciprocal" => 1.0 / x,
        "Relu" => x.max(0.0),
        "Sign" if x == 0.0 => 0.0,
        "Sign" => x.signum(),
        "Floor" => x.floor(),
        "Ceil" => x.ceil(),
        "Round" => x.round(),
        "Sigmoid" => 1.0 / (1.0 + (-x).exp()),
        "IsNaN" => 0.0,
        _ => f64::NAN,
    })
}

fn pair(name: &str, a: Seen, b: Seen) -> Seen {
    if let (Seen::Is(a), Seen::Is(b)) = (a, b) {
        return Seen::of(both(name, a, b));
    }
    let (number, swapped) = match (a, b) {
        (Seen::Is(x), _) => (Some(x), true),
        (_, Seen::Is(x)) => (Some(x), false),
        _ => (None, false),
    };
    let low = a == Seen::Low || b == Seen::Low;
    match (name, number) {
        ("And", Some(0.0)) => Seen::Is(0.0),
        ("Or", Some(x)) if x != 0.0 => Seen::Is(1.0),
        ("Mul", Some(0.0)) => Seen::Is(0.0),
        ("Mul", Some(x)) if low && x > 1e-3 => Seen::Low,
        ("Div", Some(x)) if low && !swapped && x > 0.0 => Seen::Low,
        ("Div", Some(0.0)) if swapped => Seen::Is(0.0),
        ("Add", Some(x)) if x <= HIDDEN => Seen::Low,
        ("Add", _) if low => Seen::Low,
        ("Sub", Some(x)) if !swapped && x >= -HIDDEN => Seen::Low,
        ("Sub", _) if a == Seen::Low && b != Seen::Low => Seen::Low,
        _ => Seen::Any,
    }
}

fn both(name: &str, a: f64, b: f64) -> f64 {
    let truth = |t: bool| f64::from(u8::from(t));
    match name {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" if b == 0.0 => f64::NAN,
        "Div" => a / b,
        "Pow" => a.powf(b),
        "Mod" => a % b,
        "And" => truth(a != 0.0 && b != 0.0),
        "Or" => truth(a != 0.0 || b != 0.0),
        "Xor" => truth((a != 0.0) != (b != 0.0)),
        "Equal" => truth(a == b),
        "Less" => truth(a < b),
        "LessOrEqual" => truth(a <= b),
        "Greater" => truth(a > b),
        "GreaterOrEqual" => truth(a >= b),
        _ => f64::NAN,
    }
}
