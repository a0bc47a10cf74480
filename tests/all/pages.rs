//! The pages in a real browser: what they say and ask for, on a desktop, in the dark, on a phone and on paper. The pictures
//! are left in `target/tmp/pages`, to be looked at.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::browser::{Browser, Screen};

/// Runs kiln, whose exit code must be this.
#[track_caller]
fn kiln(args: &[&str], code: i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
}

/// The model of `make demo`, else a small one of the fixtures, with the names of its dimensions.
fn model() -> (PathBuf, [&'static str; 2]) {
    match common::demo_model() {
        Some(path) => (path, ["batch_size", "sequence_length"]),
        None => {
            println!("the model of the demo is not there; a fixture takes its place");
            (
                common::fixture("models/bert-tiny.ts.eager.opset11.onnx"),
                ["batch", "seq"],
            )
        }
    }
}

/// A page, and what its readers must find.
struct Page {
    name: &'static str,
    file: PathBuf,
    words: Vec<&'static str>,
    /// Elements that there must be, as selectors.
    elements: Vec<&'static str>,
}

/// All pages, about one model.
fn pages(folder: &Path) -> Vec<Page> {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let (model, [batch, length]) = model();
    let model = model.to_str().unwrap();
    let (bundle, check, bench, attention) = (
        at("demo.kiln"),
        at("check.html"),
        at("bench.html"),
        at("attention.html"),
    );
    let dims = [format!("{batch}=1:1:2"), format!("{length}=8:24:32")];
    let mut compile = vec![
        "compile",
        model,
        "--fp16",
        "--target",
        "sm_89",
        "--latency",
        "-o",
        &bundle,
    ];
    compile.extend(["--dim", &dims[0], "--dim", &dims[1]]);
    if !common::tensorrt() {
        compile.push("--no-engine");
    }
    kiln(&compile, 0);
    // The head is about the engine, which no processor's latency speaks for.
    let report = fs::read_to_string(folder.join("demo.kiln/report.html")).unwrap();
    let (head, _) = report.split_once("</header>").unwrap();
    assert!(head.contains("parity of the engine"), "{head}");
    assert!(
        !head.contains("verdict bad") && !head.contains("speed"),
        "{head}"
    );
    // A gate that fails shows more than one that passes.
    let mut args = vec![
        "check",
        &bundle,
        "--reference",
        model,
        "--tolerance",
        "fp32-rewrite",
    ];
    args.extend([
        "--dim", &dims[0], "--dim", &dims[1], "--layers", "--report", &check,
    ]);
    kiln(&args, 1);
    let grid = [format!("{batch}=1,4"), format!("{length}=16,64")];
    let mut args = vec![
        "bench", model, &bundle, "--grid", &grid[0], "--grid", &grid[1],
    ];
    args.extend([
        "--runs",
        "12",
        "--duration",
        "0.05",
        "--warmup",
        "2",
        "--profile",
    ]);
    args.extend(["--report", &bench]);
    kiln(&args, 0);
    let text = "The cat sat on the mat because it was tired. A transformer reads all words at once, and each head looks for \
                something else.";
    let tokenizer = common::fixture("tokenizers/sentence.json");
    let mut args = vec!["attention", model, "-o", &attention, "--text", text];
    args.extend(["--tokenizer", tokenizer.to_str().unwrap()]);
    kiln(&args, 0);
    made(folder)
}

/// The pages that those commands wrote, with what must be on them.
fn made(folder: &Path) -> Vec<Page> {
    vec![
        Page {
            name: "report",
            file: folder.join("demo.kiln/report.html"),
            words: vec![
                "parity with the original",
                "passes",
                "not run",
                "Fused blocks",
                "Operators, before and after",
                "Errors of",
                "nodes keep their precision",
                "Distribution",
                "Environment",
                "speed-up",
            ],
            elements: vec![
                ".verdict.good",
                "figure svg polygon.area",
                ".bars .fill.after",
                "details table",
            ],
        },
        Page {
            name: "check",
            file: folder.join("check.html"),
            words: vec![
                "fails",
                "fp32-rewrite",
                "first divergence",
                "relative L2",
                "limit",
            ],
            elements: vec![".verdict.bad", "td.bad", "figure svg circle title"],
        },
        Page {
            name: "bench",
            file: folder.join("bench.html"),
            words: vec![
                "p50 latency, ms",
                "Roofline",
                "GFLOP/s",
                "All numbers",
                "by block",
                "running",
                "median",
            ],
            elements: vec![
                "td.heat",
                "polyline.line",
                "polygon.area",
                "line.mark",
                ".bars .fill",
            ],
        },
        Page {
            name: "attention",
            file: folder.join("attention.html"),
            words: vec!["Where the heads look", "entropy", "Layers and heads"],
            elements: vec!["canvas#map", "#thumbs canvas"],
        },
    ]
}

/// How far the page is wider than the screen, in pixels: 0 on a page for phones.
const OVERFLOW: &str =
    "document.documentElement.scrollWidth - document.documentElement.clientWidth";

/// The least contrast of text with its background (WCAG 2.1, 1.4.3), and where it is.
const CONTRAST: &str = r#"(() => {
  const parse = c => (c.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(k => top[k] * a + below[k] * (1 - a)); };
  const behind = e => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => top.length ? over(top, below) : below, [255, 255, 255]);
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const e = n.parentElement, style = getComputedStyle(e);
    if (!n.data.trim() || ["SCRIPT", "STYLE", "TITLE", "OPTION"].includes(e.tagName) || !e.getClientRects().length) continue;
    const ground = behind(e), ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(over(ink, ground)), light(ground)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 200)];
  }
  return worst;
})()"#;

