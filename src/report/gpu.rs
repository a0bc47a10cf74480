//! A benchmark of engines, for people.

use super::bench::{Table, sizes};
use crate::bench::gpu::{EnginePoint, EngineReport, GpuBenchmark};
use crate::summary::bytes;

fn ms(ns: f64) -> String {
    format!("{:.3}", ns / 1e6)
}

/// Everything that a terminal shows; of the layers the slowest.
pub fn tables(b: &GpuBenchmark, layers: usize) -> Vec<Table> {
    let mut all = Vec::new();
    for engine in &b.engines {
        all.push(latency(engine));
        all.push(throughput(engine));
        all.extend((!engine.layers.is_empty()).then(|| slowest(engine, layers)));
    }
    all
}

fn latency(e: &EngineReport) -> Table {
    let row = |p: &EnginePoint| {
        vec![
            sizes(&p.sizes),
            ms(p.compute.p50),
            ms(p.compute.p99),
            ms(p.wall.p50),
            ms(p.wall.p99),
            ms(p.upload.p50),
            ms(p.download.p50),
            (p.limit).map_or("?".into(), |limit| {
                format!("{:.0} %", 100.0 * limit / p.compute.p50)
            }),
            p.paper
                .map_or("?".into(), |paper| format!("≥ {}", ms(paper))),
            p.memory.map_or("?".into(), |m| bytes(m as usize)),
        ]
    };
    (
        format!(
            "{}: {} on {} ({}), milliseconds",
            e.name, e.facts.runtime, e.facts.device, e.facts.capability
        ),
        vec![
            "sizes", "GPU p50", "GPU p99", "wall p50", "wall p99", "to GPU", "from GPU", "of roof",
            "on paper", "memory",
        ],
        e.points.iter().map(row).collect(),
    )
}

fn throughput(e: &EngineReport) -> Table {
    let rows = e.points.iter().flat_map(|p| {
        p.loads.iter().map(|l| {
            vec![
                sizes(&p.sizes),
                l.streams.to_string(),
                format!("{:.0}", l.throughput),
                ms(l.latency.p50),
                ms(l.latency.p99),
            ]
        })
    });
    (
        format!("{}: throughput without copies", e.name),
        vec!["sizes", "streams", "items/s", "latency p50", "latency p99"],
        rows.collect(),
    )
}

fn slowest(e: &EngineReport, shown: usize) -> Table {
    let row = |l: &crate::engine::run::LayerTime| {
        vec![
            l.layer.clone(),
            format!("{:.4}", l.ms),
            format!("{:.1} %", 100.0 * l.share),
        ]
    };
    (
        format!("{}: layers", e.name),
        vec!["layer", "ms", "share"],
        e.layers.iter().take(shown).map(row).collect(),
    )
}

/// What stands beside the tables.
pub fn notes(b: &GpuBenchmark) -> Vec<String> {
    b.engines.iter().flat_map(notes_of).collect()
}

fn notes_of(e: &EngineReport) -> Vec<String> {
    let f = &e.facts;
    let cached = match f.cached {
        Some(true) => ", its kernels from the cache",
        _ => "",
    };
    let weights = f.refit_ms.map_or(String::new(), |ms| {
        format!(", given the model's weights in {ms:.0} ms")
    });
    let mut notes = vec![format!(
        "{}: read in {:.0} ms{weights}, ready in {:.0} ms{cached}",
        e.name, f.load_ms, f.prepare_ms
    )];
    match &e.card {
        Some(card) => notes.push(format!(
            "roof: {:?} at {} TFLOP/s, {} GB/s ({})",
            e.format,
            card.peak(e.format).unwrap_or_default(),
            card.gbytes,
            card.source
        )),
        None => notes.push(format!(
            "roof: the datasheet of {} is not in kiln's table",
            f.device
        )),
    }
    if e.points.iter().any(|p| p.paper.is_some()) {
        notes.push("on paper: what the kernels' bytes, operations and launches take at least by the datasheet; not measured".into());
    }
    if let Some(v) = f.validity.as_ref().filter(|v| v.slower) {
        notes.push(v.to_string());
    }
    if e.points.iter().any(|p| !p.graph) {
        notes.push("kernels were queued one by one, not as a CUDA graph".into());
    }
    for t in e.points.iter().filter_map(|p| p.telemetry.as_ref()) {
        let mean = |s: &Option<crate::bench::gpu::telemetry::Spread>, unit: &str| {
            s.map_or(format!("? {unit}"), |s| format!("{:.0} {unit}", s.mean))
        };
        let held = match t.held.is_empty() {
            true => String::new(),
            false => format!("; clocks held by {}", t.held.join(", ")),
        };
        notes.push(format!(
            "drew {}, clocks {}, {}{held}",
            mean(&t.power, "W"),
            mean(&t.clock, "MHz"),
            mean(&t.temperature, "°C")
        ));
    }
    if let Some(best) = &e.best {
        notes.push(format!(
            "within {} ms: {:.0} items/s at {} with {} streams (p99 {:.3} ms)",
            best.bound_ms,
            best.throughput,
            sizes(&best.sizes),
            best.streams,
            best.p99_ms
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::gpu::tests::point;
    use crate::engine::card;
    use crate::engine::run::Facts;
    use crate::environment::environment;

    #[test]
    fn a_benchmark_reads_as_tables() {
        let facts = Facts {
            runtime: "TensorRT for RTX 1.7.1.116".into(),
            device: "NVIDIA H100 80GB HBM3".into(),
            uuid: None,
            capability: "sm_90".into(),
            layers: 80,
            profiles: 1,
            activation_bytes: 1 << 20,
            load_ms: 40.0,
            refit_ms: None,
            prepare_ms: 900.0,
            cached: Some(true),
            validity: None,
        };
        let card = card::find(&facts.device).copied();
        let benchmark = GpuBenchmark {
            kiln: "0",
            environment: environment(),
            engines: vec![EngineReport {
                name: "bert".into(),
                facts,
                format: card::Format::Fp16,
                card,
                points: vec![point(1, &[(1, 0.4, 2500.0), (4, 0.9, 6000.0)])],
                layers: Vec::new(),
                best: None,
            }],
        };
        let tables = tables(&benchmark, 10);
        assert_eq!(tables.len(), 2);
        assert_eq!(tables[0].2[0][1..4], ["0.300", "0.300", "0.400"]);
        assert_eq!(tables[0].2[0][7..9], ["17 %", "≥ 0.090"]);
        assert_eq!(tables[1].2[1][1..3], ["4", "6000"]);
        let notes = notes(&benchmark).join("\n");
        assert!(
            notes.contains("989.5 TFLOP/s") && notes.contains("from the cache"),
            "{notes}"
        );
    }
}
