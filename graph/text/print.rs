//! Models, graphs, functions and nodes as text.

use super::print_value::{
    push, push_attribute, push_dotted, push_entries, push_initializer, push_list, push_name,
    push_quoted, push_sparse, push_type, push_word,
};
use crate::onnx::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TensorProto, ValueInfoProto,
};

/// How to print.
#[derive(Clone, Debug, Default)]
pub struct PrintOptions {
    /// Tensors with more elements are printed as type, shape and a hash of their content: `float[768] w = {... 1f2e3d4c}`.
    /// Such text shows what changed but cannot be parsed; `None` prints all and can.
    pub max_elements: Option<usize>,
}

/// A list of inputs or outputs longer than this is printed one to a line.
const VALUES_IN_LINE: usize = 3;

/// The model with its graph and functions.
pub fn print_model(model: &ModelProto, options: &PrintOptions) -> String {
    let mut out = String::new();
    let text = |value: &Option<String>| value.as_deref().map(quoted);
    let header = [
        ("ir_version", model.ir_version.map(|v| v.to_string())),
        ("opset_import", opsets(&model.opset_import)),
        ("producer_name", text(&model.producer_name)),
        ("producer_version", text(&model.producer_version)),
        ("domain", text(&model.domain)),
        ("model_version", model.model_version.map(|v| v.to_string())),
        ("doc_string", text(&model.doc_string)),
        ("metadata_props", entries(model)),
    ];
    push_header(&mut out, &header);
    match &model.graph {
        Some(graph) => push_graph(&mut out, graph, 0, options),
        None => push_graph(&mut out, &GraphProto::default(), 0, options),
    }
    out.push('\n');
    for function in &model.functions {
        out.push('\n');
        push_function(&mut out, function, options);
    }
    out
}

/// One graph, with the graphs inside it.
pub fn print_graph(graph: &GraphProto, options: &PrintOptions) -> String {
    let mut out = String::new();
    push_graph(&mut out, graph, 0, options);
    out.push('\n');
    out
}

/// One function, with a header if it has a domain or operator sets.
pub fn print_function(function: &FunctionProto, options: &PrintOptions) -> String {
    let mut out = String::new();
    push_function(&mut out, function, options);
    out
}

/// One node, without a line break at the end.
pub fn print_node(node: &NodeProto, options: &PrintOptions) -> String {
    let mut out = String::new();
    push_node(&mut out, node, 0, options);
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    push_quoted(&mut out, text);
    out
}

fn opsets(opsets: &[OperatorSetIdProto]) -> Option<String> {
    let mut out = String::from("[");
    push_list(&mut out, opsets, ", ", |out, opset| {
        push_quoted(out, opset.domain.as_deref().unwrap_or(""));
        out.push_str(" : ");
        push(out, opset.version.unwrap_or(0));
    });
    out.push(']');
    (!opsets.is_empty()).then_some(out)
}

fn entries(model: &ModelProto) -> Option<String> {
    let mut out = String::new();
    push_entries(&mut out, &model.metadata_props);
    (!model.metadata_props.is_empty()).then_some(out)
}

fn push_header(out: &mut String, fields: &[(&str, Option<String>)]) {
    let mut given = fields
        .iter()
        .filter_map(|(key, value)| Some((key, value.as_ref()?)))
        .peekable();
    if given.peek().is_none() {
        return;
    }
    out.push_str("<\n");
    push_list(out, given, ",\n", |out, (key, value)| {
        out.extend(["  ", key, ": ", value]);
    });
    out.push_str("\n>\n");
}

fn push_break(out: &mut String, indent: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent));
}

fn push_value_info(out: &mut String, info: &ValueInfoProto) {
    if let Some(proto) = info.r#type.as_ref().filter(|t| t.value.is_some()) {
        push_type(out, proto);
        out.push(' ');
    }
    push_name(out, info.name.as_deref().unwrap_or(""));
}

/// Writes items one to a line at `indent`, then breaks the line at the indent two less.
fn push_lines<T>(
    out: &mut String,
    items: impl IntoIterator<Item = T>,
    indent: usize,
    mut item: impl FnMut(&mut String, T),
) {
    push_list(out, items, ",", |out, element| {
        push_break(out, indent);
        item(out, element);
    });
    push_break(out, indent.saturating_sub(2));
}

fn push_values(out: &mut String, values: &[ValueInfoProto], indent: usize) {
    out.push('(');
    if values.len() > VALUES_IN_LINE {
        push_lines(out, values, indent + 2, push_value_info);
    } else {
        push_list(out, values, ", ", push_value_info);
    }
    out.push(')');
}

