//! The graph to messages: order is derived, names are made unique here and nowhere else.

use prost::Message;
use rustc_hash::FxHashSet;

use super::proto::{
    self, AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, attribute_proto,
    tensor_shape_proto, type_proto,
};
use super::tensor;
use crate::graph::{Cycle, Def, Node};
use crate::types::{Dim, Type};
use crate::{Attr, Graph, Model, NodeId, Tensor, ValueId};

/// A model ready to be encoded, weights kept apart from the messages.
pub(super) struct Exported {
    pub model: proto::ModelProto,
    pub graph: GraphProto,
    pub initializers: Vec<(TensorProto, Option<Tensor>)>,
}

impl Exported {
    pub fn into_message(self) -> proto::ModelProto {
        let mut graph = self.graph;
        graph.initializer = embed(self.initializers);
        proto::ModelProto {
            graph: Some(graph),
            ..self.model
        }
    }
}

fn embed(initializers: Vec<(TensorProto, Option<Tensor>)>) -> Vec<TensorProto> {
    let whole = |(header, data): (TensorProto, Option<Tensor>)| TensorProto {
        raw_data: data.map(|t| t.bytes()),
        ..header
    };
    initializers.into_iter().map(whole).collect()
}

pub(super) fn model(model: &Model) -> Result<Exported, Cycle> {
    let graph = &model.graph;
    let mut message = model.header.clone();
    message.opset_import = (graph.opsets().iter())
        .map(|(domain, version)| proto::OperatorSetIdProto {
            domain: Some(domain.to_string()),
            version: Some(version),
        })
        .collect();
    let needed = ir_version(graph.opset());
    message.ir_version = Some(message.ir_version.unwrap_or(0).max(needed));
    let mut taken = FxHashSet::default();
    let (graph, initializers) = export_graph(graph, &mut taken, &[])?;
    Ok(Exported {
        model: message,
        graph,
        initializers,
    })
}

/// The IR version that came with an operator set (ONNX's `docs/Versioning.md`, table of released versions); at least
/// 4, since initializers are not listed as inputs.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

type Parts = (GraphProto, Vec<(TensorProto, Option<Tensor>)>);

/// `outer` names the owning node's captured values; `taken` are the names in use anywhere outside.
fn export_graph(
    graph: &Graph,
    taken: &mut FxHashSet<String>,
    outer: &[String],
) -> Result<Parts, Cycle> {
    let order = graph.topo_order()?;
    let mut exporter = Exporter {
        graph,
        names: vec![String::new(); graph.value_bound()],
        symbols: FxHashSet::default(),
        nodes: Vec::with_capacity(order.len()),
        node_names: FxHashSet::default(),
    };
    let relays = exporter.name_values(&order, taken, outer);
    for &id in &order {
        exporter.node(id, taken)?;
    }
    let relays = relays.into_iter().map(|(name, value)| NodeProto {
        op_type: Some("Identity".into()),
        input: vec![exporter.names[value.index()].clone()],
        output: vec![name],
        ..NodeProto::default()
    });
    let relays: Vec<_> = relays.collect();
    exporter.nodes.extend(relays);
    Ok(exporter.finish())
}

struct Exporter<'a> {
    graph: &'a Graph,
    names: Vec<String>,
    /// Symbols that the graph's inputs declare; computed ones are not written.
    symbols: FxHashSet<&'a str>,
    nodes: Vec<NodeProto>,
    node_names: FxHashSet<String>,
}

fn unique(wanted: &str, taken: &mut FxHashSet<String>) -> String {
    if !wanted.is_empty() && taken.insert(wanted.to_string()) {
        return wanted.to_string();
    }
    let base = if wanted.is_empty() { "value" } else { wanted };
    let mut k = taken.len();
    loop {
        let name = format!("{base}_{k}");
        if taken.insert(name.clone()) {
            return name;
        }
        k += 1;
    }
}

