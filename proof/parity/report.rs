use kiln_graph::{DType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::floor::Floor;
use super::limits::{Margin, Verdict};
use super::metrics::{Metrics, metrics};
use super::proof::{Outcome, Traits, Unproved};
use super::tolerance::Tolerance;

/// How a candidate compares with its reference, on every case.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct Report {
    pub tolerance: Tolerance,
    pub cases: Vec<CaseReport>,
}

/// One set of inputs.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct CaseReport {
    /// `smallest`, `typical`, `largest`, or the file the inputs came from.
    pub name: String,
    pub inputs: Vec<Port>,
    /// The outputs of the reference in its order, then those that only the candidate has.
    pub outputs: Vec<OutputReport>,
}

/// A tensor without its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
pub struct Port {
    pub name: String,
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    #[schemars(with = "String")]
    pub dtype: DType,
    pub shape: Vec<usize>,
}

fn as_text<S: serde::Serializer>(dtype: &DType, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(dtype)
}

fn from_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DType, D::Error> {
    let name = String::deserialize(from)?;
    DType::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown dtype {name}")))
}

#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct OutputReport {
    pub name: String,
    pub comparison: Comparison,
    /// Why the comparison proves nothing; `null` where it does.
    pub unproved: Option<Unproved>,
    /// How far the reference is from itself; `null` where nobody needed to know.
    pub floor: Option<Floor>,
    /// How close the decisions were that the candidate makes otherwise; `null` where none differ, or nothing is decided.
    pub margin: Option<Margin>,
    /// The type that the candidate has it in, where a change of types was asked for.
    pub became: Option<String>,
}

impl OutputReport {
    fn new(name: &str, comparison: Comparison) -> OutputReport {
        OutputReport {
            name: name.to_owned(),
            comparison,
            unproved: None,
            floor: None,
            margin: None,
            became: None,
        }
    }

    /// A difference counts whatever the comparison is worth, unless the reference differs from itself as much.
    pub fn outcome(&self) -> Outcome {
        match (&self.unproved, self.comparison.pass()) {
            (Some(Unproved::Random { .. } | Unproved::Unstable { .. }), _)
                if matches!(self.comparison, Comparison::Compared { .. }) =>
            {
                Outcome::NotProved
            }
            (_, false) => Outcome::Fails,
            (Some(_), true) => Outcome::NotProved,
            (None, true) => Outcome::Passes,
        }
    }

    pub fn failed(&self) -> bool {
        self.outcome() == Outcome::Fails
    }

    /// Judges again, by how close the decisions were that differ.
    pub fn excuse(&mut self, margin: Margin) {
        if let Comparison::Compared { verdict, .. } = &mut self.comparison {
            *verdict = verdict.clone().by(&margin);
        }
        self.margin = Some(margin);
    }

    /// Forgives differences that are less than the last bit of `largest`, the largest number that the output has at any case:
    /// zeros that the reference leaves as 1e-26.
    pub fn forgive_below(&mut self, largest: f64) {
        if let Comparison::Compared { metrics, verdict } = &mut self.comparison
            && let Some(float) = &metrics.float
            && float.nonfinite.differ == 0
            && float.max_abs <= largest * f64::from(f32::EPSILON / 2.0)
        {
            *verdict = verdict.clone().forgiven();
        }
    }

    /// Judges again, above what the reference differs from itself.
    pub fn raise(&mut self, floor: Floor, tolerance: &Tolerance) {
        if let Comparison::Compared { metrics, verdict } = &mut self.comparison {
            *verdict = tolerance.check_above(&self.name, metrics, Some(&floor));
        }
        self.floor = Some(floor);
    }
}

/// What became of one output.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Comparison {
    /// Both have it, of the same dtype and shape.
    Compared { metrics: Metrics, verdict: Verdict },
    /// The dtypes or shapes differ, so there is nothing to measure.
    Mismatch { reference: Port, candidate: Port },
    /// The candidate does not have it.
    Missing { reference: Port },
    /// Only the candidate has it.
    Extra { candidate: Port },
    /// Its dtype has no values to compare (complex), and the bits differ.
    Incomparable { reference: Port },
}

