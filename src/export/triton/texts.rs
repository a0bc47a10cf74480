//! Texts in, embeddings out: tokenizer, pooling, and the ensemble that joins them to the model.

use std::path::{Path, PathBuf};

use super::config::{data_type, dims, ports};
use super::{Options, Pooling};
use crate::export::facts::{Facts, Port};
use crate::export::pbtxt::Message;
use crate::export::{ExportError, Staged};
use crate::setting;
use crate::shapes::Range;

/// Lengths of texts are rounded up to a multiple, so that texts of about one length share a batch.
const PADDING: usize = 16;

/// What a tokenizer gives.
const TOKENIZED: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

const TOKENIZER: &str = include_str!("../tokenizer.py");
const POOLING: &str = include_str!("../pooling.py");

/// The models around the exported one.
struct Texts<'a> {
    options: &'a Options,
    facts: &'a Facts,
    outputs: &'a [Port],
    name: &'a str,
    /// Texts in a batch.
    most: usize,
    /// How, and which output.
    pooled: Option<(Pooling, Port)>,
}

/// Tokenizer, pooling, and the ensemble that joins them to the model.
pub(super) fn texts(
    options: &Options,
    facts: &Facts,
    outputs: &[Port],
    name: &str,
    tokenizer: &Path,
) -> Result<Vec<PathBuf>, ExportError> {
    if let Some(other) = (facts.inputs.iter()).find(|i| !TOKENIZED.contains(&i.name.as_str())) {
        return Err(facts.unfit(format!(
            "a tokenizer gives {}, and the model has an input \"{}\" beside",
            TOKENIZED.join(", "),
            other.name
        )));
    }
    let (Some(most), Some(length)) = (facts.most(), facts.length()) else {
        return Err(facts.unfit("its inputs are not texts of one batch: their sizes are not known"));
    };
    let pooled = match options.pooling {
        None => None,
        Some(how) => Some((how, tokens(facts, outputs)?)),
    };
    let texts = Texts {
        options,
        facts,
        outputs,
        name,
        most,
        pooled,
    };
    let mut files = texts.tokenizer(tokenizer, length)?;
    if let Some((how, output)) = &texts.pooled {
        files.extend(texts.pooling(*how, output)?);
    }
    files.extend(texts.ensemble()?);
    Ok(files)
}

