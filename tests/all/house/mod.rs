//! What `docs/ARCHITECTURE.md` and `CONTRIBUTING.md` promise of the sources themselves.

mod functions;
mod loops;
mod source;
mod texts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use source::Crate;

/// Crates by their roots; the driver comes last.
const ROOTS: [&str; 6] = [
    "graph/lib.rs",
    "passes/lib.rs",
    "runtime/lib.rs",
    "engine/lib.rs",
    "proof/lib.rs",
    "src/lib.rs",
];

/// Files that may reach each other.
const LONGEST_LOOP: usize = 3;

/// Lines of a function, with its signature: what one screen shows twice over.
const LONGEST_FUNCTION: usize = 100;

/// Functions that are a table: a row or an arm for each operator.
const TABLES: &[(&str, &str)] = &[
    ("graph/infer/tests/rules.rs", "rules_by_operator"),
    ("tests/all/differential/graphs/arithmetic.rs", "arithmetic"),
    ("tests/all/differential/graphs/blocks.rs", "attention"),
    ("tests/all/differential/graphs/layout.rs", "layout"),
];

/// Lines of the function that is the whole compilation on one screen.
const COMPILE: usize = 60;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn crates() -> Vec<Crate> {
    ROOTS.map(|root| Crate::read(project(), root)).into()
}

fn architecture() -> String {
    std::fs::read_to_string(project().join("docs/ARCHITECTURE.md")).unwrap()
}

/// Loops that the page names: the files in the first cell of each row of the table below its heading.
fn named() -> BTreeSet<Vec<String>> {
    let page = architecture();
    let (_, section) = page.split_once("### Loops of files").unwrap();
    let rows = section.lines().skip_while(|l| !l.starts_with("|---"));
    let rows = rows.skip(1).take_while(|l| l.starts_with('|'));
    let files = |row: &str| {
        let cell = row.split('|').nth(1).unwrap();
        let mut files: Vec<String> = cell.split('`').skip(1).step_by(2).map(Into::into).collect();
        files.sort();
        files
    };
    rows.map(files).collect()
}

#[test]
fn loops_of_files_are_short_and_named_with_their_reasons() {
    let mut found = BTreeSet::new();
    for of in crates() {
        let uses = loops::uses(&of);
        for members in loops::loops(&uses) {
            let taken = members.iter().flat_map(|from| {
                let to = uses[from].iter().filter(|(to, _)| members.contains(to));
                to.map(move |(to, names)| {
                    format!("{} takes {names:?} of {}", from.display(), to.display())
                })
            });
            let taken: Vec<String> = taken.collect();
            assert!(
                members.len() <= LONGEST_LOOP,
                "{} files: {taken:#?}",
                members.len()
            );
            let mut names: Vec<String> = members.iter().map(|f| f.display().to_string()).collect();
            names.sort();
            found.insert(names);
        }
    }
    assert_eq!(
        found,
        named(),
        "docs/ARCHITECTURE.md, \"Loops of files\", names them with their reasons"
    );
}

#[test]
fn a_loop_is_seen_through_re_exports_and_not_made_by_them() {
    let uses = loops::uses(&Crate::read(project(), "src/lib.rs"));
    let of = |from: &str, to: &str| uses[Path::new(from)].contains_key(Path::new(to));
    // `pub use error::CompileError` is a door: who goes through it uses the file behind it.
    assert!(of("src/cli/exit.rs", "src/compile/error.rs"));
    assert!(!of("src/cli/exit.rs", "src/compile.rs"));
    // `mod` alone uses nothing, and a call does.
    assert!(of("src/compile.rs", "src/compile/proof.rs"));
    assert!(!of("src/lib.rs", "src/compile.rs"));
}

/// All sources, those of tests among them.
fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, out),
            false if path.extension().is_some_and(|e| e == "rs") => out.push(path),
            false => {}
        }
    }
}

#[test]
fn functions_are_short() {
    let mut files = Vec::new();
    for folder in [
        "graph", "passes", "runtime", "engine", "proof", "src", "tests", "examples", "fuzz/src",
    ] {
        sources(&project().join(folder), &mut files);
    }
    let (mut long, mut compile) = (Vec::new(), None);
    for path in files {
        let file = path.strip_prefix(project()).unwrap();
        let syntax = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for function in functions::of(&syntax) {
            if file == Path::new("src/compile.rs") && function.name == "compile" {
                compile = Some(function.lines);
            }
            let table = TABLES
                .iter()
                .any(|(f, name)| file == Path::new(f) && function.name == *name);
            if function.lines > LONGEST_FUNCTION && !table {
                long.push(format!(
                    "{}: {} has {} lines",
                    file.display(),
                    function.name,
                    function.lines
                ));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
    assert!(
        compile.unwrap() <= COMPILE,
        "compile() has {compile:?} lines"
    );
}

/// Options of other programs, and where kiln starts itself.
const FOREIGN: &[(&str, &str)] = &[
    ("--extra-index-url", "pip"),
    ("--force-reinstall", "pip"),
    ("--release", "cargo"),
    (
        "--features",
        "cargo: the setting of the same name is written as a setting",
    ),
    ("--gpus", "docker"),
    ("--gres", "Slurm"),
    ("--heat", "a variable of a style sheet"),
    ("--pooling", "Text Embeddings Inference"),
    ("--task", "optimum"),
];

/// Files that start a kiln of their own, with its options.
const STARTS_KILN: &[&str] = &["engine/child.rs", "src/gpu_check/"];

#[test]
fn libraries_do_not_know_the_command_lines_options() {
    let mut known = Vec::new();
    let mut unwritten = Vec::new();
    for (file, syntax) in crates().iter().flat_map(|c| &c.files) {
        let name = file.display().to_string();
        if name.starts_with("src/cli/") || STARTS_KILN.iter().any(|f| name.starts_with(f)) {
            continue;
        }
        for text in texts::of(syntax) {
            let options = texts::options(&text.text);
            let foreign = |option: &&str| FOREIGN.iter().any(|(known, _)| known == option);
            if let Some(option) = options.into_iter().find(|o| !foreign(o)) {
                known.push(format!("{name}:{}: {option}", text.line));
            }
            if !text.formatted && texts::names_constant(&text.text) {
                unwritten.push(format!("{name}:{}: {:?}", text.line, text.text));
            }
        }
    }
    assert!(
        known.is_empty(),
        "write them as settings (`runtime/setting.rs`): {known:#?}"
    );
    assert!(
        unwritten.is_empty(),
        "a constant in a text that nothing formats: {unwritten:#?}"
    );
}