impl Comparison {
    pub fn pass(&self) -> bool {
        matches!(self, Comparison::Compared { verdict, .. } if verdict.pass)
    }
}

/// The output that is furthest from its reference.
#[derive(Clone, Copy, Debug)]
pub struct Worst<'r> {
    pub case: &'r CaseReport,
    pub output: &'r OutputReport,
}

impl Report {
    /// Of all outputs and cases. A failure counts before what is not proved; an output is proved where one case proves it, and none
    /// finds the reference random or unstable.
    /// Nothing compared is a failure.
    pub fn outcome(&self) -> Outcome {
        let empty = self.cases.is_empty() || self.cases.iter().any(|c| c.outputs.is_empty());
        match empty || self.cases.iter().any(CaseReport::failed) {
            true => Outcome::Fails,
            false if self.unproved().is_empty() => Outcome::Passes,
            false => Outcome::NotProved,
        }
    }

    /// Whether every output is within the tolerance at every case, and that proves something of each.
    pub fn pass(&self) -> bool {
        self.outcome() == Outcome::Passes
    }

    /// Whether an output is beyond the tolerance, or could not be compared.
    pub fn failed(&self) -> bool {
        self.outcome() == Outcome::Fails
    }

    /// The least cosine of all outputs of floats, in all cases.
    pub fn cosine(&self) -> Option<f64> {
        let outputs = self.cases.iter().flat_map(|c| &c.outputs);
        let floats = outputs.filter_map(|o| match &o.comparison {
            Comparison::Compared { metrics, .. } => metrics.float.as_ref(),
            _ => None,
        });
        floats.map(|f| f.cosine).reduce(f64::min)
    }

    /// Outputs of which no case proves anything, or that a case finds random or unstable, and why.
    pub fn unproved(&self) -> Vec<(&str, Unproved)> {
        let outputs = || self.cases.iter().flat_map(|c| &c.outputs);
        let proved = |name: &str, why: Unproved| {
            !why.is_of_the_reference() && outputs().any(|o| o.name == name && o.unproved.is_none())
        };
        let mut found: Vec<(&str, Unproved)> = Vec::new();
        for output in outputs() {
            if let Some(why) = output.unproved
                && !found.iter().any(|(name, _)| *name == output.name)
                && !proved(&output.name, why)
            {
                found.push((&output.name, why));
            }
        }
        found
    }

    /// The output that differs most from itself, and by how much, of those where the floor is large.
    pub fn amplified(&self) -> Option<(&str, Floor)> {
        let random = |o: &&OutputReport| matches!(o.unproved, Some(Unproved::Random { .. }));
        let outputs = self.cases.iter().flat_map(|c| &c.outputs);
        let outputs = outputs.filter(|o| !random(o));
        let large = outputs.filter_map(|o| Some((o.name.as_str(), o.floor?)));
        let large = large.filter(|(_, floor)| floor.is_large());
        large.max_by(|(_, a), (_, b)| a.relative_l2.total_cmp(&b.relative_l2))
    }

