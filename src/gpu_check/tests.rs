//! The check by recorded steps: what a GPU would print, and what a machine without one does.

use std::cell::RefCell;

use serde_json::json;

use super::page as page_of;
use super::*;
use crate::talk::Silent;

mod made_up;

/// Answers as steps on a GPU do, by the shape of what they print.
#[derive(Default)]
struct Recorded {
    asked: RefCell<Vec<String>>,
    /// Whether TensorRT serves the card.
    served: bool,
}

fn report(pass: bool, cosine: f64) -> Value {
    let float = |cosine: f64| {
        let mut float = json!({
            "max_abs_at": [0], "cosine": cosine, "argmax": null,
            "nonfinite": {"reference_nan": 0, "candidate_nan": 0, "reference_inf": 0, "candidate_inf": 0, "differ": 0},
        });
        for key in [
            "max_abs",
            "mean_abs",
            "p99_abs",
            "max_scaled",
            "relative_l2",
            "sqnr_db",
            "reference_max",
            "reference_rms",
        ] {
            float[key] = json!(0.0);
        }
        float
    };
    let output = |float: Value, pass: bool| {
        json!({"name": "y", "comparison": {
            "outcome": "compared",
            "metrics": {"elements": 1, "unequal": 1, "same_bits": false, "float": float},
            "verdict": {"pass": pass, "failed": []},
        }})
    };
    let outputs = [
        output(float(0.99999), true),
        output(float(cosine), pass),
        output(Value::Null, true),
    ];
    json!({
        "tolerance": {"name": "fp16", "limits": {"same_bits": false}, "overrides": []},
        "cases": [{"name": "typical", "inputs": [], "outputs": outputs}],
    })
}

fn stats(ms: f64) -> Value {
    json!({"p50": ms * 1e6, "p99": ms * 2e6, "mean": ms * 1e6})
}

/// 12 GFLOP over so many bytes a weight.
fn work(bytes: u64) -> Value {
    json!({"flops": 12_000_000_000_u64, "weight_bytes": 85_000_000 * bytes, "io_bytes": 0, "uncounted": 0})
}

fn ok(value: Value) -> Ran {
    Ran {
        code: Some(0),
        late: false,
        stdout: value.to_string(),
        stderr: String::new(),
    }
}

fn failing(code: i32, why: &str) -> Ran {
    Ran {
        code: Some(code),
        late: false,
        stdout: String::new(),
        stderr: format!("some talk\nkiln: {why}\n"),
    }
}

impl Steps for Recorded {
    fn kiln(&self, args: &[&str]) -> Ran {
        self.asked.borrow_mut().push(args.join(" "));
        let has = |arg: &str| args.contains(&arg);
        match args[0] {
            "compile" if has("--int8") => failing(1, "the result is not the same function"),
            "check" if args[1].contains("biases-apart") => failing(1, "the outputs differ"),
            "check" if has("--cuda-graph") && args[1].contains("norms-apart") && !has("cpu") => {
                failing(4, "a CUDA graph on cuda:0 did not run at the case typical")
            }
            "check" => {
                let graph = match has("cpu") {
                    _ if !has("--cuda-graph") => Value::Null,
                    true => {
                        json!({"status": "not-run", "why": "no CUDA device: models run on cpu"})
                    }
                    false => {
                        json!({"status": "run", "runner": "a CUDA graph", "report": report(true, 0.9999)})
                    }
                };
                let kernel = "Operator=MultiHeadAttention SdpaKernel=EFFICIENT_ATTENTION";
                let found = json!({"parity": report(true, 0.99995), "cuda_graph": graph});
                Ran {
                    stdout: format!("{kernel}\n{found}"),
                    ..ok(Value::Null)
                }
            }
            "bench" if has("--profile") => ok(json!({"profiles": [{"operators": [
                {"name": "MatMul", "micros": 300.0}, {"name": "Softmax", "micros": 100.0},
            ]}]})),
            "bench" if args[1].contains(".chosen.onnx") => {
                let ms = if has("--cuda-graph") { 0.5 } else { 1.0 };
                let subject =
                    |k: usize| json!({"stats": stats(ms * [2.0, 2.0, 2.0, 1.0, 4.0, 2.0, 3.0][k])});
                let subjects: Vec<Value> =
                    (0..args.iter().filter(|a| a.ends_with(".onnx")).count())
                        .map(subject)
                        .collect();
                ok(json!({"points": [{"measured": {"subjects": subjects}}]}))
            }
            "compile" if has("cpu") || has("cuda") => ok(json!({"parity": report(true, 0.99995)})),
            "compile" if self.served => {
                let parity =
                    json!({"status": "run", "runner": "TensorRT", "report": report(false, 0.5)});
                ok(json!({"engine_parity": parity}))
            }
            "compile" => failing(2, "--target local: this machine's GPU is sm_90"),
            "bench" if has("--engine") => ok(json!({"engines": [{"points": [{
                "compute": stats(0.5),
                "loads": [{"throughput": 1900.0}, {"throughput": 5200.0}],
            }]}]})),
            "inspect" => Ran {
                code: Some(1),
                ..ok(
                    json!({"listed": 26, "told": 25, "differences": ["a is listed by the builder alone"]}),
                )
            },
            _ => ok(json!({"points": [{
                "work": [work(4), work(2), work(2)],
                "measured": {"subjects": [
                    {"stats": stats(4.0)}, {"stats": stats(1.5)}, {"stats": stats(1.6)},
                ]},
            }]})),
        }
    }

