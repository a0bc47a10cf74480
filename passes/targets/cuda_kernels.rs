//! The kernels that ONNX Runtime's CUDA provider has: what is not among them falls to the CPU, and its operands are copied.
//!
//! `cuda_kernels.txt` is the registry of the release that kiln is tested with, as `tools/kernels/cuda.py` reads it. A line has an
//! operator, the first and last of its versions that a kernel serves (none: the one version), and types by operand (`i0`) and
//! result (`o0`).

use std::sync::LazyLock;

use kiln_graph::ops::schema;
use kiln_graph::{DType, Graph, Model, Node, NodeId, Op};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::core::target::MICROSOFT;

struct Kernel {
    since: i64,
    until: Option<i64>,
    types: Vec<(Port, Vec<DType>)>,
}

#[derive(Clone, Copy)]
enum Port {
    Input(usize),
    Output(usize),
}

static TEXT: &str = include_str!("cuda_kernels.txt");

static TABLE: LazyLock<FxHashMap<&str, Vec<Kernel>>> = LazyLock::new(|| {
    let mut table: FxHashMap<&str, Vec<Kernel>> = FxHashMap::default();
    for line in TEXT.lines().filter(|l| !l.starts_with('#')) {
        if let Some((name, kernel)) = read(line) {
            table.entry(name).or_default().push(kernel);
        }
    }
    table
});

fn read(line: &'static str) -> Option<(&'static str, Kernel)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let (since, until) = words.next()?.split_once("..")?;
    let types = words.map(|word| {
        let (place, names) = word.split_once('=')?;
        let at: usize = place.get(1..)?.parse().ok()?;
        let port = match place.get(..1)? {
            "i" => Port::Input(at),
            _ => Port::Output(at),
        };
        Some((
            port,
            names.split(',').filter_map(DType::from_name).collect(),
        ))
    });
    Some((
        name,
        Kernel {
            since: since.parse().ok()?,
            until: match until {
                "" => None,
                until => Some(until.parse().ok()?),
            },
            types: types.collect::<Option<_>>()?,
        },
    ))
}

/// The release whose kernels these are.
pub fn release() -> &'static str {
    let first = TEXT.lines().next().unwrap_or_default();
    first.trim_start_matches("# onnxruntime-gpu ")
}

fn kernels(op: Op) -> &'static [Kernel] {
    let all = match op.domain() {
        "" => TABLE.get(op.name()),
        MICROSOFT => TABLE.get(format!("{MICROSOFT}:{}", op.name()).as_str()),
        _ => None,
    };
    all.map_or(&[], Vec::as_slice)
}

/// Operators that the provider takes by other means than a kernel: it reads their bodies.
const BODIES: &[&str] = &["If", "Loop", "Scan"];

impl Kernel {
    /// ONNX Runtime's rule: a kernel without a last version serves the version that it names alone.
    fn serves(&self, version: i64) -> bool {
        self.since == version || self.since < version && self.until.is_some_and(|u| version <= u)
    }

    fn takes(&self, g: &Graph, node: &Node) -> bool {
        self.types.iter().all(|(port, types)| {
            let value = match port {
                Port::Input(k) => node.input(*k),
                Port::Output(k) => node.output(*k),
            };
            let dtype = value.and_then(|v| g.value(v).ty().dtype());
            dtype.is_none_or(|d| types.contains(&d))
        })
    }
}

/// Whether the provider has a kernel for a node in its types. Types must be inferred.
pub fn has(g: &Graph, node: &Node) -> bool {
    let op = node.op();
    let since = match op.domain() {
        // In no standard that knows it.
        "" if op.name() == "SimplifiedLayerNormalization" => Some(1),
        _ => schema::schema(op, g.opset()).map(schema::Schema::since),
    };
    let version = since.unwrap_or(1);
    op.is_any(BODIES)
        || kernels(op)
            .iter()
            .any(|k| k.serves(version) && k.takes(g, node))
}

/// Whether the provider has the operator in this type at any version, in its first operand.
pub fn takes(op: Op, dtype: DType) -> bool {
    kernels(op).iter().any(|kernel| {
        let first = kernel
            .types
            .iter()
            .find(|(p, _)| matches!(p, Port::Input(0)));
        first.is_none_or(|(_, types)| types.contains(&dtype))
    })
}

/// Whether the provider has an operator of this operator set whose operands are of this type wherever they may be of FP32. Results may
/// have a type of their own, as the mean of a norm has.
pub fn takes_at(op: Op, opset: i64, dtype: DType) -> bool {
    let since = schema::schema(op, opset).map_or(1, schema::Schema::since);
    let all = |k: &Kernel| {
        let operands = (k.types.iter()).filter(|(port, _)| matches!(port, Port::Input(_)));
        let mut floats = operands.filter(|(_, types)| types.contains(&DType::F32));
        floats.all(|(_, types)| types.contains(&dtype))
    };
    op.is_any(BODIES) || kernels(op).iter().any(|k| k.serves(since) && all(k))
}

