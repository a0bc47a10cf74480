//! The two models that are compared, and what differs beside nodes.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_graph::{Graph, Model, onnx};
use schemars::JsonSchema;
use serde::Serialize;

use super::error::Error;
use super::nodes::Typed;
use crate::bundle::about::{self, About};
use crate::bundle::{self, MANIFEST};
use crate::manifest::{self, Manifest};
use crate::summary;

/// A model that is compared.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Side {
    pub path: String,
    pub nodes: usize,
    pub constant_bytes: usize,
    pub producer: String,
    /// Of a bundle: the kiln that made it, what for, and with which numbers.
    pub kiln: Option<String>,
    pub target: Option<String>,
    pub precision: Option<String>,
}

/// Something that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Fact {
    pub what: String,
    pub a: String,
    pub b: String,
    /// The models are not the same because of it.
    pub counts: bool,
}

/// A model that was read.
#[derive(Debug)]
pub(super) struct Read {
    path: String,
    pub graph: Typed,
    model: Model,
    manifest: Option<Manifest>,
    about: Option<About>,
}

/// Reads an ONNX file, ONNX text, or a bundle with its manifest.
pub(super) fn read(path: &Path) -> Result<Read, Error> {
    let model = onnx::read(&bundle::find_model(path)?)?;
    let manifest = match path.join(MANIFEST).is_file() {
        true => Some(manifest::read(path)?),
        false => None,
    };
    Ok(Read {
        path: path.display().to_string(),
        graph: Typed::new(&model),
        model,
        about: manifest.clone().map(about::of),
        manifest,
    })
}

impl Read {
    pub fn side(&self) -> Side {
        let mut nodes = 0;
        self.graph
            .0
            .for_each_graph(&mut |g| nodes += g.node_count());
        let said = |what: fn(&About) -> &String| self.about.as_ref().map(|a| what(a).clone());
        Side {
            path: self.path.clone(),
            nodes,
            constant_bytes: self.model.constant_bytes(),
            producer: self.model.producer(),
            kiln: said(|a| &a.kiln),
            target: said(|a| &a.target),
            precision: said(|a| &a.precision),
        }
    }

    /// Passes by the results of the original's nodes that they removed.
    pub fn removed(&self) -> BTreeMap<&str, &str> {
        let mut removed = BTreeMap::new();
        for pass in self.manifest.iter().flat_map(|m| &m.passes) {
            for result in &pass.removed {
                // Later passes may have removed what stood in for it.
                removed.entry(result.as_str()).or_insert(&*pass.name);
            }
        }
        removed
    }

    /// The pass that changes number formats, where one alone did.
    pub fn retypes(&self) -> Option<&str> {
        let passes = self.manifest.iter().flat_map(|m| &m.passes);
        let mut lossy = passes.filter(|p| p.applications > 0 && p.name.starts_with("convert-"));
        let first = lossy.next()?;
        lossy.next().is_none().then_some(first.name.as_str())
    }
}

/// What differs of files and bundles.
pub(super) fn facts(a: &Read, b: &Read) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut fact = |what: &str, a: String, b: String, counts: bool| {
        if a != b {
            facts.push(Fact {
                what: what.into(),
                a,
                b,
                counts,
            });
        }
    };
    let graphs = (&a.graph.0, &b.graph.0);
    fact("operator sets", opsets(graphs.0), opsets(graphs.1), true);
    if !a.model.same_functions(&b.model) {
        let other = match functions(&a.model) == functions(&b.model) {
            true => " (another body)",
            false => "",
        };
        let to = functions(&b.model) + other;
        fact("local functions", functions(&a.model), to, true);
    }
    for (name, from, to) in ports(&inputs(graphs.0), &inputs(graphs.1)) {
        fact(&format!("input {name}"), from, to, true);
    }
    for (name, from, to) in ports(&outputs(graphs.0), &outputs(graphs.1)) {
        fact(&format!("output {name}"), from, to, true);
    }
    // Those of nodes are told there; what this adds is their sum.
    fact("constants", constants(graphs.0), constants(graphs.1), false);
    if let (Some(a), Some(b)) = (&a.about, &b.about) {
        fact("target", a.target.clone(), b.target.clone(), true);
        fact("precision", a.precision.clone(), b.precision.clone(), true);
        fact("sizes", a.sizes.join(", "), b.sizes.join(", "), true);
        fact("original", a.original.clone(), b.original.clone(), false);
        fact("parity", a.parity.clone(), b.parity.clone(), false);
        fact("engine", a.engine.clone(), b.engine.clone(), false);
        fact("kiln", a.kiln.clone(), b.kiln.clone(), false);
        fact("proved by", a.runtime.clone(), b.runtime.clone(), false);
    }
    let kernels = |r: &Read| {
        let engine = r.manifest.as_ref().and_then(|m| m.engine.as_ref());
        let listed = engine.map(|e| e.listed.kernels.launched().count().to_string());
        listed.unwrap_or_else(|| "none".into())
    };
    if a.manifest.is_some() && b.manifest.is_some() {
        fact("kernels of the engine", kernels(a), kernels(b), false);
    }
    facts
}

fn opsets(graph: &Graph) -> String {
    let mut all: Vec<String> = (graph.opsets().iter())
        .map(|(domain, version)| match domain {
            "" => format!("ai.onnx {version}"),
            domain => format!("{domain} {version}"),
        })
        .collect();
    all.sort();
    all.join(", ")
}

fn functions(model: &Model) -> String {
    let all = model.functions();
    let names: Vec<String> = all
        .map(|(domain, name)| format!("{domain}.{name}"))
        .collect();
    match names.is_empty() {
        true => "none".into(),
        false => names.join(", "),
    }
}

type Port = (String, String);

fn inputs(graph: &Graph) -> Vec<Port> {
    let all = graph.inputs().iter().map(|&v| graph.value(v));
    all.map(|v| (v.name().to_string(), v.ty().to_string()))
        .collect()
}

fn outputs(graph: &Graph) -> Vec<Port> {
    let all = graph.outputs().iter();
    all.map(|o| (o.name.to_string(), graph.value(o.value).ty().to_string()))
        .collect()
}

/// Names and types that are not the same; what one model has not is `none`.
fn ports(a: &[Port], b: &[Port]) -> Vec<(String, String, String)> {
    let of = |all: &[Port], name: &str| {
        let found = all.iter().find(|(n, _)| n == name);
        found.map_or("none".to_string(), |(_, ty)| ty.clone())
    };
    let more = b.iter().filter(|(n, _)| a.iter().all(|(m, _)| m != n));
    let names = a.iter().chain(more).map(|(name, _)| name);
    names
        .map(|name| (name.clone(), of(a, name), of(b, name)))
        .collect()
}

/// `float 69.0 MB, int64 1.2 kB`: the largest first.
fn constants(graph: &Graph) -> String {
    let mut bytes: BTreeMap<String, usize> = BTreeMap::new();
    graph.for_each_graph(&mut |g| {
        for (_, v) in g.values() {
            if let Some(t) = v.constant() {
                *bytes.entry(t.dtype().to_string()).or_default() += t.byte_len();
            }
        }
    });
    let mut bytes: Vec<(String, usize)> = bytes.into_iter().collect();
    bytes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let parts: Vec<String> = (bytes.iter())
        .map(|(ty, n)| format!("{ty} {}", summary::bytes(*n)))
        .collect();
    parts.join(", ")
}
