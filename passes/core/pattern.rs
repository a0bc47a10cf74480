//! Matching a function's body against a graph, backwards from the output.
//!
//! The body is a [`Function`]: its inputs are wildcards, its constants must be equal in value, an attribute reference
//! binds. All ways to match are found, not the first: a commutative node over two wildcards would otherwise commit to
//! an order that a later node contradicts.

use kiln_graph::{Attr, DType, Def, Function, Graph, NodeId, Tensor, ValueId, ops};
use smallvec::SmallVec;

use super::pass::Miss;

/// One way in which a body matches.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// Pattern value → graph value.
    values: SmallVec<[(ValueId, ValueId); 12]>,
    nodes: SmallVec<[NodeId; 12]>,
    attrs: SmallVec<[(String, Attr); 2]>,
    /// The function's inputs in order; `None` if the body does not use one.
    pub inputs: Vec<Option<ValueId>>,
    /// The matched root's output.
    pub output: Option<ValueId>,
}

impl Match {
    /// The graph's value bound to the function's input at `k`.
    ///
    /// # Errors
    /// A miss if the body does not bind it.
    pub fn input(&self, k: usize) -> Result<ValueId, Miss> {
        let bound = self.inputs.get(k).copied().flatten();
        bound.ok_or_else(|| Miss::because(format!("input {k} of the body is not bound")))
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
/// The deepest miss, if there is no way.
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
    }
    Ok(ways)
}

impl Matcher<'_> {
    fn miss(&mut self, m: &Match, at: ValueId, why: impl FnOnce() -> String) -> Vec<Match> {
        if m.nodes.len() > self.deepest.depth {
            self.deepest = Miss::at(at, m.nodes.len(), why());
        }
        Vec::new()
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
            let default = ops::defaults::default_attr(have.op(), name, self.graph.opset());
            let actual = have.attrs().get(name).or(default.as_ref());
            match (attr, actual) {
                (Attr::Ref { name, .. }, Some(actual)) => {
                    m.attrs.push((name.to_string(), actual.clone()));
                }
                (_, Some(actual)) if attr.same(actual) => {}
                _ => return Err(format!("{}'s attribute '{name}' differs", have.op())),
            }
        }
        for (name, attr) in have.attrs().iter() {
            let default = ops::defaults::default_attr(have.op(), name, self.graph.opset());
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
    let close = match have.dtype() {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 1e-6,
    };
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
