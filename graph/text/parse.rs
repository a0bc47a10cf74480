//! Models, graphs, functions and nodes from text.

use super::error::ParseError;
use super::lexer::{Parser, Result};
use super::parse_attr::attribute;
use super::parse_tensor::{initializer, literal_ahead, literal_node, sparse_values};
use super::parse_type::{next_is_type, type_proto};
use crate::onnx::proto::type_proto::Value;
use crate::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, ValueInfoProto,
};

/// Reads a model: an optional header, its graph, and its functions.
pub fn parse_model(text: &str) -> std::result::Result<ModelProto, ParseError> {
    let p = &mut Parser::new(text);
    let mut model = model_header(p)?;
    model.graph = Some(graph(p)?);
    model.functions = functions(p)?;
    Ok(model)
}

/// Reads one graph.
pub fn parse_graph(text: &str) -> std::result::Result<GraphProto, ParseError> {
    let p = &mut Parser::new(text);
    let graph = graph(p)?;
    end(p)?;
    Ok(graph)
}

/// Reads one function.
pub fn parse_function(text: &str) -> std::result::Result<FunctionProto, ParseError> {
    let p = &mut Parser::new(text);
    let function = function(p)?;
    end(p)?;
    Ok(function)
}

/// Reads functions, one after another, up to the end of the text.
pub fn parse_functions(text: &str) -> std::result::Result<Vec<FunctionProto>, ParseError> {
    functions(&mut Parser::new(text))
}

fn end(p: &mut Parser) -> Result<()> {
    if p.at_end() {
        return Ok(());
    }
    Err(p.unexpected("the end of the text"))
}

/// Reads `key: value` pairs in `<…>`, if there are any. `field` reads the value of a key it knows and fails on others.
fn header(
    p: &mut Parser,
    mut field: impl FnMut(&mut Parser, &str, usize) -> Result<()>,
) -> Result<()> {
    if !p.eat("<") {
        return Ok(());
    }
    let mut seen: Vec<String> = Vec::new();
    p.list(">", |p| {
        let offset = p.offset();
        let key = p.word("a header field")?.to_string();
        if seen.contains(&key) {
            return Err(p.fail_at(offset, format!("`{key}` is given twice")));
        }
        p.expect(":", "")?;
        field(p, &key, offset)?;
        seen.push(key);
        Ok(())
    })
}

fn text_value(p: &mut Parser) -> Result<Option<String>> {
    Ok(Some(p.string("a string")?.into_owned()))
}

fn model_header(p: &mut Parser) -> Result<ModelProto> {
    let mut model = ModelProto::default();
    header(p, |p, key, offset| {
        match key {
            "ir_version" => model.ir_version = Some(p.integer("an integer")?),
            "model_version" => model.model_version = Some(p.integer("an integer")?),
            "opset_import" => model.opset_import = opset_imports(p)?,
            "producer_name" => model.producer_name = text_value(p)?,
            "producer_version" => model.producer_version = text_value(p)?,
            "domain" => model.domain = text_value(p)?,
            "doc_string" => model.doc_string = text_value(p)?,
            "metadata_props" => model.metadata_props = entries(p)?,
            _ => {
                let message = format!(
                    "expected `ir_version`, `opset_import`, `producer_name`, `producer_version`, `domain`, \
                     `model_version`, `doc_string` or `metadata_props`, found `{key}`"
                );
                return Err(p.fail_at(offset, message));
            }
        }
        Ok(())
    })?;
    Ok(model)
}

fn opset_imports(p: &mut Parser) -> Result<Vec<OperatorSetIdProto>> {
    let mut opsets = Vec::new();
    p.expect("[", "")?;
    p.list("]", |p| {
        p.made::<OperatorSetIdProto>()?;
        let domain = text_value(p)?;
        p.expect(":", "")?;
        let version = Some(p.integer("a version")?);
        opsets.push(OperatorSetIdProto { domain, version });
        Ok(())
    })?;
    Ok(opsets)
}

/// `["key": "value", …]`
pub(super) fn entries(p: &mut Parser) -> Result<Vec<StringStringEntryProto>> {
    let mut entries = Vec::new();
    p.expect("[", "")?;
    p.list("]", |p| {
        p.made::<StringStringEntryProto>()?;
        let key = text_value(p)?;
        p.expect(":", "")?;
        let value = text_value(p)?;
        entries.push(StringStringEntryProto { key, value });
        Ok(())
    })?;
    Ok(entries)
}