    fn python(&self, _: &Path, program: &str, args: &[String]) -> Ran {
        assert!(program.contains("import torch") && args.len() == 8);
        Ran {
            code: Some(0),
            late: false,
            stdout: "{\"runner\": \"PyTorch 2 eager\", \"precision\": \"fp16\", \"p50_ms\": 2.0, \"p99_ms\": 2.2}\n\
                     a line of some library\n\
                     {\"runner\": \"PyTorch 2 torch.compile\", \"precision\": \"fp16\", \"not_run\": \"no compiler\"}\n"
                .into(),
            stderr: String::new(),
        }
    }
}

fn request(folder: &Path, dry_run: bool) -> Request {
    Request {
        models: None,
        results: folder.join("results"),
        work: folder.join("work"),
        dry_run,
        device: 0,
        python: Some("python3".into()),
        ort_lib: None,
    }
}

fn rows_of(steps: &Recorded) -> (Record, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path(), false);
    fs::create_dir_all(&request.work).unwrap();
    let path = request.work.join("tiny.onnx");
    onnx::write(
        &encoder(&DRY).unwrap(),
        &path,
        &onnx::WriteOptions::default(),
    )
    .unwrap();
    let subject = Subject {
        name: "tiny".into(),
        path,
        sizes: Some(DRY),
    };
    let gpu = driver::Gpu {
        uuid: None,
        name: "NVIDIA H100 80GB HBM3".into(),
        capability: (9, 0),
        memory: 80 << 30,
    };
    let mut record = Record::new(Some(&gpu), false);
    rows(&request, &subject, steps, &Silent, &mut |rows| {
        record.rows.extend(rows);
        Ok(())
    })
    .unwrap();
    (record, folder)
}

#[test]
fn every_way_to_run_a_model_is_a_row() {
    let steps = Recorded::default();
    let (record, _folder) = rows_of(&steps);
    let (header, table) = record.table();
    assert_eq!(header.len(), table[0].len());
    let cells = |row: usize| table[row].join(" | ");
    assert_eq!(
        cells(0),
        "tiny | ONNX Runtime CUDA, TF32 off | fp32 | 4.000 | 8.000 | 1.00 | 250 | passes (fp16), cosine 0.9999500"
    );
    assert_eq!(
        cells(1),
        "tiny | kiln, ONNX Runtime CUDA | fp16 | 1.500 | 3.000 | 0.38 | 667 | passes (fp16), cosine 0.9999500"
    );
    assert!(cells(2).contains("int8") && cells(2).contains("FAILS: the result is not the same"));
    assert!(cells(3).contains("bf16 | 1.600 | 3.200"), "{}", cells(3));
    assert!(cells(4).contains("TensorRT") && cells(4).contains("sm_90 (exit code 2)"));
    assert!(cells(5).contains("eager") && cells(5).contains("0.50"));
    assert!(cells(6).contains("torch.compile") && cells(6).contains("not run: no compiler"));
    assert_eq!(table.len(), 7);
    assert!(!record.pass(), "INT8 is wrong");
    assert_eq!(record.file_name(), "nvidia-h100-80gb-hbm3.json");
    let asked = steps.asked.borrow();
    assert!(
        asked
            .iter()
            .all(|a| a.contains("--device cuda:0") || a.contains("--record")),
        "{asked:?}"
    );
    let calibrated = asked.iter().find(|a| a.contains("--int8")).unwrap();
    assert!(calibrated.contains("--calibrate"), "{calibrated}");
}

