//! A folder for onnxruntime-genai: `og.Model("FOLDER")`.
//!
//! The keys are those that `genai_config.json` has in release 0.18. Its model type "decoder" runs a decoder by its inputs alone: it gives
//! `input_ids` [rows, tokens], `attention_mask` [rows, past + tokens], `position_ids` [rows, tokens] and one key and one value of each layer,
//! [rows, heads, past, size]; "gpt2" gives both in one tensor, [2, rows, heads, past, size]. It has no other inputs to give.

mod names;
mod published;

use std::path::PathBuf;

use kiln_graph::caches::{Holds, Update};
use kiln_graph::onnx::{self, WriteOptions};
use kiln_graph::{DType, Graph, ValueId, infer};
use rustc_hash::FxHashSet;
use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::{ExportError, Exported, Staged};
use crate::generate::{CachePort, Feed, Port, Ports, Roles};
use crate::setting::{DROP_INPUTS, INPUT, MAX_LENGTH, STOP, TARGET};

use names::Layers;
use published::Published;

/// What to export.
#[derive(Clone, Debug)]
pub struct Options {
    pub bundle: PathBuf,
    pub output: PathBuf,
    /// The model's folder as it was published: its `generation_config.json`, `config.json` and the tokenizer's files are read if they are there.
    pub from: Option<PathBuf>,
    /// Instead of the one in that folder, or the one that the bundle names.
    pub tokenizer: Option<PathBuf>,
    /// Tokens that end a row, instead of those that the bundle or the published files name.
    pub stop: Vec<i64>,
    /// The most tokens of a row, where the model has no end of its own.
    pub max_length: Option<usize>,
    pub force: bool,
}

/// The file that the runtime reads first.
const CONFIG: &str = "genai_config.json";
/// The length where neither the model nor its user says one, as in `kiln generate`.
const LENGTH: usize = 2048;

/// Writes the folder.
///
/// # Errors
/// When the bundle cannot be read, the runtime would not take the model, no token is known to end a row, or files cannot be written.
pub fn export(options: &Options) -> Result<Exported, ExportError> {
    let roles = Roles::find(&options.bundle)?;
    if roles.encoder.is_some() || roles.first.is_some() {
        return Err(ExportError::Unfit {
            model: options.bundle.clone(),
            why: "it is an encoder and a decoder with a first step. onnxruntime-genai runs such pairs where the encoder itself makes the \
                  decoder's caches of its states, and takes no first step: `kiln generate` runs this one"
                .into(),
        });
    }
    let mut facts = Facts::read(&roles.decoder)?;
    let ports = Ports::of(&facts.model.graph).map_err(|why| facts.unfit(why))?;
    fits(&ports).map_err(|why| facts.unfit(why))?;
    let layers = names::layers(&ports).map_err(|why| facts.unfit(why))?;
    let published = Published::read(options.from.as_deref())?;
    let mut notes = Vec::new();
    let layers = names::settle(&mut facts.model.graph, &ports, layers, &mut notes);
    let config = config(
        options, &roles, &facts, &ports, &layers, &published, &mut notes,
    )?;
    let mut staged = Staged::new(&options.output, options.force)?;
    let file = staged.file("model.onnx")?;
    let written = onnx::write(&facts.model, file, &WriteOptions::default())?;
    if let Some((external, _)) = &written.external {
        let name = external.file_name().unwrap_or_default().to_string_lossy();
        staged.file(&name)?;
    }
    let text = serde_json::to_string_pretty(&config).unwrap_or_default() + "\n";
    staged.write(CONFIG, text)?;
    let tokenizer = options.tokenizer.as_ref().or(roles.tokenizer.as_ref());
    published.tokenizer(&mut staged, tokenizer.map(PathBuf::as_path), &mut notes)?;
    Ok(Exported {
        files: staged.finish()?,
        notes,
    })
}

