//! Every command that README and docs show, on the demo's model, as it stands.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kiln::parity::npz;
use kiln_graph::Tensor;
use tempfile::TempDir;

/// Commands that do not run here, by how they begin, and why.
const SKIPPED: &[(&str, &str)] = &[
    (
        "kiln compile model.onnx --input sr=16000",
        "a model with an input `sr`",
    ),
    ("kiln compile decoder.onnx", "a decoder with a cache"),
    ("kiln generate", "a decoder with a cache"),
    (
        "kiln check model.kiln --reference model.onnx --device cuda:0",
        "a GPU",
    ),
    ("kiln bench model.kiln --engine", "a GPU"),
    ("kiln bench --watch", "a GPU"),
    ("kiln gpu-check", "a GPU"),
];

/// The machine's noise decides what these find.
const NOISY: &[&str] = &["--max-regression"];

#[test]
fn readme_has_the_numbers_that_were_measured_last() {
    let mut command = Command::new(root().join(".venv/bin/python"));
    command.arg(root().join("tools/readme.py")).arg("--check");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// README and all pages, by name.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let docs = fs::read_dir(root().join("docs")).unwrap();
    paths.extend(docs.map(|e| e.unwrap().path()));
    paths.retain(|p| p.extension().is_some_and(|e| e == "md"));
    paths.sort();
    let page = |p: PathBuf| {
        let name = p.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(p).unwrap())
    };
    paths.into_iter().map(page).collect()
}

/// The blocks of a page that are in this language.
fn blocks<'t>(page: &'t str, language: &str) -> Vec<&'t str> {
    let open = format!("```{language}\n");
    let after = page.split(&open).skip(1);
    after
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// Lines of shell that start kiln, without what is said beside them. README's come first, as they make what others read.
fn commands() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut pages = pages();
    pages.sort_by_key(|(name, _)| name != "README.md");
    for (name, page) in pages {
        let shell = blocks(&page, "sh").into_iter().flat_map(str::lines);
        let text = blocks(&page, "text").into_iter().flat_map(str::lines);
        let typed = text.filter_map(|line| line.strip_prefix("$ "));
        for line in shell.chain(typed).filter(|line| line.starts_with("kiln ")) {
            let command = line.split(" # ").next().unwrap().trim().to_string();
            if !found.iter().any(|(_, known)| *known == command) {
                found.push((name.clone(), command));
            }
        }
    }
    found
}

/// The demo's model, where `make setup` has put it.
fn model() -> Option<PathBuf> {
    let found = common::demo_model();
    if found.is_none() {
        println!("skipped: the demo's model is not here");
    }
    found
}

/// A folder with what the commands name.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new(model: &Path) -> Desk {
        let desk = Desk {
            folder: tempfile::tempdir().unwrap(),
        };
        for name in [
            "paraphrase-MiniLM-L3-v2.onnx",
            "model.onnx",
            "a.onnx",
            "b.onnx",
        ] {
            symlink(model, desk.path(name)).unwrap();
        }
        for name in ["target", "inputs"] {
            fs::create_dir(desk.path(name)).unwrap();
        }
        let words = common::fixture("tokenizers/words.json");
        fs::copy(words, desk.path("tokenizer.json")).unwrap();
        let lines = "the cat sat on the mat\na dog\nwords of a line\nmore words\n";
        for name in ["lines.txt", "samples.txt"] {
            fs::write(desk.path(name), lines).unwrap();
        }
        let ids: Vec<i64> = (0..64).map(|k| 1000 + 37 * k).collect();
        let matrix = |values: &[i64]| Tensor::from_values(&[4, 16][..], values).unwrap();
        let arrays = [
            ("input_ids", matrix(&ids)),
            ("attention_mask", matrix(&[1; 64])),
        ];
        for name in ["inputs.npz", "data.npz", "inputs/first.npz"] {
            npz::write(&desk.path(name), &arrays).unwrap();
        }
        let recipes = fs::read_to_string(root().join("docs/recipes.md")).unwrap();
        fs::write(desk.path("kiln.yaml"), blocks(&recipes, "yaml")[0]).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, command: &str) -> Output {
        let kiln = Path::new(env!("CARGO_BIN_EXE_kiln")).parent().unwrap();
        let path = format!("{}:{}", kiln.display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-e", "-o", "pipefail", "-c", command]);
        bash.current_dir(self.folder.path()).env("PATH", path);
        bash.output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, command: &str, codes: &[i32]) {
        let ran = self.run(command);
        let code = ran.status.code().unwrap();
        let err = String::from_utf8_lossy(&ran.stderr);
        assert!(codes.contains(&code), "{command}\nexit code {code}\n{err}");
    }
}