impl<'a> Exporter<'a> {
    /// Gives every value its name. Public names come first; what stands behind an output without being able to bear
    /// its name (an input, a constant, a second output of the same value) is relayed by an Identity.
    fn name_values(
        &mut self,
        order: &[NodeId],
        taken: &mut FxHashSet<String>,
        outer: &[String],
    ) -> Vec<(String, ValueId)> {
        let graph = self.graph;
        for &v in graph.inputs() {
            self.names[v.index()] = unique(graph.value(v).name(), taken);
            for dim in graph.value(v).ty().shape().unwrap_or_default() {
                if let Dim::Symbol(s) = dim {
                    self.symbols.insert(s);
                }
            }
        }
        let mut relays = Vec::new();
        for output in graph.outputs() {
            let v = output.value;
            // An input that is returned as it is may bear the output's own name already.
            if self.names[v.index()] == *output.name {
                continue;
            }
            let name = unique(&output.name, taken);
            let bearer = matches!(graph.value(v).def(), Def::Node(..));
            if bearer && self.names[v.index()].is_empty() {
                self.names[v.index()] = name;
            } else {
                relays.push((name, v));
            }
        }
        for (v, value) in graph.values() {
            match value.def() {
                Def::Capture(k) => {
                    self.names[v.index()] = outer.get(*k as usize).cloned().unwrap_or_default();
                }
                Def::Constant(_) if value.is_unused() => {}
                Def::Constant(_) => self.names[v.index()] = unique(value.name(), taken),
                _ => {}
            }
        }
        for &id in order {
            let node = graph.node(id);
            for &v in node.outputs().iter().flatten() {
                if self.names[v.index()].is_empty() {
                    let wanted = match graph.value(v).name() {
                        "" => node.op().name(),
                        name => name,
                    };
                    self.names[v.index()] = unique(wanted, taken);
                }
            }
        }
        relays
    }

    fn name(&self, v: &Option<ValueId>) -> String {
        v.map_or(String::new(), |v| self.names[v.index()].clone())
    }

    fn node(&mut self, id: NodeId, taken: &mut FxHashSet<String>) -> Result<(), Cycle> {
        let graph = self.graph;
        let node: &Node = graph.node(id);
        let text = |s: &str| (!s.is_empty()).then(|| s.to_string());
        let outer: Vec<String> = (node.captures().iter())
            .map(|v| self.names[v.index()].clone())
            .collect();
        let mut attributes = Vec::with_capacity(node.attrs().len());
        for (name, value) in node.attrs().iter() {
            attributes.push(attribute(name, value, taken, &outer)?);
        }
        let metadata = node.notes().metadata();
        let devices = self.graph.carried.devices.iter();
        let devices = devices
            .filter(|(n, _)| *n == id)
            .flat_map(|(_, d)| d.clone());
        let message = NodeProto {
            input: node.inputs().iter().map(|v| self.name(v)).collect(),
            output: node.outputs().iter().map(|v| self.name(v)).collect(),
            name: text(&self.node_name(node.name())),
            op_type: text(node.op().name()),
            domain: text(node.op().domain()),
            overload: text(node.op().overload()),
            attribute: attributes,
            doc_string: text(node.notes().doc()),
            metadata_props: entries(metadata),
            device_configurations: devices.collect(),
        };
        self.nodes.push(message);
        Ok(())
    }

    /// ONNX Runtime refuses two nodes of one name, so a repeated one gets a number.
    fn node_name(&mut self, wanted: &str) -> String {
        if wanted.is_empty() {
            return String::new();
        }
        unique(wanted, &mut self.node_names)
    }

    fn info(&self, v: ValueId, name: &str, with_type: bool) -> ValueInfoProto {
        let carried = self
            .graph
            .carried
            .infos
            .get(&v)
            .cloned()
            .unwrap_or_default();
        let denotation = carried.r#type.and_then(|t| t.denotation);
        let ty = with_type.then(|| export_type(self.graph.value(v).ty(), None));
        ValueInfoProto {
            name: Some(name.to_string()),
            r#type: ty.flatten().map(|t| proto::TypeProto { denotation, ..t }),
            ..carried
        }
    }

