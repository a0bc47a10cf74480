//! Functions and how long they are.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

pub struct Function {
    pub name: String,
    /// From the signature to the closing brace.
    pub lines: usize,
}

#[derive(Default)]
struct Reader(Vec<Function>);

/// All functions of a file, those of tests among them.
pub fn of(file: &syn::File) -> Vec<Function> {
    let mut reader = Reader::default();
    reader.visit_file(file);
    reader.0
}

impl Reader {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (first, last) = (signature.span().start().line, block.span().end().line);
        self.0.push(Function {
            name: signature.ident.to_string(),
            lines: last + 1 - first,
        });
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}
