//! Where an engine's bytes go and what it costs on paper, kernel by kernel: what the manifest keeps and reports show.

use std::collections::BTreeMap;

use kiln_graph::Graph;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::multiplied::parsed_name;
use super::{ComputeCapability, Kernel, Kernels, Sizes, price};
use crate::blocks;
use crate::card::Card;

/// What an engine moves and costs on paper at one point of its profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Paper {
    /// The sizes that it holds for, by the names of the model's symbolic dimensions.
    pub at: BTreeMap<String, usize>,
    /// One for each kernel that is launched, in the order in which they run.
    pub kernels: Vec<Cost>,
    pub prices: Vec<CardPrice>,
}

/// What one kernel moves and multiplies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    pub kernel: String,
    /// The Transformer block that its nodes are of; `null` outside of blocks.
    pub block: Option<String>,
    /// Bytes of activations read and written; `null` where the size of one is not known.
    pub activations: Option<u64>,
    /// Bytes of constants read at least.
    pub constants: Option<u64>,
    /// Two for each multiplication and addition of products, convolutions and attention.
    pub operations: Option<u64>,
    /// Why one of them is not known.
    pub unknown: Option<String>,
}

/// The price on one card: a bound from below, by bytes, operations and launches. Nothing of it is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CardPrice {
    /// As the driver names it.
    pub card: String,
    /// The sum over the kernels; those that are not known count as their launch alone.
    pub microseconds: f64,
    /// That of each kernel, in the order of `kernels`; `null` where it is not known.
    pub kernels: Vec<Option<f64>>,
}

impl CardPrice {
    /// The card's name without the maker's: `L4`.
    pub fn short(&self) -> &str {
        let name = self.card.strip_prefix("NVIDIA ").unwrap_or(&self.card);
        name.strip_prefix("GeForce ").unwrap_or(name)
    }
}

/// A sum over kernels, of which some may not be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub known: u64,
    /// Kernels that are missing in it.
    pub unknown: usize,
}

impl Bytes {
    /// The sum of what is known.
    pub fn of(all: impl IntoIterator<Item = Option<u64>>) -> Bytes {
        all.into_iter().fold(Bytes::default(), |sum, n| match n {
            Some(n) => Bytes {
                known: sum.known.saturating_add(n),
                ..sum
            },
            None => Bytes {
                unknown: sum.unknown + 1,
                ..sum
            },
        })
    }
}

impl Paper {
    /// `graph` is what the builder was handed, `point` the sizes of its symbols and `inputs` its inputs' shapes there.
    pub fn new(
        kernels: &Kernels,
        graph: &Graph,
        point: &BTreeMap<String, usize>,
        inputs: &[(String, Vec<usize>)],
        cards: &[&Card],
    ) -> Paper {
        let sizes = Sizes::at(kernels, graph, inputs);
        let blocks = blocks_of(graph);
        let cost = |k| cost(k, &sizes, &blocks);
        Paper {
            at: point.clone(),
            kernels: kernels.launched().map(cost).collect(),
            prices: cards.iter().map(|c| on(kernels, &sizes, c)).collect(),
        }
    }

    /// Bytes of activations that all kernels read and write.
    pub fn moved(&self) -> Bytes {
        Bytes::of(self.kernels.iter().map(|k| k.activations))
    }

    /// The price that is told where there is room for one.
    pub fn told(&self) -> Option<&CardPrice> {
        let usual = self.prices.iter().find(|p| p.short() == "L4");
        usual.or(self.prices.first())
    }
}

/// The cards whose prices are told of an engine for these capabilities.
pub fn cards(capabilities: &[ComputeCapability]) -> Vec<&'static Card> {
    capabilities
        .iter()
        .filter_map(|&c| price::usual(c))
        .collect()
}

fn on(kernels: &Kernels, sizes: &Sizes, card: &Card) -> CardPrice {
    let each = kernels.launched().map(|k| price::of_kernel(k, sizes, card));
    let each: Vec<_> = each.map(|p| p.ok().map(|p| p.microseconds)).collect();
    let least = each.iter().map(|p| p.unwrap_or(price::LAUNCH_MICROSECONDS));
    CardPrice {
        card: card.name.into(),
        microseconds: least.sum(),
        kernels: each,
    }
}

fn cost(kernel: &Kernel, sizes: &Sizes, blocks: &BTreeMap<String, String>) -> Cost {
    let activations = sizes.moved(kernel);
    let operations = price::operations(kernel, sizes);
    let operands = kernel.inputs.iter().chain(&kernel.outputs);
    let unsized_ = operands
        .map(|o| (o, sizes.bytes(o)))
        .find(|(_, n)| n.is_none());
    let unknown = match (unsized_, operations) {
        (Some((o, _)), _) => Some(format!("the size of {} is not known", o.name)),
        (None, None) => Some("how much it multiplies is not known".into()),
        _ => None,
    };
    Cost {
        kernel: kernel.name.clone(),
        block: block(kernel, blocks),
        activations,
        constants: sizes.constants(kernel),
        operations,
        unknown,
    }
}

