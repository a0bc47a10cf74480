//! Messages to the graph.

use std::sync::Arc;

use prost::Message;
use rustc_hash::FxHashMap;

use super::error::{ReadErrorKind, Result};
use super::external::External;
use super::proto::{self, AttributeProto, GraphProto, NodeProto, TensorProto, type_proto};
use super::tensor;
use crate::graph::{Inputs, Notes, Opsets};
use crate::types::{Dim, Shape, Type};
use crate::{Attr, Attrs, DType, Function, Graph, Model, Op, Tensor, ValueId};

pub(super) fn model(mut message: proto::ModelProto, external: &mut External) -> Result<Model> {
    let graph = message.graph.take().unwrap_or_default();
    let opsets = opsets(&std::mem::take(&mut message.opset_import));
    if opsets.iter().next().is_none() && !graph.node.is_empty() {
        return Err(ReadErrorKind::NotOnnx("it names no operator set".into()));
    }
    let ir_version = message.ir_version.unwrap_or(0);
    let mut importer = Importer {
        external,
        opsets,
        overridable: ir_version >= 4,
    };
    let graph = importer.graph(graph, None)?;
    external.check_overlaps()?;
    Ok(Model {
        graph,
        header: message,
        ..Model::default()
    })
}

/// A function as a graph whose inputs and outputs are the function's.
///
/// # Errors
/// When the body is malformed.
pub fn function(message: proto::FunctionProto) -> Result<Function> {
    let name = message.name.clone().unwrap_or_default();
    let typeless = |name: String| proto::ValueInfoProto {
        name: Some(name),
        ..Default::default()
    };
    let graph = GraphProto {
        name: message.name,
        node: message.node,
        input: message.input.into_iter().map(typeless).collect(),
        output: message.output.into_iter().map(typeless).collect(),
        value_info: message.value_info,
        ..Default::default()
    };
    let mut importer = Importer {
        external: &mut External::new(None),
        opsets: opsets(&message.opset_import),
        overridable: true,
    };
    let defaults = message.attribute_proto.into_iter();
    let mut attributes = message.attribute;
    attributes.extend(defaults.map(|a| a.name.unwrap_or_default()));
    Ok(Function {
        name,
        domain: message.domain.unwrap_or_default(),
        attributes,
        body: importer.graph(graph, None)?,
    })
}

/// The attributes of a function that have defaults, as `(name, value)`.
///
/// # Errors
/// When a default is malformed.
pub fn attribute_defaults(message: &proto::FunctionProto) -> Result<Vec<(String, Attr)>> {
    let mut importer = Importer {
        external: &mut External::new(None),
        opsets: Opsets::default(),
        overridable: true,
    };
    let import = |a: &AttributeProto| {
        let value = importer.attribute(a.clone(), &mut Captures::default())?;
        Ok((a.name.clone().unwrap_or_default(), value))
    };
    message.attribute_proto.iter().map(import).collect()
}

fn opsets(imports: &[proto::OperatorSetIdProto]) -> Opsets {
    let mut opsets = Opsets::default();
    for import in imports {
        let domain = import.domain.as_deref().unwrap_or("");
        opsets.set(domain, import.version.unwrap_or(1));
    }
    opsets
}

fn pairs(entries: Vec<proto::StringStringEntryProto>) -> Vec<(String, String)> {
    let pair =
        |e: proto::StringStringEntryProto| (e.key.unwrap_or_default(), e.value.unwrap_or_default());
    entries.into_iter().map(pair).collect()
}

pub(super) fn import_type(message: &proto::TypeProto) -> Type {
    let Some(type_proto::Value::TensorType(tensor)) = &message.value else {
        return match message.value {
            None => Type::Unknown,
            Some(_) => Type::Opaque(message.encode_to_vec().into()),
        };
    };
    let number = tensor.elem_type.unwrap_or(0);
    let dtype = DType::from_onnx(number);
    if dtype.is_none() && number != 0 {
        return Type::Opaque(message.encode_to_vec().into());
    }
    let shape = tensor.shape.as_ref().map(|shape| {
        let dims = shape.dim.iter().map(|d| match &d.value {
            Some(proto::tensor_shape_proto::dimension::Value::DimValue(n)) => {
                usize::try_from(*n).map_or(Dim::Unknown, Dim::Known)
            }
            Some(proto::tensor_shape_proto::dimension::Value::DimParam(s)) if !s.is_empty() => {
                Dim::Symbol(s.as_str().into())
            }
            _ => Dim::Unknown,
        });
        dims.collect::<Shape>()
    });
    Type::Tensor { dtype, shape }
}

