//! Where Python keeps its packages. Wheels are how ONNX Runtime and TensorRT come to most machines.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The `site-packages` folders worth searching, best first, none twice: those that the executable was installed with, the
/// active virtual environment (`VIRTUAL_ENV`), `.venv` in the current folder, `.venv` beside the executable or above it.
///
/// Starts no process; see [`interpreter_site_packages`] for the folders of the `python3` on the path.
pub fn site_packages() -> Vec<PathBuf> {
    let active = env::var_os("VIRTUAL_ENV")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let current = env::current_dir().ok().map(|d| d.join(".venv"));
    let executable = env::current_exe().ok();
    let above = executable
        .iter()
        .flat_map(|exe| exe.ancestors().skip(1))
        .map(|d| d.join(".venv"));
    let own = executable.iter().flat_map(|exe| installed_with(exe));
    let venvs = active.into_iter().chain(current).chain(above);
    let mut found = Vec::new();
    for folder in own.chain(venvs.flat_map(|venv| of_venv(&venv))) {
        if !found.contains(&folder) {
            found.push(folder);
        }
    }
    found
}

/// The Python package that comes with the executable in kiln's wheel.
const PACKAGE: &str = "kiln_compiler";

/// The package folders that a wheel put beside `executable`, which lies in the `bin` of an environment, of a user's
/// `~/.local`, or of `pip install --target`. None for a program that no wheel brought.
fn installed_with(executable: &Path) -> Vec<PathBuf> {
    let bin = executable.parent().filter(|d| d.ends_with("bin"));
    let Some(prefix) = bin.and_then(Path::parent) else {
        return Vec::new();
    };
    let debian = children(&prefix.join("lib"), |name| name.starts_with("python3"))
        .into_iter()
        .map(|d| d.join("dist-packages"));
    let mut sites = of_venv(prefix);
    sites.extend(debian);
    sites.push(prefix.to_path_buf());
    sites.retain(|site| site.join(PACKAGE).is_dir());
    sites
}

/// The package folders of the `python3` on the path, or none if there is no such program. Starts a process, so ask
/// for these last.
pub fn interpreter_site_packages() -> Vec<PathBuf> {
    const SCRIPT: &str =
        "import site\nfor p in site.getsitepackages() + [site.getusersitepackages()]: print(p)";
    let output = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(PathBuf::from)
            .filter(|p| p.is_dir())
            .collect(),
        _ => Vec::new(),
    }
}

/// The folders in `site_packages` whose name starts with `prefix`, in the order of their names.
pub fn packages(site_packages: &Path, prefix: &str) -> Vec<PathBuf> {
    children(site_packages, |name| name.starts_with(prefix))
}

/// The `site-packages` that a file lies in.
pub fn around(file: &Path) -> Option<PathBuf> {
    let names = ["site-packages", "dist-packages"].map(OsStr::new);
    let mut above = file.ancestors();
    let site = above.find(|d| d.file_name().is_some_and(|n| names.contains(&n)));
    site.map(Path::to_path_buf)
}

/// The version of an installed package, by the folder of its metadata; `name` has underscores for dashes.
pub fn version(site_packages: &Path, name: &str) -> Option<String> {
    let prefix = format!("{name}-");
    packages(site_packages, &prefix)
        .into_iter()
        .find_map(|folder| {
            let name = folder.file_name()?.to_str()?;
            let version = name.strip_prefix(&prefix)?.strip_suffix(".dist-info")?;
            Some(version.to_string())
        })
}

/// The `site-packages` folders of a virtual environment, in the order of their Python versions.
pub fn of_venv(venv: &Path) -> Vec<PathBuf> {
    children(&venv.join("lib"), |name| name.starts_with("python3"))
        .into_iter()
        .map(|d| d.join("site-packages"))
        .filter(|d| d.is_dir())
        .collect()
}

fn children(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().and_then(OsStr::to_str).is_some_and(&wanted) && p.is_dir())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_venv_is_searched_by_python_version() {
        let root = env::temp_dir().join(format!("kiln-pysite-{}", std::process::id()));
        let site = root.join("lib/python3.11/site-packages");
        for package in ["tensorrt_rtx_libs", "tensorrt_rtx", "onnx"] {
            fs::create_dir_all(site.join(package)).unwrap();
        }
        fs::create_dir_all(root.join("lib/other")).unwrap();
        fs::write(site.join("tensorrt_rtx.txt"), "").unwrap();

        assert_eq!(of_venv(&root), std::slice::from_ref(&site));
        assert_eq!(
            packages(&site, "tensorrt_rtx"),
            [site.join("tensorrt_rtx"), site.join("tensorrt_rtx_libs")]
        );
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_wheel_has_its_runtimes_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let of = |site: &str| {
            let root = root.path().join(site.replace('/', "-"));
            fs::create_dir_all(root.join(site).join(PACKAGE)).unwrap();
            // Another version's folder, which this wheel is not in.
            fs::create_dir_all(root.join("lib/python3.9/site-packages")).unwrap();
            (installed_with(&root.join("bin/kiln")), root.join(site))
        };
        for site in [
            "lib/python3.12/site-packages",
            "lib/python3/dist-packages",
            "lib/python3.11/dist-packages",
            ".",
        ] {
            let (found, wanted) = of(site);
            assert_eq!(found, [wanted], "{site}");
        }
        let (_, site) = of("lib/python3.13/site-packages");
        let prefix = site.ancestors().nth(3).unwrap();
        assert!(installed_with(&prefix.join("target/kiln")).is_empty());
        assert!(installed_with(Path::new("/no/such/bin/kiln")).is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_has_nothing() {
        assert!(of_venv(Path::new("/no/such/venv")).is_empty());
        assert!(packages(Path::new("/no/such/site-packages"), "x").is_empty());
    }
}
