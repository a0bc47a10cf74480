//! Sizes that belong together, read off the graph: what it demands of one size follows from others.
//!
//! A mask as long as past and new tokens together, a batch that each input names its own, a constant that an exporter
//! wrote where a size was. Names play no part: two sizes are related if some node does not run otherwise.

use std::collections::BTreeMap;

use kiln_graph::infer::{self, Demand, Expr, Facts};
use kiln_graph::{Dim, Graph, Shape};

use super::{Point, Shapes, SpecError};

/// Times that inference is run with what was found: relations make sizes comparable that were not before.
const ROUNDS: usize = 4;

/// Sizes of a graph's inputs as inference sees them, each under a name of its own, whatever the file calls it.
pub(super) struct Study<'g> {
    graph: &'g Graph,
    /// The symbols in the order of the inputs; the place is the stand-in's number.
    symbols: Vec<String>,
    /// Symbols, by their stand-ins, that follow from others.
    found: BTreeMap<String, Expr>,
    /// Those that were set to one size, so that a sum that the user gave has one part that follows.
    pinned: Vec<String>,
    pub facts: Facts,
}

/// What the stand-ins of symbols are called, with their number; no file calls a size so.
const STAND_IN: &str = "kiln.size.";

fn stand_in(k: usize) -> String {
    format!("{STAND_IN}{k}")
}

fn number(stand_in: &str) -> Option<usize> {
    stand_in.strip_prefix(STAND_IN)?.parse().ok()
}