    /// The output that is furthest from its reference: one that could not be compared before one that failed, one
    /// that failed before one that passed, and then the one with the largest relative error.
    pub fn worst(&self) -> Option<Worst<'_>> {
        self.ranked().into_iter().next()
    }

    /// All outputs at all cases, the furthest from its reference first, as [`Report::worst`] orders them.
    pub fn ranked(&self) -> Vec<Worst<'_>> {
        let mut outputs = self.in_order();
        outputs.sort_by(|a, b| {
            let (a, b) = (badness(a.output), badness(b.output));
            b.0.cmp(&a.0).then(b.1.total_cmp(&a.1))
        });
        outputs
    }

    /// Each output once, at its worst case: the worst output first where the report fails, else in the reference's order.
    pub fn by_output(&self) -> Vec<Worst<'_>> {
        let unproved = self.unproved();
        let open = |o: &OutputReport| {
            o.unproved.is_some() && unproved.iter().any(|(name, _)| *name == o.name)
        };
        let mut ranked = self.ranked();
        // A case that proves nothing counts before one that passes.
        ranked.sort_by_key(|w| match (w.output.failed(), open(w.output)) {
            (true, _) => 0,
            (_, true) => 1,
            _ => 2,
        });
        let mut found: Vec<Worst<'_>> = Vec::new();
        for worst in ranked {
            if !found.iter().any(|f| f.output.name == worst.output.name) {
                found.push(worst);
            }
        }
        if !self.failed() {
            let order = self.in_order();
            let place = |w: &Worst<'_>| order.iter().position(|o| o.output.name == w.output.name);
            found.sort_by_cached_key(place);
        }
        found
    }

    /// All outputs at all cases, as they were compared.
    pub fn in_order(&self) -> Vec<Worst<'_>> {
        let outputs = self.cases.iter().flat_map(|case| {
            let outputs = case.outputs.iter();
            outputs.map(move |output| Worst { case, output })
        });
        outputs.collect()
    }
}

fn badness(output: &OutputReport) -> (u8, f64) {
    match &output.comparison {
        Comparison::Compared { metrics, .. } => {
            let fraction = metrics.unequal as f64 / metrics.elements.max(1) as f64;
            let error = metrics.float.as_ref().map_or(fraction, |f| f.relative_l2);
            (u8::from(output.failed()), error)
        }
        _ => (2, 0.),
    }
}

impl CaseReport {
    /// Whether an output is beyond the tolerance, or could not be compared.
    pub fn failed(&self) -> bool {
        self.outputs.iter().any(OutputReport::failed)
    }

    /// Whether every output is within the tolerance.
    pub fn pass(&self) -> bool {
        let passes = |o: &OutputReport| o.outcome() == Outcome::Passes;
        !self.outputs.is_empty() && self.outputs.iter().all(passes)
    }
}

fn port(name: &str, tensor: &Tensor) -> Port {
    Port {
        name: name.to_owned(),
        dtype: tensor.dtype(),
        shape: tensor.dims().to_vec(),
    }
}

/// Compares the outputs of two runs on the same inputs, by name.
pub fn compare_outputs(
    case: &str,
    inputs: &[(String, Tensor)],
    reference: &[(String, Tensor)],
    candidate: &[(String, Tensor)],
    tolerance: &Tolerance,
) -> CaseReport {
    let find = |name: &str| candidate.iter().find(|(n, _)| n == name);
    let mut outputs: Vec<OutputReport> = reference
        .iter()
        .map(|(name, tensor)| {
            let comparison = match find(name) {
                Some((_, other)) => compare_output(name, tensor, other, tolerance),
                None => Comparison::Missing {
                    reference: port(name, tensor),
                },
            };
            OutputReport::new(name, comparison)
        })
        .collect();
    let extra = candidate
        .iter()
        .filter(|(n, _)| !reference.iter().any(|(r, _)| r == n));
    outputs.extend(extra.map(|(name, tensor)| {
        let candidate = port(name, tensor);
        OutputReport::new(name, Comparison::Extra { candidate })
    }));
    CaseReport {
        name: case.to_owned(),
        inputs: inputs.iter().map(|(n, t)| port(n, t)).collect(),
        outputs,
    }
}

impl CaseReport {
    /// Marks what proves nothing by itself: outputs in which the reference has no finite number.
    pub fn mark(mut self, reference: &[(String, Tensor)]) -> CaseReport {
        for output in &mut self.outputs {
            let found = reference.iter().find(|(name, _)| *name == output.name);
            let nothing = found.is_some_and(|(_, t)| !t.is_empty() && !Traits::of(t).finite);
            if nothing {
                output.unproved = Some(Unproved::NotFinite);
            }
        }
        self
    }
}

