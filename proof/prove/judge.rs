//! Judging one candidate: at every case, above the noise of the reference, and by what that proves.

use kiln_graph::{Model, Tensor};

use super::Error;
use super::Reference;
use super::evidence::{ATTEMPTS, At, FEW};
use super::margin;
use super::noise::{self, Noise, PERTURBED, PERTURBED_STEPS};
use super::ports;
use super::sessions::{seated, stand_in};
use crate::made::{self, TYPICAL};
use crate::parity::{
    self, Case, CaseReport, Comparison, ParityError, Side, Tolerance, Traits, Unproved,
};
use kiln_runtime::Session;
use kiln_runtime::talk::Talk;

pub(super) type Candidates<'a> = dyn FnMut(&Case) -> Result<Vec<(String, Tensor)>, Error> + 'a;

type Named = Vec<(String, Tensor)>;

impl Reference {
    /// Runs the reference at the cases, and looks for further ones, while no candidate takes memory. With `half_io`, inputs wait for
    /// the types of the candidate.
    ///
    /// # Errors
    /// When the reference does not run.
    pub(super) fn ready(&mut self, only: Option<&str>, talk: &dyn Talk) -> Result<(), Error> {
        if self.half_io {
            return Ok(());
        }
        let count = self.cases.len();
        for place in 0..count {
            let case = &self.cases[place];
            let wanted = only.is_none_or(|name| name == case.name);
            if wanted && !self.original.forgets(&case.inputs) {
                let case = case.clone();
                talk.done(place, 2 * count);
                self.expected_at(place, &case)?;
            }
        }
        if only.is_none() && (0..self.cases.len()).all(|k| self.learned.contains(&k)) {
            for place in self.look_further() {
                let case = self.cases[place].clone();
                self.expected_at(place, &case)?;
            }
        }
        self.original.close();
        Ok(())
    }

    /// # Errors
    /// When the reference or the candidate does not run.
    pub(super) fn judge_by(
        &mut self,
        candidate: &mut Candidates<'_>,
        only: Option<&str>,
        tolerance: &Tolerance,
        talk: &dyn Talk,
    ) -> Result<parity::Report, Error> {
        let wanted = |c: &Case| only.is_none_or(|name| name == c.name);
        let mut places: Vec<usize> = (0..self.cases.len())
            .filter(|&k| wanted(&self.cases[k]))
            .collect();
        let mut cases = Vec::new();
        for (done, &place) in places.iter().enumerate() {
            // The reference ran at each before.
            talk.done(places.len() + done, 2 * places.len());
            cases.push(self.judge_case(place, candidate, tolerance)?);
        }
        if only.is_none() {
            for place in self.look_further() {
                cases.push(self.judge_case(place, candidate, tolerance)?);
                places.push(place);
            }
            self.evidence.mark(&mut cases, &places);
        }
        Ok(parity::Report {
            tolerance: tolerance.clone(),
            cases,
        })
    }

    fn judge_case(
        &mut self,
        place: usize,
        candidate: &mut Candidates<'_>,
        tolerance: &Tolerance,
    ) -> Result<CaseReport, Error> {
        let given = ports::given(&self.cases[place].inputs, &self.asked);
        let with = |inputs| Case {
            name: self.cases[place].name.clone(),
            inputs,
        };
        let (ours, theirs) = (with(given.reference), with(given.candidate));
        let expected = self.expected_at(place, &ours)?;
        let mut found = candidate(&theirs)?;
        self.original.tally.result();
        let changed = match self.half_io {
            true => ports::alike(&mut found, &expected),
            false => Vec::new(),
        };
        let mut report =
            parity::compare_outputs(&ours.name, &ours.inputs, &expected, &found, tolerance);
        for (name, dtype) in changed {
            let output = report.outputs.iter_mut().find(|o| o.name == name);
            if let Some(output) = output {
                output.became = Some(dtype.to_string());
            }
        }
        self.weigh_decisions(&ours, &expected, &found, &mut report, tolerance);
        for output in report.outputs.iter_mut().filter(|o| o.failed()) {
            if !tolerance.is_given(&output.name) {
                output.forgive_below(self.evidence.largest(&output.name));
            }
        }
        let compared = |c: &Comparison| matches!(c, Comparison::Compared { .. });
        let fails = (report.outputs.iter()).any(|o| o.failed() && compared(&o.comparison));
        // Where steps are taken, what passed here may not pass elsewhere. The other made sizes say no more.
        let telling = ours.name == TYPICAL || !self.made.contains(&ours.name);
        if fails || self.quantized && telling {
            self.above_noise(place, &ours, &expected, &mut report, tolerance);
        }
        Ok(report)
    }

    /// The reference's outputs at a case.
    fn expected_at(&mut self, place: usize, case: &Case) -> Result<Named, Error> {
        let run = self.original.run(&case.inputs);
        let outputs = run.map_err(|source| ParityError::Run {
            case: case.name.clone(),
            side: Side::Reference,
            source,
        })?;
        if self.learned.insert(place) {
            self.evidence.learn(place, case, &outputs);
        }
        Ok(outputs)
    }

