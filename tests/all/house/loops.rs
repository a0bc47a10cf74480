//! Which file uses which, and the loops of that.
//!
//! A file uses another if its code names something that the other defines: by `use`, by a path, in a macro. `mod` lines use nothing,
//! so a folder's `mod.rs` is no loop with its rooms by holding them. Nor does a re-export: it is a door, and a name taken through
//! it is a use of the file that defines it. A parent and its child are a loop where the child takes what the parent defines,
//! and the parent's own code takes what the child defines. Methods are not followed: a type's may stand in several files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::source::Crate;

/// Which names a file takes from another.
pub type Uses = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

/// Where a path ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Module(usize),
    /// Something that this module defines.
    Item(usize),
}

pub fn uses(of: &Crate) -> Uses {
    let mut out = Uses::new();
    for (id, module) in of.modules.iter().enumerate() {
        let from = out.entry(module.file.clone()).or_default();
        let taken = module.imports.iter().filter(|i| !i.door).map(|i| &i.path);
        for path in taken.chain(&module.paths) {
            let Some(End::Item(to)) = of.find(id, path, 0) else {
                continue;
            };
            let to = &of.modules[to].file;
            if *to != module.file {
                let name = path.last().cloned().unwrap_or_default();
                from.entry(to.clone()).or_default().insert(name);
            }
        }
    }
    out
}

/// Re-exports of re-exports that are followed.
const DOORS: usize = 16;

impl Crate {
    /// What a path means in a module, unless it leaves the crate.
    fn find(&self, module: usize, path: &[String], doors: usize) -> Option<End> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => End::Module(0),
            "self" => End::Module(module),
            "super" => End::Module(self.modules[module].parent?),
            name => self.name(module, name, doors)?,
        };
        rest.iter().try_fold(start, |at, name| match at {
            End::Module(at) if name == "super" => Some(End::Module(self.modules[at].parent?)),
            End::Module(at) => self.name(at, name, doors),
            // A variant, or an associated function.
            End::Item(at) => Some(End::Item(at)),
        })
    }

    /// What a name means in a module.
    fn name(&self, module: usize, name: &str, doors: usize) -> Option<End> {
        let here = &self.modules[module];
        if let Some(&child) = here.children.get(name) {
            return Some(End::Module(child));
        }
        if here.items.iter().any(|item| item == name) {
            return Some(End::Item(module));
        }
        if doors == DOORS {
            return None;
        }
        let called = here
            .imports
            .iter()
            .filter(|i| i.name == name && i.path != [name]);
        let all = here.imports.iter().filter(|i| i.name == "*");
        let named = called
            .filter_map(|i| self.find(module, &i.path, doors + 1))
            .next();
        named.or_else(|| {
            all.filter_map(|i| match self.find(module, &i.path, doors + 1)? {
                End::Module(of) if of != module => self.name(of, name, doors + 1),
                _ => None,
            })
            .next()
        })
    }
}

/// Sets of files that reach each other, the largest first.
pub fn loops(uses: &Uses) -> Vec<Vec<PathBuf>> {
    let reached = |from: &PathBuf| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(file) = open.pop() {
            let next = uses.get(file).into_iter().flat_map(|to| to.keys());
            open.extend(next.filter(|file| seen.insert((*file).clone())));
        }
        seen
    };
    let reach: BTreeMap<&PathBuf, BTreeSet<PathBuf>> =
        uses.keys().map(|file| (file, reached(file))).collect();
    let mut out: BTreeSet<Vec<PathBuf>> = BTreeSet::new();
    for (file, reaches) in &reach {
        let back = |other: &&PathBuf| reach.get(other).is_some_and(|r| r.contains(*file));
        let members: Vec<PathBuf> = reaches.iter().filter(back).cloned().collect();
        if members.len() > 1 {
            out.insert(members);
        }
    }
    let mut out: Vec<Vec<PathBuf>> = out.into_iter().collect();
    out.sort_by_key(|members| std::cmp::Reverse(members.len()));
    out
}
