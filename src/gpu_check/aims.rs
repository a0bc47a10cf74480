//! Whether what was measured of BERT-base reaches what is aimed at, and where its time goes if not.

use serde::{Deserialize, Serialize};

use super::record::{Record, Row};
use crate::engine::card::{self, Format};
use kiln_passes::targets::cuda_forms::FORMS;

/// The model that the aims are of.
pub(super) const MODEL: &str = "bert-base";

/// FP16's latency, as a part of FP32's without TF32.
const OF_FP32: f64 = 0.5;

/// FP16's latency, as a multiple of torch.compile's.
const OF_COMPILED: f64 = 1.0;

/// FP16's latency, as a multiple of the least that the card's datasheet allows.
const OF_ROOF: f64 = 3.0;

/// The least cosine of any FP16 output.
const COSINE: f64 = 0.9999;

/// One aim, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    pub aim: String,
    /// `null` where it was not measured.
    pub found: Option<f64>,
    pub bound: f64,
    pub pass: Option<bool>,
    /// What held it back, or why it was not measured.
    pub why: Option<String>,
}

/// The aims, by what is in a record.
pub fn aims(record: &Record) -> Vec<Aim> {
    Measured(record).aims()
}

struct Measured<'a>(&'a Record);

impl Measured<'_> {
    fn aims(&self) -> Vec<Aim> {
        let row = |runner: &str, precision: &str| {
            let mut rows = self.0.rows.iter().filter(|r| r.model == MODEL);
            rows.find(|r| r.runner.contains(runner) && r.precision == precision)
        };
        let ms = |row: Option<&Row>| row.and_then(|r| r.p50_ms);
        let own = row("kiln, ONNX Runtime", "fp16");
        let half = self.fastest(ms(own));
        let full = ms(row("TF32 off", "fp32"));
        let compiled = ms(row("torch.compile", "fp16"));
        let roof = self.roof(own);
        let ratio = |to: Option<f64>| Some(half? / to?);
        let cosine = own.and_then(|r| r.parity.as_ref()?.cosine);
        vec![
            self.most(
                "FP16's latency of FP32's without TF32",
                OF_FP32,
                ratio(full),
            ),
            self.most(
                "FP16's latency of torch.compile's",
                OF_COMPILED,
                ratio(compiled),
            ),
            self.most("FP16's latency of the roofline's", OF_ROOF, ratio(roof)),
            self.judged("FP16's least cosine", COSINE, cosine, |found| {
                found >= COSINE
            }),
        ]
    }

    /// The latency of the file that `--target cuda` writes: replayed as a CUDA graph, as torch.compile's is, where that was faster.
    fn fastest(&self, plain: Option<f64>) -> Option<f64> {
        let mut forms = self
            .0
            .forms
            .iter()
            .filter(|f| f.model == MODEL && f.is_right());
        let graph = forms.find(|f| f.graph && f.form == FORMS[0].name);
        let replayed = graph.and_then(|f| f.p50_ms);
        plain.into_iter().chain(replayed).min_by(f64::total_cmp)
    }

    /// The least time by the card's datasheet, in milliseconds.
    fn roof(&self, row: Option<&Row>) -> Option<f64> {
        let card = card::find(self.0.gpu.as_deref()?)?;
        card.limit_ms(row?.work.as_ref()?, Format::Fp16)
    }

    fn most(&self, aim: &str, bound: f64, found: Option<f64>) -> Aim {
        self.judged(aim, bound, found, |found| found <= bound)
    }

    fn judged(
        &self,
        aim: &str,
        bound: f64,
        found: Option<f64>,
        holds: impl Fn(f64) -> bool,
    ) -> Aim {
        let pass = found.map(holds);
        let profile = self.0.profiles.iter().find(|p| p.model == MODEL);
        let why = match pass {
            Some(true) => None,
            Some(false) => profile.map(|p| format!("its time: {}", p.told())),
            None => Some("not measured".to_string()),
        };
        Aim {
            aim: aim.into(),
            found,
            bound,
            pass,
            why,
        }
    }
}

/// A header and rows.
pub fn table(aims: &[Aim]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec!["aim, BERT-base", "bound", "found", "", "why"];
    let number = |v: f64| match (0.99..1.0).contains(&v) {
        true => format!("{v:.6}"),
        false => format!("{v:.2}"),
    };
    let row = |a: &Aim| {
        let word = match a.pass {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "not run",
        };
        vec![
            a.aim.clone(),
            number(a.bound),
            a.found.map_or(String::new(), number),
            word.into(),
            a.why.clone().unwrap_or_default(),
        ]
    };
    (header, aims.iter().map(row).collect())
}
