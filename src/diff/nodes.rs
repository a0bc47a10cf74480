//! A model's nodes as one list, those of nested graphs behind their owners.

use std::borrow::Cow;

use kiln_graph::{Graph, Model, Node, NodeId, Op, ValueId, infer};
use rustc_hash::FxHashMap;

/// The model's graph with inferred types, of which [`Nodes`] borrow.
#[derive(Debug)]
pub(super) struct Typed(pub Graph);

impl Typed {
    pub(super) fn new(model: &Model) -> Typed {
        let mut graph = model.graph.clone();
        infer::annotate(&mut graph);
        Typed(graph)
    }
}

/// A node and where it is.
#[derive(Clone, Debug)]
pub(super) struct Item<'g> {
    pub graph: &'g Graph,
    pub id: NodeId,
    /// The nested graph that it is in, by its owner's result; empty for the outermost.
    pub within: String,
}

impl<'g> Item<'g> {
    pub fn node(&self) -> &'g Node {
        self.graph.node(self.id)
    }

    pub fn op(&self) -> Op {
        self.node().op()
    }

    /// The name of its first named result, by which it is known.
    pub fn result(&self) -> &'g str {
        let outputs = self.node().outputs().iter().flatten();
        let mut names = outputs.map(|&v| self.graph.value(v).name());
        names.find(|n| !n.is_empty()).unwrap_or_default()
    }

    /// What says which module it is of: torch.export notes that, and names of nodes or results begin with it elsewhere.
    pub fn label(&self) -> Cow<'g, str> {
        // `['', 'model', 'model.layers.0', 'model.layers.0.self_attn', 'softmax']`
        let scopes = self.note("pkg.torch.onnx.name_scopes");
        let mut scopes = scopes.map_or("", |s| s).rsplit('\'').skip(1).step_by(2);
        match (scopes.nth(1), self.node().name()) {
            (Some(module), _) if !module.is_empty() => {
                Cow::Owned(format!("{module}/{}", self.op().name()))
            }
            (_, "") => self.result().into(),
            (_, name) => name.into(),
        }
    }

    fn note(&self, name: &str) -> Option<&'g str> {
        let mut notes = self.node().notes().metadata().iter();
        let found = notes.find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The pass of kiln that made it.
    pub fn pass(&self) -> Option<&'g str> {
        self.note("kiln.pass")
    }
}

/// All nodes in the order of execution, found by id.
#[derive(Debug)]
pub(super) struct Nodes<'g> {
    pub items: Vec<Item<'g>>,
    /// By the address of the graph, and the id in it.
    places: FxHashMap<(usize, NodeId), usize>,
}

impl<'g> Nodes<'g> {
    pub fn of(typed: &'g Typed) -> Nodes<'g> {
        let mut nodes = Nodes {
            items: Vec::new(),
            places: FxHashMap::default(),
        };
        nodes.walk(&typed.0, "");
        nodes
    }

    fn walk(&mut self, graph: &'g Graph, within: &str) {
        // The reader refuses cycles.
        let order = graph
            .topo_order()
            .unwrap_or_else(|_| graph.nodes().map(|(id, _)| id).collect());
        for id in order {
            let item = Item {
                graph,
                id,
                within: within.to_string(),
            };
            let (owner, node) = (item.result(), item.node());
            self.places.insert((address(graph), id), self.items.len());
            self.items.push(item);
            for (name, attr) in node.attrs().iter() {
                for (k, body) in attr.graphs().iter().enumerate() {
                    self.walk(body, &format!("{within}/{owner}:{name}{k}"));
                }
            }
        }
    }

    /// The node that computes a value of the item's graph.
    pub fn producer(&self, item: &Item<'_>, v: ValueId) -> Option<usize> {
        let id = item.graph.producer(v)?;
        self.places.get(&(address(item.graph), id)).copied()
    }
}

fn address(graph: &Graph) -> usize {
    std::ptr::from_ref(graph).addr()
}
