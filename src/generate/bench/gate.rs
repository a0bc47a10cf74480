//! The gate on the times of a generation.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::size::Size;
use crate::bench::baseline::{Slower, Verdict};
use crate::bench::{Machine, Ratio};
use crate::generate::error::GenerateError;
use crate::setting::JSON;

/// The verdicts on all models at all sizes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Gate {
    pub baseline: String,
    pub allowed: f64,
    /// The speed of this machine over that of the baseline's, by the same product; 1 in the same run.
    pub machine: f64,
    /// Whether the baseline was measured in the same run, as the first of the models.
    pub same_run: bool,
    pub points: Vec<Judged>,
}

/// The verdict on one time of one model at one size.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Judged {
    pub model: String,
    #[serde(flatten)]
    pub size: Size,
    /// `time to first token` or `time between tokens`.
    pub what: String,
    #[serde(flatten)]
    pub found: Slower,
}

impl Judged {
    /// What was found, in words.
    pub fn why(&self) -> String {
        self.found.why(&self.what)
    }
}

impl Gate {
    pub fn failed(&self) -> bool {
        self.points.iter().any(|p| p.found.verdict == Verdict::Fail)
    }

    /// The verdicts on one model by nanoseconds to the first token and between tokens.
    pub(super) fn judge(
        &mut self,
        model: &str,
        size: Size,
        found: [&[u64]; 2],
        baseline: Option<[&[u64]; 2]>,
    ) {
        let whats = ["time to first token", "time between tokens"];
        for (k, what) in whats.into_iter().enumerate() {
            if found[k].is_empty() {
                continue;
            }
            let base = baseline.map(|b| b[k]).filter(|b| !b.is_empty());
            let ratio = base.map(|b| Ratio::of(("", b), (model, found[k])));
            self.points.push(Judged {
                model: model.to_string(),
                size,
                what: what.into(),
                found: Slower::by(ratio.as_ref(), self.machine, self.allowed),
            });
        }
    }
}

/// What a gate needs of a saved benchmark.
#[derive(Debug, Deserialize)]
pub(super) struct Saved {
    pub machine: Machine,
    models: Vec<SavedModel>,
    points: Vec<SavedPoint>,
}

#[derive(Debug, Deserialize)]
struct SavedModel {
    name: String,
    path: String,
}

#[derive(Debug, Deserialize)]
struct SavedPoint {
    #[serde(flatten)]
    size: Size,
    sides: Vec<SavedSide>,
}

#[derive(Debug, Deserialize)]
struct SavedSide {
    name: String,
    first_ns: Vec<u64>,
    between_ns: Vec<u64>,
}

impl Saved {
    pub fn read(path: &Path) -> Result<Saved, GenerateError> {
        let fail = |why: String| GenerateError::Usage {
            what: format!("{}: {why}", path.display()),
        };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let saved: Saved = serde_json::from_slice(&text).map_err(|e| {
            fail(format!(
                "it is not what a benchmark of a generation prints with {JSON}: {e}"
            ))
        })?;
        match saved.machine.gflops > 0.0 {
            true => Ok(saved),
            false => Err(fail("its machine has no speed".into())),
        }
    }

    /// The times of a model at a size; of the only model, if there is one, whatever its name.
    pub fn times(&self, size: Size, name: &str, path: &str) -> Option<[&[u64]; 2]> {
        let point = self.points.iter().find(|p| p.size == size)?;
        let called = |name: &str| point.sides.iter().find(|s| s.name == name);
        let moved = || self.models.iter().find(|m| m.path == path);
        let found = match &point.sides[..] {
            [only] => Some(only),
            _ => called(name).or_else(|| called(&moved()?.name)),
        };
        found.map(|s| [&s.first_ns[..], &s.between_ns[..]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_verdict() {
        let mut gate = Gate {
            baseline: "b".into(),
            allowed: 0.05,
            machine: 1.0,
            same_run: true,
            points: Vec::new(),
        };
        let size = Size { prompt: 4, new: 9 };
        let base = [&[100u64; 9][..], &[10; 40]];
        gate.judge("m", size, [&[101; 9], &[20; 40]], Some(base));
        let verdicts: Vec<Verdict> = gate.points.iter().map(|p| p.found.verdict).collect();
        assert_eq!(verdicts, [Verdict::Pass, Verdict::Fail]);
        assert!(gate.points[1].why().starts_with("time between tokens +100"));
        // Five repetitions are too few for a verdict on the first token.
        gate.judge("m", size, [&[500; 5], &[]], Some(base));
        assert_eq!(gate.points[2].found.verdict, Verdict::Unclear);
        gate.judge("m", size, [&[500; 9], &[]], None);
        assert_eq!(gate.points[3].found.verdict, Verdict::NotRun);
    }
}
