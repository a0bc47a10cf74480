//! The cases of a proof: real inputs and made ones, at the sizes at which the original runs on them.

mod rows;
mod ways;

use std::path::Path;

use kiln_graph::Tensor;

use crate::fixed::Fixed;
use crate::parity::{self, Case, InputSpec};
use crate::prove::{Error, Original, Request};
use crate::shapes::{self, Kinds, Point, Settled, Shapes, Wanted};
use kiln_runtime::talk::Talk;
use kiln_runtime::{self as runtime, TensorInfo};

pub(crate) use crate::fixed::fed;
use kiln_runtime::setting::{DIM, INPUT, INPUTS};
use rows::proved;
pub(crate) use ways::Apart;
use ways::{Way, written};

/// Tensors by the names of inputs or outputs.
type Named = Vec<(String, Tensor)>;

/// What a proof compares on.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub cases: Vec<Case>,
    /// The names of those that were made.
    pub made: Vec<String>,
    /// Items served at once at the typical sizes.
    pub batch: usize,
    /// What had to change, and what selects among ways of the model.
    pub warnings: Vec<String>,
    /// What to make, with the controls' values of the profile.
    pub kinds: Kinds,
    /// Whether a way of the model runs at no sizes that are known.
    unsettled: bool,
    /// Controls of which the result has the value of the real inputs alone.
    pub chosen: Fixed,
    /// What the largest sizes are proved by, if not by a run at them.
    pub parted: Option<String>,
}

pub(crate) const TYPICAL: &str = "typical";
/// Cases for what controls select beside the first; each runs both models once more.
const MOST_CHOICES: usize = 6;
/// Choices with which sizes are looked for, where the model does not run at the typical ones.
const MOST_SETTLED: usize = 4;

/// Inputs that are made for one model.
struct Maker<'a> {
    kinds: Kinds,
    fixed: &'a Fixed,
    seed: u64,
}

impl Maker<'_> {
    fn specs(&self, shapes: &Shapes, point: &Point) -> Vec<InputSpec> {
        self.kinds.specs(shapes, point)
    }

    fn make(&self, mut specs: Vec<InputSpec>) -> Result<Named, parity::InputError> {
        specs.retain(|s| self.fixed.get(&s.name).is_none());
        let mut inputs = parity::make(&specs, self.seed)?;
        self.fixed.complete(&mut inputs);
        Ok(inputs)
    }

    fn at(&self, shapes: &Shapes, point: &Point) -> Result<Named, parity::InputError> {
        self.make(self.specs(shapes, point))
    }

    /// Whether the model runs on what is made at a point; the error says why not.
    fn runs(&self, session: &mut Original, shapes: &Shapes, point: &Point) -> Result<(), String> {
        let inputs = self.at(shapes, point).map_err(|e| e.to_string())?;
        run(session, &inputs)
    }

    /// What controls may select instead: one of them changes in each.
    fn choices(&self) -> Vec<Choice> {
        let mut all = Vec::new();
        for (k, wanted) in self.kinds.0.iter().enumerate() {
            if self.fixed.get(&wanted.name).is_some() {
                continue;
            }
            for (at, other) in wanted.others.iter().enumerate() {
                let mut kinds = self.kinds.clone();
                let chosen = &mut kinds.0[k];
                let before = std::mem::replace(&mut chosen.kind, other.clone());
                chosen.others[at] = before;
                all.push(Choice {
                    name: format!("{}={}", wanted.name, written(wanted, other)),
                    input: wanted.name.clone(),
                    kinds,
                });
            }
        }
        all
    }

    /// Whether there is a control that nobody fixed.
    fn controls(&self) -> bool {
        let mut all = self.kinds.0.iter();
        all.any(|w| w.is_control() && self.fixed.get(&w.name).is_none())
    }

    /// An argument that selects what is computed selects the sizes that it runs at, too, which the graph tells once it is fixed.
    fn explained(&self, error: Error) -> Error {
        let free = |w: &&Wanted| w.is_control() && self.fixed.get(&w.name).is_none();
        let Some(control) = self.kinds.0.iter().find(free) else {
            return error;
        };
        match error {
            Error::Sizes { model, why } => Error::Sizes {
                model,
                why: format!(
                    "the input \"{0}\" selects what is computed, and with {INPUT} {0}={1} the graph tells the sizes of that: {why}",
                    control.name,
                    written(control, &control.kind)
                ),
            },
            other => other,
        }
    }

    /// Sentences on arguments that were made, and the values at which the proof is.
    fn remarks(&self, cases: &[String]) -> Vec<String> {
        let controls = self.kinds.0.iter().filter(|w| w.is_control());
        let free = controls.filter(|w| self.fixed.get(&w.name).is_none());
        free.map(|w| {
            let others = w.others.iter().map(|other| written(w, other));
            let tried = others.filter(|v| cases.contains(&format!("{}={v}", w.name)));
            let all: Vec<String> = std::iter::once(written(w, &w.kind)).chain(tried).collect();
            format!(
                "the input \"{0}\" is an argument, and made inputs have it {1}; fix it with {INPUT} {0}=VALUE, or give \
                 real inputs with {INPUTS}",
                w.name,
                all.join(" or ")
            )
        })
        .collect()
    }
}