/// Whether the runtime gives all that a step takes, in its types.
fn fits(ports: &Ports) -> Result<(), String> {
    let whole = |p: &Port| matches!(p.dtype, DType::I32 | DType::I64) && p.dims.len() == 2;
    let mut counted = None;
    for (port, feed) in &ports.feeds {
        let name = &port.name;
        let no_input = |what: &str| {
            format!("onnxruntime-genai has nothing to give its input \"{name}\", {what}")
        };
        match feed {
            Feed::Tokens { .. } if whole(port) => {}
            Feed::Mask { kept, hidden } => {
                if !whole(port) || (*kept, *hidden) != (1.0, 0.0) {
                    return Err(format!(
                        "onnxruntime-genai gives masks of whole numbers [rows, tokens], 1 for a token and 0 for padding, and \"{name}\" is {} \
                         with {kept} and {hidden}",
                        port.dtype
                    ));
                }
                same_type(&mut counted, port)?;
            }
            Feed::Positions if whole(port) => same_type(&mut counted, port)?,
            Feed::Tokens { .. } | Feed::Positions => {
                return Err(format!(
                    "onnxruntime-genai gives int32 or int64 of [rows, tokens], and \"{name}\" is {} of {} axes",
                    port.dtype,
                    port.dims.len()
                ));
            }
            Feed::Before => {
                return Err(no_input(&format!(
                    "which says where its caches are written: compile the original with {TARGET} cpu, which leaves caches growing"
                )));
            }
            Feed::Behind | Feed::Last | Feed::Longest => {
                return Err(no_input(
                    "which counts tokens: a decoder that computes it from its mask runs",
                ));
            }
            Feed::Past => {
                return Err(no_input(&format!(
                    "which selects a branch: compile the original with {INPUT} {name}=true {DROP_INPUTS}"
                )));
            }
            Feed::Given => return Err(no_input("which an encoder computes")),
        }
    }
    for c in &ports.caches {
        held(c)?;
    }
    Ok(())
}

fn same_type(counted: &mut Option<DType>, port: &Port) -> Result<(), String> {
    match counted.replace(port.dtype) {
        Some(other) if other != port.dtype => Err(format!(
            "onnxruntime-genai gives mask and positions in one type, and they are {other} and {}",
            port.dtype
        )),
        _ => Ok(()),
    }
}

/// Whether the runtime holds a cache of this layout.
fn held(c: &CachePort) -> Result<(), String> {
    let place = match c.cache.holds {
        Holds::Both => (5, 3),
        Holds::Keys | Holds::Values => (4, 2),
    };
    let found = (c.port.dims.len(), c.cache.axis);
    let refused = if c.is_given() {
        "is only read, as what an encoder made"
    } else if found != place {
        "has its axes in another order than [rows, heads, tokens, size], or [2, rows, heads, tokens, size] for both in one"
    } else if c.cache.heads.is_none() || c.cache.size.is_none() {
        "has heads of no known number or size"
    } else {
        return Ok(());
    };
    Err(format!(
        "onnxruntime-genai does not hold its cache \"{}\", which {refused}",
        c.port.name
    ))
}

fn config(
    options: &Options,
    roles: &Roles,
    facts: &Facts,
    ports: &Ports,
    layers: &Layers,
    published: &Published,
    notes: &mut Vec<String>,
) -> Result<Value, ExportError> {
    let graph = &facts.model.graph;
    let stop = stop(options, roles, ports, published)?;
    let length = length(options, ports, published, notes)?;
    let heads = query_heads(graph).unwrap_or(layers.heads);
    let named = |wanted: fn(&Feed) -> bool| {
        let found = ports.feeds.iter().find(|(_, f)| wanted(f));
        found.map(|(p, _)| Value::from(p.name.as_str()))
    };
    let mut inputs = layers.inputs();
    let ids = named(|f| matches!(f, Feed::Tokens { .. }));
    let mask = named(|f| matches!(f, Feed::Mask { .. }));
    let positions = named(|f| *f == Feed::Positions);
    for (key, name) in [
        ("input_ids", ids),
        ("attention_mask", mask),
        ("position_ids", positions),
    ] {
        inputs.extend(name.map(|n| (key.to_string(), n)));
    }
    let mut outputs = layers.outputs();
    outputs.insert("logits".into(), ports.logits.as_str().into());
    let provider = match facts.target.as_str() {
        "cuda" => json!([{"cuda": {}}]),
        _ => json!([]),
    };
    if !tells_rows_apart(graph, ports) {
        notes.push(
            "its positions are places in the cache, and onnxruntime-genai pads shorter rows behind: give it rows of one length".into(),
        );
    }
    let shares = ports
        .caches
        .iter()
        .any(|c| c.cache.update == Update::Shared);
    let mut model = json!({
        "type": layers.kind(),
        "vocab_size": ports.vocabulary,
        "context_length": length,
        "eos_token_id": stop,
        "pad_token_id": published.pad().or(stop.first().copied()),
        "decoder": {
            "filename": "model.onnx",
            "session_options": {"provider_options": provider},
            "num_hidden_layers": layers.count,
            "num_attention_heads": heads,
            "num_key_value_heads": layers.heads,
            "head_size": layers.size,
            "hidden_size": published.width().unwrap_or(heads * layers.size),
            "inputs": inputs,
            "outputs": outputs,
        },
    });
    if let (Some(model), Some(id)) = (model.as_object_mut(), published.begin()) {
        model.insert("bos_token_id".into(), id.into());
    }
    let mut search: Map<String, Value> = published.search(notes);
    search.insert("max_length".into(), length.into());
    search.insert("past_present_share_buffer".into(), shares.into());
    if !(roles.suppress.is_empty() && roles.suppress_first.is_empty()) {
        notes.push(
            "onnxruntime-genai suppresses no tokens: those that the bundle names are not left out"
                .into(),
        );
    }
    Ok(json!({"model": model, "search": search}))
}

