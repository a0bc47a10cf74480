//! The gate on latency: is a model slower than a baseline by more than is allowed?

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BenchError;
use super::machine::Machine;
use super::measured::Measured;
use super::report::BenchReport;
use super::stats::Ratio;
use crate::setting::JSON;
use crate::shapes::Point;

/// What latencies are held against.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// A model or bundle, which is measured in the same run: the surest. Or a file that `kiln bench --json` printed before.
    pub path: PathBuf,
    /// How much slower a model may be: 0.05 is 5 %.
    pub allowed: f64,
}

/// The verdicts on all models at all points.
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

/// The verdict on one model at one point.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Judged {
    pub model: String,
    pub sizes: Point,
    #[serde(flatten)]
    pub found: Slower,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    /// The noise is larger than what is to be told apart.
    Unclear,
    /// The baseline has no such model or point.
    NotRun,
}

impl Baseline {
    /// Whether it is measured in the same run.
    pub fn is_model(&self) -> bool {
        self.path.is_dir() || self.path.extension().is_none_or(|e| e != "json")
    }

    pub(super) fn open(&self, machine: &Machine) -> Result<Opened, BenchError> {
        let saved = match self.is_model() {
            true => None,
            false => Some(Saved::read(&self.path)?),
        };
        Ok(Opened {
            gate: Gate {
                baseline: self.path.display().to_string(),
                allowed: self.allowed,
                same_run: saved.is_none(),
                machine: saved
                    .as_ref()
                    .map_or(1.0, |s| machine.gflops / s.machine.gflops),
                points: Vec::new(),
            },
            saved,
        })
    }
}

/// A baseline that was read.
#[derive(Debug)]
pub(super) struct Opened {
    pub gate: Gate,
    saved: Option<Saved>,
}

/// What a gate needs of a saved [`Benchmark`](super::Benchmark).
#[derive(Debug, Deserialize)]
struct Saved {
    machine: Machine,
    #[serde(default)]
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
    sizes: Point,
    measured: SavedReport,
}

#[derive(Debug, Deserialize)]
struct SavedReport {
    subjects: Vec<SavedSubject>,
}

#[derive(Debug, Deserialize)]
struct SavedSubject {
    name: String,
    samples: Vec<u64>,
}

impl Saved {
    fn read(path: &Path) -> Result<Saved, BenchError> {
        let fail = |reason: String| BenchError::Baseline {
            path: path.to_path_buf(),
            reason,
        };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let saved: Saved = serde_json::from_slice(&text)
            .map_err(|e| fail(format!("it is not what `kiln bench {JSON}` prints: {e}")))?;
        match saved.machine.gflops > 0.0 {
            true => Ok(saved),
            false => Err(fail("its machine has no speed".into())),
        }
    }

    /// The samples of a model at a point; of the only model, if there is one, whatever its name. Names depend on the models
    /// beside, so that the path finds a model that was called otherwise.
    fn samples(&self, sizes: &Point, name: &str, path: Option<&str>) -> Option<&[u64]> {
        let point = self.points.iter().find(|p| p.sizes == *sizes)?;
        let called = |name: &str| point.measured.subjects.iter().find(|s| s.name == name);
        let moved = || self.models.iter().find(|m| Some(m.path.as_str()) == path);
        let found = match &point.measured.subjects[..] {
            [only] => Some(only),
            _ => called(name).or_else(|| called(&moved()?.name)),
        };
        found.map(|s| &s.samples[..]).filter(|s| !s.is_empty())
    }
}

impl Opened {
    /// The verdicts on every model of one measurement.
    pub fn judge(&self, sizes: &Point, measured: &BenchReport, models: &[Measured]) -> Vec<Judged> {
        let mut subjects = measured.subjects.iter();
        let first = match self.saved {
            Some(_) => None,
            None => subjects.next(),
        };
        subjects
            .map(|s| {
                let base = match (&self.saved, first) {
                    (Some(saved), _) => {
                        let model = models.iter().find(|m| m.name == s.name);
                        saved.samples(sizes, &s.name, model.map(|m| m.path.as_str()))
                    }
                    (None, first) => first.map(|f| &f.samples[..]),
                };
                let ratio = base.map(|b| Ratio::of(("", b), (&s.name, &s.samples)));
                self.judged(&s.name, sizes, ratio)
            })
            .collect()
    }

    fn judged(&self, model: &str, sizes: &Point, ratio: Option<Ratio>) -> Judged {
        Judged {
            model: model.to_string(),
            sizes: sizes.clone(),
            found: Slower::by(ratio.as_ref(), self.gate.machine, self.gate.allowed),
        }
    }
}