impl Texts<'_> {
    fn named(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    fn staged(&self, name: &str) -> Result<Staged, ExportError> {
        Staged::new(&self.options.output.join(name), self.options.force)
    }

    fn tokenizer(&self, tokenizer: &Path, length: Range) -> Result<Vec<PathBuf>, ExportError> {
        let (name, version) = (self.named("tokenizer"), self.options.version);
        let mut staged = self.staged(&name)?;
        let mut m = python(&name, self.most);
        text_port(&mut m, "input", "TEXT", "TYPE_STRING", &[1]);
        ports(&mut m, "output", self.facts, &self.facts.inputs)?;
        parameter(&mut m, "max_length", &length.max.to_string());
        let padding = match length.is_fixed() {
            true => "fixed".into(),
            false => PADDING.min(length.max).to_string(),
        };
        parameter(&mut m, "padding", &padding);
        staged.write("config.pbtxt", m.finish())?;
        staged.write(&format!("{version}/model.py"), TOKENIZER)?;
        staged.copy(tokenizer, &format!("{version}/tokenizer.json"))?;
        staged.finish()
    }

    fn pooling(&self, how: Pooling, output: &Port) -> Result<Vec<PathBuf>, ExportError> {
        let (name, version) = (self.named("pooling"), self.options.version);
        let mut staged = self.staged(&name)?;
        let mut m = python(&name, self.most);
        let port = |m: &mut Message, name: &str, port: &Port| -> Result<(), ExportError> {
            let ty = data_type(self.facts, port)?;
            text_port(m, "input", name, ty, &dims(self.facts, port));
            Ok(())
        };
        port(&mut m, "TOKENS", output)?;
        port(&mut m, "MASK", mask(self.facts)?)?;
        self.embedding(&mut m, output);
        parameter(&mut m, "pooling", how.name());
        staged.write("config.pbtxt", m.finish())?;
        staged.write(&format!("{version}/model.py"), POOLING)?;
        staged.finish()
    }

    /// What pooling makes of `output`.
    fn embedding(&self, m: &mut Message, output: &Port) {
        let width = dims(self.facts, output).last().copied().unwrap_or(-1);
        text_port(m, "output", "EMBEDDING", "TYPE_FP32", &[width]);
    }

    fn ensemble(&self) -> Result<Vec<PathBuf>, ExportError> {
        let name = self.named("text");
        let mut staged = self.staged(&name)?;
        let mut m = Message::default();
        m.text("name", &name);
        m.text("platform", "ensemble");
        m.plain("max_batch_size", self.most);
        text_port(&mut m, "input", "TEXT", "TYPE_STRING", &[1]);
        match &self.pooled {
            None => ports(&mut m, "output", self.facts, self.outputs)?,
            Some((_, output)) => self.embedding(&mut m, output),
        }
        m.message("ensemble_scheduling", |m| self.steps(m));
        staged.write("config.pbtxt", m.finish())?;
        // Triton wants a folder of the version, although an ensemble has no file.
        staged.write(&format!("{}/.keep", self.options.version), "")?;
        staged.finish()
    }

    fn steps(&self, m: &mut Message) {
        let same = |ports: &[Port]| -> Vec<(String, String)> {
            let names = ports.iter().map(|p| (p.name.clone(), p.name.clone()));
            names.collect()
        };
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let inputs = same(&self.facts.inputs);
        step(
            m,
            &self.named("tokenizer"),
            &[pair("TEXT", "TEXT")],
            &inputs,
        );
        let Some((_, output)) = &self.pooled else {
            step(m, self.name, &inputs, &same(self.outputs));
            return;
        };
        step(m, self.name, &inputs, &[pair(&output.name, "TOKENS")]);
        let taken = [pair("TOKENS", "TOKENS"), pair("MASK", "attention_mask")];
        step(
            m,
            &self.named("pooling"),
            &taken,
            &[pair("EMBEDDING", "EMBEDDING")],
        );
    }
}

/// The output with an embedding for each token.
fn tokens(facts: &Facts, outputs: &[Port]) -> Result<Port, ExportError> {
    let mut found = outputs.iter().filter(|o| o.dims.len() == 3);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => {
            Err(facts.unfit("there is no output with an embedding for each token to pool"))
        }
        (Some(_), Some(_)) => Err(ExportError::Option {
            option: setting::POOLING,
            why: format!(
                "several outputs have an embedding for each token: name one with {}",
                setting::OUTPUT_NAME
            ),
        }),
    }
}

fn mask(facts: &Facts) -> Result<&Port, ExportError> {
    let mask = facts.inputs.iter().find(|i| i.name == "attention_mask");
    mask.ok_or_else(|| facts.unfit("pooling takes an input \"attention_mask\""))
}

fn python(name: &str, most: usize) -> Message {
    let mut m = Message::default();
    m.text("name", name);
    m.text("backend", "python");
    m.plain("max_batch_size", most);
    m.message("instance_group", |m| {
        m.plain("count", 1);
        m.plain("kind", "KIND_CPU");
    });
    m
}

fn text_port(m: &mut Message, field: &str, name: &str, ty: &str, dims: &[i64]) {
    m.message(field, |m| {
        m.text("name", name);
        m.plain("data_type", ty);
        m.list("dims", dims);
    });
}

fn parameter(m: &mut Message, key: &str, value: &str) {
    m.message("parameters", |m| {
        m.text("key", key);
        m.message("value", |m| m.text("string_value", value));
    });
}

/// A step of an ensemble: maps are from the model's names to those of the ensemble.
fn step(m: &mut Message, model: &str, input: &[(String, String)], output: &[(String, String)]) {
    m.message("step", |m| {
        m.text("model_name", model);
        m.plain("model_version", -1);
        for (field, map) in [("input_map", input), ("output_map", output)] {
            for (key, value) in map {
                m.message(field, |m| {
                    m.text("key", key);
                    m.text("value", value);
                });
            }
        }
    });
}
