//! Bundles by what they were made of: the key is the SHA-256 of everything that a compilation depends on.
//!
//! An entry is a folder `KEY[..2]/KEY` with the bundle's files and `entry.json`, which has the facts behind the key and the hash
//! of each file. A hit is verified against those before it is taken; what does not fit is thrown away and made again.

mod key;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use key::{Key, Surroundings, key};

use crate::bundle::{self, Partial};
use crate::compile::{self, CompileError, Outcome};
use crate::manifest::Note;
use crate::options::Options;
use crate::pipeline;
use crate::recipe::Recipe;
use crate::scratch;
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

/// Takes a bundle out of the cache, or compiles and keeps it there.
///
/// # Errors
/// As [`compile::compile`]; a cache that cannot be used is a warning.
pub fn compile(options: &Options, cache: &Path, talk: &dyn Talk) -> Result<Cached, CompileError> {
    if let Some(why) = unknowable(options) {
        talk.warn(&format!("the cache is not asked: {why}"));
        return compile::compile(options, talk).map(|o| Cached::Made(Box::new(o)));
    }
    talk.stage("cache");
    let key = key(options, &Surroundings::here(options)?, talk)?;
    let place = place(cache, &key);
    if place.is_dir() {
        match take(options, &place, &key) {
            Ok((bundle, manifest)) => {
                talk.note(&format!("from the cache: {}", key.sha256));
                return Ok(Cached::Hit { bundle, manifest });
            }
            Err(Unusable::Bundle(e)) => return Err(*e),
            Err(Unusable::Entry(why)) => {
                talk.warn(&format!(
                    "the cache's entry {} is thrown away: {why}",
                    key.sha256
                ));
                // Another process may be doing the same.
                let _ = fs::remove_dir_all(&place);
            }
        }
    }
    let options = Options {
        cache_key: Some(key.sha256.clone()),
        ..options.clone()
    };
    let outcome = compile::compile(&options, talk)?;
    if let Err(e) = keep(&outcome, &place, &key) {
        talk.warn(&format!(
            "the bundle is not kept in the cache {}: {e}",
            cache.display()
        ));
    }
    Ok(Cached::Made(Box::new(outcome)))
}

/// Why the same options may give another result, or do more than make a bundle.
fn unknowable(options: &Options) -> Option<&'static str> {
    if options.judge.is_some() {
        return Some("a judge is a command, and what it reads is not known");
    }
    if options.dump_after.is_some() {
        return Some("--dump-after writes more than the bundle");
    }
    if options.form.timing_cache.is_some() {
        return Some("a timing cache changes with each build");
    }
    None
}

fn place(cache: &Path, key: &Key) -> PathBuf {
    cache.join(&key.sha256[..2]).join(&key.sha256)
}

/// A bundle's own files that are there; others in its folder are the user's.
fn own(folder: &Path) -> Vec<String> {
    let data = format!("{}.data", bundle::MODEL);
    let names = [
        bundle::MODEL,
        &data,
        bundle::ENGINE,
        bundle::MANIFEST,
        bundle::REPORT,
        bundle::REPORT_PAGE,
        bundle::PROOF,
    ];
    let there = names.into_iter().filter(|n| folder.join(n).is_file());
    there.map(str::to_string).collect()
}

/// Copies a bundle into the cache. Of several that are kept at once, one stays.
fn keep(outcome: &Outcome, place: &Path, key: &Key) -> io::Result<()> {
    let part = place.with_extension(format!("{}.part", std::process::id()));
    let _held = scratch::hold(&part);
    fs::create_dir_all(&part)?;
    let kept = fill(&outcome.bundle, &part, key).and_then(|()| fs::rename(&part, place));
    if let Err(e) = kept {
        let _ = fs::remove_dir_all(&part);
        // Another process was faster.
        return if place.is_dir() { Ok(()) } else { Err(e) };
    }
    Ok(())
}

fn fill(bundle: &Path, part: &Path, key: &Key) -> io::Result<()> {
    let mut files = BTreeMap::new();
    for name in own(bundle) {
        let to = part.join(&name);
        fs::copy(bundle.join(&name), &to)?;
        files.insert(name, key::hash_file(&to)?);
    }
    let entry = Entry {
        facts: key.facts.clone(),
        files,
    };
    fs::write(part.join(ENTRY), serde_json::to_vec_pretty(&entry)?)
}

/// Why an entry was not taken.
enum Unusable {
    Entry(String),
    /// The place of the bundle.
    Bundle(Box<CompileError>),
}

impl<E: Into<CompileError>> From<E> for Unusable {
    fn from(e: E) -> Unusable {
        Unusable::Bundle(Box::new(e.into()))
    }
}

/// Verifies an entry and writes its bundle where the options want it.
fn take(options: &Options, place: &Path, key: &Key) -> Result<(PathBuf, Value), Unusable> {
    let bad = |what: &str, e: &dyn std::fmt::Display| Unusable::Entry(format!("{what}: {e}"));
    let text = fs::read(place.join(ENTRY)).map_err(|e| bad(ENTRY, &e))?;
    let entry: Entry = serde_json::from_slice(&text).map_err(|e| bad(ENTRY, &e))?;
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
        fs::copy(place.join(name), &copy).map_err(|e| bad(name, &e))?;
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
    Ok((bundle, manifest))
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