/// Outer values that a node's nested graphs read: `(name, the inner reader)`, in the order of their positions.
#[derive(Default)]
struct Captures {
    names: Vec<(Arc<str>, String)>,
    positions: FxHashMap<Arc<str>, usize>,
}

impl Captures {
    fn position(&mut self, name: &str, reader: impl FnOnce() -> String) -> usize {
        if let Some(&k) = self.positions.get(name) {
            return k;
        }
        let k = self.names.len();
        let name: Arc<str> = name.into();
        self.names.push((name.clone(), reader()));
        self.positions.insert(name, k);
        k
    }
}

/// A graph under construction: names seen so far, and where outer names go.
struct Scope<'a> {
    graph: Graph,
    names: FxHashMap<String, ValueId>,
    outer: Option<&'a mut Captures>,
}

impl Scope<'_> {
    fn define(
        &mut self,
        name: &str,
        value: ValueId,
        definer: impl FnOnce() -> String,
    ) -> Result<()> {
        if self.names.insert(name.to_string(), value).is_some() {
            return Err(ReadErrorKind::Duplicate {
                value: name.to_string(),
                definer: definer(),
            });
        }
        Ok(())
    }

    fn resolve(&mut self, name: &str, reader: impl Fn() -> String) -> Result<ValueId> {
        if let Some(&v) = self.names.get(name) {
            return Ok(v);
        }
        let Some(outer) = &mut self.outer else {
            return Err(ReadErrorKind::Undefined {
                reader: reader(),
                value: name.to_string(),
            });
        };
        let position = outer.position(name, &reader);
        let v = self.graph.add_capture(name, Type::Unknown, position);
        self.names.insert(name.to_string(), v);
        Ok(v)
    }
}

struct Importer<'a> {
    external: &'a mut External,
    opsets: Opsets,
    /// Whether an initializer that is also an input may be overridden by the caller.
    overridable: bool,
}

