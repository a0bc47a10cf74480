//! A compilation that a gate stopped, for people.

use maud::html;

use super::check::parity_cases;
use super::junit::{Case, Outcome};
use super::page::{self, Head, Tone, Verdict};
use super::target::Document;
use super::verdict::parity_verdict;
use super::{markdown_table, parity_rows};
use crate::compile::{CompileError, Options};
use crate::parity::{Report, doubts, verdict};
use crate::recipe::Recipe;

/// What was asked for, and why there is no bundle.
#[derive(Debug)]
pub struct Page<'a> {
    options: &'a Options,
    why: String,
    parity: Option<&'a Report>,
}

impl<'a> Page<'a> {
    /// Of an error that is a gate's.
    pub fn new(options: &'a Options, error: &'a CompileError) -> Page<'a> {
        Page {
            options,
            why: crate::bundle::public(&error.to_string()).into_owned(),
            parity: match error {
                CompileError::NotTheSame { parity, .. } => Some(parity),
                _ => None,
            },
        }
    }
}

/// The same for machines.
#[derive(serde::Serialize)]
struct Data<'a> {
    kiln: &'static str,
    failed: &'a str,
    recipe: &'a Recipe,
    parity: Option<&'a Report>,
}

impl Document for Page<'_> {
    fn suite(&self) -> &'static str {
        "compile"
    }

    fn cases(&self) -> Vec<Case> {
        match self.parity {
            Some(parity) => parity_cases(parity),
            None => vec![Case {
                name: "gate".into(),
                group: "compile".into(),
                outcome: Outcome::Fail(self.why.clone()),
                details: String::new(),
                seconds: 0.0,
            }],
        }
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Data {
            kiln: env!("CARGO_PKG_VERSION"),
            failed: &self.why,
            recipe: &self.options.recipe,
            parity: self.parity,
        })
    }

    fn markdown(&self) -> String {
        let mut out = format!("# kiln compile: ❌ FAILS\n\n**{}**\n", self.why);
        if let Some(parity) = self.parity {
            let (header, rows) = parity_rows(parity);
            out += &format!("\n{}\n{}\n", markdown_table(&header, rows), verdict(parity));
            for doubt in doubts(parity) {
                out += &format!("\n{doubt}\n");
            }
        }
        out
    }

    fn html(&self) -> String {
        let o = self.options;
        let verdicts = match self.parity {
            Some(parity) => vec![parity_verdict("parity with the original", parity)],
            None => vec![Verdict {
                what: "gate",
                word: "fails".into(),
                why: self.why.clone(),
                tone: Tone::Bad,
            }],
        };
        let head = Head {
            kind: "compilation that failed",
            title: o
                .model
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            paths: vec![("original", o.model.display().to_string())],
            verdicts,
            facts: vec![("precision", o.precision.to_string())],
        };
        let why = html! { p { strong { (self.why) } } };
        let mut sections = vec![("Why there is no bundle", why)];
        if let Some(parity) = self.parity {
            let (header, rows) = parity_rows(parity);
            let table = html! {
                @for doubt in doubts(parity) { p { (doubt) } }
                (page::table(&header, &rows))
            };
            sections.push(("Parity", table));
        }
        page::page(&head, &sections)
    }
}