#[test]
fn pages_are_right_on_every_screen() {
    if common::runtime().is_none() {
        return;
    }
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    fs::create_dir_all(&pictures).unwrap();
    let mut faults = Vec::new();
    for page in pages(folder.path()) {
        let name = page.name;
        fs::copy(&page.file, pictures.join(format!("{name}.html"))).unwrap();
        for (screen, kind) in [
            (Screen::DESKTOP, "light"),
            (Screen::DARK, "dark"),
            (Screen::PHONE, "phone"),
        ] {
            browser.open(&page.file, screen);
            let found = look(&mut browser, &page);
            faults.extend(found.into_iter().map(|f| format!("{name} {kind}: {f}")));
            let picture = browser.picture();
            assert!(picture.starts_with(b"\x89PNG"));
            fs::write(pictures.join(format!("{name}-{kind}.png")), picture).unwrap();
        }
        let paper = browser.print();
        assert!(paper.starts_with(b"%PDF") && paper.len() > 10_000, "{name}");
        fs::write(pictures.join(format!("{name}.pdf")), paper).unwrap();
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is wrong with the page that is open.
fn look(browser: &mut Browser, page: &Page) -> Vec<String> {
    let mut faults = browser.complaints();
    let text = browser.text();
    // Styles may write labels in capitals.
    let low = text.to_lowercase();
    let missing = page
        .words
        .iter()
        .filter(|w| !low.contains(&w.to_lowercase()));
    faults.extend(missing.map(|word| format!("no {word:?} in\n{text}")));
    let numbers = text.replace("NaN/Inf", "").replace("are NaN", "");
    if numbers.contains("NaN") || text.contains("undefined") {
        faults.push(format!("a number is missing in\n{text}"));
    }
    for selector in &page.elements {
        let found = browser.evaluate(&format!("document.querySelectorAll('{selector}').length"));
        if found.as_u64() == Some(0) {
            faults.push(format!("no {selector}"));
        }
    }
    let wider = browser.evaluate(OVERFLOW);
    if wider != 0 {
        faults.push(format!("{wider} pixels wider than the screen"));
    }
    let contrast = browser.evaluate(CONTRAST);
    if contrast[0].as_f64() < Some(4.5) {
        faults.push(format!("contrast: {contrast}"));
    }
    faults
}