impl Importer<'_> {
    fn tensor(&mut self, message: TensorProto) -> Result<Tensor> {
        tensor::import(message, &mut |name, at, len| {
            self.external.fetch(name, at, len)
        })
    }

    fn graph(&mut self, message: GraphProto, outer: Option<&mut Captures>) -> Result<Graph> {
        let mut graph = Graph::new(self.opsets.clone());
        graph.name = message.name.unwrap_or_default();
        graph.doc = message.doc_string.unwrap_or_default();
        graph.carried.metadata = pairs(message.metadata_props);
        graph.carried.quantization = message.quantization_annotation;
        let mut scope = Scope {
            graph,
            names: FxHashMap::default(),
            outer,
        };
        self.inputs_and_initializers(&mut scope, message.input, message.initializer)?;

        let mut sparse = Vec::new();
        for tensor in message.sparse_initializer {
            let name = tensor.values.as_ref().and_then(|v| v.name.clone());
            sparse.push(NodeProto {
                op_type: Some("Constant".into()),
                output: vec![name.unwrap_or_default()],
                attribute: vec![AttributeProto {
                    name: Some("sparse_value".into()),
                    r#type: Some(proto::attribute_proto::AttributeType::SparseTensor as i32),
                    sparse_tensor: Some(Box::new(tensor)),
                    ..Default::default()
                }],
                ..Default::default()
            });
        }
        let mut readers = Vec::with_capacity(message.node.len());
        for node in sparse.into_iter().chain(message.node) {
            if let Some(reader) = self.node(&mut scope, node)? {
                readers.push(reader);
            }
        }
        for reader in readers {
            reader.connect(&mut scope)?;
        }
        for info in message.output {
            let name = info.name.clone().unwrap_or_default();
            let value = scope.resolve(&name, || "the graph's list of outputs".into())?;
            scope.graph.add_output(&name, value);
            annotate(&mut scope.graph, value, info);
        }
        for info in message.value_info {
            if let Some(&value) = scope.names.get(info.name.as_deref().unwrap_or("")) {
                annotate(&mut scope.graph, value, info);
            }
        }
        scope.graph.topo_order()?;
        type_captures(&mut scope.graph);
        Ok(scope.graph)
    }

    fn inputs_and_initializers(
        &mut self,
        scope: &mut Scope<'_>,
        inputs: Vec<proto::ValueInfoProto>,
        initializers: Vec<TensorProto>,
    ) -> Result<()> {
        let named: FxHashMap<String, ()> = (initializers.iter())
            .map(|t| (t.name.clone().unwrap_or_default(), ()))
            .collect();
        for info in inputs {
            let name = info.name.clone().unwrap_or_default();
            if named.contains_key(&name) && !self.overridable {
                continue;
            }
            let ty = info.r#type.as_ref().map_or(Type::Unknown, import_type);
            let value = scope.graph.add_input(&name, ty);
            scope.define(&name, value, || "the graph's list of inputs".into())?;
            annotate(&mut scope.graph, value, info);
        }
        for mut message in initializers {
            let name = message.name.clone().unwrap_or_default();
            let info = proto::ValueInfoProto {
                doc_string: message.doc_string.take(),
                metadata_props: std::mem::take(&mut message.metadata_props),
                ..Default::default()
            };
            let tensor = self.tensor(message)?;
            let default = scope.names.get(&name).copied();
            match default.filter(|&v| scope.graph.inputs().contains(&v)) {
                Some(input) => scope.graph.set_default(input, tensor),
                None => {
                    let value = scope.graph.add_constant(&name, tensor);
                    scope.define(&name, value, || "the list of initializers".into())?;
                    annotate(&mut scope.graph, value, info);
                }
            }
        }
        Ok(())
    }

    /// Adds the node with its outputs; what it reads is connected once every value of the graph has its name.
    fn node(&mut self, scope: &mut Scope<'_>, message: NodeProto) -> Result<Option<Reader>> {
        let domain = message.domain.as_deref().unwrap_or("");
        let name = message.name.clone().unwrap_or_default();
        let op_type = message.op_type.as_deref().unwrap_or("");
        let label = || match name.as_str() {
            "" => format!(
                "the {op_type} node that makes '{}'",
                message.output.join("', '")
            ),
            name => format!("node '{name}' ({op_type})"),
        };
        if op_type.is_empty() {
            return Err(ReadErrorKind::Node {
                node: label(),
                why: "it has no operator".into(),
            });
        }
        let op = Op::with_overload(domain, op_type, message.overload.as_deref().unwrap_or(""));
        let mut captures = Captures::default();
        let mut attrs = Attrs::new();
        for attribute in message.attribute.clone() {
            let key = attribute.name.clone().unwrap_or_default();
            let value = self.attribute(attribute, &mut captures)?;
            attrs.set(&key, value);
        }
        if op.is("Constant")
            && let [output] = message.output.as_slice()
            && let Some(tensor) = constant_value(&attrs)
        {
            let value = scope.graph.add_constant(output, tensor);
            scope.define(output, value, label)?;
            return Ok(None);
        }
        let outputs: Vec<Option<&str>> = (message.output.iter())
            .map(|o| (!o.is_empty()).then_some(o.as_str()))
            .collect();
        let id = scope.graph.add_node_named(op, &name, [], &outputs, attrs);
        let values = scope.graph.node(id).outputs().to_vec();
        for (output, value) in message.output.iter().zip(values) {
            if let Some(value) = value {
                scope.define(output, value, label)?;
            }
        }
        let doc = message.doc_string.clone().unwrap_or_default();
        *scope.graph.notes_mut(id) = Notes::new(doc, pairs(message.metadata_props.clone()));
        if !message.device_configurations.is_empty() {
            let devices = message.device_configurations.clone();
            scope.graph.carried.devices.push((id, devices));
        }
        Ok(Some(Reader {
            id,
            label: label(),
            inputs: message.input,
            captures,
        }))
    }

    fn attribute(&mut self, message: AttributeProto, captures: &mut Captures) -> Result<Attr> {
        use proto::attribute_proto::AttributeType as T;
        if let Some(name) = &message.ref_attr_name
            && !name.is_empty()
        {
            return Ok(Attr::Ref {
                name: name.as_str().into(),
                kind: message.r#type.unwrap_or(0),
            });
        }
        let kind = message.r#type.unwrap_or(0);
        let kind = T::try_from(kind).unwrap_or(T::Undefined);
        Ok(match kind {
            T::Int => Attr::Int(message.i.unwrap_or(0)),
            T::Float => Attr::Float(message.f.unwrap_or(0.0)),
            T::String => Attr::Str(message.s.unwrap_or_default()),
            T::Ints => Attr::Ints(message.ints),
            T::Floats => Attr::Floats(message.floats),
            T::Strings => Attr::Strs(message.strings),
            T::Tensor => Attr::Tensor(self.tensor(*message.t.unwrap_or_default())?),
            T::Tensors => {
                let tensors = message.tensors.into_iter().map(|t| self.tensor(t));
                Attr::Tensors(tensors.collect::<Result<_>>()?)
            }
            T::Graph => {
                let graph = *message.g.unwrap_or_default();
                Attr::Graph(Box::new(self.graph(graph, Some(captures))?))
            }
            T::Graphs => {
                let graphs = message.graphs.into_iter();
                let graphs = graphs.map(|g| self.graph(g, Some(captures)));
                Attr::Graphs(graphs.collect::<Result<_>>()?)
            }
            _ => Attr::Opaque(message.encode_to_vec().into()),
        })
    }
}

