//! The page: how kiln's engines stand beside plain ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{CARDS, Facts, Kind, Model, Outcome, Results};

/// Models whose layers are no encoder's.
const DECODERS: [&str; 4] = ["gpt", "llama", "t5-dec", "decoder"];

pub fn page(all: &Results) -> String {
    let mut rows: Vec<_> = all
        .models
        .iter()
        .map(|(name, model)| Row { name, model })
        .collect();
    let worst_first = |a: &Row, b: &Row| b.worst().total_cmp(&a.worst());
    rows.sort_by(worst_first);
    let mut out = format!(
        "# Engines\n\n\
         Written by `make engines`: what {} makes of a plain FP16 file and of kiln's results, read from the builder's list of the \
         finished engine's kernels. Nothing here is timed. Engines are built for sm_89 at fixed sizes: batch 1, and 64 tokens (128 \
         for the full-size models). The plain file is what ONNX Runtime's float16 converter makes of the model, with no fusion; \
         where TensorRT does not take that, it is the model with all floats in FP16 (marked *, reasons below). Bytes are those of \
         activations that kernels read and write. The price on paper is a bound from below, of bytes, operations and launches; it \
         is no latency. INT8, FP8 and INT4 are with `--fp16`, calibrated on made inputs.\n\n",
        all.runtime,
    );
    out += &summary(&rows);
    out += &against_plain(&rows);
    out += &quantized(&rows);
    out += &notes(&rows, &all.absent);
    out
}

struct Row<'a> {
    name: &'a str,
    model: &'a Model,
}

impl Row<'_> {
    fn at(&self, target: &str, kind: Kind) -> Option<&Outcome> {
        self.model.engines.get(target)?.get(&kind)
    }

    fn facts(&self, kind: Kind) -> Option<&Facts> {
        match self.at("sm_89", kind)? {
            Outcome::Built(facts) => Some(facts),
            Outcome::Failed(_) => None,
        }
    }

    /// Microseconds on paper.
    fn price(&self, kind: Kind, (card, target): (&str, &str)) -> Option<f64> {
        let own = match self.at(target, kind) {
            Some(Outcome::Built(facts)) => facts.prices.get(card),
            _ => None,
        };
        own.or_else(|| self.facts(kind)?.prices.get(card)).copied()
    }

    /// kiln's kernels and bytes, as parts of the plain file's.
    fn ratios(&self) -> Option<[f64; 2]> {
        let (plain, kiln) = (self.facts(Kind::Plain)?, self.facts(Kind::Fp16)?);
        let bytes = kiln.bytes? as f64 / plain.bytes? as f64;
        Some([kiln.kernels as f64 / plain.kernels as f64, bytes])
    }

    /// What was not compared comes first.
    fn worst(&self) -> f64 {
        self.ratios()
            .map_or(f64::INFINITY, |[kernels, bytes]| kernels.max(bytes))
    }

    fn is_encoder(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        DECODERS.iter().all(|d| !name.contains(d))
    }
}

fn summary(rows: &[Row]) -> String {
    let compared: Vec<_> = rows.iter().filter_map(|r| Some((r, r.ratios()?))).collect();
    let of = |k: usize, encoders: bool| {
        let some = compared.iter().filter(|(r, _)| r.is_encoder() || !encoders);
        median(some.map(|(_, ratios)| ratios[k]).collect())
    };
    let over = |k: usize| {
        compared
            .iter()
            .filter(|(_, ratios)| ratios[k] > 1.0)
            .count()
    };
    let mut out = format!(
        "- **{} models, {} compared**: kiln's FP16 engine has more kernels than the plain file's in **{}**, moves more bytes in **{}**.\n\
         - Kernels, median: {} of the plain file's; over encoders {}. Bytes: {}; over encoders {}.\n",
        rows.len(),
        compared.len(),
        over(0),
        over(1),
        of(0, false),
        of(0, true),
        of(1, false),
        of(1, true),
    );
    for card in CARDS {
        let parts = rows.iter().filter_map(|r| {
            let part = r.price(Kind::Fp16, card)? / r.price(Kind::Plain, card)?;
            part.is_finite().then_some(part)
        });
        let parts: Vec<f64> = parts.collect();
        let dearer = parts.iter().filter(|&&p| p > 1.0).count();
        let _ = writeln!(
            out,
            "- Price on paper, {}, median: {} of the plain file's; {dearer} are dearer.",
            card.0,
            median(parts)
        );
    }
    for (kind, name) in [
        (Kind::Int8, "INT8"),
        (Kind::Fp8, "FP8"),
        (Kind::Int4, "INT4"),
    ] {
        let found: Vec<_> = rows.iter().filter_map(|r| r.facts(kind)).collect();
        let clean = found.iter().filter(|f| f.otherwise.is_empty()).count();
        let layers: usize = found.iter().map(|f| f.otherwise.len()).sum();
        let _ = writeln!(
            out,
            "- {name}: every quantized layer multiplies in its type in {clean} of {} engines; {layers} layers do not.",
            found.len()
        );
    }
    out + "\n"
}

fn median(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    match all.get(all.len() / 2) {
        Some(m) => format!("{:.0} %", m * 100.0),
        None => "not measured".into(),
    }
}

