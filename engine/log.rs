//! Lines of TensorRT's log.

use serde::{Deserialize, Serialize};

/// How grave TensorRT holds a log line to be. Lines below a warning are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Warning,
    Error,
    InternalError,
}

/// A line of TensorRT's log, with the number of times it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub severity: Severity,
    pub text: String,
    pub count: usize,
}

/// The sentence in a line of TensorRT's log: without the function that failed, its source positions and the condition
/// it checked.
pub(super) fn clean(line: &str) -> String {
    if let Some(cuda) = between(line, "(cudaError ", ")") {
        return format!("CUDA error {cuda}");
    }
    let mut text = line.trim();
    // ModelImporter.cpp:1231: <text>
    if let Some((file, rest)) = text.split_once(": ")
        && file.contains(".cpp:") | file.contains(".hpp:")
        && !file.contains(' ')
    {
        text = rest;
    }
    // IBuilder::buildSerializedNetwork: Error Code 1: Myelin (<text>)
    if let Some((_, rest)) = text.split_once("Error Code ")
        && let Some((_, inner)) = rest.split_once(" (")
    {
        text = inner.strip_suffix(')').unwrap_or(inner);
    }
    // [pass.cpp:337: check_turing_op_compatibility] <text>
    if let Some((position, rest)) = text.split_once("] ")
        && position.starts_with('[')
        && position.contains(".cpp:") | position.contains(".h:")
    {
        text = rest;
    }
    // <text> In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012
    if let Some((before, _)) = text.split_once(" at /_src/")
        && let Some((sentence, _)) = before.rsplit_once(" In ")
    {
        text = sentence;
    }
    // MyelinCheckException: decompose_composite_ops.cpp:59: CHECK(<condition>) failed. <text>
    if let Some((_, rest)) = text.split_once("CHECK(")
        && let Some((condition, sentence)) = rest.split_once(") failed.")
    {
        // Many checks have no text; the condition is all that there is then.
        if sentence.trim().is_empty() {
            return format!("its check ({condition}) failed");
        }
        text = sentence;
    }
    // <text> (See https://docs.nvidia.com/... for shapes and datatypes with dedicated kernels.) Alternatively, ...
    if let Some((sentence, _)) = text.split_once(" (See https://") {
        text = sentence;
    }
    // Assertion failed: <condition>: <text>
    if let Some(rest) = text.strip_prefix("Assertion failed: ") {
        text = rest.split_once(": ").map_or(rest, |(_, sentence)| sentence);
    }
    // <condition> && "<text>"
    if let Some((_, rest)) = text.split_once(" && \"") {
        text = rest.strip_suffix('"').unwrap_or(rest);
    }
    let sentence = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match sentence.is_empty() {
        // Nothing but positions and conditions: all of it says more than none of it.
        true => line.split_whitespace().collect::<Vec<_>>().join(" "),
        false => sentence,
    }
}

/// What stands between two words of a line.
pub(super) fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inner, _)| inner)
}
