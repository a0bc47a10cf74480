//! The cases of a proof: real inputs and made ones, at the sizes at which the original runs on them.

use std::path::Path;

use kiln_graph::{Dim, Tensor};

use crate::compile::CompileError;
use crate::fixed::Fixed;
use crate::parity::{self, Case, InputKind, InputSpec};
use crate::prove::Request;
use crate::runtime::{self, Session, TensorInfo};
use crate::shapes::{self, Kinds, Point, Range, Settled, Shapes, Wanted};
use crate::talk::Talk;

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
    fn runs(&self, session: &mut Session, shapes: &Shapes, point: &Point) -> Result<(), String> {
        let inputs = self.at(shapes, point).map_err(|e| e.to_string())?;
        run(session, self.fixed, &inputs)
    }

    /// What controls may select instead: one of them changes in each.
    fn choices(&self) -> Vec<(String, Kinds)> {
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
                all.push((format!("{}={}", wanted.name, written(other)), kinds));
            }
        }
        all
    }

    /// An argument that selects what is computed selects the sizes that it runs at, too, which the graph tells once it is fixed.
    fn explained(&self, error: CompileError) -> CompileError {
        let free = |w: &&Wanted| w.is_control() && self.fixed.get(&w.name).is_none();
        let Some(control) = self.kinds.0.iter().find(free) else {
            return error;
        };
        match error {
            CompileError::Sizes { model, why } => CompileError::Sizes {
                model,
                why: format!(
                    "the input \"{0}\" selects what is computed, and with --input {0}={1} the graph tells the sizes of that: {why}",
                    control.name,
                    written(&control.kind)
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
            let others = w.others.iter().map(written);
            let tried = others.filter(|v| cases.contains(&format!("{}={v}", w.name)));
            let all: Vec<String> = std::iter::once(written(&w.kind)).chain(tried).collect();
            format!(
                "the input \"{0}\" is an argument, and made inputs have it {1}; fix it with --input {0}=VALUE, or give \
                 real inputs with --inputs",
                w.name,
                all.join(" or ")
            )
        })
        .collect()
    }
}

/// The numbers of a control.
fn written(kind: &InputKind) -> String {
    match kind {
        InputKind::Values(values) => {
            let all: Vec<String> = values.iter().map(f64::to_string).collect();
            all.join(",")
        }
        other => format!("{other:?}"),
    }
}

/// What a session takes of a case's inputs: all but those that were dropped from it.
pub(crate) fn fed(session: &Session, fixed: &Fixed, inputs: &[(String, Tensor)]) -> Named {
    let has = |name: &str| session.inputs().iter().any(|i| i.name == name);
    let taken = inputs
        .iter()
        .filter(|(n, _)| has(n) || !fixed.is_dropped(n));
    taken.cloned().collect()
}

fn run(session: &mut Session, fixed: &Fixed, inputs: &[(String, Tensor)]) -> Result<(), String> {
    let inputs = fed(session, fixed, inputs);
    session.run(&inputs).map(drop).map_err(|e| match e {
        runtime::Error::Run { reason, .. } => reason,
        other => other.to_string(),
    })
}

