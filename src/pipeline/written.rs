//! What of a decoder with growing caches an engine is made from: the same decoder with caches of one length.

use std::path::{Path, PathBuf};

use kiln_graph::caches::{Cache, Update};
use kiln_graph::{Model, Tensor, infer, onnx, ops};
use kiln_passes::adopt::written_caches::{self, Written};
use kiln_passes::{Step, Target, adopt, clean, fold, lower, registry};

use super::Error;
use super::rewrite::{Passes, rewrite};
use crate::fixed::Fixed;
use crate::generate::{Feed, Port, Ports};
use crate::options::Options;
use crate::runtime::scratch::Temporary;
use crate::setting::MAX_LENGTH;
use crate::shapes::{Shapes, SpecError};
use crate::talk::Talk;
use crate::targets::Targets;

/// The length of caches where neither the user nor the model says one.
const CAPACITY: usize = 2048;

/// A decoder whose caches are of one length, in a file of its own for ONNX Runtime.
#[derive(Debug)]
pub(crate) struct Portable {
    pub path: PathBuf,
    _folder: Temporary,
}

/// The branch with a cache of a decoder that runs alone and has another without: an empty cache is one, too. `None` if it has no branches.
fn with_cache(
    options: &Options,
    ports: &Ports,
    original: &Model,
    talk: &dyn Talk,
) -> Option<Model> {
    let mut folded = None;
    let alone = !ports.caches.iter().any(|c| c.is_given());
    let given = |port: &Port| options.fixed.iter().any(|f| f.name == port.name);
    let selects = |(port, feed): &(Port, Feed)| *feed == Feed::Past && !given(port);
    for (port, _) in ports.feeds.iter().filter(|f| alone && selects(f)) {
        let Ok(value) = Tensor::from_values(vec![1; port.dims.len()], &[true]) else {
            continue;
        };
        let fixed = Fixed {
            values: vec![(port.name.clone(), value)],
            dropped: true,
        };
        let model = folded.get_or_insert_with(|| original.clone());
        fixed.fold(&mut model.graph);
        talk.note(&format!(
            "caches: \"{}\" is true and no input any more: the branch with a cache takes an empty one, too",
            port.name
        ));
    }
    folded
}

const BRANCH: &[Step] = &[Step::Run(&fold::fold_branches::FoldBranches)];
const ADOPT: &[Step] = &[
    Step::Run(&adopt::raise_opset::RaiseOpset),
    Step::Run(&adopt::expand_rotary::EXPAND_ROTARY),
    Step::Run(&adopt::expand_attention::EXPAND_ATTENTION),
    Step::Run(&adopt::expand_grouped::EXPAND_GROUPED),
];

/// Whether a model's caches come in and go out in the engine's type, whatever it had: what is written into is one buffer.
pub(crate) fn are_narrowed(targets: &Targets, model: &Model) -> bool {
    let found = kiln_graph::caches::caches(&model.graph);
    let written = |c: &Cache| c.update == Update::Written;
    matches!(targets, Targets::Engines(_)) && found.iter().any(written)
}

/// Writes a decoder anew for engines. `None` if it has no growing cache, or keeps it, which is said.
///
/// # Errors
/// When passes fail.
pub(crate) fn portable(
    options: &Options,
    targets: &Targets,
    original: &mut Model,
    talk: &dyn Talk,
) -> Result<Option<Portable>, Error> {
    let useless = |why: &str| {
        if options.max_length.is_some() {
            talk.warn(&format!("{MAX_LENGTH} changes nothing: {why}"));
        }
        Ok(None)
    };
    if !matches!(targets, Targets::Engines(_)) || options.standard {
        return useless("caches become ones of one length for engines alone");
    }
    if options.growing {
        return Ok(None);
    }
    let found = kiln_graph::caches::caches(&original.graph);
    let grows = |c: &Cache| matches!(c.update, Update::Grows | Update::Shared);
    if !found.iter().any(grows) {
        return useless("the model has no cache that grows");
    }
    let stays = |why: &str| {
        talk.warn(&format!("its caches stay growing: {why}"));
        Ok(None)
    };
    let none = std::collections::BTreeMap::new();
    let branch = match Ports::of(&original.graph) {
        Ok(ports) => with_cache(options, &ports, original, talk),
        Err(why) => return stays(&why),
    };
    let branch = match branch {
        // What sizes have in common stands in the branch that is left.
        Some(branch) => {
            let steps = [BRANCH, registry::CLEANUP].concat();
            rewrite(options, targets, &Passes::of(&steps, &none), branch, talk)?.model
        }
        None => original.clone(),
    };
    let relations = Shapes::new(&branch.graph, &options.dims, &options.shapes)?.relations;
    let ports = match Ports::of(&branch.graph) {
        Ok(ports) => ports,
        Err(why) => return stays(&why),
    };
    let mask =
        |(port, feed): &(Port, Feed)| matches!(feed, Feed::Mask { .. }).then(|| port.name.clone());
    let masks: Vec<String> = ports.feeds.iter().filter_map(mask).collect();
    if options.max_length == Some(0) {
        return Err(SpecError::NoTokens.into());
    }
    if let (Some(asked), Some(end)) = (options.max_length, ports.capacity)
        && asked > end
    {
        return Err(SpecError::TooLong { asked, end }.into());
    }
    let capacity = options.max_length.or(ports.capacity).unwrap_or(CAPACITY);
    let written = match joined(options, targets, branch, talk)? {
        Ok(mut joined) => {
            let same = |name: &str| relations.get(name).cloned();
            let written = written_caches::write(&mut joined.model, capacity, &same, &masks);
            written.map(|w| (joined, w)).map_err(|e| e.to_string())
        }
        Err(why) => Err(why),
    };
    let (joined, written) = match written {
        Ok(written) => written,
        Err(why) => return stays(&why),
    };
    let Written {
        indices,
        capacity,
        caches,
    } = written;
    let mut model = joined.model;
    infer::annotate(&mut model.graph);
    if options.max_length.is_none()
        && Shapes::new(&model.graph, &options.dims, &options.shapes).is_err()
    {
        talk.warn(&format!(
            "its caches stay growing, as sizes of growing ones were given; {MAX_LENGTH} instead gives all caches one length"
        ));
        return Ok(None);
    }
    talk.note(&format!(
        "caches: {} inputs hold {capacity} tokens each, and {indices} says how many tokens each row has",
        caches.len()
    ));
    told(talk, &joined.parted, &joined.counters, &indices);
    lowered(options, &mut model)?;
    let kept = kept(&model)?;
    model.sources.clone_from(&original.sources);
    model.bytes.clone_from(&original.bytes);
    model.path.clone_from(&original.path);
    infer::annotate(&mut model.graph);
    *original = model;
    Ok(Some(kept))
}

