//! Whether outputs of the reference depend on what it is given: if not, comparing them proves nothing.
//!
//! An output has to differ between two runs at the same sizes. What the cases do not show is looked for on other inputs,
//! and inputs that show it become a case.

use kiln_graph::{DType, Graph, Tensor};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::parity::{self, Case, CaseReport, InputKind, InputSpec, Traits, Unproved};

/// What is known of the reference's outputs.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// What stands for its inputs where others are made.
    specs: Vec<InputSpec>,
    seed: u64,
    /// Inputs of one element whatever the sizes: what selects among ways of the graph.
    controls: FxHashSet<String>,
    /// Outputs that the graph computes from the numbers of its inputs.
    computed: FxHashSet<String>,
    /// Of each case that ran, by its place: the shapes of its inputs, and the outputs.
    seen: FxHashMap<usize, Seen>,
    /// Outputs that were found to depend on the inputs.
    varied: FxHashSet<String>,
    pub tried: bool,
}

#[derive(Clone, Debug)]
struct Seen {
    shapes: Vec<Vec<usize>>,
    outputs: Vec<(String, Traits)>,
}

/// Other inputs for the shapes of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub at: At,
    /// Changes inputs that select, and masks and positions, which a seed does not change.
    wild: bool,
    /// Changes floats alone: sizes and the like stay as they are where only they run.
    floats: bool,
    /// Lets whole numbers of no known meaning be large ones.
    far: bool,
    /// Added to the seed of the cases.
    seed: u64,
}

/// Whole numbers of no known meaning stay below this where 0 and 1 show nothing.
const FAR: i64 = 100;

/// The case whose shapes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Smallest,
    Typical,
    /// Of those of few elements: what several samples make of each other shows there alone.
    Largest,
}

/// Elements of inputs at most, for a run at the largest case.
pub(super) const FEW: usize = 1 << 16;

/// In this order: the first is all that most models take, and costs one run at the smallest sizes.
pub(super) const ATTEMPTS: [Attempt; 9] = [
    Attempt::new(At::Smallest, false, 1),
    Attempt::new(At::Smallest, true, 1),
    Attempt::new(At::Typical, false, 1),
    Attempt::new(At::Typical, true, 2),
    Attempt::new(At::Typical, true, 3),
    Attempt {
        far: true,
        ..Attempt::new(At::Typical, true, 4)
    },
    Attempt {
        floats: true,
        ..Attempt::new(At::Typical, false, 1)
    },
    Attempt::new(At::Largest, false, 1),
    Attempt {
        far: true,
        ..Attempt::new(At::Largest, true, 5)
    },
];

impl Attempt {
    const fn new(at: At, wild: bool, seed: u64) -> Attempt {
        Attempt {
            at,
            wild,
            floats: false,
            far: false,
            seed,
        }
    }
}

fn shapes(inputs: &[(String, Tensor)]) -> Vec<Vec<usize>> {
    inputs.iter().map(|(_, t)| t.dims().to_vec()).collect()
}

fn traits(outputs: &[(String, Tensor)]) -> Vec<(String, Traits)> {
    let traits = outputs.iter().map(|(n, t)| (n.clone(), Traits::of(t)));
    traits.collect()
}

impl Evidence {
    /// `specs` are those of a case of any size.
    pub fn new(original: &Graph, specs: Vec<InputSpec>, seed: u64) -> Evidence {
        let single = |name: &str| {
            let mut inputs = original.inputs().iter();
            let input = inputs.find(|&&v| original.value(v).name() == name);
            let shape = input.and_then(|&v| original.value(v).ty().shape());
            shape.is_some_and(|s| s.iter().all(|d| d.known() == Some(1)))
        };
        let controls = specs.iter().map(|s| s.name.clone()).filter(|n| single(n));
        Evidence {
            controls: controls.collect(),
            computed: computed(original),
            specs,
            seed,
            ..Evidence::default()
        }
    }

    /// Takes note of what the reference gives at a case.
    pub fn learn(&mut self, place: usize, case: &Case, outputs: &[(String, Tensor)]) {
        let seen = Seen {
            shapes: shapes(&case.inputs),
            outputs: traits(outputs),
        };
        self.vary(&seen);
        self.seen.insert(place, seen);
    }

    /// Takes note of what it gives on other inputs. Gives whether these ought to be a case: an output depends on the inputs,
    /// and no case so far could have shown a difference.
    pub fn learn_other(
        &mut self,
        inputs: &[(String, Tensor)],
        outputs: &[(String, Tensor)],
    ) -> bool {
        let open = self.open();
        let seen = Seen {
            shapes: shapes(inputs),
            outputs: traits(outputs),
        };
        self.vary(&seen);
        let found = |name: &String| !open.contains(name) || !self.varied.contains(name);
        !open.iter().all(|name| found(name) || self.is_shown(name))
    }

    fn vary(&mut self, new: &Seen) {
        for old in self.seen.values().filter(|old| old.shapes == new.shapes) {
            for (name, b) in &new.outputs {
                let a = old.outputs.iter().find(|(n, _)| n == name);
                let differ = a.is_some_and(|(_, a)| a.fingerprint != b.fingerprint);
                // Where the first has no finite number, the second is the one that shows something.
                if differ && b.finite {
                    self.varied.insert(name.clone());
                }
            }
        }
    }

    /// Whether a case has different finite numbers of this output.
    fn is_shown(&self, name: &str) -> bool {
        let outputs = self.seen.values().flat_map(|s| &s.outputs);
        let mut of = outputs.filter(|(n, _)| n == name);
        of.any(|(_, t)| t.finite && !t.uniform)
    }

