//! Decoders with a cache: tokens of the device against the CPU's, and the time between them.

use kiln_graph::onnx;
use serde_json::Value;

use super::record::Outcome;
use super::{Failed, Row, Work};
use crate::generate::Ports;
use crate::talk::Talk;

/// Tokens of the prompt, and new ones.
const PROMPT: &str = "5,9,3,2,7,1,4,8";

const NEW: &str = "16";

impl Work<'_> {
    /// Rows of a decoder that runs alone; none of another model.
    pub(super) fn generations(&self, talk: &dyn Talk) -> Vec<Row> {
        let graph = onnx::read(&self.subject.path).map(|model| model.graph);
        let ports = graph.ok().and_then(|graph| Ports::of(&graph).ok());
        let alone = |p: &Ports| !p.caches.is_empty() && p.given().next().is_none();
        if !ports.is_some_and(|p| alone(&p)) {
            return Vec::new();
        }
        talk.stage(&format!("{}, tokens", self.subject.name));
        let original = self.subject.path.display().to_string();
        let half = self.bundle("fp16").display().to_string();
        let engine = self.bundle("engine").display().to_string();
        let right = self.generated(&original, &["--device", "cpu"]);
        let on = ["--device", &self.device];
        let mut rows = Vec::new();
        for (runner, precision, model, more) in [
            ("ONNX Runtime", "fp32", &original, &on[..]),
            ("kiln, ONNX Runtime", "fp16", &half, &on[..]),
            (crate::engine::LIBRARY, "fp16", &engine, &["--engine"][..]),
        ] {
            let row = Row::new(&self.subject.name, &format!("{runner}, a token"), precision);
            let found = self.generated(model, more);
            rows.push(match (&right, found) {
                (Err(why), _) => row.failed(why),
                (_, Err(why)) => row.failed(&why),
                (Ok((tokens, _)), Ok((found, between))) => Row {
                    p50_ms: between,
                    throughput: between.map(|ms| 1e3 / ms),
                    // In FP16 the first two choices of random weights may change places.
                    parity: (precision == "fp32").then(|| Outcome {
                        pass: *tokens == found,
                        tolerance: "the CPU's tokens".into(),
                        cosine: None,
                    }),
                    ..row
                },
            });
        }
        rows
    }

    /// The tokens, and the median of the milliseconds between them.
    fn generated(&self, model: &str, more: &[&str]) -> Result<(Value, Option<f64>), Failed> {
        let args = [
            "generate", model, "--ids", PROMPT, "--new", NEW, "--json", "--quiet",
        ];
        let found: Value = self.steps.kiln(&[&args[..], more].concat()).json()?;
        let between = found["between_seconds"].as_array();
        let mut between: Vec<f64> = between
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        between.sort_by(f64::total_cmp);
        let median = between.get(between.len() / 2).map(|seconds| seconds * 1e3);
        Ok((found["tokens"].clone(), median))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Ran, Request, Steps, Subject};
    use super::*;
    use crate::talk::Silent;

    /// Gives a token behind each prompt; engines have no GPU.
    struct Told;

    impl Steps for Told {
        fn kiln(&self, args: &[&str]) -> Ran {
            let engine = args.contains(&"--engine");
            let told =
                serde_json::json!({"tokens": [[7, 7]], "between_seconds": [0.003, 0.001, 0.002]});
            Ran {
                code: Some(if engine { 5 } else { 0 }),
                late: false,
                stdout: told.to_string(),
                stderr: "kiln: no CUDA device\n".into(),
            }
        }

        fn python(&self, _: &Path, _: &str, _: &[String]) -> Ran {
            self.kiln(&["--engine"])
        }
    }

    #[test]
    fn decoders_have_rows_of_their_tokens() {
        let request = Request {
            models: None,
            results: "results".into(),
            work: "work".into(),
            dry_run: false,
            device: 0,
            python: None,
            ort_lib: None,
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let subject = |file: &str| Subject {
            name: "a decoder".into(),
            path: folder.join(file),
            sizes: None,
        };
        let decoder = subject("generation/decoder.growing.onnx");
        let rows = Work::of(&request, &decoder, &Told).generations(&Silent);
        let told: Vec<_> = rows
            .iter()
            .map(|r| {
                (
                    r.p50_ms,
                    r.parity.as_ref().map(|p| p.pass),
                    r.not_run.is_some(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (Some(2.0), Some(true), false),
                (Some(2.0), None, false),
                (None, None, true)
            ]
        );
        let encoder = subject("models/bert-tiny.ts.eager.opset11.onnx");
        assert!(
            Work::of(&request, &encoder, &Told)
                .generations(&Silent)
                .is_empty()
        );
    }
}