/// The encoder for dry runs, with what stands for a GPU beside it.
fn forms_of(dry_run: bool) -> (Vec<FormRow>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path(), dry_run);
    fs::create_dir_all(&request.work).unwrap();
    let path = request.work.join("tiny.onnx");
    let model = encoder(&DRY).unwrap();
    onnx::write(&model, &path, &onnx::WriteOptions::default()).unwrap();
    let subject = Subject {
        name: "tiny".into(),
        path,
        sizes: Some(DRY),
    };
    let steps = Recorded::default();
    let rows = Work::of(&request, &subject, &steps).forms();
    let written = |form: &str| {
        let model = onnx::read(request.work.join(format!("tiny.{form}.onnx"))).unwrap();
        let names = model.graph.nodes().map(|(_, n)| n.op().to_string());
        names.collect::<Vec<_>>()
    };
    let has = |form: &str, op: &str| written(form).iter().any(|o| o == op);
    assert!(has("chosen", "com.microsoft.MultiHeadAttention"));
    assert!(has("packed-attention", "com.microsoft.Attention"));
    assert!(has("standard-attention", "Attention"));
    assert!(has("products", "Softmax") && !has("chosen", "Softmax"));
    assert!(has("packed-heads", "com.microsoft.MultiHeadAttention"));
    // Nothing is causal.
    assert!(!has(
        "grouped-attention",
        "com.microsoft.GroupQueryAttention"
    ));
    assert!(has("chosen", "com.microsoft.SkipLayerNormalization"));
    assert!(!has("norms-apart", "com.microsoft.SkipLayerNormalization"));
    assert!(has("chosen", "com.microsoft.BiasGelu"));
    assert!(!has("biases-apart", "com.microsoft.BiasGelu"));
    (rows, steps.asked.into_inner())
}

#[test]
fn each_form_is_timed_in_turns_without_and_with_graphs() {
    let (rows, asked) = forms_of(false);
    assert_eq!(rows.len(), 18);
    let (header, table) = forms_table(&rows);
    assert_eq!(header.len(), table[0].len());
    let cells = |row: usize| table[row].join(" | ");
    assert_eq!(
        cells(0),
        "tiny | chosen | off | 2.000 | 1.00 | EFFICIENT_ATTENTION | passes (fp16), cosine 0.9999500"
    );
    assert_eq!(
        cells(13),
        "tiny | standard-attention | on | 0.500 | 0.25 | EFFICIENT_ATTENTION | passes (fp16), cosine 0.9999000"
    );
    // What runs, and of which no graph is recorded, is timed without one.
    assert!(
        cells(7).contains("norms-apart | off | 3.000"),
        "{}",
        cells(7)
    );
    assert!(
        cells(16).contains("norms-apart | on |  |  |  | not run: a CUDA graph of it failed"),
        "{}",
        cells(16)
    );
    // What is wrong is not timed.
    assert_eq!(
        cells(8),
        "tiny | biases-apart | off |  |  |  | FAILS: the outputs differ (exit code 1)"
    );
    let benches: Vec<_> = asked.iter().filter(|a| a.starts_with("bench")).collect();
    assert_eq!(benches.len(), 2);
    assert!(!benches[0].contains("--cuda-graph") && benches[1].contains("--cuda-graph"));
    assert!(benches.iter().all(|b| !b.contains("biases-apart")));
    let told = advice(&rows).unwrap();
    assert!(
        told.contains("standard-attention with CUDA graphs takes 0.25"),
        "{told}"
    );
    // A form that is not faster gives no advice.
    assert_eq!(advice(&rows[..1]), None);

    let folder = tempfile::tempdir().unwrap();
    let mut record = Record::new(None, false);
    (record.gpu, record.forms) = (Some("NVIDIA L4".into()), rows);
    fs::write(folder.path().join("machines.json"), "{\"rows\": 3}").unwrap();
    assert!(
        page(folder.path())
            .unwrap()
            .contains("No GPU has been measured")
    );
    write(&record, &folder.path().join(record.file_name())).unwrap();
    let page = page(folder.path()).unwrap();
    assert!(
        page.contains("## NVIDIA L4") && page.contains("standard-attention | on"),
        "{page}"
    );
    assert_eq!(advice_for(folder.path(), "NVIDIA L4"), Some(told));
    assert_eq!(advice_for(folder.path(), "NVIDIA L40"), None);
}