    fn finish(self) -> Parts {
        let graph = self.graph;
        let mut initializers = Vec::new();
        let mut push = |v: ValueId, name: &str, tensor: &Tensor| {
            let mut header = tensor::export_header(name, tensor);
            if let Some(info) = graph.carried.infos.get(&v) {
                header.doc_string = info.doc_string.clone();
                header.metadata_props = info.metadata_props.clone();
            }
            initializers.push((header, tensor.strings().is_none().then(|| tensor.clone())));
        };
        for (v, tensor) in graph.defaults() {
            push(*v, &self.names[v.index()], tensor);
        }
        let mut value_info = Vec::new();
        for (v, value) in graph.values() {
            let name = &self.names[v.index()];
            match value.def() {
                Def::Constant(tensor) if !name.is_empty() => push(v, name, tensor),
                Def::Node(..) if !value.is_output() => {
                    let ty = export_type(value.ty(), Some(&self.symbols));
                    if ty.is_some() || graph.carried.infos.contains_key(&v) {
                        let mut info = self.info(v, name, false);
                        info.r#type = ty;
                        value_info.push(info);
                    }
                }
                _ => {}
            }
        }
        let inputs = graph.inputs().iter();
        let outputs = graph.outputs().iter();
        let message = GraphProto {
            name: Some(match graph.name.as_str() {
                "" => "main".into(),
                name => name.to_string(),
            }),
            doc_string: (!graph.doc.is_empty()).then(|| graph.doc.clone()),
            input: inputs
                .map(|&v| self.info(v, &self.names[v.index()], true))
                .collect(),
            output: outputs.map(|o| self.info(o.value, &o.name, true)).collect(),
            value_info,
            quantization_annotation: graph.carried.quantization.clone(),
            metadata_props: entries(&graph.carried.metadata),
            node: self.nodes,
            ..GraphProto::default()
        };
        (message, initializers)
    }
}

fn entries(pairs: &[(String, String)]) -> Vec<proto::StringStringEntryProto> {
    let entry = |(k, v): &(String, String)| proto::StringStringEntryProto {
        key: Some(k.clone()),
        value: Some(v.clone()),
    };
    pairs.iter().map(entry).collect()
}

fn attribute(
    name: &str,
    value: &Attr,
    taken: &mut FxHashSet<String>,
    outer: &[String],
) -> Result<AttributeProto, Cycle> {
    use attribute_proto::AttributeType as T;
    let nested = |g: &Graph, taken: &mut FxHashSet<String>| {
        let (mut message, initializers) = export_graph(g, taken, outer)?;
        message.initializer = embed(initializers);
        Ok(message)
    };
    let mut out = AttributeProto {
        name: Some(name.to_string()),
        ..AttributeProto::default()
    };
    let kind = match value {
        Attr::Opaque(encoded) => {
            return Ok(AttributeProto::decode(encoded.clone()).unwrap_or(out));
        }
        Attr::Ref { name, kind } => {
            out.ref_attr_name = Some(name.to_string());
            out.r#type = Some(*kind);
            return Ok(out);
        }
        Attr::Int(v) => {
            out.i = Some(*v);
            T::Int
        }
        Attr::Float(v) => {
            out.f = Some(*v);
            T::Float
        }
        Attr::Str(v) => {
            out.s = Some(v.clone());
            T::String
        }
        Attr::Tensor(v) => {
            out.t = Some(Box::new(tensor::export("", v)));
            T::Tensor
        }
        Attr::Graph(g) => {
            out.g = Some(Box::new(nested(g, taken)?));
            T::Graph
        }
        Attr::Ints(v) => {
            out.ints = v.clone();
            T::Ints
        }
        Attr::Floats(v) => {
            out.floats = v.clone();
            T::Floats
        }
        Attr::Strs(v) => {
            out.strings = v.clone();
            T::Strings
        }
        Attr::Tensors(v) => {
            out.tensors = v.iter().map(|t| tensor::export("", t)).collect();
            T::Tensors
        }
        Attr::Graphs(v) => {
            for g in v {
                out.graphs.push(nested(g, taken)?);
            }
            T::Graphs
        }
    };
    out.r#type = Some(kind as i32);
    Ok(out)
}

/// The type's message, if anything is known. With `symbols`, dimensions named otherwise are left open.
fn export_type(ty: &Type, symbols: Option<&FxHashSet<&str>>) -> Option<proto::TypeProto> {
    use tensor_shape_proto::dimension::Value as V;
    let (dtype, shape) = match ty {
        Type::Unknown => return None,
        Type::Opaque(encoded) => return proto::TypeProto::decode(encoded.clone()).ok(),
        Type::Tensor { dtype, shape } => ((*dtype)?, shape),
    };
    let dim = |d: &Dim| proto::tensor_shape_proto::Dimension {
        value: match d {
            Dim::Known(n) => Some(V::DimValue(*n as i64)),
            Dim::Symbol(s) if symbols.is_none_or(|known| known.contains(&**s)) => {
                Some(V::DimParam(s.to_string()))
            }
            _ => None,
        },
        denotation: None,
    };
    let shape = shape.as_ref().map(|dims| proto::TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    });
    Some(proto::TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(dtype.to_onnx()),
            shape,
        })),
        denotation: None,
    })
}
