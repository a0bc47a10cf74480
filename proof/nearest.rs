//! Names that were not found, and those that may have been meant.

use std::cmp::Reverse;

/// So many names are listed whole.
const FEW: usize = 24;
/// Of more, so many that are near.
const NEAR: usize = 3;

/// The known name that a wanted one is a slip of the finger for.
pub fn slip<'a>(known: impl IntoIterator<Item = &'a str>, wanted: &str) -> Option<&'a str> {
    let known = known.into_iter();
    let distances = known.map(|name| (strsim::damerau_levenshtein(name, wanted), name));
    let near = distances.filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    near.min().map(|(_, name)| name)
}

/// `a, b, c`, or of many names `x, y, z (the nearest of 240)`: what there is instead of the wanted one, which may be a
/// pattern.
pub fn instead<'a>(known: impl IntoIterator<Item = &'a str>, wanted: &str) -> String {
    let mut known: Vec<&str> = known.into_iter().filter(|n| !n.is_empty()).collect();
    let mut seen = std::collections::HashSet::new();
    known.retain(|name| seen.insert(*name));
    match known.len() {
        0 => "none".into(),
        n if n <= FEW => known.join(", "),
        n => {
            known.sort_by_key(|name| Reverse(likeness(name, wanted)));
            known.truncate(NEAR);
            format!("{} (the nearest of {n})", known.join(", "))
        }
    }
}

/// How alike a name is, or the part of its path that is most so, in thousandths.
fn likeness(name: &str, wanted: &str) -> u64 {
    let plain = |s: &str| -> String {
        let letters = s
            .chars()
            .filter(|c| c.is_alphanumeric() || "/._".contains(*c));
        letters.collect::<String>().to_lowercase()
    };
    let (name, wanted) = (plain(name), plain(wanted));
    let parts = name.split('/').chain([name.as_str()]);
    let alike = parts.map(|part| strsim::sorensen_dice(part, &wanted));
    (alike.fold(0.0, f64::max) * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_listed_and_of_many_the_nearest() {
        assert_eq!(instead([], "x"), "none");
        assert_eq!(instead(["b", "a", "b"], "x"), "b, a");
        let layers: Vec<String> = (0..29)
            .map(|k| format!("/encoder/layer.{k}/MatMul"))
            .collect();
        let names = layers
            .iter()
            .map(String::as_str)
            .chain(["/classifier/Gemm"]);
        let said = instead(names, "^/clasifier");
        assert!(said.starts_with("/classifier/Gemm, "), "{said}");
        assert!(said.ends_with(" (the nearest of 30)"), "{said}");
    }

    #[test]
    fn a_slip_is_near() {
        assert_eq!(slip(["model", "target"], "modle"), Some("model"));
        assert_eq!(slip(["model", "target"], "precision"), None);
    }
}