fn against_plain(rows: &[Row]) -> String {
    let mut out = String::from(
        "## FP16 beside the plain file\n\n\
         Worst first. Kernels, bytes and microseconds on paper as plain → kiln; those of the RTX 5090 are of the engine for sm_120 \
         where that was built, else of the same kernels as for sm_89.\n\n\
         | model | kernels | | MB | | L4, µs | RTX 5090, µs | products, plain | products, kiln | attention kernels |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let (Some(plain), Some(kiln)) = (row.facts(Kind::Plain), row.facts(Kind::Fp16)) else {
            let _ = writeln!(
                out,
                "| {} | {} → {} |",
                row.name,
                short(row.at("sm_89", Kind::Plain)),
                short(row.at("sm_89", Kind::Fp16))
            );
            continue;
        };
        let star = if plain.note.is_some() { "*" } else { "" };
        let price = |kind, card| row.price(kind, card).map_or("?".into(), microseconds);
        let prices = CARDS.map(|card| {
            [Kind::Plain, Kind::Fp16]
                .map(|k| price(k, card))
                .join(" → ")
        });
        let [kernels, bytes] = row
            .ratios()
            .map_or(["".into(), "".into()], |r| r.map(change));
        let _ = writeln!(
            out,
            "| {}{star} | {} → {} | {kernels} | {} → {} | {bytes} | {} | {} | {} | {} | {} → {} |",
            row.name,
            plain.kernels,
            kiln.kernels,
            megabytes(plain.bytes),
            megabytes(kiln.bytes),
            prices[0],
            prices[1],
            products(&plain.products),
            products(&kiln.products),
            plain.attention,
            kiln.attention,
        );
    }
    out + "\n"
}

fn quantized(rows: &[Row]) -> String {
    let mut out = String::from(
        "## INT8, FP8 and INT4\n\n\
         Kernels, megabytes, microseconds on paper on an L4, and products of kiln's engines. *not:* counts quantized layers that multiply in another type.\n\n\
         | model | FP16 | INT8 | | FP8 | | INT4 | |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = write!(
            out,
            "| {} | {} |",
            row.name,
            short(row.at("sm_89", Kind::Fp16))
        );
        for kind in [Kind::Int8, Kind::Fp8, Kind::Int4] {
            let made = row.at("sm_89", kind);
            let what = match made {
                Some(Outcome::Built(f)) if f.otherwise.is_empty() => products(&f.products),
                Some(Outcome::Built(f)) => {
                    format!("{}; *not:* {}", products(&f.products), f.otherwise.len())
                }
                _ => String::new(),
            };
            let _ = write!(out, " {} | {what} |", short(made));
        }
        out += "\n";
    }
    out + "\n"
}

/// Kernels, bytes and microseconds on paper, or what went wrong.
fn short(made: Option<&Outcome>) -> String {
    match made {
        None => "not run".into(),
        Some(Outcome::Failed(why)) => format!("failed: {}", why.replace('|', " ")),
        Some(Outcome::Built(f)) => {
            let price = f.prices.get(CARDS[0].0).copied();
            let price = price.map_or("?".into(), microseconds);
            format!("{}, {}, {price}", f.kernels, megabytes(f.bytes))
        }
    }
}

fn notes(rows: &[Row], absent: &BTreeMap<String, String>) -> String {
    let mut out = String::from("## sm_120\n\n");
    let (mut same, mut different) = (0, Vec::new());
    for row in rows {
        let Some(engines) = row.model.engines.get("sm_120") else {
            continue;
        };
        for (kind, made) in engines {
            match row.at("sm_89", *kind) == Some(made) {
                true => same += 1,
                false => different.push(format!(
                    "{} {kind:?}: {} (sm_89: {})",
                    row.name,
                    short(Some(made)),
                    short(row.at("sm_89", *kind))
                )),
            }
        }
    }
    let _ = writeln!(
        out,
        "Of {} engines that were built for sm_120, too, {same} have the same kernels, bytes and products as for sm_89. The others:\n",
        same + different.len()
    );
    different.iter().for_each(|d| out += &format!("- {d}\n"));
    out += "\n## Plain files that are not the converter's\n\n";
    for row in rows {
        if let Some(why) = row.facts(Kind::Plain).and_then(|f| f.note.as_ref()) {
            let _ = writeln!(out, "- {}: {why}", row.name);
        }
    }
    if !absent.is_empty() {
        out += "\n## Not run\n\n";
        absent
            .iter()
            .for_each(|(name, command)| out += &format!("- {name}: `{command}` gets it\n"));
    }
    out
}

fn products(all: &BTreeMap<String, usize>) -> String {
    let each = all.iter().map(|(types, n)| format!("{n} {types}"));
    each.collect::<Vec<_>>().join(", ")
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or("?".into(), |b| format!("{:.3}", b as f64 / 1e6))
}

fn microseconds(t: f64) -> String {
    format!("{t:.1}")
}

fn change(ratio: f64) -> String {
    match ratio > 1.0 {
        true => format!("**{:+.0} %**", (ratio - 1.0) * 100.0),
        false => format!("{:+.0} %", (ratio - 1.0) * 100.0),
    }
}
