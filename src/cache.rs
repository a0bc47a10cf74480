//! Bundles by what they were made of: the key is the SHA-256 of everything that a compilation depends on.
//!
//! An entry has the bundle's files and `entry.json`, which has the facts behind the key and the hash of each file. In a folder it is at
//! `KEY[..2]/KEY`; `remote.rs` says how it lies on a server. A hit is verified against those before it is taken; what does not fit is
//! thrown away and made again.

mod key;
mod remote;
mod store;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use key::{Key, Surroundings, key};
pub use remote::{AUTHORIZATION, Remote};
pub use store::Store;
use store::StoreError;

use crate::bundle::{self, Partial};
use crate::compile::{self, CompileError, Outcome};
use crate::manifest::Note;
use crate::options::Options;
use crate::pipeline;
use crate::recipe::Recipe;
use crate::talk::Talk;

/// What came of a compilation with a cache.
#[derive(Debug)]
pub enum Cached {
    /// It was made now.
    Made(Box<Outcome>),
    /// It was there: the bundle's place, and its manifest as data.
    Hit { bundle: PathBuf, manifest: Value },
}

const ENTRY: &str = "entry.json";

/// What an entry of the cache holds.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    facts: BTreeMap<String, String>,
    /// SHA-256 of each file.
    files: BTreeMap<String, String>,
}

impl Entry {
    /// What is kept of these files of a folder.
    fn of(folder: &Path, names: &[String], key: &Key) -> io::Result<Entry> {
        let mut files = BTreeMap::new();
        for name in names {
            files.insert(name.clone(), key::hash_file(&folder.join(name))?);
        }
        Ok(Entry {
            facts: key.facts.clone(),
            files,
        })
    }
}

/// Takes a bundle out of the cache, or compiles and keeps it there.
///
/// # Errors
/// As [`compile::compile`]; a cache that cannot be used is a warning.
pub fn compile(options: &Options, cache: &Store, talk: &dyn Talk) -> Result<Cached, CompileError> {
    if let Some(why) = unknowable(options) {
        talk.warn(&format!("the cache is not asked: {why}"));
        return compile::compile(options, talk).map(|o| Cached::Made(Box::new(o)));
    }
    talk.stage("cache: looking");
    let key = key(options, &Surroundings::here(options)?, talk)?;
    let mut anew = false;
    match look(options, cache, &key) {
        Ok(Some((bundle, manifest))) => {
            talk.note(&format!("from the cache: {}", key.sha256));
            return Ok(Cached::Hit { bundle, manifest });
        }
        Ok(None) => {}
        Err(Unusable::Bundle(e)) => return Err(*e),
        Err(Unusable::Cache(why)) => {
            talk.warn(&format!("the cache {cache} is not used: {why}"));
            return compile::compile(options, talk).map(|o| Cached::Made(Box::new(o)));
        }
        Err(Unusable::Entry(why)) => {
            talk.warn(&format!(
                "the cache's entry {} is thrown away: {why}",
                key.sha256
            ));
            cache.discard(&key);
            anew = true;
        }
    }
    let options = Options {
        cache_key: Some(key.sha256.clone()),
        ..options.clone()
    };
    let outcome = compile::compile(&options, talk)?;
    let names = own(&outcome.bundle);
    if let Err(e) = cache.keep(&outcome.bundle, &names, &key, anew) {
        talk.warn(&format!("the bundle is not kept in the cache {cache}: {e}"));
    }
    Ok(Cached::Made(Box::new(outcome)))
}

/// Why the same options may give another result, or do more than make a bundle.
fn unknowable(options: &Options) -> Option<&'static str> {
    if options.judge.is_some() {
        return Some("a judge is a command, and what it reads is not known");
    }
    if options.dump_after.is_some() {
        return Some("dumps of the graph are more than the bundle");
    }
    if options.form.timing_cache.is_some() {
        return Some("a timing cache changes with each build");
    }
    None
}