/// Another value of a control.
struct Choice {
    /// `sr=8000`.
    name: String,
    input: String,
    kinds: Kinds,
}

fn run(session: &mut Original, inputs: &[(String, Tensor)]) -> Result<(), String> {
    session.run(inputs).map(drop).map_err(|e| match e {
        runtime::Error::Run { reason, .. } => reason,
        other => other.to_string(),
    })
}

/// Real inputs from a file; what is fixed need not be in it.
fn real(path: &Path, infos: &[TensorInfo], fixed: &Fixed) -> Result<Case, Error> {
    let mut npz = parity::Npz::open(path)?;
    let free: Vec<TensorInfo> = (infos.iter())
        .filter(|i| fixed.get(&i.name).is_none())
        .cloned()
        .collect();
    let mut inputs = parity::from_npz(&mut npz, &free)?;
    fixed.complete(&mut inputs);
    let name = path.file_name().unwrap_or_default();
    Ok(Case {
        name: name.to_string_lossy().into_owned(),
        inputs,
    })
}

/// Finds the sizes, which `shapes` shrinks to, and gathers the cases.
///
/// # Errors
/// When real inputs do not fit, when neither they nor made ones run, and when one profile is wanted and the model has none.
pub(crate) fn gather(
    request: &Request<'_>,
    session: &mut Original,
    shapes: &mut Shapes,
    talk: &dyn Talk,
) -> Result<Gathered, Error> {
    let mut maker = Maker {
        kinds: Kinds::of(&request.original.graph),
        fixed: request.fixed,
        seed: request.seed,
    };
    let given = request.inputs;
    let real = given.map(|path| real(path, session.inputs(), maker.fixed));
    let real = real.transpose()?;
    if let Some(real) = &real {
        ways::prefer(&mut maker.kinds, real);
    }
    let whole = shapes.clone();
    let found = settle(request, session, &mut maker, real.as_ref(), shapes);
    let mut out = Gathered {
        cases: real.iter().cloned().collect(),
        made: Vec::new(),
        batch: 1,
        warnings: Vec::new(),
        kinds: maker.kinds.clone(),
        unsettled: false,
        chosen: Fixed::default(),
        parted: None,
    };
    match (found, real) {
        (Ok(settled), real) => {
            out.warnings = settled.warnings;
            let apart = made(request, session, &maker, &whole, shapes, &mut out)?;
            if out.unsettled {
                // What it would take is not known, so nothing of the sizes is written into the model.
                shapes.open();
            }
            match apart.is_empty() {
                true => out.warnings.extend(maker.remarks(&out.made)),
                false => out.divide(request, &maker, &apart, real.as_ref(), shapes)?,
            }
        }
        (Err(why), Some(real)) => {
            // Only what runs on the real inputs may do without made ones.
            let ran = session.run(&real.inputs);
            ran.map_err(|source| parity::ParityError::Run {
                case: real.name.clone(),
                side: parity::Side::Reference,
                source,
            })?;
            shapes.hold(&real.inputs);
            let why = why.to_string();
            out.warnings.push(format!(
                "the original does not run on made inputs, so the proof is on {} alone, and the profile holds its sizes: {why}",
                real.name
            ));
            let point = shapes.points().pop().map(|(_, point)| point);
            out.batch = point.map_or(1, |p| shapes.batch(&p));
        }
        (Err(why), None) => return Err(maker.explained(why)),
    }
    for warning in &out.warnings {
        talk.warn(warning);
    }
    Ok(out)
}

/// Finds what the model runs on: the first choice of what controls select, else others, each at the sizes of what it
/// leaves of the model.
fn settle(
    request: &Request<'_>,
    session: &mut Original,
    maker: &mut Maker<'_>,
    real: Option<&Case>,
    shapes: &mut Shapes,
) -> Result<Settled, Error> {
    // What cannot be made at any size is no matter of sizes.
    maker.at(shapes, &typical(shapes))?;
    if !maker.controls() {
        let mut way = Way::of(request, &maker.kinds, shapes);
        let settled = attempt(request, session, maker, real, &mut way)?;
        return Ok(adopted(request, way, settled, shapes));
    }
    let mut failed = None;
    let first = maker.kinds.clone();
    let others = maker.choices().into_iter().map(|choice| choice.kinds);
    for kinds in std::iter::once(first.clone()).chain(others.take(MOST_SETTLED)) {
        let mut way = Way::of(request, &kinds, shapes);
        maker.kinds = kinds;
        match attempt(request, session, maker, real, &mut way) {
            Ok(settled) => return Ok(adopted(request, way, settled, shapes)),
            Err(why) => failed = failed.or(Some(why)),
        }
    }
    maker.kinds = first;
    Err(failed.unwrap_or_else(|| Error::Sizes {
        model: request.reference.to_path_buf(),
        why: "none were tried".into(),
    }))
}

