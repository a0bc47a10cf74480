//! From a recipe to the options of a compilation.

use std::str::FromStr;

use kiln_graph::Op;

use super::{Build, Dialect, Recipe, RecipeError, Sizes, Targets};
use crate::engine::Form;
use crate::judge::Asked;
use crate::options::{self, INT4_BLOCK, Options, SAMPLES};
use crate::parity::Tolerance;
use crate::precision::Precision;
use crate::setting::{BF16, CALIBRATE, FP16, JUDGE};
use crate::shapes::{DimSpec, ShapeSpec};

fn parse<T: FromStr>(key: &str, text: &str) -> Result<T, RecipeError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| bad(key, e))
}

fn bad(key: &str, reason: impl std::fmt::Display) -> RecipeError {
    RecipeError::Value {
        key: key.to_string(),
        reason: reason.to_string(),
    }
}

/// The options that a recipe asks for; what has no place in a recipe has its default.
///
/// # Errors
/// When a value means nothing, or there is no model.
pub fn resolve(recipe: &Recipe) -> Result<Options, RecipeError> {
    let model = recipe.model.clone().ok_or(RecipeError::NoModel)?;
    let p = &recipe.precision;
    let targets = match &recipe.target {
        None => None,
        Some(Targets::One(target)) => Some(parse("target", target)?),
        Some(Targets::Several(all)) => Some(parse("target", &all.join(","))?),
    };
    let mut dims = Vec::new();
    for (name, sizes) in &recipe.dims {
        let sizes = match sizes {
            Sizes::One(n) => n.to_string(),
            Sizes::Range(text) => text.clone(),
        };
        dims.push(parse::<DimSpec>("dims", &format!("{name}={sizes}"))?);
    }
    let mut shapes = Vec::new();
    for (name, shape) in &recipe.shapes {
        shapes.push(parse::<ShapeSpec>("shapes", &format!("{name}={shape}"))?);
    }
    let keep = p.keep.as_deref().map(regex::Regex::new).transpose();
    let keep_ops = p.keep_ops.iter().map(|op| operator(op));
    let precision = Precision {
        floats: p.floats.unwrap_or_default(),
        linear: p.linear.unwrap_or_default(),
    };
    let c = &recipe.calibration;
    if c.data.is_none() && (c.tokenizer.is_some() || c.cache.is_some() || c.samples.is_some()) {
        return Err(bad(
            "calibration",
            format!("no data is given ({CALIBRATE})"),
        ));
    }
    if p.half_io == Some(true) && precision.half().is_none() {
        return Err(bad(
            "precision.half-io",
            format!(
                "inputs and outputs cannot be converted: precision.floats is fp32 ({FP16} or {BF16})"
            ),
        ));
    }
    Ok(Options {
        output: recipe.output.clone(),
        sha256: recipe.sha256.clone(),
        blake3: recipe.blake3.clone(),
        targets,
        precision,
        calibration: options::Calibration {
            data: recipe.calibration.data.clone(),
            tokenizer: recipe.calibration.tokenizer.clone(),
            cache: recipe.calibration.cache.clone(),
            samples: recipe.calibration.samples.unwrap_or(SAMPLES),
            generation: None,
        },
        int4_block: p.int4_block.unwrap_or(INT4_BLOCK),
        int4_fixed: p.int4_block.is_some(),
        standard: recipe.dialect == Some(Dialect::Standard),
        half_io: p.half_io.unwrap_or(false),
        dims,
        shapes,
        inputs: recipe.inputs.clone(),
        fixed: recipe.fixed(),
        drop_inputs: recipe.drop_inputs.unwrap_or(false),
        max_length: recipe.max_length,
        growing: recipe.growing_caches.unwrap_or(false),
        engine: recipe.engine.unwrap_or(true),
        check: recipe.check.unwrap_or(true),
        proof: recipe.proof.unwrap_or_default(),
        latency: recipe.latency,
        form: form(&recipe.build),
        tf32: recipe.build.tf32,
        passes: recipe.passes.clone(),
        keep: keep.map_err(|e| bad("precision.keep", e))?,
        keep_ops: keep_ops
            .collect::<Result<_, _>>()
            .map_err(|e| bad("precision.keep-ops", e))?,
        keep_nodes: p.keep_nodes.clone(),
        search: p.search.unwrap_or(true),
        seed: recipe.seed.unwrap_or(1),
        tolerance: tolerance(recipe)?,
        limits: limits(recipe),
        gates: options::Gates {
            latency_ratio: recipe.gates.latency.max_ratio,
            bytes: recipe.gates.size.max_bytes,
            bytes_ratio: recipe.gates.size.max_ratio,
            engine_parity: recipe.gates.engine_parity.unwrap_or(false),
            in_place: recipe.gates.cache_in_place.unwrap_or(false),
            precision: recipe.gates.precision,
        },
        judge: judge(&recipe.gates.judge)?,
        recipe: recipe.clone(),
        ..Options::new(model)
    })
}

fn judge(asked: &super::Judge) -> Result<Option<Asked>, RecipeError> {
    match &asked.command {
        None if asked.data.is_some() || asked.tokenizer.is_some() => {
            Err(bad("gates.judge", format!("there is no command ({JUDGE})")))
        }
        None => Ok(None),
        Some(command) => Ok(Some(Asked {
            command: command.clone(),
            data: asked.data.clone(),
            tokenizer: asked.tokenizer.clone(),
        })),
    }
}

fn form(build: &Build) -> Form {
    Form {
        refittable: build.refittable.unwrap_or(false),
        weight_stripped: build.weight_stripped.unwrap_or(false),
        version_compatible: build.version_compatible.unwrap_or(false),
        hardware: build.hardware_compatible,
        timing_cache: build.timing_cache.clone(),
    }
}

fn tolerance(recipe: &Recipe) -> Result<Option<Tolerance>, RecipeError> {
    let name = recipe.gates.parity.tolerance.as_deref();
    let named = name.map(Tolerance::named).transpose();
    let named = named.map_err(|e| bad("gates.parity.tolerance", e))?;
    // The limits are checked here, where their key is known.
    let mut probe = Tolerance::from(crate::parity::Preset::Fp16);
    for limit in limits(recipe) {
        probe = probe
            .with_override(&limit)
            .map_err(|e| bad("gates.parity.limits", e))?;
    }
    Ok(named)
}

/// As `--limit` takes them.
fn limits(recipe: &Recipe) -> Vec<String> {
    let limits = recipe.gates.parity.limits.iter();
    let limits = limits.map(|(output, metrics)| {
        let metrics = metrics
            .iter()
            .map(|(metric, limit)| format!("{metric}={limit}"));
        format!("{output}:{}", metrics.collect::<Vec<_>>().join(","))
    });
    limits.collect()
}

/// An operator: `Softmax`, or `com.microsoft:Attention`.
pub(crate) fn operator(name: &str) -> Result<Op, String> {
    let (domain, name) = name.rsplit_once(':').unwrap_or(("", name));
    let word = |s: &str| s.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
    match !name.is_empty() && word(name) && word(domain) {
        true => Ok(Op::new(domain, name)),
        false => Err("an operator is written as Softmax or com.microsoft:Attention".into()),
    }
}
