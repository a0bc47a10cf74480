//! The kinds of findings.

use super::super::facts::{Facts, Library};
use super::super::finding::Finding;
use crate::nvidia::packages;
use crate::runtime::Unusable;

pub(super) fn found(what: &str, enables: &str, detail: String) -> Finding {
    Finding {
        what: what.into(),
        enables: enables.into(),
        found: true,
        needed: false,
        detail,
        mend: None,
    }
}

/// Something that this machine may do without.
pub(super) fn absent(what: &str, enables: &str, detail: String, mend: String) -> Finding {
    Finding {
        found: false,
        mend: Some(mend),
        ..found(what, enables, detail)
    }
}

/// Something that is there and cannot work. Without a device nobody minds.
pub(super) fn mismatch(facts: &Facts, what: &str, why: Unusable) -> Finding {
    Finding {
        needed: facts.driver.is_ok(),
        ..absent(what, "what is installed already", why.reason, why.mend)
    }
}

/// The CUDA that libraries should be of: the provider's.
pub(super) fn cuda_major(facts: &Facts) -> u32 {
    facts.provider().and_then(|p| p.cuda).unwrap_or(13)
}

pub(super) fn requirement(facts: &Facts, library: &str) -> String {
    let wheel = packages::requirement(library, cuda_major(facts)).unwrap_or_default();
    format!("{} install {wheel}", facts.pip())
}

pub(super) fn told(library: &Library) -> String {
    let version = library.version.as_deref().unwrap_or("of unknown version");
    format!("{version} at {}", library.path.display())
}
