//! Matching a function's body against a graph, backwards from the output.
//!
//! The body is a [`Function`]: its inputs are wildcards, its constants must be equal in value, an attribute reference
//! binds. A product is matched in its normal form: its factors stand in any order and nesting, and its numbers are multiplied. A
//! Cast to `@T` gives the 16-bit type of the first input. All ways to match are found, not the first: a commutative node over two wildcards would otherwise commit to
//! an order that a later node contradicts.

use kiln_graph::{Attr, DType, Def, Function, Graph, NodeId, Tensor, ValueId, ops};
use smallvec::SmallVec;

use super::pass::Miss;
use super::product::{self, Wanted};

/// One way in which a body matches.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// Pattern value → graph value.
    values: SmallVec<[(ValueId, ValueId); 12]>,
    nodes: SmallVec<[NodeId; 12]>,
    attrs: SmallVec<[(String, Attr); 2]>,
    /// The body's names for values of the graph.
    names: Vec<(String, ValueId)>,
    /// The function's inputs in order; `None` if the body does not use one.
    pub inputs: Vec<Option<ValueId>>,
    /// The matched root's output.
    pub output: Option<ValueId>,
}

impl Match {
    /// The graph's value that stands for the value of this name in the body. Products have none for what they multiply on the way.
    ///
    /// # Errors
    /// A miss if the body has no such value.
    pub fn named(&self, name: &str) -> Result<ValueId, Miss> {
        let found = self.names.iter().find(|(n, _)| n == name);
        let missing = || Miss::because(format!("the body binds no value '{name}'"));
        found.map(|(_, v)| *v).ok_or_else(missing)
    }

    /// An attribute bound by a reference in the body.
    pub fn attr(&self, name: &str) -> Option<&Attr> {
        self.attrs.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }

    pub fn attrs(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.attrs.iter().map(|(n, a)| (n.as_str(), a))
    }

    /// Matched nodes, the root first.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    fn bound(&self, pattern: ValueId) -> Option<ValueId> {
        self.values
            .iter()
            .find(|(p, _)| *p == pattern)
            .map(|(_, v)| *v)
    }
}

/// What a body calls the type of its first input.
pub const NARROW: &str = "T";

/// Partial matches kept side by side; a body that has more ambiguities than this is badly written.
const MAX_WAYS: usize = 64;

struct Matcher<'a> {
    pattern: &'a Graph,
    graph: &'a Graph,
    deepest: Miss,
}

/// All ways in which `function`'s body matches with its output at `root`.
///
/// # Errors
/// The deepest miss, if nothing matches.
pub fn find(function: &Function, graph: &Graph, root: NodeId) -> Result<Vec<Match>, Miss> {
    let pattern = &function.body;
    let (Some(output), Some(target)) = (
        pattern.outputs().first().map(|o| o.value),
        graph.node(root).output(0),
    ) else {
        return Err(Miss::none());
    };
    let mut matcher = Matcher {
        pattern,
        graph,
        deepest: Miss::none(),
    };
    let mut ways = matcher.value(Match::default(), output, target);
    ways.retain(|m| matcher.closed(m, target));
    if ways.is_empty() {
        return Err(matcher.deepest);
    }
    for m in &mut ways {
        m.inputs = pattern.inputs().iter().map(|&p| m.bound(p)).collect();
        m.output = Some(target);
        let named = |&(p, v): &(ValueId, ValueId)| (pattern.value(p).name().to_string(), v);
        m.names = m.values.iter().map(named).collect();
    }
    ways.retain(|m| matcher.narrows(m));
    match ways.is_empty() {
        true => Err(matcher.deepest),
        false => Ok(ways),
    }
}

