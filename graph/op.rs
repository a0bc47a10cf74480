//! Interned operator names.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

/// An operator: domain and name, interned, so that comparing two is comparing two pointers.
///
/// The default ONNX domain is `""` (`ai.onnx` is read as that). Names never seen before are as good as any: the graph
/// carries operators that kiln knows nothing of.
#[derive(Clone, Copy)]
pub struct Op(&'static OpName);

#[derive(PartialEq, Eq, Hash, Debug)]
struct OpName {
    domain: Box<str>,
    name: Box<str>,
    overload: Box<str>,
}

/// The domain of operators that exist only between two phases of the compiler.
pub const INTERNAL_DOMAIN: &str = "internal";

impl Op {
    /// The operator `domain::name`.
    pub fn new(domain: &str, name: &str) -> Op {
        Op::with_overload(domain, name, "")
    }

    /// An operator of the default ONNX domain.
    pub fn onnx(name: &str) -> Op {
        Op::new("", name)
    }

    /// A call of one of several local functions of the same name.
    pub fn with_overload(domain: &str, name: &str, overload: &str) -> Op {
        static INTERNED: OnceLock<Mutex<HashSet<&'static OpName>>> = OnceLock::new();
        let domain = if domain == "ai.onnx" { "" } else { domain };
        let key = OpName {
            domain: domain.into(),
            name: name.into(),
            overload: overload.into(),
        };
        let mut interned = INTERNED
            .get_or_init(Default::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = interned.get(&key) {
            return Op(found);
        }
        let leaked: &'static OpName = Box::leak(Box::new(key));
        interned.insert(leaked);
        Op(leaked)
    }

    pub fn domain(self) -> &'static str {
        &self.0.domain
    }

    pub fn name(self) -> &'static str {
        &self.0.name
    }

    pub fn overload(self) -> &'static str {
        &self.0.overload
    }

    /// Whether this is the operator `name` of the default ONNX domain.
    pub fn is(self, name: &str) -> bool {
        self.0.domain.is_empty() && &*self.0.name == name
    }

    /// Whether this is one of the default domain's operators `names`.
    pub fn is_any(self, names: &[&str]) -> bool {
        self.0.domain.is_empty() && names.contains(&&*self.0.name)
    }
}

impl PartialEq for Op {
    fn eq(&self, other: &Op) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Op {}

impl std::hash::Hash for Op {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.0, state);
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain().is_empty() {
            write!(f, "{}.", self.domain())?;
        }
        f.write_str(self.name())
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interned_once() {
        assert_eq!(Op::onnx("MatMul"), Op::new("ai.onnx", "MatMul"));
        assert_ne!(Op::onnx("Gelu"), Op::new("com.microsoft", "Gelu"));
        assert!(Op::onnx("Gelu").is("Gelu") && !Op::new("com.microsoft", "Gelu").is("Gelu"));
    }
}