fn compare_output(
    name: &str,
    reference: &Tensor,
    candidate: &Tensor,
    tolerance: &Tolerance,
) -> Comparison {
    if reference.dtype() != candidate.dtype() || reference.dims() != candidate.dims() {
        return Comparison::Mismatch {
            reference: port(name, reference),
            candidate: port(name, candidate),
        };
    }
    match metrics(reference, candidate) {
        Some(metrics) => Comparison::Compared {
            verdict: tolerance.check(name, &metrics),
            metrics,
        },
        None => Comparison::Incomparable {
            reference: port(name, reference),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tolerance() -> Tolerance {
        Tolerance::named("fp16").unwrap()
    }

    fn named(tensors: &[(&str, Tensor)]) -> Vec<(String, Tensor)> {
        tensors
            .iter()
            .map(|(n, t)| ((*n).to_owned(), t.clone()))
            .collect()
    }

    fn vector(v: [f32; 2]) -> Tensor {
        Tensor::vector(&v)
    }

    #[test]
    fn outputs_meet_by_name_whatever_their_order() {
        let reference = named(&[("a", vector([1., 2.])), ("b", vector([3., 4.]))]);
        let candidate = named(&[("b", vector([3., 4.])), ("a", vector([1., 2.]))]);
        let case = compare_outputs("typical", &reference, &reference, &candidate, &tolerance());
        assert!(case.pass());
        assert_eq!(case.inputs[0].shape, [2]);
    }

    #[test]
    fn what_cannot_be_compared_fails_and_is_named() {
        let reference = named(&[
            ("gone", vector([1., 2.])),
            ("longer", vector([1., 2.])),
            ("other", Tensor::vector(&[1i64])),
            ("same", Tensor::vector(&[1i64])),
        ]);
        let candidate = named(&[
            ("longer", Tensor::vector(&[1f32, 2., 3.])),
            ("other", Tensor::vector(&[1i32])),
            ("same", Tensor::vector(&[1i64])),
            ("new", vector([0., 0.])),
        ]);
        let case = compare_outputs("npz", &[], &reference, &candidate, &tolerance());
        let outcomes: Vec<_> = case
            .outputs
            .iter()
            .map(|o| {
                let json = serde_json::to_value(o).unwrap();
                let outcome = json["comparison"]["outcome"].as_str().unwrap().to_owned();
                (o.name.clone(), outcome, o.comparison.pass())
            })
            .collect();
        let expected = [
            ("gone", "missing", false),
            ("longer", "mismatch", false),
            ("other", "mismatch", false),
            ("same", "compared", true),
            ("new", "extra", false),
        ];
        let expected = expected.map(|(n, o, p)| (n.to_owned(), o.to_owned(), p));
        assert_eq!(outcomes, expected);
        assert!(!case.pass());
    }

    #[test]
    fn the_worst_is_what_could_not_be_compared_then_what_failed() {
        let reference = named(&[("a", vector([1., 1.])), ("b", vector([1., 1.]))]);
        let case = |name, b: Tensor| {
            let candidate = named(&[("a", vector([1., 1.0001])), ("b", b)]);
            compare_outputs(name, &[], &reference, &candidate, &tolerance())
        };
        let mut report = Report {
            tolerance: tolerance(),
            cases: vec![
                case("smallest", vector([1., 1.])),
                case("typical", vector([1., 2.])),
                case("largest", vector([1., 3.])),
                case("again", vector([1., 3.])),
            ],
        };
        let worst = |report: &Report| {
            let worst = report.worst().unwrap();
            (worst.case.name.clone(), worst.output.name.clone())
        };
        assert_eq!(worst(&report), ("largest".to_owned(), "b".to_owned()));
        report.cases.push(case("npz", Tensor::vector(&[1i64])));
        assert_eq!(worst(&report), ("npz".to_owned(), "b".to_owned()));
        report.cases.truncate(1);
        assert_eq!(worst(&report), ("smallest".to_owned(), "a".to_owned()));
        assert!(report.pass());
        report.cases.clear();
        assert!(report.worst().is_none() && !report.pass());
    }
}
