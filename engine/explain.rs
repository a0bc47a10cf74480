//! TensorRT's sentences, freed of its source positions. The texts are those of TensorRT for RTX 1.7; one that is not known
//! is passed on as it came.

use super::log::{LogLine, Severity, between, clean};
use super::{BuildFailure, ParseFailure};

/// What the parser hands out about an error.
pub(super) struct RawFailure {
    pub(super) index: Option<usize>,
    pub(super) node: Option<String>,
    pub(super) op: Option<String>,
    pub(super) text: String,
}

impl RawFailure {
    /// An error that belongs to no node.
    pub(super) fn of_model(text: &str) -> Self {
        Self {
            index: None,
            node: None,
            op: None,
            text: text.to_owned(),
        }
    }
}

/// Reads a parser error. What kept an initializer from being read stands in the log only.
pub(super) fn parse_failure(raw: RawFailure, log: &[LogLine]) -> ParseFailure {
    let RawFailure {
        index,
        node,
        op,
        text,
    } = raw;
    let no_plugin = [
        "Plugin not found",
        "plugin was not found",
        "was not found in plugin registry",
    ];
    let unknown_op =
        op.is_some() && (text == "false" || no_plugin.iter().any(|t| text.contains(t)));
    let reason = if unknown_op {
        "TensorRT has no implementation of this op".to_owned()
    } else if text.contains("ParseFromCodedStream") {
        "the bytes are not an ONNX model, or are truncated".to_owned()
    } else if text.contains("Failed to import initializer") {
        initializer_failure(&text, log)
    } else {
        let all: Vec<_> = text.lines().filter(|l| !is_noise(l)).collect();
        let telling: Vec<_> = all
            .iter()
            .filter(|l| !l.starts_with("Invalid Node"))
            .collect();
        match telling.as_slice() {
            [] => "the node is invalid".to_owned(),
            lines => {
                let sentences: Vec<_> = lines.iter().map(|l| clean(l)).collect();
                without_prefix(&sentences.join("; "), node.as_deref())
            }
        }
    };
    ParseFailure {
        index,
        node,
        op,
        reason,
        unknown_op,
    }
}

/// Some sentences begin with the name of the node, which stands beside them anyway.
fn without_prefix(reason: &str, node: Option<&str>) -> String {
    node.and_then(|node| reason.strip_prefix(node)?.strip_prefix(": "))
        .unwrap_or(reason)
        .to_owned()
}

fn initializer_failure(text: &str, log: &[LogLine]) -> String {
    let (_, name) = text
        .rsplit_once("Failed to import initializer: ")
        .unwrap_or(("", text));
    let cause = log
        .iter()
        .rev()
        .find_map(|l| l.text.strip_prefix("WeightsContext.cpp:")?.split_once(": "));
    match cause {
        Some((_, cause)) => format!("initializer `{name}` cannot be read: {cause}"),
        None => format!("initializer cannot be read: {name}"),
    }
}

/// The errors in a log, as reasons for a failed build; the warnings where there is no error. A reason is never empty.
pub(super) fn build_failures(log: &[LogLine]) -> Vec<BuildFailure> {
    let errors = || log.iter().filter(|l| l.severity > Severity::Warning);
    let telling = |l: &&LogLine| !is_noise(&l.text);
    let told: Vec<_> = errors().filter(telling).map(build_failure).collect();
    if !told.is_empty() {
        return told;
    }
    match errors().next() {
        Some(_) => errors().map(build_failure).collect(),
        None => log.iter().map(build_failure).collect(),
    }
}

/// TensorRT only warns where the graph cannot keep the smallest or largest sizes of a profile. Such an engine fails at
/// sizes it was asked to serve.
pub(super) fn broken_profiles(log: &[LogLine]) -> Vec<BuildFailure> {
    log.iter()
        .filter(|l| l.text.contains("values are not self-consistent"))
        .map(build_failure)
        .collect()
}

fn build_failure(line: &LogLine) -> BuildFailure {
    let reason = clean(&line.text);
    let node =
        between(&reason, "operation '", "'").or_else(|| between(&reason, "IShuffleLayer ", ": "));
    BuildFailure {
        node: node.map(str::to_owned),
        reason,
    }
}