/// A node that falls to the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallen {
    /// The node's label.
    pub node: String,
    pub op: Op,
    /// Types of its operands.
    pub types: Vec<DType>,
    /// It computes on sizes alone, where the CPU is the right place.
    pub sizes: bool,
}

/// The nodes of a model for which the provider has no kernel. Types must be inferred.
pub fn fallen(model: &Model) -> Vec<Fallen> {
    let mut found = Vec::new();
    model.graph.for_each_graph(&mut |g| {
        let sizes = from_sizes(g);
        let without = g.nodes().filter(|(_, node)| !has(g, node));
        found.extend(without.map(|(id, node)| {
            let inputs = node.inputs().iter().flatten();
            Fallen {
                node: g.label(id),
                op: node.op(),
                types: inputs.filter_map(|&v| g.value(v).ty().dtype()).collect(),
                sizes: sizes.contains(&id),
            }
        }));
    });
    found
}

/// Nodes that compute on shapes and constants alone.
fn from_sizes(g: &Graph) -> FxHashSet<NodeId> {
    let mut found = FxHashSet::default();
    for id in g.topo_order().unwrap_or_default() {
        let node = g.node(id);
        let derived =
            |v| g.constant(v).is_some() || g.producer(v).is_some_and(|p| found.contains(&p));
        let inputs = node.inputs();
        let counts = node.op().is_any(&["Shape", "Size"]);
        if counts || !inputs.is_empty() && inputs.iter().flatten().all(|&v| derived(v)) {
            found.insert(id);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::{infer, onnx};

    fn fall(text: &str) -> Vec<(String, bool)> {
        let mut model = onnx::read_text(text).unwrap();
        infer::annotate(&mut model.graph);
        let fallen = fallen(&model).into_iter();
        fallen.map(|f| (f.op.to_string(), f.sizes)).collect()
    }

    #[test]
    fn every_line_is_read() {
        let lines = TEXT.lines().filter(|l| !l.starts_with('#'));
        for line in lines {
            let (_, kernel) = read(line).unwrap();
            assert!(kernel.types.iter().all(|(_, t)| !t.is_empty()), "{line}");
        }
        assert_eq!(release(), "1.31.1");
    }

    #[test]
    fn types_and_versions_decide() {
        let half = fall(
            r#"<ir_version: 10, opset_import: ["" : 23]> g (bfloat16[n] x, bfloat16[n] y, bool[n] c, bool[n] d) => (bool[n] z, bfloat16[n] w, bool[n] v)
            { z = Less(x, y)
              w = Where(c, x, y)
              v = Where(c, c, d) }"#,
        );
        assert_eq!(half, [("Less".to_string(), false), ("Where".into(), false)]);
        let query = |dtype: &str| {
            fall(&format!(
                r#"<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
                g ({dtype}[b, s, 8] q, {dtype}[b, 2, p, 4] k, int32[b] l, int32 t) => ({dtype}[b, s, 8] y)
                {{ y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> (q, q, q, k, k, l, t) }}"#
            ))
        };
        assert_eq!(query("float").len(), 1);
        assert!(query("float16").is_empty() && query("bfloat16").is_empty());
    }

    #[test]
    fn an_operator_is_asked_for_by_type_and_operator_set() {
        let takes = |name: &str, dtype| takes_at(Op::onnx(name), 20, dtype);
        for name in ["MatMul", "Softmax", "Add", "Cast", "If"] {
            assert!(
                takes(name, DType::BF16) && takes(name, DType::F16),
                "{name}"
            );
        }
        for name in [
            "ReduceMax",
            "Log",
            "Pad",
            "Resize",
            "QuantizeLinear",
            "ArgMax",
        ] {
            assert!(
                !takes(name, DType::BF16) && takes(name, DType::F32),
                "{name}"
            );
            assert!(takes(name, DType::F16), "{name}");
        }
        assert!(takes("LayerNormalization", DType::BF16));
        // None at all.
        assert!(!takes("BitShift", DType::F32));
    }

    #[test]
    fn what_computes_on_sizes_is_told_apart() {
        let sizes = fall(
            r#"<ir_version: 10, opset_import: ["" : 23]> g (float[n] x) => (float[m] y)
            { n = Size(x)
              m = BitShift <direction = "LEFT"> (n, n)
              y = Expand(x, m) }"#,
        );
        assert_eq!(sizes, [("BitShift".to_string(), true)]);
    }
}
