//! What records say, for people: a page, and advice for a benchmark.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::aims;
use super::forms;
use super::record::{Record, file_name};
use crate::report::markdown_table;

/// Where records are, from the project's folder.
pub const RESULTS: &str = "benches/results";

/// The page of all records of GPUs in a folder, in the order of their names.
///
/// # Errors
/// When a record cannot be read.
pub fn page(results: &Path) -> std::io::Result<String> {
    let mut paths: Vec<_> = fs::read_dir(results)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    paths.sort();
    let mut out = String::from(
        "# GPUs\n\nWritten by `kiln gpu-check --page` from the records of `kiln gpu-check`. Times are medians without copies to the GPU.\n",
    );
    let mut none = true;
    for path in &paths {
        // Results of other benchmarks stand beside.
        let Ok(record) = serde_json::from_slice::<Record>(&fs::read(path)?) else {
            continue;
        };
        if !record.dry_run {
            none = false;
            out += &section(&record);
        }
    }
    if none {
        out += "\nNo GPU has been measured yet.\n";
    }
    Ok(out)
}

fn section(record: &Record) -> String {
    let mut out = String::new();
    let name = record.gpu.as_deref().unwrap_or("a GPU");
    let capability = record.capability.as_deref().unwrap_or("unknown");
    let _ = write!(
        out,
        "\n## {name}\n\n{capability}, kiln {}, batch {}, {} tokens.\n\n",
        record.kiln, record.batch, record.seq
    );
    let (header, rows) = aims::table(&aims::aims(record));
    out += &markdown_table(&header, rows);
    out += "\n";
    let (header, rows) = record.table();
    out += &markdown_table(&header, rows);
    for profile in &record.profiles {
        let _ = writeln!(
            out,
            "\nWhere the time of {} in {} goes: {}.",
            profile.model,
            profile.precision,
            profile.told()
        );
    }
    if !record.forms.is_empty() {
        out += "\nForms of the model for ONNX Runtime's CUDA provider:\n\n";
        let (header, rows) = forms::table(&record.forms);
        out += &markdown_table(&header, rows);
        let told = forms::advice(&record.forms);
        let told = told.unwrap_or("no form is clearly faster than the cuda target's own".into());
        let _ = writeln!(out, "\nSo: {told}.");
    }
    out
}

/// What was measured of forms on this GPU, if a record of it is in the folder.
pub fn advice_for(results: &Path, gpu: &str) -> Option<String> {
    let bytes = fs::read(results.join(file_name(gpu))).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    forms::advice(&record.forms).filter(|_| !record.dry_run)
}