/// What makes a command fit into a test, and changes nothing of what is written in the page: one compilation is run whole, and
/// others are planned; measurements are short.
fn shortened(command: &str) -> String {
    let short = match command.split(' ').nth(1) {
        Some("compile") => " --dry-run",
        Some("bench") => " --duration 0 --runs 2 --warmup 1",
        _ => return command.to_string(),
    };
    let (own, rest) = match command.split_once(" > ") {
        Some((own, file)) => (own, format!(" > {file}")),
        None => (command, String::new()),
    };
    match own.contains(short) {
        true => command.to_string(),
        false => format!("{own}{short}{rest}"),
    }
}

#[test]
fn every_command_of_the_pages_runs_on_the_demos_model() {
    let Some(model) = model().filter(|_| common::runtime().is_some() && common::tensorrt()) else {
        return;
    };
    let desk = Desk::new(&model);
    let commands = commands();
    assert!(commands.len() > 30, "{}", commands.len());
    let demo = commands
        .iter()
        .find(|(_, c)| c.contains("target/demo.kiln"));
    let (_, demo) = demo.expect("README's demo");
    desk.succeeds(&format!("{demo} --no-latency"), &[0]);
    symlink("target/demo.kiln", desk.path("model.kiln")).unwrap();
    let record =
        "kiln check model.kiln --reference model.onnx --record golden.npz --json > result.json";
    desk.succeeds(record, &[0]);
    desk.succeeds(
        "kiln bench model.onnx --duration 0 --json > last-week.json",
        &[0],
    );
    let mut skipped = BTreeSet::new();
    for (page, command) in &commands {
        if command == demo {
            continue;
        }
        if let Some((begins, why)) = SKIPPED.iter().find(|(b, _)| command.starts_with(b)) {
            println!("skipped: {page}: {command}: it takes {why}");
            skipped.insert(*begins);
            continue;
        }
        let noisy = NOISY.iter().any(|option| command.contains(option));
        let codes: &[i32] = match command.starts_with("kiln diff") {
            true => &[1],
            false if noisy => &[0, 1],
            false => &[0],
        };
        println!("{page}: {command}");
        desk.succeeds(&shortened(command), codes);
    }
    let stale = SKIPPED
        .iter()
        .filter(|(begins, _)| !skipped.contains(begins));
    assert_eq!(stale.count(), 0, "nothing shows what is skipped");
}

/// Spans such as `kiln check --pieces` name a command with options of its own.
#[test]
fn options_that_the_pages_name_are_there() {
    let help = |verbs: &[&str]| {
        let kiln = env!("CARGO_BIN_EXE_kiln");
        let mut asked = Command::new(kiln);
        let ran = asked.args(verbs).arg("--help").output().unwrap();
        (ran.status.success()).then(|| String::from_utf8(ran.stdout).unwrap())
    };
    let is_verb = |word: &str| {
        let plain = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        plain && !word.starts_with('-')
    };
    let mut named = 0;
    for (name, page) in pages() {
        for span in page.split('`').skip(1).step_by(2) {
            let mut words = span.split_whitespace();
            let (Some("kiln"), Some(verb)) = (words.next(), words.next()) else {
                continue;
            };
            if !is_verb(verb) {
                continue;
            }
            let mut words = words.peekable();
            let second = words.peek().filter(|word| is_verb(word));
            let below = second.and_then(|second| help(&[verb, second]));
            let help = below
                .or_else(|| help(&[verb]))
                .unwrap_or_else(|| panic!("{name}: `{span}`"));
            for option in words.filter(|w| w.starts_with("--")) {
                let option = option.split('=').next().unwrap();
                assert!(help.contains(option), "{name}: `{span}` names {option}");
                named += 1;
            }
        }
    }
    assert!(named > 10, "{named}");
}
