//! Why caches stay as they are, and the sizes of those that do not.

use kiln_graph::Tensor;
use kiln_graph::infer::Expr;

/// Why a decoder keeps its growing caches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    #[error("no cache of it grows")]
    None,
    #[error("{0}")]
    Because(String),
}

pub(super) fn because<T>(why: impl Into<String>) -> Result<T, Stays> {
    Err(Stays::Because(why.into()))
}

/// The sizes that tell old tokens from new ones.
pub(super) struct Sizes {
    pub(super) past: String,
    pub(super) new: Expr,
    pub(super) total: Expr,
    pub(super) rows: Expr,
    pub(super) capacity: usize,
}

impl Sizes {
    pub(super) fn has_past(&self, e: &Expr) -> bool {
        e.names().contains(&self.past)
    }

    /// What a size is in the new form.
    pub(super) fn fixed(&self, e: &Expr) -> Option<Expr> {
        let past = Expr::from(self.capacity as i64).sub(&self.new)?;
        e.substitute(&|name| (name == self.past).then(|| past.clone()))
    }
}

pub(super) fn whole(n: i64) -> Tensor {
    Tensor::scalar(n)
}
