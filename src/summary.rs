//! What a model holds, counted.

mod caches;

use std::borrow::Cow;
use std::collections::BTreeMap;

use kiln_graph::{Graph, Model, infer};
use kiln_passes::census::{Census, Count, census};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use caches::Caches;
pub use kiln_runtime::units::{bytes, count};

/// Counts of a model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct Summary {
    pub producer: String,
    pub ir_version: i64,
    /// `(domain, version)`.
    pub opsets: Vec<(String, i64)>,
    pub nodes: usize,
    /// Elements of float constants.
    pub parameters: usize,
    pub constant_bytes: usize,
    /// `(name, type)`.
    pub inputs: Vec<(String, String)>,
    pub outputs: Vec<(String, String)>,
    /// `(operator, nodes)`, most frequent first.
    pub ops: Vec<(String, usize)>,
    pub blocks: Vec<Found>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Caches>,
    /// Names of local functions.
    pub functions: Vec<String>,
}

/// A kind of block of a Transformer: how many there are, and how many of them are one operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    pub kind: Cow<'static, str>,
    pub found: usize,
    pub fused: usize,
    /// The operators that stand for them in the file that was written; `products` where they are spelled out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub written: BTreeMap<String, usize>,
    /// Why some are left, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Found {
    /// `attention 2 of 3 (1 has …)`
    pub fn describe(&self) -> String {
        let counted = format!("{} {} of {}", self.kind, self.fused, self.found);
        let spelled = self
            .written
            .get(PRODUCTS)
            .map(|n| format!("{n} as products"));
        let told: Vec<&str> = self
            .why
            .iter()
            .chain(&spelled)
            .map(String::as_str)
            .collect();
        match told.is_empty() {
            false => format!("{counted} ({})", told.join("; ")),
            true => counted,
        }
    }
}

/// The blocks of a census by kind. A block that only `before` shows counts as found: what was fused wrongly is gone.
pub fn found(before: &Census, after: &Census) -> Vec<Found> {
    let row = |kind: &'static str, count: fn(&Census) -> Count| Found {
        kind: kind.into(),
        found: count(before).found().max(count(after).found()),
        fused: count(after).fused,
        written: BTreeMap::new(),
        why: None,
    };
    let attention = row("attention", |c| c.attention);
    let left = attention.found - attention.fused;
    let quantized = before.quantized.min(left);
    let why = match quantized {
        0 => None,
        n if n == attention.found => Some("their probabilities are quantized".to_string()),
        n => Some(format!("{n} with quantized probabilities")),
    };
    vec![
        Found { why, ..attention },
        row("norms", |c| c.norms),
        row("activations", |c| c.activations),
        row("rotary", |c| c.rotary),
        row(PACKED, |c| c.projections),
    ]
}

const PACKED: &str = "packed projections";

/// What stands for an attention that no operator does.
const PRODUCTS: &str = "products";

/// Counts the attentions of the lowered model by the operators that they became.
pub fn write_out(blocks: &mut [Found], lowered: &Model) {
    let attention = blocks
        .iter_mut()
        .filter(|b| b.kind == "attention" && b.fused > 0);
    for row in attention {
        lowered.graph.for_each_graph(&mut |g| {
            let ops = g.nodes().map(|(_, node)| node.op());
            let attends = ["Attention", "MultiHeadAttention", "GroupQueryAttention"];
            for op in ops.filter(|op| attends.contains(&op.name())) {
                *row.written.entry(op.to_string()).or_default() += 1;
            }
        });
        let operators: usize = row.written.values().sum();
        let products = row.fused.saturating_sub(operators);
        if products > 0 {
            row.written.insert(PRODUCTS.into(), products);
        }
    }
}

/// Counts what lowering packed: attentions that project their one input themselves.
pub fn pack(blocks: &mut [Found], attentions: usize) {
    for row in blocks.iter_mut().filter(|b| b.kind == PACKED) {
        row.fused = row.fused.max(attentions);
        row.found = row.found.max(row.fused);
    }
}

/// Counts everything, nested graphs included.
pub fn of(model: &Model) -> Summary {
    let mut graph = model.graph.clone();
    infer::annotate(&mut graph);
    let typed = |name: &str, v| (name.to_string(), graph.value(v).ty().to_string());
    let mut ops: Vec<(String, usize)> = op_counts(&graph).into_iter().collect();
    ops.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut parameters = 0;
    let mut nodes = 0;
    graph.for_each_graph(&mut |g| {
        let constants = g.values().filter_map(|(_, v)| v.constant());
        let floats = constants.filter(|t| t.dtype().is_float());
        parameters += floats.map(|t| t.len()).sum::<usize>();
        nodes += g.node_count();
    });
    let census = census(model);
    Summary {
        producer: model.producer(),
        ir_version: model.ir_version(),
        opsets: graph
            .opsets()
            .iter()
            .map(|(d, v)| (d.to_string(), v))
            .collect(),
        nodes,
        parameters,
        constant_bytes: model.constant_bytes(),
        inputs: graph
            .inputs()
            .iter()
            .map(|&v| typed(graph.value(v).name(), v))
            .collect(),
        outputs: graph
            .outputs()
            .iter()
            .map(|o| typed(&o.name, o.value))
            .collect(),
        ops,
        blocks: found(&census, &census),
        caches: caches::of(&graph),
        functions: model.functions().map(|(d, n)| format!("{d}.{n}")).collect(),
    }
}

impl Summary {
    /// With what the file has beside the graph: Identity, where an output cannot bear its name otherwise.
    #[must_use]
    pub fn with_relays(mut self, relays: usize) -> Summary {
        self.nodes += relays;
        let identity = self.ops.iter_mut().find(|(op, _)| op == "Identity");
        match identity {
            Some((_, nodes)) => *nodes += relays,
            None if relays > 0 => self.ops.push(("Identity".into(), relays)),
            None => {}
        }
        self
    }
}

/// Nodes by operator, nested graphs included.
pub fn op_counts(graph: &Graph) -> BTreeMap<String, usize> {
    let mut ops = BTreeMap::new();
    graph.for_each_graph(&mut |g| {
        for (_, node) in g.nodes() {
            *ops.entry(node.op().to_string()).or_default() += 1;
        }
    });
    ops
}

/// Whether an operator rounds activations to integers.
pub fn quantizes_activations(graph: &Graph) -> bool {
    let mut found = false;
    graph.for_each_graph(&mut |g| {
        found |= g.nodes().any(|(_, node)| {
            let op = node.op();
            match op.domain() {
                "" => op.is_any(&["QuantizeLinear", "DynamicQuantizeLinear"]),
                // The highest level lets ONNX Runtime multiply in INT8.
                "com.microsoft" if op.name() == "MatMulNBits" => {
                    node.attrs().int("accuracy_level") == Some(4)
                }
                "com.microsoft" => op.name().starts_with("DynamicQuantize"),
                _ => false,
            }
        });
    });
    found
}
