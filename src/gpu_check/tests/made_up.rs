//! What is made of a record, from one that no GPU left.

use super::*;

/// A record as a GPU would leave it. None of its numbers was measured.
fn made_up() -> Record {
    let steps = Recorded::default();
    let (mut record, folder) = rows_of(&steps);
    let request = request(folder.path(), false);
    let subject = Subject {
        name: super::super::aims::MODEL.into(),
        path: request.work.join("tiny.onnx"),
        sizes: Some(DRY),
    };
    record.rows.clear();
    rows(&request, &subject, &steps, &Silent, &mut |rows| {
        record.rows.extend(rows);
        Ok(())
    })
    .unwrap();
    let work = Work::of(&request, &subject, &steps);
    record.forms = work.forms();
    record.profiles.extend(work.profile());
    record
}

#[test]
fn aims_are_held_against_what_was_measured() {
    let mut record = made_up();
    let told = |record: &Record| -> Vec<String> {
        let (header, rows) = aims_table(&aims(record));
        assert!(rows.iter().all(|r| r.len() == header.len()));
        rows.iter().map(|r| r.join(" | ")).collect()
    };
    // The graph of the chosen form, 1.0 ms, beside 4.0 ms of FP32; 170 MB at 3.35 TB/s take 0.0507 ms.
    let found = told(&record);
    assert_eq!(
        found[0],
        "FP16's latency of FP32's without TF32 | 0.50 | 0.25 | reached | "
    );
    assert_eq!(
        found[1],
        "FP16's latency of torch.compile's | 1.00 |  | not run | not measured"
    );
    assert_eq!(
        found[2],
        "FP16's latency of the roofline's | 3.00 | 19.71 | MISSED | its time: MatMul 75 %, Softmax 25 %"
    );
    assert_eq!(
        found[3],
        "FP16's least cosine | 0.999900 | 0.999950 | reached | "
    );
    // Peers that ran; and a GPU that no datasheet is known of.
    for row in &mut record.rows {
        if row.runner.contains("torch.compile") {
            (row.p50_ms, row.not_run) = (Some(0.8), None);
        }
    }
    record.gpu = Some("NVIDIA X1".into());
    let found = told(&record);
    assert!(found[1].starts_with("FP16's latency of torch.compile's | 1.00 | 1.25 | MISSED"));
    assert!(found[2].contains("not measured"));
}

/// What is left to do behind a run on a GPU: `make gpu-page`.
#[test]
fn a_record_makes_the_page_and_the_readmes_rows() {
    let folder = tempfile::tempdir().unwrap();
    let record = made_up();
    write(&record, &folder.path().join(record.file_name())).unwrap();
    let page = page_of(folder.path()).unwrap();
    for part in [
        "## NVIDIA H100 80GB HBM3\n\nsm_90, kiln",
        "| FP16's latency of FP32's without TF32 | 0.50 | 0.25 | reached |",
        "| bert-base | kiln, ONNX Runtime CUDA | fp16 | 1.500 |",
        "Where the time of bert-base in fp16 goes: MatMul 75 %, Softmax 25 %.",
        "| bert-base | chosen | on | 1.000 |",
        "So: of the forms measured on this GPU, standard-attention with CUDA graphs takes 0.25",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/readme.py");
    let rows = std::process::Command::new("python3")
        .arg(tool)
        .arg("--gpus")
        .arg(folder.path())
        .output();
    let Ok(rows) = rows else {
        println!("skipped: no python3");
        return;
    };
    let rows = String::from_utf8(rows.stdout).unwrap();
    assert!(
        rows.contains("BERT-base on NVIDIA H100 80GB HBM3, 1 x 128 tokens"),
        "{rows}"
    );
    let said = "| FP32 4.000 ms, FP16 1.500 ms, with CUDA graphs 1.000 ms |";
    assert!(rows.contains(said), "{rows}");
    assert!(
        rows.contains("1 models | cosine at least 0.999950 |"),
        "{rows}"
    );
    // A dry run is no measurement.
    let dry = Record {
        dry_run: true,
        ..record
    };
    write(&dry, &folder.path().join(dry.file_name())).unwrap();
    assert!(
        page_of(folder.path())
            .unwrap()
            .contains("No GPU has been measured")
    );
}