/// The warnings in a log that tell something. The reminder to bind INT64 tensors as INT64 does not: the dtypes of inputs
/// and outputs say it better.
pub(super) fn warnings(log: &[LogLine]) -> Vec<LogLine> {
    log.iter()
        .filter(|l| !(l.text.contains("Make sure ") && l.text.ends_with(" binding.")))
        .filter(|l| !is_noise(&l.text))
        .map(|l| LogLine {
            text: clean(&l.text),
            ..l.clone()
        })
        .collect()
}

/// On a machine without a GPU, TensorRT adds this line to whatever else is wrong.
fn is_noise(text: &str) -> bool {
    text.contains("catchCudaError")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_freed_of_its_source_positions() {
        let cases = [
            (
                "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] \
                 Cannot compile operation 'node_MatMul_66' for Turing (SM75): FP32 GEMM is not supported. In compileGraph \
                 at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
                "Cannot compile operation 'node_MatMul_66' for Turing (SM75): FP32 GEMM is not supported.",
            ),
            (
                "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Dynamic input tensor attention_mask is \
                 missing dimensions in profile 0. In validate at /_src/optimizer/api/network.cpp:4046)",
                "Dynamic input tensor attention_mask is missing dimensions in profile 0.",
            ),
            (
                "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (In generateForCurrent at \
                 /_src/runtime/core/cudaDeviceProfile.cpp:221 (cudaError 35: CUDA driver version is insufficient for \
                 CUDA runtime version))",
                "CUDA error 35: CUDA driver version is insufficient for CUDA runtime version",
            ),
            (
                "ModelImporter.cpp:1231: TensorRT supports ONNX graphs generated with at least opset 7.",
                "TensorRT supports ONNX graphs generated with at least opset 7.",
            ),
            (
                "Assertion failed: (axis >= 0 && axis <= nbDims): Axis must be in the range [0, nbDims (2)]. Provided \
                 axis is: 77",
                "Axis must be in the range [0, nbDims (2)]. Provided axis is: 77",
            ),
            (
                "softcap == 0.0 && \"Setting softcap is not supported in TensorRT Attention.\"",
                "Setting softcap is not supported in TensorRT Attention.",
            ),
            ("a sentence nobody has seen", "a sentence nobody has seen"),
            ("", ""),
        ];
        for (line, sentence) in cases {
            assert_eq!(clean(line), sentence);
        }
    }

    #[test]
    fn the_check_of_attention_is_freed_of_its_condition() {
        let reason = clean(
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] \
             MyelinCheckException: decompose_composite_ops.cpp:59: CHECK(composite_op->is_decomposable()) failed. \
             Attention operation was not supported by a dedicated kernel.)",
        );
        assert_eq!(
            reason,
            "Attention operation was not supported by a dedicated kernel."
        );
    }

    #[test]
    fn a_reason_is_never_empty() {
        let line = "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] \
             MyelinCheckException: convolution_common.cpp:27: CHECK(nbdims_bias == 4 || nbdims_bias == 5) failed.  In \
             compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)";
        assert_eq!(
            clean(line),
            "its check (nbdims_bias == 4 || nbdims_bias == 5) failed"
        );
        for bare in ["x.cpp:1: ", "CHECK() failed. ", "[x.cpp:3: f] "] {
            assert!(!clean(bare).is_empty(), "{bare}");
        }
        let warning = LogLine {
            severity: Severity::Warning,
            text: "it is odd".into(),
            count: 1,
        };
        assert_eq!(build_failures(&[warning])[0].reason, "it is odd");
    }

    #[test]
    fn the_noise_of_a_missing_gpu_hides_no_reason() {
        let line = |text: &str| LogLine {
            severity: Severity::Error,
            text: text.to_owned(),
            count: 1,
        };
        let noise = line(
            "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/x.cpp:250 \
             (cudaError 35: CUDA driver version is insufficient))",
        );
        let reason =
            line("IBuilder::x: Error Code 4: API Usage Error (It is so. In f at /_src/y.cpp:1)");
        let both = build_failures(&[noise.clone(), reason]);
        assert_eq!(both.len(), 1);
        assert_eq!(both[0].reason, "It is so.");
        assert_eq!(build_failures(&[noise]).len(), 1);
    }
}
