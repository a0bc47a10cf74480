//! Whether an engine updates a decoder's caches in place, as its kernels say.

use kiln_graph::caches::{self, Cache};
use kiln_graph::{Graph, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kernels, Operand};

/// What an engine's kernels do to caches that are written into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Aliased {
    /// Caches that are inputs and outputs of one length.
    pub caches: usize,
    /// Those that kernels read by the name of their output only: input and output are one memory.
    pub in_place: usize,
    /// Kernels of steps of one token that make another tensor as long and wide as a cache that they read.
    pub copies_in_steps: Vec<String>,
    /// The same of prompts.
    pub copies_in_prompts: Vec<String>,
}

/// Reads the kernels of both profiles; `None` if the model has no such caches or no kernels are listed.
pub fn aliased(model: &Model, prompts: &Kernels, steps: &Kernels) -> Option<Aliased> {
    let g = &model.graph;
    let all = caches::caches(g);
    let buffers: Vec<Buffer<'_>> = all.iter().filter_map(|c| Buffer::of(g, c)).collect();
    if buffers.is_empty() || prompts.is_empty() {
        return None;
    }
    let kernels = || prompts.launched().chain(steps.launched());
    let reads = |name: &str| kernels().any(|k| k.inputs.iter().any(|o| plain(o) == name));
    let writes = |name: &str| kernels().any(|k| k.outputs.iter().any(|o| plain(o) == name));
    let in_place = buffers
        .iter()
        .filter(|b| !reads(b.input) && writes(b.output));
    Some(Aliased {
        caches: buffers.len(),
        in_place: in_place.count(),
        copies_in_steps: copies(steps, &buffers),
        copies_in_prompts: copies(prompts, &buffers),
    })
}

/// The name without the profile, which kernels of further ones say: `present.0.key [profile 1]`.
fn plain(operand: &Operand) -> &str {
    let name = operand.name.as_str();
    name.split_once(" [profile ").map_or(name, |(name, _)| name)
}

struct Buffer<'a> {
    input: &'a str,
    output: &'a str,
    length: i64,
    size: i64,
}

impl<'a> Buffer<'a> {
    fn of(g: &'a Graph, cache: &Cache) -> Option<Buffer<'a>> {
        Some(Buffer {
            input: g.value(cache.input).name(),
            output: &g.outputs().get(cache.output?)?.name,
            length: cache.capacity(g)? as i64,
            size: cache.size? as i64,
        })
    }

    fn is(&self, operand: &Operand) -> bool {
        [self.input, self.output].contains(&plain(operand))
    }

    /// Whether a tensor has the cache's length and size among its own.
    fn is_copied_to(&self, operand: &Operand) -> bool {
        let many = |n: i64| operand.shape.iter().filter(|d| **d == n).count();
        let wanted = 1 + usize::from(self.length == self.size);
        many(self.length) >= wanted && many(self.size) >= wanted
    }
}

fn copies(kernels: &Kernels, buffers: &[Buffer<'_>]) -> Vec<String> {
    let copying = kernels.launched().filter(|k| {
        let mut read = buffers.iter().filter(|b| k.inputs.iter().any(|o| b.is(o)));
        read.any(|b| {
            let mut others = (k.outputs.iter()).filter(|o| !buffers.iter().any(|b| b.is(o)));
            others.any(|o| b.is_copied_to(o))
        })
    });
    copying.map(|k| k.name.clone()).collect()
}

impl Aliased {
    /// Why a step moves more of the caches than its new tokens; `None` if it does not.
    pub fn moves(&self) -> Option<String> {
        let copies = self.copies_in_steps.len();
        match (self.caches - self.in_place.min(self.caches), copies) {
            (0, 0) => None,
            (0, n) => {
                let first = &self.copies_in_steps[0];
                Some(format!("{n} kernels of a step copy one, such as {first}"))
            }
            (n, _) => Some(format!(
                "{n} of {} are not one memory with their outputs",
                self.caches
            )),
        }
    }

    /// `caches 4 of 4 updated in place, none copied`
    pub fn describe(&self) -> String {
        let said = |kernels: &[String], what: &str| match kernels.len() {
            0 => None,
            1 => Some(format!("1 kernel of {what} copies one")),
            n => Some(format!("{n} kernels of {what} copy one")),
        };
        let copies = [
            said(&self.copies_in_steps, "a step"),
            said(&self.copies_in_prompts, "a prompt"),
        ];
        let copies: Vec<String> = copies.into_iter().flatten().collect();
        format!(
            "caches {} of {} updated in place, {}",
            self.in_place,
            self.caches,
            match copies.is_empty() {
                true => "none copied".into(),
                false => copies.join(", "),
            }
        )
    }
}