impl<'g> Study<'g> {
    /// Solves what the graph demands. Symbols that the user gave are kept where another can follow from them.
    pub fn new(graph: &'g Graph, shapes: &Shapes) -> Study<'g> {
        let mut symbols: Vec<String> = Vec::new();
        for dim in shapes.inputs.iter().flat_map(|i| &i.dims) {
            if let Dim::Symbol(s) = dim
                && !symbols.iter().any(|known| **known == **s)
            {
                symbols.push(s.to_string());
            }
        }
        let mut study = Study {
            graph,
            symbols,
            found: BTreeMap::new(),
            pinned: Vec::new(),
            facts: Facts::default(),
        };
        for _ in 0..ROUNDS {
            study.facts = infer::with_inputs(graph, &study.overrides(shapes));
            let before = study.found.len();
            study.solve(shapes);
            if study.found.len() == before {
                break;
            }
        }
        study
    }

    fn place(&self, symbol: &str) -> Option<usize> {
        self.symbols.iter().position(|s| s == symbol)
    }

    fn expr(&self, symbol: &str) -> Option<Expr> {
        let name = stand_in(self.place(symbol)?);
        Some(
            self.found
                .get(&name)
                .cloned()
                .unwrap_or_else(|| Expr::symbol(&name)),
        )
    }

    /// The symbol that a stand-in stands for.
    pub fn symbol(&self, stand_in: &str) -> Option<&str> {
        self.symbols.get(number(stand_in)?).map(String::as_str)
    }

    /// A size as it follows from others, in the names of the file.
    pub fn size(&self, symbol: &str) -> Expr {
        let named = self.expr(symbol).and_then(|e| self.named(&e));
        named.unwrap_or_else(|| Expr::symbol(symbol))
    }

    fn overrides(&self, shapes: &Shapes) -> Vec<(kiln_graph::ValueId, Shape)> {
        super::overrides(self.graph, shapes, |d| match d {
            Dim::Symbol(s) => match self.expr(s) {
                Some(e) => match e.as_i64() {
                    Some(n) => Dim::Known(usize::try_from(n).unwrap_or(0)),
                    None => Dim::Symbol(e.to_string().into()),
                },
                None => Dim::Unknown,
            },
            other => other.clone(),
        })
    }

    fn with_found(&self, expr: &Expr) -> Option<Expr> {
        expr.substitute(&|name| self.found.get(name).cloned())
    }

    /// Solves demands one after the other until none says anything new; those that allow a 1 come last.
    fn solve(&mut self, shapes: &Shapes) {
        let demands = self.facts.demands().to_vec();
        let mut strict = true;
        loop {
            let next = demands.iter().find_map(|demand| {
                let (a, b, allows_one) = match demand {
                    Demand::Equal(a, b) => (a, b, false),
                    Demand::Broadcast(a, b) if !strict => (a, b, true),
                    _ => return None,
                };
                let (a, b) = (self.with_found(a)?, self.with_found(b)?);
                if allows_one && [&a, &b].iter().any(|e| self.is_one(e, shapes)) {
                    return None;
                }
                self.choose(&a.sub(&b)?, shapes)
            });
            match next {
                Some((name, expr, pinned)) => {
                    self.pinned.extend(pinned.then(|| name.clone()));
                    self.adopt(name, expr);
                }
                None if strict => strict = false,
                None => return,
            }
        }
    }

    fn adopt(&mut self, name: String, expr: Expr) {
        let with = |e: &Expr| e.substitute(&|n| (n == name).then(|| expr.clone()));
        for old in self.found.values_mut() {
            if let Some(new) = with(old) {
                *old = new;
            }
        }
        self.found.insert(name, expr);
    }

    /// Whether the user fixed this size at 1, or it is 1.
    fn is_one(&self, expr: &Expr, shapes: &Shapes) -> bool {
        let fixed = |name: &str| {
            let symbol = self.symbol(name)?;
            let range = shapes.ranges.get(symbol)?;
            Some(shapes.is_given(symbol) && range.is_fixed() && range.max == 1)
        };
        expr.as_i64() == Some(1) || expr.lone_symbol().and_then(fixed) == Some(true)
    }

    /// Which size follows from the others where `zero` is zero, and how; whether it is set, and does not follow.
    fn choose(&self, zero: &Expr, shapes: &Shapes) -> Option<(String, Expr, bool)> {
        let names = zero.names();
        let given = |name: &str| self.symbol(name).is_none_or(|s| shapes.is_given(s));
        // Names that only inner values have say nothing.
        let known = |e: &Expr| e.names().iter().all(|n| number(n).is_some());
        let mut ways: Vec<(String, Expr)> = (names.iter())
            .filter(|name| !given(name))
            .filter_map(|name| Some((name.clone(), zero.solve(name)?)))
            .filter(|(_, e)| e.as_i64().is_none_or(|n| n >= 1) && known(e))
            .collect();
        // What only adds up keeps the corners of a profile corners; the size that comes first keeps its name.
        ways.retain(|(_, e)| e.grows());
        ways.sort_by_key(|(name, e)| {
            let below = e.eval(&|_| Some(0)).is_some_and(|n| n < 0);
            (below, std::cmp::Reverse(number(name)))
        });
        if let Some((name, expr)) = ways.into_iter().next() {
            return Some((name, expr, false));
        }
        // A sum that was given: one new token, and the past is the rest.
        let total = names
            .iter()
            .filter(|n| given(n))
            .find_map(|n| zero.solve(n));
        let parts = total.filter(Expr::grows)?.names();
        let open: Vec<_> = parts.iter().filter(|n| !given(n)).collect();
        let pasts = super::roles::pasts(self.graph, &self.facts);
        let new = open.iter().find(|n| !pasts.contains(**n))?;
        (open.len() == 2).then(|| ((*new).clone(), Expr::from(1), true))
    }

    /// An expression over stand-ins with the names of the file.
    fn named(&self, expr: &Expr) -> Option<Expr> {
        expr.substitute(&|name| self.symbol(name).map(Expr::symbol))
    }

    /// The relations found, in the names of the file: sizes that follow from others, and sizes that are constants.
    pub fn relations(&self) -> BTreeMap<String, Expr> {
        let named = |(name, expr): (&String, &Expr)| {
            Some((self.symbol(name)?.to_string(), self.named(expr)?))
        };
        self.found.iter().filter_map(named).collect()
    }

    /// Whether a size was set to 1 only because a sum was given.
    pub fn is_pinned(&self, symbol: &str) -> bool {
        self.pinned.iter().any(|p| self.symbol(p) == Some(symbol))
    }

    /// Upper ends: what stays at most so large.
    pub fn ends(&self) -> Vec<(Expr, i64)> {
        let mut ends: Vec<(Expr, i64)> = Vec::new();
        for demand in self.facts.demands() {
            if let Demand::AtMost(size, end) = demand
                && let Some(end) = self.with_found(end).and_then(|e| e.as_i64())
                && let Some(size) = self.with_found(size).and_then(|e| self.named(&e))
                && size.as_i64().is_none()
                && size.grows()
            {
                match ends.iter_mut().find(|(known, _)| *known == size) {
                    Some((_, known)) => *known = end.min(*known),
                    None => ends.push((size, end)),
                }
            }
        }
        ends
    }

    /// Whether the sizes that the user gave fit together, at each corner of their ranges.
    ///
    /// # Errors
    /// When the graph demands another size of one of them.
    pub fn given_fit(&self, shapes: &Shapes) -> Result<(), Misfit> {
        let corners = Corners::of(shapes);
        for demand in self.facts.demands() {
            let (a, b, one) = match demand {
                Demand::Equal(a, b) => (a, b, false),
                Demand::Broadcast(a, b) => (a, b, true),
                Demand::AtMost(..) => continue,
            };
            let (Some(a), Some(b)) = (self.named(a), self.named(b)) else {
                continue;
            };
            let mut names = a.names();
            names.extend(b.names());
            if !names.iter().all(|n| shapes.is_given(n)) {
                continue;
            }
            let fits = |x: i64, y: i64| x == y || one && (x == 1 || y == 1);
            let apart = (corners.at(&a).into_iter().zip(corners.at(&b)))
                .position(|(x, y)| matches!((x, y), (Some(x), Some(y)) if !fits(x, y)));
            let Some(corner) = apart else {
                continue;
            };
            if let Some(zero) = a.sub(&b)
                && let Some(name) = names.iter().find(|n| corners.hold(shapes, n, &zero))
            {
                return Err(Misfit::Wide(name.clone()));
            }
            let size = |n: &String| corners.0[corner].get(n).copied().unwrap_or_default();
            let sizes = names.iter().map(|n| format!("{n} = {}", size(n)));
            return Err(Misfit::Never(SpecError::Related {
                relation: format!("{a} = {b}"),
                sizes: sizes.collect::<Vec<_>>().join(", "),
            }));
        }
        Ok(())
    }
}

/// Why sizes that the user gave do not fit together.
pub(super) enum Misfit {
    /// This one was given more than others leave it: it follows from them.
    Wide(String),
    Never(SpecError),
}

/// The smallest, typical and largest sizes.
struct Corners([Point; 3]);

impl Corners {
    fn of(shapes: &Shapes) -> Corners {
        Corners([
            shapes.point(|r| r.min),
            shapes.point(|r| r.opt),
            shapes.point(|r| r.max),
        ])
    }

    fn at(&self, size: &Expr) -> [Option<i64>; 3] {
        let one = |p: &Point| size.eval(&|n| i64::try_from(*p.get(n)?).ok());
        [one(&self.0[0]), one(&self.0[1]), one(&self.0[2])]
    }

    /// Whether the range of `name` has room for what it is where `zero` is zero.
    fn hold(&self, shapes: &Shapes, name: &str, zero: &Expr) -> bool {
        let (Some(size), Some(range)) = (zero.solve(name), shapes.ranges.get(name)) else {
            return false;
        };
        let within =
            |n: i64| usize::try_from(n).is_ok_and(|n| (range.min..=range.max).contains(&n));
        size.grows()
            && !range.is_fixed()
            && self.at(&size).into_iter().all(|n| n.is_some_and(within))
    }
}
