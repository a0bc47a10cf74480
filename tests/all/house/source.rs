//! The sources as Rust's own syntax: files of a crate by its `mod` lines, without what is compiled for tests alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::{self, Visit};

/// A module, which is a file, or a part of one in braces.
#[derive(Debug, Default)]
pub struct Module {
    /// From the project's root.
    pub file: PathBuf,
    pub parent: Option<usize>,
    pub children: BTreeMap<String, usize>,
    /// What it defines itself.
    pub items: Vec<String>,
    pub imports: Vec<Import>,
    /// Paths of two names or more in its code, and single names, outside `use`.
    pub paths: Vec<Vec<String>>,
}

/// One leaf of a `use`.
#[derive(Debug, Clone)]
pub struct Import {
    pub path: Vec<String>,
    /// What the module calls it; `*` for all of it.
    pub name: String,
    /// Handed on to others, which alone is no use of it.
    pub door: bool,
}

/// A crate: its modules, the root first.
#[derive(Default)]
pub struct Crate {
    pub modules: Vec<Module>,
    /// Files with their syntax.
    pub files: Vec<(PathBuf, syn::File)>,
}

impl Crate {
    /// Reads the crate whose root is this file, from the project's root.
    pub fn read(project: &Path, root: &str) -> Crate {
        let mut out = Crate::default();
        let file = PathBuf::from(root);
        let folder = file.parent().unwrap().to_path_buf();
        out.file(project, file, folder, None);
        out
    }

    /// Reads a file whose children are in this folder.
    fn file(
        &mut self,
        project: &Path,
        file: PathBuf,
        folder: PathBuf,
        parent: Option<usize>,
    ) -> usize {
        let text = std::fs::read_to_string(project.join(&file)).unwrap();
        let syntax = syn::parse_file(&text).unwrap();
        let id = self.module(project, &file, folder, parent, &syntax.items);
        self.files.push((file, syntax));
        id
    }

    fn module(
        &mut self,
        project: &Path,
        file: &Path,
        folder: PathBuf,
        parent: Option<usize>,
        items: &[syn::Item],
    ) -> usize {
        let id = self.modules.len();
        self.modules.push(Module {
            file: file.to_path_buf(),
            parent,
            ..Module::default()
        });
        for item in items.iter().filter(|item| !for_tests(attributes(item))) {
            if let syn::Item::Mod(inner) = item {
                let name = inner.ident.to_string();
                let child = match (&inner.content, path_of(&inner.attrs)) {
                    (Some((_, items)), _) => {
                        self.module(project, file, folder.join(&name), Some(id), items)
                    }
                    (None, Some(path)) => {
                        let file = folder.join(path);
                        let folder = file.parent().unwrap().to_path_buf();
                        self.file(project, file, folder, Some(id))
                    }
                    (None, None) => {
                        let flat = folder.join(format!("{name}.rs"));
                        let nested = folder.join(&name).join("mod.rs");
                        let file = if project.join(&flat).exists() {
                            flat
                        } else {
                            nested
                        };
                        self.file(project, file, folder.join(&name), Some(id))
                    }
                };
                // Of two modules of one name, by features, either may be meant: both are read, the last one is found.
                self.modules[id].children.insert(name, child);
                continue;
            }
            self.modules[id].items.extend(named(item));
            let mut reader = Reader::default();
            reader.visit_item(item);
            self.modules[id].imports.extend(reader.imports);
            self.modules[id].paths.extend(reader.paths);
        }
        id
    }
}

/// Imports and paths of one item.
#[derive(Default)]
struct Reader {
    imports: Vec<Import>,
    paths: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let door = !matches!(item.vis, syn::Visibility::Inherited);
        leaves(&item.tree, &mut Vec::new(), door, &mut self.imports);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|s| s.ident.to_string());
        self.paths.push(names.collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.visit_path(&mac.path);
        in_tokens(mac.tokens.clone(), &mut self.paths);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        // Documentation links to what the code does not use.
        if !attribute.path().is_ident("doc") {
            in_tokens(attribute.meta.to_token_stream(), &mut self.paths);
        }
    }
}

fn leaves(tree: &syn::UseTree, before: &mut Vec<String>, door: bool, out: &mut Vec<Import>) {
    let import = |before: &[String], last: &str, name: String| {
        let mut path = before.to_vec();
        if last != "self" {
            path.push(last.to_string());
        }
        Import { path, name, door }
    };
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves(&path.tree, before, door, out);
            before.pop();
        }
        syn::UseTree::Name(name) => {
            let last = name.ident.to_string();
            let name = if last == "self" {
                before.last().cloned().unwrap_or_default()
            } else {
                last.clone()
            };
            out.push(import(before, &last, name));
        }
        syn::UseTree::Rename(rename) => {
            out.push(import(
                before,
                &rename.ident.to_string(),
                rename.rename.to_string(),
            ));
        }
        syn::UseTree::Glob(_) => out.push(import(before, "self", "*".into())),
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, before, door, out);
            }
        }
    }
}

/// Paths in what a macro is given.
fn in_tokens(tokens: TokenStream, out: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    out.extend(Some(std::mem::take(&mut path)).filter(|p| !p.is_empty()));
                }
                path.push(ident.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                in_tokens(group.stream(), out);
                colons = 0;
            }
            _ => colons = 0,
        }
    }
    out.extend(Some(path).filter(|p| !p.is_empty()));
}

fn named(item: &syn::Item) -> Option<String> {
    Some(match item {
        syn::Item::Const(i) => i.ident.to_string(),
        syn::Item::Enum(i) => i.ident.to_string(),
        syn::Item::Fn(i) => i.sig.ident.to_string(),
        syn::Item::Macro(i) => i.ident.as_ref()?.to_string(),
        syn::Item::Static(i) => i.ident.to_string(),
        syn::Item::Struct(i) => i.ident.to_string(),
        syn::Item::Trait(i) => i.ident.to_string(),
        syn::Item::TraitAlias(i) => i.ident.to_string(),
        syn::Item::Type(i) => i.ident.to_string(),
        syn::Item::Union(i) => i.ident.to_string(),
        _ => return None,
    })
}

pub fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(i) => &i.attrs,
        syn::Item::Enum(i) => &i.attrs,
        syn::Item::Fn(i) => &i.attrs,
        syn::Item::Impl(i) => &i.attrs,
        syn::Item::Macro(i) => &i.attrs,
        syn::Item::Mod(i) => &i.attrs,
        syn::Item::Static(i) => &i.attrs,
        syn::Item::Struct(i) => &i.attrs,
        syn::Item::Trait(i) => &i.attrs,
        syn::Item::Type(i) => &i.attrs,
        syn::Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// Whether it is compiled for tests alone.
pub fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident("cfg") && a.meta.to_token_stream().to_string() == "cfg (test)")
}

/// The file that a module names by `#[path]`.
fn path_of(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|a| match &a.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(text),
                ..
            }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}
