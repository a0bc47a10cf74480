//! What models are called in a comparison.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The shortest names that tell these paths apart: the file's name without its extension, with it, then with ever more of the
/// folders above.
fn distinct(paths: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<OsString>> = paths.iter().map(|p| parts(p)).collect();
    let shortest = |own: &Vec<OsString>| {
        let taken: Vec<String> = (parts.iter())
            .filter(|other| *other != own)
            .flat_map(|other| candidates(other))
            .collect();
        let free = candidates(own).find(|name| !taken.contains(name));
        free.unwrap_or_else(|| name(own, own.len()))
    };
    parts.iter().map(shortest).collect()
}

/// Given names before those of paths; what is called the same then is numbered.
pub(crate) fn named(paths: &[PathBuf], given: &[Option<String>]) -> Vec<String> {
    let found = distinct(paths).into_iter().enumerate();
    let given = |k: usize| given.get(k).cloned().flatten();
    let mut names: Vec<String> = Vec::new();
    for (k, own) in found {
        let name = given(k).unwrap_or(own);
        let mut numbers = (2..).map(|n| format!("{name}#{n}"));
        let free = std::iter::once(name.clone())
            .chain(numbers.by_ref())
            .find(|n| !names.contains(n));
        names.push(free.unwrap_or(name));
    }
    names
}

/// The path's parts; those of the whole path where it ends in none, as `.` does.
fn parts(path: &Path) -> Vec<OsString> {
    let whole = match path.file_name() {
        Some(_) => path.to_path_buf(),
        None => path.canonicalize().unwrap_or_else(|_| path.to_path_buf()),
    };
    let part = |c: Component<'_>| match c {
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        c => Some(c.as_os_str().to_os_string()),
    };
    whole.components().filter_map(part).collect()
}

fn candidates(parts: &[OsString]) -> impl Iterator<Item = String> + '_ {
    (0..=parts.len()).map(|depth| name(parts, depth))
}

/// The stem of the file at depth 0, its name at 1, and one folder more at each depth.
fn name(parts: &[OsString], depth: usize) -> String {
    let Some(file) = parts.last() else {
        return "model".into();
    };
    if depth == 0 {
        let stem = Path::new(file).file_stem().unwrap_or(file);
        return stem.to_string_lossy().into_owned();
    }
    let from = parts.len().saturating_sub(depth);
    let kept: PathBuf = parts[from..].iter().collect();
    kept.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        named(&paths, &[])
    }

    #[test]
    fn names_are_as_short_as_they_may_be() {
        assert_eq!(names(&["a/model.onnx"]), ["model"]);
        assert_eq!(names(&["x/a.onnx", "y/b.kiln"]), ["a", "b"]);
        assert_eq!(
            names(&["model.onnx", "./model.kiln"]),
            ["model.onnx", "model.kiln"]
        );
        assert_eq!(
            names(&["x/a/model.onnx", "y/a/model.onnx", "y/b/model.onnx"]),
            ["x/a/model.onnx", "y/a/model.onnx", "b/model.onnx"]
        );
        assert_eq!(
            names(&["model.onnx", "b/model.onnx"]),
            ["model.onnx", "b/model.onnx"]
        );
        assert_eq!(
            names(&["m.onnx", "./m.onnx", "m.onnx"]),
            ["m", "m#2", "m#3"]
        );
        assert_eq!(names(&["a.onnx", "a"]), ["a.onnx", "a"]);
    }

    #[test]
    fn given_names_come_first() {
        let paths = ["a.onnx", "b.onnx", "c.onnx"].map(PathBuf::from);
        let given = [None, Some("before".into()), Some("a".into())];
        assert_eq!(named(&paths, &given), ["a", "before", "a#2"]);
    }
}