impl Matcher<'_> {
    fn miss(&mut self, m: &Match, at: ValueId, why: impl FnOnce() -> String) -> Vec<Match> {
        if m.nodes.len() > self.deepest.depth {
            self.deepest = Miss::at(at, m.nodes.len(), why());
        }
        Vec::new()
    }

    /// Whether what is bound as [`NARROW`] is the 16-bit type of the first input.
    fn narrows(&mut self, m: &Match) -> bool {
        let (Some(Attr::Int(to)), Some(Some(x))) = (m.attr(NARROW), m.inputs.first()) else {
            return true;
        };
        let to = i32::try_from(*to).ok().and_then(DType::from_onnx);
        let narrow = to.filter(|t| matches!(t, DType::F16 | DType::BF16));
        let fits = narrow.is_some() && self.graph.value(*x).ty().dtype() == narrow;
        if !fits {
            self.miss(m, *x, || "its dtype is not that of the result".into());
        }
        fits
    }

    /// Interior values may not be read from outside: the fusion would leave them to be computed twice.
    fn closed(&mut self, m: &Match, output: ValueId) -> bool {
        for &node in &m.nodes {
            for &v in self.graph.node(node).outputs().iter().flatten() {
                let value = self.graph.value(v);
                let outside = value.uses().iter().any(|u| !m.nodes.contains(&u.node));
                if v != output && (outside || value.is_output()) {
                    self.miss(m, v, || "it is used outside the match".into());
                    return false;
                }
            }
        }
        true
    }

    fn value(&mut self, mut m: Match, p: ValueId, v: ValueId) -> Vec<Match> {
        if let Some(bound) = m.bound(p) {
            let same = bound == v
                || matches!((self.graph.constant(bound), self.graph.constant(v)),
                    (Some(a), Some(b)) if a.same_bits(b));
            return match same {
                true => vec![m],
                false => self.miss(&m, v, || {
                    "it differs from the operand matched before".into()
                }),
            };
        }
        match self.pattern.value(p).def() {
            Def::Constant(want) => match self.graph.constant(v) {
                Some(have) if same_numbers(want, have) => {
                    m.values.push((p, v));
                    vec![m]
                }
                Some(have) => self.miss(&m, v, || {
                    format!("the constant is {}, not {}", show(have), show(want))
                }),
                None => self.miss(&m, v, || format!("it is not the constant {}", show(want))),
            },
            Def::Node(node, k) => self.produced(m, *node, *k, v, p),
            _ => {
                m.values.push((p, v));
                vec![m]
            }
        }
    }

    fn produced(
        &mut self,
        mut m: Match,
        pnode: NodeId,
        k: u32,
        v: ValueId,
        p: ValueId,
    ) -> Vec<Match> {
        let pattern = self.pattern.node(pnode);
        if pattern.op().is("Constant") {
            return self.parameter(m, pnode, v, p);
        }
        if let Some(wanted) = Wanted::of(self.pattern, pnode) {
            return self.product(m, &wanted, v, p);
        }
        let Def::Node(node, at) = *self.graph.value(v).def() else {
            return self.miss(&m, v, || {
                format!("expected {}, found no node", pattern.op())
            });
        };
        let found = self.graph.node(node);
        if found.op() != pattern.op() || at != k {
            return self.miss(&m, v, || {
                format!("expected {}, found {}", pattern.op(), found.op())
            });
        }
        if let Err(why) = self.attributes(&mut m, pnode, node) {
            return self.miss(&m, v, || why);
        }
        m.values.push((p, v));
        m.nodes.push(node);
        let (want, have) = (pattern.inputs(), found.inputs());
        if want.len() != have.len() {
            return self.miss(&m, v, || {
                format!("it has {} inputs, not {}", have.len(), want.len())
            });
        }
        let mut ways = self.operands(m.clone(), v, want, have);
        if want.len() == 2 && ops::traits::is_commutative(found.op()) {
            ways.extend(self.operands(m, v, want, &[have[1], have[0]]));
        }
        ways.truncate(MAX_WAYS);
        ways
    }

    /// The factors of a product in every order, and its numbers as one.
    fn product(&mut self, m: Match, wanted: &Wanted, v: ValueId, p: ValueId) -> Vec<Match> {
        let readings = product::readings(self.graph, v, wanted.factors.len());
        if readings.is_empty() {
            let found = self.graph.producer(v).map(|n| self.graph.node(n).op());
            return self.miss(&m, v, || match found {
                Some(op) => format!("expected Mul, found {op}"),
                None => "expected Mul, found no node".into(),
            });
        }
        let mut ways = Vec::new();
        for reading in readings {
            let mut m = m.clone();
            m.values.push((p, v));
            m.nodes.extend(reading.nodes.iter().copied());
            let (want, have) = (wanted.number, reading.number);
            if (want - have).abs() > reading.off * want.abs() {
                self.miss(&m, v, || {
                    format!("it multiplies by {}, not by {}", number(have), number(want))
                });
                continue;
            }
            ways.extend(self.factors(m, &wanted.factors, &reading.factors));
            ways.truncate(MAX_WAYS);
        }
        ways
    }

    /// Assigns each wanted value to one of the values given.
    fn factors(&mut self, m: Match, want: &[ValueId], have: &[ValueId]) -> Vec<Match> {
        let Some((&p, rest)) = want.split_first() else {
            return vec![m];
        };
        let mut ways = Vec::new();
        for (k, &v) in have.iter().enumerate() {
            if have[..k].contains(&v) {
                continue;
            }
            let mut left: SmallVec<[ValueId; 4]> = have.into();
            left.remove(k);
            for m in self.value(m.clone(), p, v) {
                ways.extend(self.factors(m, rest, &left));
                ways.truncate(MAX_WAYS);
            }
        }
        ways
    }

    fn operands(
        &mut self,
        m: Match,
        v: ValueId,
        want: &[Option<ValueId>],
        have: &[Option<ValueId>],
    ) -> Vec<Match> {
        let mut ways = vec![m];
        for (k, pair) in want.iter().zip(have).enumerate() {
            let (p, h) = match pair {
                (None, None) => continue,
                (Some(p), Some(h)) => (*p, *h),
                _ => {
                    let m = ways.swap_remove(0);
                    return self.miss(&m, v, || format!("input {k} is given, or is not"));
                }
            };
            if !self.keeps_rank(h, have, k) {
                let m = ways.swap_remove(0);
                return self.miss(&m, h, || {
                    "the constant raises the rank of its operand".into()
                });
            }
            ways = ways.into_iter().flat_map(|m| self.value(m, p, h)).collect();
            ways.truncate(MAX_WAYS);
            if ways.is_empty() {
                return ways;
            }
        }
        ways
    }

    /// A one-element constant stands for a scalar only if broadcasting it does not add dimensions.
    fn keeps_rank(&self, v: ValueId, operands: &[Option<ValueId>], k: usize) -> bool {
        let Some(tensor) = self.graph.constant(v) else {
            return true;
        };
        if tensor.rank() == 0 || operands.len() != 2 || tensor.len() != 1 {
            return true;
        }
        let other = operands[1 - k].map(|o| self.graph.value(o).ty().rank());
        // Integer operands beside data are axes or shapes, which do not broadcast.
        tensor.dtype().is_int() || matches!(other, Some(Some(rank)) if rank >= tensor.rank())
    }

    /// A `Constant` whose value is a reference binds the function's attribute to the graph's constant.
    fn parameter(&mut self, mut m: Match, pnode: NodeId, v: ValueId, p: ValueId) -> Vec<Match> {
        let Some(Attr::Ref { name, .. }) =
            self.pattern.node(pnode).attrs().iter().next().map(|a| a.1)
        else {
            return Vec::new();
        };
        let constant = self.graph.constant(v);
        let bound = match constant {
            Some(t) if t.len() == 1 && t.dtype().is_float() => {
                t.as_f64().map(|f| Attr::Float(f as f32))
            }
            Some(t) if t.len() == 1 => t.as_i64().map(Attr::Int),
            Some(t) => t.to_i64s().map(Attr::Ints),
            None => None,
        };
        match bound {
            None => self.miss(&m, v, || {
                format!("'{name}' is not a constant that fits an attribute")
            }),
            Some(attr) => {
                m.attrs.push((name.to_string(), attr));
                m.values.push((p, v));
                vec![m]
            }
        }
    }

    /// Attributes of the body must be met; what it does not name must have its default.
    fn attributes(&self, m: &mut Match, pnode: NodeId, node: NodeId) -> Result<(), String> {
        let (want, have) = (self.pattern.node(pnode), self.graph.node(node));
        for (name, attr) in want.attrs().iter() {
            let default = ops::schema::default_attr(have.op(), name, self.graph.opset());
            let actual = have.attrs().get(name).or(default);
            match (attr, actual) {
                (Attr::Ref { name, .. }, Some(actual)) => match m.attr(name) {
                    Some(bound) if !bound.same(actual) => {
                        return Err(format!("{}'s attribute '{name}' differs", have.op()));
                    }
                    Some(_) => {}
                    None => m.attrs.push((name.to_string(), actual.clone())),
                },
                (_, Some(actual)) if attr.same(actual) => {}
                _ => return Err(format!("{}'s attribute '{name}' differs", have.op())),
            }
        }
        for (name, attr) in have.attrs().iter() {
            let default = ops::schema::default_attr(have.op(), name, self.graph.opset());
            if want.attrs().get(name).is_none() && !default.is_some_and(|d| d.same(attr)) {
                return Err(format!("{} has the attribute '{name}'", have.op()));
            }
        }
        Ok(())
    }
}

