//! The ways through a model: what the values of its controls leave of it, and the sizes of that.

use kiln_graph::{DType, Graph, Tensor, infer};
use kiln_passes::{Context, Options, Target, registry};

use super::{Gathered, Maker};
use crate::fixed::Fixed;
use crate::parity::{self, Case, InputKind, InputSpec};
use crate::prove::{Error, Request};
use crate::shapes::{self, Kinds, Point, Shapes, Wanted};
use kiln_runtime::OrtEvaluator;
use kiln_runtime::setting::INPUT;

/// The model as it is with certain values of its controls.
pub(super) struct Way {
    /// Without the branches that are not taken.
    pub graph: Graph,
    /// The same after passes, with the numbers that exporters wrote into it.
    pub folded: Graph,
    pub shapes: Shapes,
}

/// A choice of one control and the sizes at which the model runs with it, where these are others than the profile's.
#[derive(Clone, Debug)]
pub(crate) struct Apart {
    /// `sr=8000`.
    pub choice: String,
    pub input: String,
    pub sizes: String,
}

impl Way {
    /// The way of these kinds; `shapes` are those of the whole model, with what the user gave.
    pub fn of(request: &Request<'_>, kinds: &Kinds, shapes: &Shapes) -> Way {
        let values = chosen(request, kinds, shapes, &super::typical(shapes));
        let graph = match values.is_empty() && request.fixed.values.is_empty() {
            true => None,
            false => folded(request, values),
        };
        // What the user gave for the whole model may not fit what one choice leaves of it.
        match graph.map(|graph| (shapes.of(&graph), graph)) {
            Some((Ok(shapes), graph)) => Way {
                folded: graph.clone(),
                graph,
                shapes,
            },
            _ => Way::whole(request, shapes),
        }
    }

    /// The model as it is.
    fn whole(request: &Request<'_>, shapes: &Shapes) -> Way {
        Way {
            graph: request.original.graph.clone(),
            folded: request.folded.clone(),
            shapes: shapes.clone(),
        }
    }
}

/// The controls that are free, with the values that the kinds give them.
fn chosen(
    request: &Request<'_>,
    kinds: &Kinds,
    shapes: &Shapes,
    point: &Point,
) -> Vec<(String, Tensor)> {
    let control = |spec: &InputSpec| {
        let mut all = kinds.0.iter();
        all.any(|w| w.name == spec.name && w.is_control())
            && request.fixed.get(&spec.name).is_none()
    };
    let mut specs = kinds.specs(shapes, point);
    specs.retain(control);
    parity::make(&specs, request.seed).unwrap_or_default()
}

/// The model with these inputs folded, and without the branches that are not taken then.
fn folded(request: &Request<'_>, values: Vec<(String, Tensor)>) -> Option<Graph> {
    let mut model = request.original.clone();
    let fixed = Fixed {
        values,
        dropped: false,
    };
    fixed.fold(&mut model.graph);
    let (target, options) = (Target::standard(), Options::default());
    let evaluator = OrtEvaluator::new(request.ort_lib);
    let mut cx = Context::new(&target, &options);
    cx.evaluator = Some(&evaluator);
    kiln_passes::run(&mut model, registry::FOLD, &mut cx, &mut |_, _| {}).ok()?;
    infer::annotate(&mut model.graph);
    Some(model.graph)
}

/// Puts the values that real inputs have of controls before those that were found in the graph.
pub(super) fn prefer(kinds: &mut Kinds, case: &Case) {
    for wanted in kinds.0.iter_mut().filter(|w| w.is_control()) {
        let real = case.inputs.iter().find(|(n, _)| *n == wanted.name);
        let Some(real) = real.and_then(|(_, tensor)| kind_of(tensor)) else {
            continue;
        };
        if wanted.kind == real {
            continue;
        }
        wanted.others.retain(|other| *other != real);
        let first = std::mem::replace(&mut wanted.kind, real);
        wanted.others.insert(0, first);
    }
}

/// Numbers or texts of which a control has not many.
const MOST: usize = 64;