/// Real inputs from a file; what is fixed need not be in it.
fn real(path: &Path, infos: &[TensorInfo], fixed: &Fixed) -> Result<Case, CompileError> {
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
/// When real inputs do not fit, and when neither they nor made ones run.
pub(crate) fn gather(
    request: &Request<'_>,
    session: &mut Session,
    shapes: &mut Shapes,
    talk: &dyn Talk,
) -> Result<Gathered, CompileError> {
    let mut maker = Maker {
        kinds: Kinds::of(&request.original.graph),
        fixed: request.fixed,
        seed: request.seed,
    };
    let given = request.inputs;
    let real = given.map(|path| real(path, session.inputs(), maker.fixed));
    let real = real.transpose()?;
    let found = settle(request, session, &mut maker, real.as_ref(), shapes);
    let mut out = Gathered {
        cases: real.iter().cloned().collect(),
        made: Vec::new(),
        batch: 1,
        warnings: Vec::new(),
    };
    match (found, real) {
        (Ok(settled), _) => {
            out.warnings = settled.warnings;
            made(request, session, &maker, shapes, &mut out)?;
            out.warnings.extend(maker.remarks(&out.made));
        }
        (Err(why), Some(real)) => {
            // Only what runs on the real inputs may do without made ones.
            parity::outputs(
                session,
                &without(session, maker.fixed, &real),
                parity::Side::Reference,
            )?;
            hold(shapes, &real);
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

fn without(session: &Session, fixed: &Fixed, case: &Case) -> Case {
    Case {
        name: case.name.clone(),
        inputs: fed(session, fixed, &case.inputs),
    }
}

/// Finds what the model runs on: the first choice of what controls select, else others, at the default sizes, else at
/// those of real inputs.
fn settle(
    request: &Request<'_>,
    session: &mut Session,
    maker: &mut Maker<'_>,
    real: Option<&Case>,
    shapes: &mut Shapes,
) -> Result<Settled, CompileError> {
    let points = shapes.points();
    let typical = points.iter().find(|(name, _)| *name == TYPICAL);
    let typical = typical.map(|(_, point)| point.clone()).unwrap_or_default();
    // What cannot be made at any size is no matter of sizes.
    maker.at(shapes, &typical)?;
    let choices = maker.choices();
    let knows_more = !choices.is_empty() || real.is_some();
    if knows_more && maker.runs(session, shapes, &typical).is_err() {
        for kinds in choices.iter().map(|(_, kinds)| kinds) {
            let first = std::mem::replace(&mut maker.kinds, kinds.clone());
            if maker.runs(session, shapes, &typical).is_ok() {
                return attempt(request, session, maker, shapes);
            }
            maker.kinds = first;
        }
        // Sizes that are known to be right need no search.
        if let Some(real) = real {
            let mut there = shapes.clone();
            hold(&mut there, real);
            if let Ok(settled) = attempt(request, session, maker, &mut there) {
                *shapes = there;
                return Ok(settled);
            }
        }
    }
    let first = match attempt(request, session, maker, shapes) {
        Ok(settled) => return Ok(settled),
        Err(why) => why,
    };
    for (_, kinds) in choices.into_iter().take(MOST_SETTLED) {
        let before = std::mem::replace(&mut maker.kinds, kinds);
        if let Ok(settled) = attempt(request, session, maker, shapes) {
            return Ok(settled);
        }
        maker.kinds = before;
    }
    Err(first)
}

/// Looks for sizes with one choice; leaves them as they were where there are none.
fn attempt(
    request: &Request<'_>,
    session: &mut Session,
    maker: &Maker<'_>,
    shapes: &mut Shapes,
) -> Result<Settled, CompileError> {
    let before = shapes.clone();
    let mut probe = |point: &Point| maker.runs(session, &before, point);
    let settled = shapes::settle(&request.original.graph, request.folded, shapes, &mut probe);
    settled.map_err(|why| {
        *shapes = before.clone();
        CompileError::Sizes {
            model: request.reference.to_path_buf(),
            why,
        }
    })
}

/// Makes dimensions that the user left open those of real inputs.
fn hold(shapes: &mut Shapes, case: &Case) {
    for input in &shapes.inputs {
        let Some((_, tensor)) = case.inputs.iter().find(|(n, _)| *n == input.name) else {
            continue;
        };
        for (dim, &size) in input.dims.iter().zip(tensor.dims()) {
            if let Dim::Symbol(s) = dim
                && !shapes.given.iter().any(|g| **g == **s)
            {
                shapes.ranges.insert(s.to_string(), Range::fixed(size));
            }
        }
    }
}

/// Adds the made cases.
fn made(
    request: &Request<'_>,
    session: &mut Session,
    maker: &Maker<'_>,
    shapes: &Shapes,
    out: &mut Gathered,
) -> Result<(), CompileError> {
    let points = shapes.points();
    for (name, point) in &points {
        if *name == TYPICAL {
            out.batch = shapes.batch(point);
        }
        out.push(name, maker.at(shapes, point)?);
    }
    let typical = points.iter().find(|(name, _)| *name == TYPICAL);
    let Some((_, typical)) = typical else {
        return Ok(());
    };
    for (name, kinds) in maker.choices().into_iter().take(MOST_CHOICES) {
        let inputs = maker.make(kinds.specs(shapes, typical))?;
        out.try_push(session, maker.fixed, &name, inputs);
    }
    if !request.thorough {
        return Ok(());
    }
    if let Some(point) = shapes.several() {
        out.try_push(
            session,
            maker.fixed,
            "several samples",
            maker.at(shapes, &point)?,
        );
    }
    let mut padded = maker.specs(shapes, typical);
    let mut any = false;
    for spec in &mut padded {
        let long = spec.shape.last().is_some_and(|&n| n > 1);
        if let (true, Some(kind)) = (long, spec.kind.padded()) {
            spec.kind = kind;
            any = true;
        }
    }
    if any {
        out.try_push(session, maker.fixed, "padded", maker.make(padded)?);
    }
    Ok(())
}

impl Gathered {
    fn push(&mut self, name: &str, inputs: Named) {
        self.made.push(name.to_string());
        self.cases.push(Case {
            name: name.to_string(),
            inputs,
        });
    }

    /// Adds a case if the model runs on it: it need not, as nobody asked for it.
    fn try_push(&mut self, session: &mut Session, fixed: &Fixed, name: &str, inputs: Named) {
        if run(session, fixed, &inputs).is_ok() {
            self.push(name, inputs);
        }
    }
}