    /// The largest number of an output at any case.
    pub fn largest(&self, name: &str) -> f64 {
        let outputs = self.seen.values().flat_map(|s| &s.outputs);
        let of = outputs.filter(|(n, _)| n == name).map(|(_, t)| t.largest);
        of.fold(0.0, f64::max)
    }

    /// Outputs that depend on the inputs by the graph, and have not been seen to.
    pub fn open(&self) -> Vec<String> {
        let open = self.computed.iter().filter(|n| !self.varied.contains(*n));
        open.cloned().collect()
    }

    /// Outputs of a case in which the reference has no finite number.
    pub fn not_finite(&self, place: usize) -> Vec<String> {
        let seen = self.seen.get(&place).map_or(&[][..], |s| &s.outputs);
        let nothing = seen.iter().filter(|(_, t)| is_nothing(t));
        nothing.map(|(name, _)| name.clone()).collect()
    }

    /// Other inputs of the shapes of a case; `None` if there are none.
    pub fn other(&self, case: &Case, attempt: Attempt) -> Option<Vec<(String, Tensor)>> {
        let all_select = self.specs.iter().all(|s| self.controls.contains(&s.name));
        let mut inputs = case.inputs.clone();
        let mut any = false;
        for (name, tensor) in &mut inputs {
            let spec = self.specs.iter().find(|s| s.name == *name);
            let selects = !attempt.wild && !all_select && self.controls.contains(name);
            let stays = selects || attempt.floats && !tensor.dtype().is_float();
            let Some(spec) = spec.filter(|_| !stays) else {
                continue;
            };
            let mut spec = InputSpec {
                shape: tensor.dims().to_vec(),
                ..spec.clone()
            };
            if attempt.wild {
                spec.kind = wild(&spec, tensor.dims(), attempt.far);
            }
            let made = parity::make(&[spec], self.seed.wrapping_add(attempt.seed));
            if let Some((_, made)) = made.ok().and_then(|mut m| m.pop()) {
                any |= !made.same_bits(tensor);
                *tensor = made;
            }
        }
        any.then_some(inputs)
    }

    /// Marks outputs that prove nothing. To be called when no attempt is left.
    pub fn mark(&self, reports: &mut [CaseReport], places: &[usize]) {
        let open = self.open();
        for (report, place) in reports.iter_mut().zip(places) {
            let seen = self.seen.get(place).map_or(&[][..], |s| &s.outputs);
            for output in &mut report.outputs {
                let of = seen.iter().find(|(n, _)| *n == output.name);
                if output.unproved.is_some() {
                    continue;
                }
                if of.is_some_and(|(_, t)| is_nothing(t)) {
                    output.unproved = Some(Unproved::NotFinite);
                } else if open.contains(&output.name) {
                    output.unproved = Some(self.why(&output.name));
                }
            }
        }
    }

    fn why(&self, name: &str) -> Unproved {
        let outputs = || self.seen.values().flat_map(|s| &s.outputs);
        let of = || outputs().filter(|(n, _)| n == name).map(|(_, t)| t);
        if of().all(|t| t.empty) {
            return Unproved::Empty;
        }
        match (of().any(|t| t.finite), of().all(|t| t.uniform)) {
            (false, _) => Unproved::NotFinite,
            (true, true) => Unproved::Constant,
            (true, false) => Unproved::Independent,
        }
    }

    /// Forgets the cases, which are others now.
    pub fn forget(&mut self) {
        self.seen.clear();
        self.tried = false;
    }
}

/// Elements, and none of them finite. What has no elements has nothing to be wrong.
fn is_nothing(traits: &Traits) -> bool {
    !traits.empty && !traits.finite
}

/// Numbers that a seed changes, for an input that has others by its meaning.
///
/// `far` lets whole numbers of no known meaning go farther than 0 and 1.
fn wild(spec: &InputSpec, dims: &[usize], far: bool) -> InputKind {
    let last = dims.last().copied().unwrap_or(1).max(1) as i64;
    let whole = !spec.dtype.is_float() && spec.dtype != DType::Bool;
    match spec.kind {
        InputKind::Mask | InputKind::PaddedMask => InputKind::Index {
            upper: if far && whole { FAR } else { 2 },
        },
        InputKind::Masking(mask) => InputKind::OneOf(vec![mask.kept, mask.hidden]),
        InputKind::FarPositions { upper } => InputKind::Index { upper },
        InputKind::Lengths { most } => InputKind::Index { upper: most + 1 },
        InputKind::Positions => InputKind::Index { upper: last },
        InputKind::Zeros if spec.dtype.is_float() => InputKind::Normal { std: 1.0 },
        InputKind::Zeros if spec.dtype != DType::String => InputKind::Index { upper: 2 },
        _ => spec.clone().kind,
    }
}

/// Operators whose results depend on the shape of what they read, not on its numbers.
const OF_SHAPES: &[&str] = &[
    "Shape",
    "Size",
    "EyeLike",
    "RandomNormalLike",
    "RandomUniformLike",
];

/// The outputs that are computed from the numbers of inputs.
fn computed(g: &Graph) -> FxHashSet<String> {
    let mut from: FxHashSet<_> = g.inputs().iter().copied().collect();
    for (v, _) in g.defaults() {
        from.remove(v);
    }
    for id in g.topo_order().unwrap_or_default() {
        let node = g.node(id);
        let mut reads = node.inputs().iter().flatten().chain(node.captures());
        if !node.op().is_any(OF_SHAPES) && reads.any(|v| from.contains(v)) {
            from.extend(node.outputs().iter().flatten());
        }
    }
    let outputs = g.outputs().iter().filter(|o| from.contains(&o.value));
    outputs.map(|o| o.name.to_string()).collect()
}