/// Says which inputs are other ones now.
fn told(talk: &dyn Talk, parted: &[String], counters: &[String], indices: &str) {
    for name in parted {
        talk.note(&format!(
            "\"{name}\" holds keys and values, which are inputs of their own now: {name}.key and {name}.value"
        ));
    }
    for name in counters {
        talk.note(&format!(
            "\"{name}\" only counted tokens, and is no input any more: {indices} does"
        ));
    }
}

/// A decoder whose caches grow by Concat, whatever operators held them.
struct Joined {
    model: Model,
    /// Caches that are two now.
    parted: Vec<String>,
    /// Inputs that are none any more.
    counters: Vec<String>,
}

/// Takes operators that hold caches apart, or says why not.
fn joined(
    options: &Options,
    targets: &Targets,
    mut branch: Model,
    talk: &dyn Talk,
) -> Result<Result<Joined, String>, Error> {
    let read = read(&branch);
    written_caches::open_buffers(&mut branch.graph);
    let steps = [ADOPT, registry::CLEANUP].concat();
    let none = std::collections::BTreeMap::new();
    let passes = Passes::of(&steps, &none);
    let mut model = rewrite(options, targets, &passes, branch, talk)?.model;
    if let Some(why) = peculiar(&model) {
        return Ok(Err(why));
    }
    let counters = counters(&mut model, &read);
    let parted = written_caches::part_halves(&mut model.graph);
    Ok(Ok(Joined {
        model,
        parted,
        counters,
    }))
}

/// Why an operator that has a cache of its own keeps it.
fn peculiar(model: &Model) -> Option<String> {
    let mut nodes = model.graph.nodes();
    nodes.find_map(|(id, _)| {
        let op = ops::GroupQueryAttention::of(&model.graph, id)?;
        let why = adopt::expand_grouped::stays(&op);
        Some(why.unwrap_or_else(|| format!("{} is not understood", model.graph.label(id))))
    })
}

/// The names of inputs that something reads.
fn read(model: &Model) -> Vec<String> {
    let g = &model.graph;
    let read = g.inputs().iter().filter(|v| !g.value(**v).is_unused());
    read.map(|v| g.value(*v).name().to_string()).collect()
}

/// Takes away inputs that were read before, and by nothing now, and gives their names: what told an operator how many tokens
/// there are.
fn counters(model: &mut Model, before: &[String]) -> Vec<String> {
    let now = read(model);
    let gone: Vec<String> = (before.iter().filter(|n| !now.contains(n)))
        .cloned()
        .collect();
    let g = &mut model.graph;
    for v in g.inputs().to_vec() {
        if gone.iter().any(|n| n == g.value(v).name()) {
            g.remove_input(v);
        }
    }
    gone
}

/// The model as a file, which the proof runs.
fn kept(model: &Model) -> Result<Portable, Error> {
    let failed = |path: &Path, source| Error::Io {
        path: path.to_path_buf(),
        why: "cannot be written",
        source,
    };
    let folder =
        Temporary::new().map_err(|e| failed(Path::new("a folder for temporary files"), e))?;
    let path = folder.path().join("model.onnx");
    onnx::write(model, path.clone(), &onnx::WriteOptions::default())
        .map_err(|e| failed(&path, std::io::Error::other(e)))?;
    Ok(Portable {
        path,
        _folder: folder,
    })
}

/// Attention and rotations that were taken apart for caches, in plain ONNX.
fn lowered(options: &Options, model: &mut Model) -> Result<(), Error> {
    let target = Target::standard();
    let choices = kiln_passes::Options::default();
    let mut cx = kiln_passes::Context::new(&target, &choices);
    let steps = [
        Step::Run(&lower::lower_attention::LOWER_ATTENTION),
        Step::Run(&lower::lower_rotary::LowerRotary),
        Step::Run(&clean::eliminate_dead::EliminateDead),
    ];
    let lowered = kiln_passes::run(model, &steps, &mut cx, &mut |_, _| {});
    lowered.map(drop).map_err(|source| Error::Pass {
        model: options.model.clone(),
        source,
    })
}