/// The sizes of a way, as what is built can have them.
fn adopted(request: &Request<'_>, way: Way, mut settled: Settled, shapes: &mut Shapes) -> Settled {
    *shapes = way.shapes;
    if !request.one_profile {
        return settled;
    }
    let held = shapes.decide_branches(&way.folded);
    if !held.is_empty() {
        let size = |name: &String| Some(format!("{name}={}", shapes.ranges.get(name)?.opt));
        let sizes: Vec<String> = held.iter().filter_map(size).collect();
        settled.warnings.push(format!(
            "an engine's tensors have one rank, and the model has branches of different ranks that a size decides between, so \
             the profile holds {}; {DIM} gives another size",
            sizes.join(", ")
        ));
    }
    settled
}

fn typical(shapes: &Shapes) -> Point {
    let points = shapes.points().into_iter();
    let mut typical = points.filter(|(name, _)| *name == TYPICAL);
    typical.next().map(|(_, point)| point).unwrap_or_default()
}

/// Looks for the sizes of one way, those of real inputs before others; its shapes are of no use where there are none.
fn attempt(
    request: &Request<'_>,
    session: &mut Original,
    maker: &Maker<'_>,
    real: Option<&Case>,
    way: &mut Way,
) -> Result<Settled, Error> {
    let before = way.shapes.clone();
    let near = real.map(|real| {
        let mut there = before.clone();
        there.hold(&real.inputs);
        typical(&there)
    });
    let mut probe = |point: &Point| maker.runs(session, &before, point);
    let settled = shapes::settle_near(
        &way.graph,
        &way.folded,
        &mut way.shapes,
        near.as_ref(),
        request.enough,
        &mut probe,
    );
    settled.map_err(|why| Error::Sizes {
        model: request.reference.to_path_buf(),
        why,
    })
}

/// Adds the made cases; gives the choices with which the model runs at other sizes. `whole` are the sizes before any choice.
fn made(
    request: &Request<'_>,
    session: &mut Original,
    maker: &Maker<'_>,
    whole: &Shapes,
    shapes: &Shapes,
    out: &mut Gathered,
) -> Result<Vec<Apart>, Error> {
    let graph = &request.original.graph;
    let (points, enough) = proved(session, maker, graph, shapes, request.enough, out);
    let typical = typical(shapes);
    out.batch = shapes.batch(&typical);
    for (name, point) in &points {
        out.push(name, maker.at(shapes, point)?);
    }
    let mut apart = Vec::new();
    for choice in maker.choices().into_iter().take(MOST_CHOICES) {
        let other = Maker {
            kinds: choice.kinds,
            ..*maker
        };
        let inputs = other.at(shapes, &typical)?;
        let runs = out.try_push(session, &choice.name, inputs);
        let at = |session: &mut Original, point| other.runs(session, shapes, point).is_ok();
        if runs && points.iter().all(|(_, point)| at(session, point)) {
            continue;
        }
        let mut way = Way::of(request, &other.kinds, whole);
        if attempt(request, session, &other, None, &mut way).is_err() {
            if !runs {
                out.unsettled = true;
                out.warnings.push(format!(
                    "with {} the model runs at no sizes that were tried: nothing is proved of it",
                    choice.name
                ));
            }
            continue;
        }
        for (name, point) in way.shapes.proved(&way.graph, enough).0 {
            let name = match name {
                TYPICAL => choice.name.clone(),
                _ => format!("{}, {name}", choice.name),
            };
            if !out.made.contains(&name) {
                out.push(&name, other.at(&way.shapes, &point)?);
            }
        }
        apart.push(Apart {
            choice: choice.name,
            input: choice.input,
            sizes: way.shapes.describe().unwrap_or_default(),
        });
    }
    if !request.thorough {
        return Ok(apart);
    }
    if let Some(point) = shapes.several() {
        out.try_push(session, "several samples", maker.at(shapes, &point)?);
    }
    let mut padded = maker.specs(shapes, &typical);
    let mut any = false;
    for spec in &mut padded {
        let long = spec.shape.last().is_some_and(|&n| n > 1);
        if let (true, Some(kind)) = (long, spec.kind.padded()) {
            spec.kind = kind;
            any = true;
        }
    }
    if any {
        out.try_push(session, "padded", maker.make(padded)?);
    }
    Ok(apart)
}

impl Gathered {
    /// Controls that select branches and that nobody fixed, with their first values.
    pub fn selecting(&self, fixed: &Fixed) -> Vec<String> {
        let free = |name: &str| fixed.get(name).is_none() && self.chosen.get(name).is_none();
        let all = self.kinds.0.iter();
        let all = all.filter(|w| w.branches && w.is_control() && free(&w.name));
        all.map(|w| format!("{}={}", w.name, written(w, &w.kind)))
            .collect()
    }

    fn push(&mut self, name: &str, inputs: Named) {
        self.made.push(name.to_string());
        self.cases.push(Case {
            name: name.to_string(),
            inputs,
        });
    }

    /// Adds a case if the model runs on it: it need not, as nobody asked for it.
    fn try_push(&mut self, session: &mut Original, name: &str, inputs: Named) -> bool {
        let runs = run(session, &inputs).is_ok();
        if runs {
            self.push(name, inputs);
        }
        runs
    }
}