#[test]
fn a_dry_run_records_no_graphs() {
    let (rows, asked) = forms_of(true);
    assert!(rows.iter().all(|r| r.precision == "fp32"));
    let with = rows.iter().filter(|r| r.graph);
    for row in with.filter(|r| !["biases-apart", "grouped-attention"].contains(&&*r.form)) {
        assert!(
            row.not_run.as_ref().unwrap().contains("no CUDA device"),
            "{row:?}"
        );
    }
    let benches = asked.iter().filter(|a| a.starts_with("bench"));
    assert!(benches.clone().count() > 0);
    assert!(benches.into_iter().all(|a| !a.contains("--cuda-graph")));
}

#[test]
fn an_engine_that_differs_fails_the_check() {
    let steps = Recorded {
        served: true,
        ..Recorded::default()
    };
    let (record, _folder) = rows_of(&steps);
    let engine = &record.rows[4];
    assert_eq!(
        (engine.p50_ms, engine.throughput),
        (Some(0.5), Some(5200.0))
    );
    assert_eq!(engine.parity.as_ref().unwrap().cosine, Some(0.5));
    let kernels = record.rows[5].kernels.as_ref().unwrap();
    assert_eq!((kernels.listed, kernels.told), (26, 25));
    let (_, table) = record.table();
    let said = table[5].join(" ");
    assert!(
        said.contains("25 kernels, 26 listed: a is listed"),
        "{said}"
    );
    assert!(!record.pass());
    let json = serde_json::to_string(&record).unwrap();
    let back: Value = serde_json::from_str(&json).unwrap();
    let row: Row = serde_json::from_value(back["rows"][4].clone()).unwrap();
    assert_eq!(row, *engine);
}

#[test]
fn without_a_gpu_it_says_what_would_run() {
    if driver::probe().is_ok() {
        println!("not tried: this machine has a GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path(), false);
    let error = check(&request, &Recorded::default(), &Silent).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("skipped: no CUDA device"), "{text}");
    assert!(
        text.contains("bert-base") && text.contains("torch.compile"),
        "{text}"
    );
    assert!(!request.results.exists());
}

#[test]
fn a_dry_run_is_marked_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let request = request(folder.path(), true);
    let (record, path) = check(&request, &Recorded::default(), &Silent).unwrap();
    assert!(record.dry_run && record.gpu.is_none());
    assert_eq!(path.file_name().unwrap(), "dry-run.json");
    assert!(record.rows[0].runner.contains("CPU"));
    let written = fs::read_to_string(path).unwrap();
    assert!(written.contains("\"dry_run\": true"));
}

#[test]
fn a_step_that_a_signal_ends_says_so() {
    let ran = Ran {
        code: None,
        late: false,
        stdout: String::new(),
        stderr: "about to run\n".into(),
    };
    assert_eq!(
        ran.text().unwrap_err().why,
        "about to run (ended by a signal)"
    );
}