    /// Runs the reference on other inputs, where the cases have not shown that its outputs depend on them. Gives the places
    /// of cases that were added because they do.
    fn look_further(&mut self) -> Vec<usize> {
        let mut added = Vec::new();
        if std::mem::replace(&mut self.evidence.tried, true) {
            return added;
        }
        let elements = |c: &Case| c.inputs.iter().map(|(_, t)| t.len()).sum::<usize>();
        let smallest = self.cases.iter().min_by_key(|c| elements(c)).cloned();
        let typical = self.typical().cloned();
        let few = self.cases.iter().filter(|c| elements(c) <= FEW);
        let largest = few.max_by_key(|c| elements(c)).cloned();
        for attempt in ATTEMPTS {
            if self.evidence.open().is_empty() {
                break;
            }
            let base = match attempt.at {
                At::Smallest => &smallest,
                At::Typical => &typical,
                At::Largest => &largest,
            };
            let Some(base) = base else { continue };
            let Some(inputs) = self.evidence.other(base, attempt) else {
                continue;
            };
            // What it does not run on shows nothing.
            let Ok(outputs) = self.original.run(&inputs) else {
                continue;
            };
            if self.evidence.learn_other(&inputs, &outputs) {
                added.push(self.add(&base.name, inputs));
            }
        }
        for place in 0..self.cases.len() {
            added.extend(self.look_for_numbers(place));
        }
        added
    }

    /// Other inputs for a case in which an output has no finite number, if the reference then has one.
    fn look_for_numbers(&mut self, place: usize) -> Option<usize> {
        let nothing = self.evidence.not_finite(place);
        if nothing.is_empty() {
            return None;
        }
        let base = self.cases[place].clone();
        for attempt in ATTEMPTS {
            let Some(inputs) = self.evidence.other(&base, attempt) else {
                continue;
            };
            let Ok(outputs) = self.original.run(&inputs) else {
                continue;
            };
            let mut found = outputs.iter().filter(|(n, _)| nothing.contains(n));
            if found.any(|(_, t)| Traits::of(t).finite) {
                return Some(self.add(&base.name, inputs));
            }
        }
        None
    }

    /// Another case of the same sizes; gives its place.
    fn add(&mut self, base: &str, inputs: Named) -> usize {
        let same = |c: &&Case| c.name.starts_with(base);
        let name = format!(
            "{base}, other inputs {}",
            self.cases.iter().filter(same).count()
        );
        self.made.push(name.clone());
        self.cases.push(Case { name, inputs });
        self.cases.len() - 1
    }

    /// Judges integers and bools that differ by how close the numbers were that decided them.
    fn weigh_decisions(
        &self,
        case: &Case,
        expected: &Named,
        found: &Named,
        report: &mut CaseReport,
        tolerance: &Tolerance,
    ) {
        for output in report.outputs.iter_mut().filter(|o| o.failed()) {
            let of = |side: &Named| {
                let found = side.iter().find(|(n, _)| *n == output.name);
                found
                    .map(|(_, t)| t.clone())
                    .filter(|t| !t.dtype().is_float())
            };
            let (Some(a), Some(b), Some(limit)) =
                (of(expected), of(found), tolerance.margin(&output.name))
            else {
                continue;
            };
            let margin = || {
                let decision = margin::decision(&self.original.model.graph, &output.name)?;
                let run = |model: &Model| self.run(model, &case.inputs, Side::Reference).ok();
                let operands = decision.operands(&self.original.model, &case.inputs, run)?;
                decision.margin(&operands, &a, &b, limit)
            };
            if let Some(margin) = margin() {
                output.excuse(margin);
            }
        }
    }

    /// Judges what failed again, above what the reference differs from itself at this case, and notes that of all outputs.
    fn above_noise(
        &mut self,
        place: usize,
        case: &Case,
        expected: &Named,
        report: &mut CaseReport,
        tolerance: &Tolerance,
    ) {
        if !self.noise.contains_key(&place) {
            let measured = self.measure_noise(case, expected, tolerance);
            self.noise.insert(place, measured);
        }
        let Some(noise) = self.noise.get(&place) else {
            return;
        };
        for output in &mut report.outputs {
            let Some(known) = noise.outputs.iter().find(|n| n.name == output.name) else {
                continue;
            };
            if !output.failed() {
                output.floor = Some(known.floor);
                continue;
            }
            output.raise(known.floor, tolerance);
            if let Some(difference) = known.random {
                output.unproved = Some(Unproved::Random { difference });
            } else if let Comparison::Compared { metrics, .. } = &output.comparison
                && known.floor.leaves_nothing(metrics, self.quantized)
                && !tolerance.is_given(&output.name)
            {
                output.unproved = Some(Unproved::Unstable {
                    difference: known.floor.relative_l2.max(known.floor.unequal),
                });
            }
        }
    }

    /// Runs the reference again, with its last bits changed, and as ONNX Runtime optimizes it.
    fn measure_noise(&mut self, case: &Case, expected: &Named, tolerance: &Tolerance) -> Noise {
        let mut noise = Noise::default();
        // What does not run says nothing.
        if let Ok(again) = self.original.again(&case.inputs) {
            noise.again(expected, &again, tolerance);
        }
        if noise.outputs.iter().all(|o| o.random.is_some()) {
            return noise;
        }
        let runs = match self.quantized {
            true => PERTURBED_STEPS,
            false => PERTURBED,
        };
        for seed in 1..=runs {
            let moved = Case {
                name: case.name.clone(),
                inputs: noise::perturbed_inputs(&case.inputs, seed),
            };
            let model = noise::perturbed(&self.original.model, seed);
            if let Ok(found) = self.run(&model, &moved.inputs, Side::Reference) {
                noise.add(expected, &found);
            }
        }
        let rounds = stand_in(&self.original.model, self.device.device).is_some();
        if !rounds && !self.quantized {
            let mut options = seated(self.device.device);
            options.watched = false;
            let (runtime, path) = (self.original.runtime, &self.original.path);
            let optimized = Session::from_path(runtime, path, &options);
            let fed = |s: &Session| made::fed(s.inputs(), &self.fixed, &case.inputs);
            self.original.tally.original();
            if let Ok(found) = optimized.and_then(|mut s| s.run(&fed(&s))) {
                noise.add(expected, &found);
            }
        }
        noise
    }
}