/// The block of each node, by the node's name in TensorRT.
fn blocks_of(graph: &Graph) -> BTreeMap<String, String> {
    // A graph with a cycle was not built.
    let order = graph.topo_order().unwrap_or_default();
    let names: Vec<_> = order.iter().map(|&id| parsed_name(graph, id)).collect();
    let ops: Vec<_> = order.iter().map(|&id| graph.node(id).op()).collect();
    // A node without a name has that of its value, whose modules are the same.
    let modules = names
        .iter()
        .map(|n| n.strip_prefix("node_of_").unwrap_or(n));
    let nodes: Vec<_> = modules.zip(&ops).map(|(n, op)| (n, op.name())).collect();
    let found = blocks::find(&nodes).into_iter();
    let named = names.iter().cloned().zip(found);
    named.filter_map(|(n, block)| Some((n, block?))).collect()
}

/// The block that most of a kernel's nodes are of, of several the first.
fn block(kernel: &Kernel, blocks: &BTreeMap<String, String>) -> Option<String> {
    let mut counts: Vec<(&String, usize)> = Vec::new();
    for block in kernel.nodes.iter().filter_map(|n| blocks.get(n)) {
        match counts.iter_mut().find(|(b, _)| *b == block) {
            Some((_, n)) => *n += 1,
            None => counts.push((block, 1)),
        }
    }
    let most = counts.iter().map(|(_, n)| *n).max()?;
    let first = counts.iter().find(|(_, n)| *n == most)?;
    Some(first.0.clone())
}

#[cfg(test)]
mod tests {
    use kiln_graph::onnx;

    use super::*;
    use crate::card;
    use crate::{DataType, Operand};

    fn kernel(name: &str, nodes: &[&str], shape: &[i64]) -> Kernel {
        let operand = Operand {
            name: format!("{name}_y"),
            shape: shape.to_vec(),
            strides: vec![1; shape.len()],
            dtype: DataType::Float16,
        };
        Kernel {
            name: name.into(),
            kind: "kgen".into(),
            inputs: Vec::new(),
            constants: Vec::new(),
            outputs: vec![operand],
            tactic: String::new(),
            nodes: nodes.iter().map(|n| n.to_string()).collect(),
        }
    }

    fn paper() -> Paper {
        let model = onnx::read_text(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float16[n, 8] x) => (float16[n, 8] y)
            {
                [first] a = Neg(x) ["e.layer.0.a"] b = Relu(a) ["e.layer.0.b"] c = Neg(b)
                ["e.layer.1.a"] d = Relu(c) ["e.layer.1.b"] y = Neg(d)
            }"#,
        )
        .unwrap();
        let kernels = Kernels(vec![
            kernel("k0", &["first", "e.layer.0.a", "e.layer.0.b"], &[-1, 8]),
            kernel("k1", &["e.layer.1.a"], &[4, 8]),
            kernel("k2", &["nobody"], &[-1, 8]),
        ]);
        let cards = ["NVIDIA GeForce RTX 5090", "NVIDIA L4"].map(|c| card::find(c).unwrap());
        let point = [("n".to_string(), 4)].into();
        let inputs = [("x".to_string(), vec![4, 8])];
        Paper::new(&kernels, &model.graph, &point, &inputs, &cards)
    }

    #[test]
    fn what_is_not_known_is_counted_and_has_a_reason() {
        let paper = paper();
        let wanted = Bytes {
            known: 2 * 2 * 32,
            unknown: 1,
        };
        assert_eq!(paper.moved(), wanted);
        let [a, b, c] = &paper.kernels[..] else {
            panic!("{paper:?}")
        };
        assert_eq!(
            (a.block.as_deref(), b.block.as_deref()),
            (Some("e.layer.0"), Some("e.layer.1"))
        );
        assert_eq!((a.activations, &a.unknown), (Some(64), &None));
        assert_eq!((c.activations, &c.block), (None, &None));
        assert_eq!(c.unknown.as_deref(), Some("the size of k2_y is not known"));
        let told = paper.told().unwrap();
        assert_eq!((told.short(), told.kernels.len()), ("L4", 3));
        assert_eq!(told.kernels[2], None);
        let least = 3.0 * price::LAUNCH_MICROSECONDS + 128.0 / 300e3;
        assert!((told.microseconds - least).abs() < 1e-9, "{told:?}");
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        let paper = paper();
        let text = serde_json::to_string(&paper).unwrap();
        assert_eq!(serde_json::from_str::<Paper>(&text).unwrap(), paper);
    }
}