/// A graph that is not inside another.
pub(super) fn graph(p: &mut Parser) -> Result<GraphProto> {
    p.restart_fresh_names();
    let name = p.name("a graph's name")?.into_owned();
    graph_named(p, name)
}

/// The graph after its name.
pub(super) fn graph_named(p: &mut Parser, name: String) -> Result<GraphProto> {
    p.nested(|p| {
        p.made::<GraphProto>()?;
        let mut graph = GraphProto {
            name: Some(name),
            ..GraphProto::default()
        };
        if p.eat("(") {
            p.list(")", |p| declaration(p, &mut graph, Place::Input))?;
        }
        p.expect("=>", "")?;
        p.expect("(", "")?;
        p.list(")", |p| {
            let info = value_info(p)?;
            graph.output.push(info);
            Ok(())
        })?;
        if p.eat("<") {
            p.list(">", |p| declaration(p, &mut graph, Place::Inside))?;
        }
        graph.node = nodes(p)?;
        Ok(graph)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Input,
    Inside,
}

/// A value with its type, or an initializer; one in the place of an input is that input's default.
fn declaration(p: &mut Parser, graph: &mut GraphProto, place: Place) -> Result<()> {
    let offset = p.offset();
    let info = value_info(p)?;
    if p.eat("=") {
        let name = info.name.clone();
        match &info.r#type {
            None => return Err(p.fail_at(offset, "an initializer needs a type")),
            Some(proto) => match &proto.value {
                Some(Value::SparseTensorType(_)) => {
                    let mut sparse = sparse_values(p, proto, offset)?;
                    if let Some(values) = &mut sparse.values {
                        values.name = name;
                    }
                    graph.sparse_initializer.push(sparse);
                }
                _ => {
                    let mut tensor = initializer(p, proto, offset)?;
                    tensor.name = name;
                    graph.initializer.push(tensor);
                }
            },
        }
    } else if place == Place::Inside {
        graph.value_info.push(info);
        return Ok(());
    }
    if place == Place::Input {
        graph.input.push(info);
    }
    Ok(())
}

/// `name` or `type name`
fn value_info(p: &mut Parser) -> Result<ValueInfoProto> {
    p.made::<ValueInfoProto>()?;
    let proto = match next_is_type(p) {
        true => Some(type_proto(p)?),
        false => None,
    };
    let offset = p.offset();
    let name = p.name("a type or a name")?.into_owned();
    if proto.is_none() && (p.next_is_name() || p.peek() == Some(b'[')) {
        return Err(p.fail_at(offset, format!("`{name}` is no type")));
    }
    Ok(ValueInfoProto {
        name: Some(name),
        r#type: proto,
        ..ValueInfoProto::default()
    })
}

fn functions(p: &mut Parser) -> Result<Vec<FunctionProto>> {
    let mut functions = Vec::new();
    while !p.at_end() {
        functions.push(function(p)?);
    }
    Ok(functions)
}

fn function(p: &mut Parser) -> Result<FunctionProto> {
    p.restart_fresh_names();
    p.made::<FunctionProto>()?;
    let mut function = FunctionProto::default();
    header(p, |p, key, offset| {
        match key {
            "opset_import" => function.opset_import = opset_imports(p)?,
            "domain" => function.domain = text_value(p)?,
            "overload" => function.overload = text_value(p)?,
            "doc_string" => function.doc_string = text_value(p)?,
            _ => {
                let message = format!(
                    "expected `opset_import`, `domain`, `overload` or `doc_string`, found `{key}`"
                );
                return Err(p.fail_at(offset, message));
            }
        }
        Ok(())
    })?;
    function.name = Some(p.name("a function's name")?.into_owned());
    if p.eat("<") {
        p.list(">", |p| {
            let name = p.name("an attribute's name")?.into_owned();
            match p.peek() {
                Some(b':' | b'=') => function.attribute_proto.push(attribute(p, name)?),
                _ => function.attribute.push(name),
            }
            Ok(())
        })?;
    }
    p.expect("(", "")?;
    p.list(")", |p| {
        let name = parameter(p, &mut function.value_info)?;
        function.input.push(name);
        Ok(())
    })?;
    p.expect("=>", "")?;
    p.expect("(", "")?;
    p.list(")", |p| {
        let name = parameter(p, &mut function.value_info)?;
        function.output.push(name);
        Ok(())
    })?;
    if p.eat("<") {
        p.list(">", |p| {
            function.value_info.push(value_info(p)?);
            Ok(())
        })?;
    }
    function.node = nodes(p)?;
    Ok(function)
}

/// An input or output of a function; its type, if it has one, goes to `infos`.
fn parameter(p: &mut Parser, infos: &mut Vec<ValueInfoProto>) -> Result<String> {
    let info = value_info(p)?;
    let name = info.name.clone().unwrap_or_default();
    if info.r#type.is_some() {
        infos.push(info);
    }
    Ok(name)
}

