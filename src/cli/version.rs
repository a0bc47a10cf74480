//! What `kiln --version --verbose` says below the version.

use std::env;

use crate::doctor::Facts;

/// The version ends the reading of arguments, so that the rest of them is looked for here.
pub(super) fn wanted() -> bool {
    let short = |a: &str| a.starts_with('-') && !a.starts_with("--") && a.contains('v');
    let mut given = env::args_os().skip(1);
    given.any(|a| a.to_str().is_some_and(|a| a == "--verbose" || short(a)))
}

/// The commit, what was compiled in, and the runtimes that were found.
pub(super) fn details(commit: Option<&str>) -> String {
    let commit = commit.filter(|c| !c.is_empty());
    let builder = if cfg!(feature = "tensorrt-enterprise") {
        "tensorrt-enterprise (TensorRT proper)"
    } else if cfg!(feature = "tensorrt") {
        "tensorrt (TensorRT for RTX)"
    } else {
        "none (no engines)"
    };
    let facts = Facts::gather(None, None);
    let ort = match &facts.ort {
        Ok(ort) => {
            let version = ort.version.as_deref().unwrap_or("of unknown version");
            format!("{version}, {}", ort.path.display())
        }
        Err(why) => why.lines().next().unwrap_or_default().to_string(),
    };
    let trt = match &facts.builder {
        Ok(found) => format!("{}, {}", found.version, found.path.display()),
        Err((why, _)) => why.lines().next().unwrap_or_default().to_string(),
    };
    let driver = match &facts.driver {
        Ok(driver) => driver.release.clone().unwrap_or_else(|| "found".into()),
        Err(why) => why.to_string(),
    };
    let lines = [
        (
            "commit",
            commit.unwrap_or("not recorded when this was built"),
        ),
        (
            "build",
            if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
        ),
        ("features", builder),
        ("ONNX Runtime", &ort),
        ("TensorRT", &trt),
        ("driver", &driver),
    ];
    let line = |(what, said): (&str, &str)| format!("  {what:<13} {said}\n");
    lines.into_iter().map(line).collect()
}