/// Constants of a body are written in decimal: equal up to the precision of the graph's own dtype.
fn same_numbers(want: &Tensor, have: &Tensor) -> bool {
    let numbers = |t: &Tensor| -> Option<Vec<f64>> {
        t.to_f64s()
            .or_else(|| Some(t.to_i64s()?.into_iter().map(|v| v as f64).collect()))
    };
    if want.len() != have.len() || have.len() > 64 {
        return false;
    }
    let close = product::precision(Some(have.dtype()));
    match (numbers(want), numbers(have)) {
        (Some(a), Some(b)) => a
            .iter()
            .zip(&b)
            .all(|(a, b)| (a - b).abs() <= close * a.abs()),
        _ => false,
    }
}

fn show(t: &Tensor) -> String {
    match (t.as_f64(), t.as_i64()) {
        (Some(v), _) if t.dtype() != DType::F64 => (v as f32).to_string(),
        (Some(v), _) => v.to_string(),
        (_, Some(v)) => v.to_string(),
        _ => format!("{}{:?}", t.dtype(), t.dims()),
    }
}

/// A factor as a reader would look for it in the graph: as the divisor, where that is the shorter number, and as both where
/// neither is short.
fn number(factor: f64) -> String {
    const SHORT: usize = 9;
    let (plain, inverse) = (
        (factor as f32).to_string(),
        ((1.0 / factor) as f32).to_string(),
    );
    match (plain.len() < SHORT, inverse.len() < SHORT) {
        (true, _) => plain,
        (false, true) => format!("1/{inverse}"),
        (false, false) => format!("{plain} (1/{inverse})"),
    }
}