fn kind_of(tensor: &Tensor) -> Option<InputKind> {
    if tensor.len() > MOST {
        return None;
    }
    if tensor.dtype() == DType::String {
        return Some(InputKind::Texts(tensor.strings()?.to_vec()));
    }
    let ints = || Some(tensor.to_i64s()?.into_iter().map(|n| n as f64).collect());
    tensor.to_f64s().or_else(ints).map(InputKind::Values)
}

/// The value of a control, as `--input` takes it.
pub(super) fn written(wanted: &Wanted, kind: &InputKind) -> String {
    match kind {
        InputKind::Values(values) => {
            let one = |x: &f64| match (wanted.truth, *x != 0.0) {
                (true, true) => "true".to_string(),
                (true, false) => "false".to_string(),
                (false, _) => x.to_string(),
            };
            let all: Vec<String> = values.iter().map(one).collect();
            all.join(",")
        }
        InputKind::Texts(texts) => {
            let all: Vec<_> = texts.iter().map(|t| String::from_utf8_lossy(t)).collect();
            all.join(",")
        }
        other => format!("{other:?}"),
    }
}

impl Gathered {
    /// What becomes of ways whose sizes are not those of the profile. A file takes all of them. An engine has one profile,
    /// for which all branches are built: it gets the way of the real inputs, and without such nobody knows which is wanted.
    pub(super) fn divide(
        &mut self,
        request: &Request<'_>,
        maker: &Maker<'_>,
        apart: &[Apart],
        real: Option<&Case>,
        shapes: &mut Shapes,
    ) -> Result<(), Error> {
        let here = shapes.describe().unwrap_or_default();
        let parted = |w: &&Wanted| apart.iter().any(|a| a.input == w.name);
        let controls: Vec<&Wanted> = maker.kinds.0.iter().filter(parted).collect();
        let chosen = controls
            .iter()
            .map(|w| format!("{}={}", w.name, written(w, &w.kind)));
        let chosen: Vec<String> = chosen.collect();
        let others = apart
            .iter()
            .map(|a| format!("with {} {}", a.choice, a.sizes));
        let others = others.collect::<Vec<_>>().join("; ");
        let sizes = format!(
            "with {} the sizes are {here}; {others}",
            chosen.join(" and ")
        );
        if !request.one_profile {
            // Nothing of one way's sizes may be written into the model.
            shapes.open();
            self.warnings.retain(|w| !shapes::says_baked(w));
            self.warnings.push(format!(
                "the input \"{}\" selects what is computed, and the sizes: {sizes}. The bundle's sizes are the first; the model \
                 takes all of them",
                controls[0].name
            ));
            return Ok(());
        }
        let Some(real) = real else {
            let first = format!("{INPUT} {}", chosen.join(&format!(" {INPUT} ")));
            let all = apart.iter().map(|a| format!("{INPUT} {}", a.choice));
            let all: Vec<String> = std::iter::once(first).chain(all).collect();
            return Err(Error::Ways {
                model: request.reference.to_path_buf(),
                sizes,
                commands: all.join(", or "),
            });
        };
        let value = |w: &&Wanted| {
            let found = real.inputs.iter().find(|(name, _)| *name == w.name);
            found.cloned()
        };
        self.chosen.values = controls.iter().filter_map(value).collect();
        let differs = |name: &str| {
            let of = |a: &Apart| name == a.choice || name.starts_with(&format!("{}, ", a.choice));
            apart.iter().any(of)
                || controls
                    .iter()
                    .any(|w| name.starts_with(&format!("{}=", w.name)))
        };
        let (made, left_out): (Vec<String>, _) = self.made.drain(..).partition(|n| !differs(n));
        self.made = made;
        self.cases.retain(|case| !left_out.contains(&case.name));
        self.warnings.push(format!(
            "an engine has one profile of sizes, and {sizes}: so it is built for {} alone, as {} has it, whatever it is given; \
             {INPUT} {} says so, or another value",
            chosen.join(" and "),
            real.name,
            chosen.join(&format!(" {INPUT} ")),
        ));
        Ok(())
    }
}