/// How much slower a model is than a baseline, and what follows.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Slower {
    /// 0.1 is 10 %. `null` if the baseline has nothing to compare with.
    pub slower: Option<f64>,
    /// Where that is with 95 %, and whatever the machine's speed has to do with it.
    pub between: Option<(f64, f64)>,
    pub verdict: Verdict,
}

impl Slower {
    /// By a ratio that was measured on a machine that is as many times as fast as the baseline's.
    pub fn by(ratio: Option<&Ratio>, machine: f64, allowed: f64) -> Slower {
        // A machine that is twice as fast may hide a model that is half as fast.
        let (least, most) = (machine.min(1.0), machine.max(1.0));
        let between = ratio.and_then(|r| {
            let interval = r.interval?;
            Some((least / interval.high - 1.0, most / interval.low - 1.0))
        });
        let verdict = match (ratio, between) {
            (None, _) => Verdict::NotRun,
            (_, Some((_, most))) if most <= allowed => Verdict::Pass,
            (_, Some((least, _))) if least > allowed => Verdict::Fail,
            _ => Verdict::Unclear,
        };
        Slower {
            slower: ratio.map(|r| 1.0 / r.speedup - 1.0),
            between,
            verdict,
        }
    }

    /// What was found, in words; `what` was timed.
    pub fn why(&self, what: &str) -> String {
        let percent = |v: f64| format!("{:+.1} %", 100.0 * v);
        match (self.slower, self.between) {
            (None, _) => "the baseline has no such model at these sizes".into(),
            (Some(slower), None) => format!("{} in too few runs to tell", percent(slower)),
            (Some(slower), Some((least, most))) => {
                let doubt = match self.verdict {
                    Verdict::Unclear => ": the machine is too noisy to tell",
                    _ => "",
                };
                let (least, most) = (percent(least), percent(most));
                format!("{what} {} ({least} to {most}){doubt}", percent(slower))
            }
        }
    }
}

impl Judged {
    pub fn is_unclear(&self) -> bool {
        self.found.verdict == Verdict::Unclear
    }

    /// What was found, in words.
    pub fn why(&self) -> String {
        self.found.why("latency")
    }
}

impl Gate {
    pub fn failed(&self) -> bool {
        self.points.iter().any(|p| p.found.verdict == Verdict::Fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(machine: f64, base: &[u64]) -> Opened {
        Opened {
            gate: Gate {
                baseline: "b.json".into(),
                allowed: 0.05,
                machine,
                same_run: false,
                points: Vec::new(),
            },
            saved: Some(Saved {
                machine: Machine {
                    gflops: 1.0,
                    gbytes: 1.0,
                },
                models: Vec::new(),
                points: vec![SavedPoint {
                    sizes: Point::new(),
                    measured: SavedReport {
                        subjects: vec![SavedSubject {
                            name: "m".into(),
                            samples: base.to_vec(),
                        }],
                    },
                }],
            }),
        }
    }

    fn verdict(machine: f64, base: &[u64], now: &[u64]) -> Verdict {
        let opened = opened(machine, base);
        let saved = opened.saved.as_ref().unwrap();
        let base = saved.samples(&Point::new(), "other", None);
        let ratio = base.map(|b| Ratio::of(("", b), ("m", now)));
        opened.judged("m", &Point::new(), ratio).found.verdict
    }

    #[test]
    fn noise_and_the_machine_make_a_verdict_unclear() {
        let steady = [100u64; 40];
        assert_eq!(verdict(1.0, &steady, &[104; 40]), Verdict::Pass);
        assert_eq!(verdict(1.0, &steady, &[120; 40]), Verdict::Fail);
        let noisy: Vec<u64> = (0..40).map(|k| if k % 2 == 0 { 90 } else { 130 }).collect();
        assert_eq!(verdict(1.0, &steady, &noisy), Verdict::Unclear);
        assert_eq!(
            verdict(1.0, &steady, &[104; 3]),
            Verdict::Unclear,
            "too few"
        );
        // This machine is faster by a third, or slower by a third.
        assert_eq!(verdict(1.33, &steady, &[100; 40]), Verdict::Unclear);
        assert_eq!(verdict(0.75, &steady, &[120; 40]), Verdict::Unclear);
        assert_eq!(verdict(0.75, &steady, &[150; 40]), Verdict::Fail);
        assert_eq!(verdict(1.33, &steady, &[70; 40]), Verdict::Pass);
    }

    #[test]
    fn what_the_baseline_does_not_have_was_not_run() {
        let opened = opened(1.0, &[100; 40]);
        let saved = opened.saved.as_ref().unwrap();
        let sizes = Point::from([("batch".to_string(), 8)]);
        assert!(saved.samples(&sizes, "m", None).is_none());
        let judged = opened.judged("m", &sizes, None);
        assert_eq!(judged.found.verdict, Verdict::NotRun);
        assert!(judged.why().contains("no such model"));
    }
}