fn nodes(p: &mut Parser) -> Result<Vec<NodeProto>> {
    let mut nodes = Vec::new();
    p.expect("{", "")?;
    while !p.eat("}") {
        let node = node(p, &mut nodes)?;
        nodes.push(node);
    }
    Ok(nodes)
}

/// One node; literals among its inputs become Constant nodes at the end of `before`.
fn node(p: &mut Parser, before: &mut Vec<NodeProto>) -> Result<NodeProto> {
    p.made_node()?;
    let mut node = NodeProto::default();
    if p.eat("[") {
        if p.peek() != Some(b']') {
            node.name = Some(p.name("a node's name")?.into_owned());
        }
        p.expect("]", "")?;
    }
    if p.peek().is_none() {
        return Err(p.unexpected("a node or `}`"));
    }
    names(p, |p| {
        node.output.push(operand(p)?);
        Ok(())
    })?;
    p.expect(
        "=",
        if node.output.is_empty() {
            "a node's output"
        } else {
            "`,`"
        },
    )?;
    let (domain, op_type) = operator(p)?;
    node.domain = domain;
    node.op_type = Some(op_type);
    if p.eat(":") {
        node.overload = Some(p.name("an overload")?.into_owned());
    }
    node.attribute = attributes(p)?;
    p.expect("(", if node.attribute.is_empty() { "`<`" } else { "" })?;
    names(p, |p| {
        let input = match literal_ahead(p) {
            true => {
                let constant = literal_node(p)?;
                let name = constant.output.first().cloned().unwrap_or_default();
                before.push(constant);
                name
            }
            false => operand(p)?,
        };
        node.input.push(input);
        Ok(())
    })?;
    p.expect(")", "`,`")?;
    if node.attribute.is_empty() {
        node.attribute = attributes(p)?;
    }
    Ok(node)
}

/// Reads operands, of which any may be empty: nothing before a comma is an empty name, nothing after the last one is no
/// operand.
fn names(p: &mut Parser, mut item: impl FnMut(&mut Parser) -> Result<()>) -> Result<()> {
    loop {
        let present = p.peek() == Some(b',') || p.next_is_name() || literal_ahead(p);
        if !present {
            return Ok(());
        }
        item(p)?;
        if !p.eat(",") {
            return Ok(());
        }
    }
}

fn operand(p: &mut Parser) -> Result<String> {
    match p.peek() {
        Some(b',') => p.made::<String>().map(|()| String::new()),
        _ => Ok(p.name("a value's name")?.into_owned()),
    }
}

/// `Op` or `domain.Op`
fn operator(p: &mut Parser) -> Result<(Option<String>, String)> {
    let mut domain: Option<String> = None;
    let mut last = p.name("an operator")?;
    while p.eat(".") {
        match &mut domain {
            None => domain = Some(last.into_owned()),
            Some(domain) => {
                domain.push('.');
                domain.push_str(&last);
            }
        }
        last = p.name("an operator")?;
    }
    Ok((domain, last.into_owned()))
}

fn attributes(p: &mut Parser) -> Result<Vec<AttributeProto>> {
    let mut attributes = Vec::new();
    if p.eat("<") {
        p.list(">", |p| {
            let name = p.name("an attribute's name")?.into_owned();
            attributes.push(attribute(p, name)?);
            Ok(())
        })?;
    }
    Ok(attributes)
}