pub(super) fn push_graph(
    out: &mut String,
    graph: &GraphProto,
    indent: usize,
    options: &PrintOptions,
) {
    push_name(out, graph.name.as_deref().unwrap_or(""));
    out.push(' ');
    push_values(out, &graph.input, indent);
    out.push_str(" => ");
    push_values(out, &graph.output, indent);
    out.push(' ');
    let declared =
        graph.initializer.len() + graph.sparse_initializer.len() + graph.value_info.len();
    if declared > 0 {
        let dense = graph.initializer.iter().map(Declared::Dense);
        let sparse = graph.sparse_initializer.iter().map(Declared::Sparse);
        let infos = graph.value_info.iter().map(Declared::Info);
        out.push('<');
        push_lines(
            out,
            dense.chain(sparse).chain(infos),
            indent + 2,
            |out, item| match item {
                Declared::Dense(tensor) => push_initializer(out, tensor, options),
                Declared::Sparse(sparse) => push_sparse(out, sparse, true, options),
                Declared::Info(info) => push_value_info(out, info),
            },
        );
        out.push_str("> ");
    }
    push_nodes(out, &graph.node, indent, options);
}

enum Declared<'a> {
    Dense(&'a TensorProto),
    Sparse(&'a SparseTensorProto),
    Info(&'a ValueInfoProto),
}

fn push_nodes(out: &mut String, nodes: &[NodeProto], indent: usize, options: &PrintOptions) {
    out.push('{');
    for node in nodes {
        push_break(out, indent + 2);
        push_node(out, node, indent + 2, options);
    }
    push_break(out, indent);
    out.push('}');
}

fn push_node(out: &mut String, node: &NodeProto, indent: usize, options: &PrintOptions) {
    if let Some(name) = node.name.as_deref().filter(|n| !n.is_empty()) {
        out.push('[');
        push_word(out, name);
        out.push_str("] ");
    }
    push_list(out, &node.output, ", ", |out, name| push_word(out, name));
    out.push_str(if node.output.is_empty() { "= " } else { " = " });
    if let Some(domain) = node.domain.as_deref().filter(|d| !d.is_empty()) {
        push_dotted(out, domain);
        out.push('.');
    }
    push_word(out, node.op_type.as_deref().unwrap_or(""));
    if let Some(overload) = node.overload.as_deref().filter(|o| !o.is_empty()) {
        out.push(':');
        push_word(out, overload);
    }
    let has_graph = node
        .attribute
        .iter()
        .any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty());
    if !has_graph && !node.attribute.is_empty() {
        out.push('<');
        push_list(out, &node.attribute, ", ", |out, attribute| {
            push_attribute(out, attribute, indent, options);
        });
        out.push('>');
    }
    out.push('(');
    push_list(out, &node.input, ", ", |out, name| push_word(out, name));
    out.push(')');
    if has_graph {
        out.push_str(" <");
        push_lines(out, &node.attribute, indent + 2, |out, attribute| {
            push_attribute(out, attribute, indent + 2, options);
        });
        out.push('>');
    }
}

fn push_function(out: &mut String, function: &FunctionProto, options: &PrintOptions) {
    let filled = |value: &Option<String>| value.as_deref().filter(|v| !v.is_empty()).map(quoted);
    let header = [
        ("domain", filled(&function.domain)),
        ("overload", filled(&function.overload)),
        ("opset_import", opsets(&function.opset_import)),
        ("doc_string", filled(&function.doc_string)),
    ];
    push_header(out, &header);
    push_word(out, function.name.as_deref().unwrap_or(""));
    out.push(' ');
    if function.attribute.len() + function.attribute_proto.len() > 0 {
        out.push('<');
        push_list(out, &function.attribute, ", ", |out, name| {
            push_word(out, name)
        });
        if !function.attribute.is_empty() && !function.attribute_proto.is_empty() {
            out.push_str(", ");
        }
        push_list(out, &function.attribute_proto, ", ", |out, attribute| {
            push_attribute(out, attribute, 0, options);
        });
        out.push_str("> ");
    }
    push_names(out, &function.input);
    out.push_str(" => ");
    push_names(out, &function.output);
    out.push(' ');
    if !function.value_info.is_empty() {
        out.push('<');
        push_lines(out, &function.value_info, 2, push_value_info);
        out.push_str("> ");
    }
    push_nodes(out, &function.node, 0, options);
    out.push('\n');
}

fn push_names(out: &mut String, names: &[String]) {
    out.push('(');
    push_list(out, names, ", ", |out, name| push_name(out, name));
    out.push(')');
}