/// The tokens that end a row. The runtime ends one at token 0 if none is named.
fn stop(
    options: &Options,
    roles: &Roles,
    ports: &Ports,
    published: &Published,
) -> Result<Vec<i64>, ExportError> {
    let refuse = |why: String| ExportError::Option { option: STOP, why };
    let given = [&options.stop, &roles.stop, &published.stop()];
    let Some(stop) = given.into_iter().find(|ids| !ids.is_empty()) else {
        return Err(refuse(
            "which token ends a row is not known: give its id, or the published model's folder with generation_config.json".into(),
        ));
    };
    let known = |id: &&i64| usize::try_from(**id).is_ok_and(|id| id < ports.vocabulary);
    match stop.iter().find(|id| !known(id)) {
        Some(id) => Err(refuse(format!(
            "token {id}: the model has tokens from 0 to {}",
            ports.vocabulary.saturating_sub(1)
        ))),
        None => Ok(stop.clone()),
    }
}

/// The most tokens of a row: the model's own end, or what its user or its maker says.
fn length(
    options: &Options,
    ports: &Ports,
    published: &Published,
    notes: &mut Vec<String>,
) -> Result<usize, ExportError> {
    if let (Some(asked), Some(end)) = (options.max_length, ports.capacity)
        && asked > end
    {
        return Err(ExportError::Option {
            option: MAX_LENGTH,
            why: format!("{asked}: the model holds {end} tokens"),
        });
    }
    let end = ports.capacity.unwrap_or(usize::MAX);
    let made_for = published.length().map(|n| n.min(end));
    Ok(match (options.max_length, made_for, ports.capacity) {
        (Some(n), ..) | (None, Some(n), _) | (None, None, Some(n)) => n,
        (None, None, None) => {
            notes.push(format!(
                "the model has no end of its own: context_length is {LENGTH}; {MAX_LENGTH} or config.json says another"
            ));
            LENGTH
        }
    })
}

/// Whether the places of a row's tokens are its own, with padding behind its prompt: they are given, counted over the mask, or kept by
/// the operator.
fn tells_rows_apart(graph: &Graph, ports: &Ports) -> bool {
    let given = ports.feeds.iter().any(|(_, f)| *f == Feed::Positions);
    let kept = ports
        .caches
        .iter()
        .all(|c| c.cache.update == Update::Shared);
    let is_mask = |f: &Feed| matches!(f, Feed::Mask { .. });
    let mask = ports.feeds.iter().find(|(_, f)| is_mask(f));
    let mut reached: FxHashSet<ValueId> = (graph.inputs().iter().copied())
        .filter(|&v| mask.is_some_and(|(p, _)| p.name == graph.value(v).name()))
        .collect();
    let mut counted = false;
    for node in graph.topo_order().unwrap_or_default() {
        let node = graph.node(node);
        if node.inputs().iter().flatten().any(|v| reached.contains(v)) {
            counted |= node.op().is("CumSum");
            reached.extend(node.outputs().iter().flatten());
        }
    }
    given || kept || counted
}

/// Heads of queries, by the first attention that tells them.
fn query_heads(graph: &Graph) -> Option<usize> {
    let facts = infer::infer(graph);
    let heads = graph.nodes().filter_map(|(_, node)| {
        let attr = |name: &str| node.attrs().int(name).and_then(|n| usize::try_from(n).ok());
        let axis = |k: usize| facts.dims(node.input(0)?)?.get(k)?.as_i64();
        let scores = || axis(1).and_then(|n| usize::try_from(n).ok());
        match (node.op().domain(), node.op().name()) {
            ("", "Attention") => attr("q_num_heads").or_else(scores),
            ("com.microsoft", "GroupQueryAttention" | "MultiHeadAttention") => attr("num_heads"),
            ("", "Softmax") if facts.dims(node.input(0)?)?.len() == 4 => scores(),
            _ => None,
        }
    });
    heads.into_iter().next()
}