/// A bundle's own files that are there; others in its folder are the user's.
fn own(folder: &Path) -> Vec<String> {
    let [data, cuda_data] = [bundle::MODEL, bundle::CUDA_MODEL].map(|m| format!("{m}.data"));
    let names = [
        bundle::MODEL,
        &data,
        bundle::CUDA_MODEL,
        &cuda_data,
        bundle::ENGINE,
        bundle::MANIFEST,
        bundle::REPORT,
        bundle::REPORT_PAGE,
        bundle::PROOF,
    ];
    let there = names.into_iter().filter(|n| folder.join(n).is_file());
    there.map(str::to_string).collect()
}

/// Why an entry was not taken.
enum Unusable {
    Entry(String),
    /// No entry of it can be asked for.
    Cache(String),
    /// The place of the bundle.
    Bundle(Box<CompileError>),
}

impl<E: Into<CompileError>> From<E> for Unusable {
    fn from(e: E) -> Unusable {
        Unusable::Bundle(Box::new(e.into()))
    }
}

fn unusable(e: StoreError) -> Unusable {
    match e.is_everywhere() {
        true => Unusable::Cache(e.to_string()),
        false => Unusable::Entry(e.to_string()),
    }
}

/// Verifies an entry and writes its bundle where the options want it. `None`: there is none.
fn look(options: &Options, cache: &Store, key: &Key) -> Result<Option<(PathBuf, Value)>, Unusable> {
    let bad = |what: &str, e: &dyn std::fmt::Display| Unusable::Entry(format!("{what}: {e}"));
    let Some(entry) = cache.find(key).map_err(unusable)? else {
        return Ok(None);
    };
    if entry.facts != key.facts {
        return Err(Unusable::Entry("its facts are not those of its key".into()));
    }
    if !entry.files.contains_key(bundle::MODEL) || !entry.files.contains_key(bundle::MANIFEST) {
        return Err(Unusable::Entry("it is no whole bundle".into()));
    }
    let output = compile::output_path(options);
    pipeline::spares_inputs(options, &output, &[])?;
    let partial = Partial::new(&output, options.over)?;
    for (name, hash) in &entry.files {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(Unusable::Entry(format!("it names a file \"{name}\"")));
        }
        let copy = partial.file(name);
        cache.fetch(key, name, hash, &copy).map_err(unusable)?;
        // The copy is what is used, so the copy is verified.
        let found = key::hash_file(&copy).map_err(|e| bad(name, &e))?;
        if found != *hash {
            return Err(Unusable::Entry(format!("{name} is not what was kept")));
        }
    }
    let manifest = partial.file(bundle::MANIFEST);
    let text = fs::read(&manifest).map_err(|e| bad(bundle::MANIFEST, &e))?;
    let mut manifest: Value =
        serde_json::from_slice(&text).map_err(|e| bad(bundle::MANIFEST, &e))?;
    readdress(&mut manifest, options, key);
    let text = serde_json::to_vec_pretty(&manifest).map_err(CompileError::Manifest)?;
    partial.write(bundle::MANIFEST, &text)?;
    let (bundle, _) = partial.finish()?;
    Ok(Some((bundle, manifest)))
}

/// The manifest of this compilation: of the other one's it has other paths, and that it was a hit.
fn readdress(manifest: &mut Value, options: &Options, key: &Key) {
    let recipe = Recipe {
        model: Some(options.model.clone()),
        ..options.recipe.clone()
    };
    let recipe = recipe.placed(Path::new("."));
    if let (Ok(Value::Object(mut new)), Some(old)) =
        (serde_json::to_value(recipe), manifest.get_mut("recipe"))
    {
        for kept in ["sha256", "precision"] {
            // The search may have found nodes that keep their precision.
            if let Some(value) = old.get(kept) {
                new.insert(kept.into(), value.clone());
            }
        }
        *old = Value::Object(new);
    }
    if let Some(path) = manifest.pointer_mut("/source/path") {
        *path = bundle::model_path(&options.model)
            .display()
            .to_string()
            .into();
    }
    if let Value::Object(fields) = manifest {
        let note = Note {
            key: key.sha256.clone(),
            hit: true,
        };
        if let Ok(note) = serde_json::to_value(note) {
            fields.insert("cache".into(), note);
        }
    }
}