struct Reader {
    id: crate::NodeId,
    label: String,
    inputs: Vec<String>,
    captures: Captures,
}

impl Reader {
    fn connect(self, scope: &mut Scope<'_>) -> Result<()> {
        let mut inputs = Inputs::with_capacity(self.inputs.len());
        for name in &self.inputs {
            inputs.push(match name.as_str() {
                "" => None,
                name => Some(scope.resolve(name, || self.label.clone())?),
            });
        }
        scope.graph.set_inputs(self.id, inputs);
        for (name, reader) in self.captures.names {
            let inside = format!("{reader} (inside {})", self.label);
            let value = scope.resolve(&name, || inside.clone())?;
            scope.graph.push_capture(self.id, value);
        }
        Ok(())
    }
}

/// Gives captured values inside nested graphs the types that they have outside.
fn type_captures(graph: &mut Graph) {
    let owners: Vec<_> = (graph.nodes())
        .filter(|(_, n)| n.has_subgraphs())
        .map(|(id, _)| id)
        .collect();
    for id in owners {
        let outer: Vec<Type> = (graph.node(id).captures().iter())
            .map(|&v| graph.value(v).ty().clone())
            .collect();
        for attr in graph.attrs_mut(id).values_mut() {
            for body in attr.graphs_mut() {
                let inner: Vec<(ValueId, Type)> = (body.values())
                    .filter_map(|(v, value)| match value.def() {
                        crate::Def::Capture(k) => Some((v, outer.get(*k as usize)?.clone())),
                        _ => None,
                    })
                    .collect();
                for (v, ty) in inner {
                    body.set_type(v, ty);
                }
                type_captures(body);
            }
        }
    }
}

fn annotate(graph: &mut Graph, value: ValueId, mut info: proto::ValueInfoProto) {
    if let Some(ty) = &mut info.r#type {
        let declared = import_type(ty);
        if !matches!(graph.value(value).def(), crate::Def::Constant(_)) {
            graph.set_type(value, declared.refined_by(graph.value(value).ty()));
        }
        ty.value = None;
    }
    let denoted = info.r#type.as_ref().is_some_and(|t| t.denotation.is_some());
    if info.doc_string.is_some() || !info.metadata_props.is_empty() || denoted {
        info.name = None;
        graph.carried.infos.insert(value, info);
    }
}

/// The tensor of a `Constant` node, whichever attribute holds it; `None` for sparse values and references.
fn constant_value(attrs: &Attrs) -> Option<Tensor> {
    let (name, value) = attrs.iter().next()?;
    match (&**name, value) {
        ("value", Attr::Tensor(t)) => Some(t.clone()),
        ("value_float", Attr::Float(v)) => Some(Tensor::scalar(*v)),
        ("value_int", Attr::Int(v)) => Some(Tensor::scalar(*v)),
        ("value_floats", Attr::Floats(v)) => Some(Tensor::vector(v)),
        ("value_ints", Attr::Ints(v)) => Some(Tensor::vector(v)),
        ("value_string", Attr::Str(v)) => {
            Tensor::from_strings(crate::tensor::Dims::new(), vec![v.clone()]).ok()
        }
        ("value_strings", Attr::Strs(v)) => {
            Tensor::from_strings([v.len()].as_slice(), v.clone()).ok()
        }
        _ => None,
    }
}
